"""Which versions of ClickHouse this package works with: those it was run on, from the oldest of them on."""

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.errors import ConfigurationError

#: The oldest version on which the tests run.
OLDEST = (25, 8)


def require_version(client: EventLogClient) -> None:
    """Raise ConfigurationError where the server is older than what the tests run on."""
    problem = version_problem(str(client.driver.server_version), client.where)
    if problem is not None:
        raise ConfigurationError(problem)


def version_problem(version: str, where: str) -> str | None:
    """Return the sentence for a server of a version that is too old, None for any other."""
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found >= OLDEST:
        return None
    oldest = ".".join(map(str, OLDEST))
    return f"{where} has version {version}, which is too old: update the server to {oldest} or later."
