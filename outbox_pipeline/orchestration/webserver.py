"""Dagster's webserver behind the door: `python -m outbox_pipeline.orchestration.webserver` takes its options.

Invariant: no request reaches Dagster's application but through the door. Dagster's command has no place for a
middleware, so what it makes its application with is replaced; where a later Dagster has no such function, nothing
starts.
"""

import sys
from typing import Any

from outbox_pipeline.errors import SettingsError
from outbox_pipeline.orchestration.host.door import Door
from outbox_pipeline.settings import load_settings


def guard(cli: Any, *, hosts: tuple[str, ...]) -> None:
    """Let Dagster's command *cli*, a module, serve its application behind a door that *hosts* are names of."""
    create_application = cli.create_app_from_workspace_process_context

    def create_guarded(context: Any, path_prefix: str = "", *rest: Any, **options: Any) -> Door:
        return Door(create_application(context, path_prefix, *rest, **options), hosts=hosts, path_prefix=path_prefix)

    cli.create_app_from_workspace_process_context = create_guarded


def main() -> None:
    """Run Dagster's command behind the door; a wrong setting is one sentence and exit code 2."""
    try:
        hosts = load_settings().ui_hosts or ()
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None

    from dagster_webserver import cli

    guard(cli, hosts=hosts)
    cli.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
