"""Dagster's home folder: the packaged `dagster.yaml`, where Dagster looks for it."""

from importlib.resources import files
from pathlib import Path

from outbox_pipeline.folders import private_home

#: Location name in `workspace.yaml`, the UI, and in every run key: never change it.
LOCATION_NAME = "outbox_pipeline"
DEFINITIONS_MODULE = "outbox_pipeline.orchestration.definitions"
CODE_SERVER_MODULE = "outbox_pipeline.orchestration.code_server"
TABLES_MODULE = "outbox_pipeline.orchestration.host.tables"
WEBSERVER_MODULE = "outbox_pipeline.orchestration.webserver"
WORKER_MODULE = "outbox_pipeline.orchestration.celery_worker"


def instance_text(*, on_celery: bool = False) -> str:
    """Return this version's `dagster.yaml`, whose runs are the code server's processes or tasks of Celery."""
    packaged = files("outbox_pipeline.orchestration")
    names = ["dagster.yaml", "celery.yaml"] if on_celery else ["dagster.yaml"]
    return "".join(packaged.joinpath(name).read_text(encoding="utf-8") for name in names)


def prepare_dagster_home(home: Path, text: str | None = None) -> Path:
    """Make `<home>/dagster` with a `dagster.yaml` and return it, absolute, as DAGSTER_HOME must be.

    *text* is what the file says, by default that of `instance_text`.
    """
    private_home(home)
    folder = home.absolute() / "dagster"
    folder.mkdir(exist_ok=True)
    instance_file = folder / "dagster.yaml"
    wanted = instance_text() if text is None else text
    if not instance_file.exists() or instance_file.read_text(encoding="utf-8") != wanted:
        instance_file.write_text(wanted, encoding="utf-8")
    return folder
