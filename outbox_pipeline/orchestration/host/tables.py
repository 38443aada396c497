"""Make Dagster's own tables, or bring them up to date: `python -m outbox_pipeline.orchestration.host.tables`.

A process of its own, before those that use them: three that make them at once get in each other's way.
"""

from dagster import DagsterInstance

if __name__ == "__main__":
    DagsterInstance.get().dispose()
