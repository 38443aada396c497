"""The numbered `.sql` files and what is agreed about running them, for every tool that does: Alembic and Django.

Imports no driver and no migration tool. Invariant: a database's version is the number of the last file it ran, in one
table whatever ran it, and one tool migrates a database at a time. A file only adds (docs/architecture.md), so a release
runs on its own version and on the next.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from outbox_pipeline.errors import ConfigurationError

#: In the schema `outbox`, as Alembic makes it: one row with one number.
VERSION_TABLE = "schema_version"
#: "outbox", for pg_advisory_xact_lock.
LOCK_KEY = 0x6F7574626F78
#: Longest a migration waits for that lock, and for each lock on a table, behind which every writer would wait too.
LOCK_SECONDS = 60
LOCK_NOT_AVAILABLE = "55P03"
DEADLOCK_DETECTED = "40P01"

#: Bounds the rest of the transaction where no limit is set; the parameter is in milliseconds.
LIMIT_WAITS = "SELECT set_config('lock_timeout', {limit}, true) WHERE current_setting('lock_timeout') = '0'"
#: Which sessions hold the lock: of a key of 64 bits PostgreSQL shows the halves.
LOCK_HOLDERS = f"""
SELECT activity.pid, activity.usename, activity.application_name
FROM pg_locks AS lock JOIN pg_stat_activity AS activity USING (pid)
WHERE lock.locktype = 'advisory' AND lock.granted
  AND lock.classid = {LOCK_KEY >> 32} AND lock.objid = {LOCK_KEY & 0xFFFFFFFF} AND lock.objsubid = 1
  AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY activity.pid
"""  # noqa: S608 - constants


def known_versions() -> list[str]:
    """Return the numbers of all files, in order."""
    return [name.partition("_")[0] for name in file_names()]


def versions_run_on() -> tuple[str, str]:
    """Return the two versions that this release runs on: that of its last file, and the next."""
    own = known_versions()[-1]
    return own, f"{int(own) + 1:04d}"


def require_not_newer(found: str) -> None:
    """Raise ConfigurationError when a database has a version that this release neither migrates nor runs on."""
    own, following = versions_run_on()
    if found not in (*known_versions(), following):
        raise ConfigurationError(
            f"The outbox schema has version {found}, newer than this code, which runs on {own} and {following}: "
            "update outbox-pipeline."
        )


@cache
def file_names() -> list[str]:
    """Return the names of all files, in the order they run."""
    folder = files("outbox_pipeline.postgres.migrations").joinpath("sql")
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))


def waited_sentence(holders: Sequence[tuple[int, str, str]]) -> str:
    """Say that a migration did not get a lock in time, what may hold it, and what to do."""
    if not holders:
        return (
            "A table of schema outbox was locked by another session for too long, and nothing was migrated: find it in "
            "pg_locks, let it end, and repeat."
        )
    named = ", ".join(
        f"pid {pid} (user {user}, application {application or '–'})" for pid, user, application in holders
    )
    return (
        f"The lock for migrations of schema outbox is held by {named}, and nothing was migrated: when that is another "
        "'outbox init' or 'manage.py migrate' wait until it ends, otherwise end it with pg_terminate_backend, and "
        "repeat."
    )


def script(name: str) -> str:
    """Return the statements of the file *name*."""
    return files("outbox_pipeline.postgres.migrations").joinpath("sql", name).read_text(encoding="utf-8")
