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


def prepare_dagster_home(home: Path) -> Path:
    """Make `<home>/dagster` with this version's `dagster.yaml` and return it, absolute, as DAGSTER_HOME must be."""
    private_home(home)
    folder = home.absolute() / "dagster"
    folder.mkdir(exist_ok=True)
    instance_file = folder / "dagster.yaml"
    packaged = files("outbox_pipeline.orchestration").joinpath("dagster.yaml").read_text(encoding="utf-8")
    if not instance_file.exists() or instance_file.read_text(encoding="utf-8") != packaged:
        instance_file.write_text(packaged, encoding="utf-8")
    return folder
