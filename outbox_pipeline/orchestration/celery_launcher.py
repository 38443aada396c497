"""Dagster's run launcher for Celery, whose broker and result backend may lie in files as other secrets do.

Named in `deploy/dagster/celery.yaml`: `env: OUTBOX_CELERY_BROKER` there means the file of OUTBOX_CELERY_BROKER_FILE
too. Everything else is dagster-celery's.
"""

from typing import Any

import dagster as dg
from dagster._config import UserConfigSchema
from dagster_celery.launcher import CeleryRunLauncher as OfDagster

from outbox_pipeline.orchestration.host.url_source import UrlSource


class CeleryRunLauncher(OfDagster):
    """`dagster_celery.launcher.CeleryRunLauncher`, configured like it."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return what may be configured: all that is for Dagster's own, both URLs from files too."""
        theirs: Any = super().config_type()
        # Where the file names none, Dagster's default counts, which `outbox worker` and `outbox doctor` refuse.
        backend = dg.Field(UrlSource(), is_required=False, default_value="rpc://")
        return {**theirs, "broker": dg.Field(UrlSource(), is_required=False), "backend": backend}
