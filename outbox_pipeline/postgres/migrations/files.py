"""The numbered `.sql` files and what is agreed about running them, for every tool that does: Alembic and Django.

Imports no driver and no migration tool. Invariant: a database's version is the number of the last file it ran, in one
table whoever ran it, and one tool migrates a database at a time.
"""

from functools import cache
from importlib.resources import files

#: In the schema `outbox`, as Alembic makes it: one row with one number.
VERSION_TABLE = "schema_version"
#: "outbox", for pg_advisory_xact_lock.
LOCK_KEY = 0x6F7574626F78


def known_versions() -> list[str]:
    """Return the numbers of all files, in order."""
    return [name.partition("_")[0] for name in file_names()]


@cache
def file_names() -> list[str]:
    """Return the names of all files, in the order they run."""
    folder = files("outbox_pipeline.postgres.migrations").joinpath("sql")
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))


def script(name: str) -> str:
    """Return the statements of the file *name*."""
    return files("outbox_pipeline.postgres.migrations").joinpath("sql", name).read_text(encoding="utf-8")
