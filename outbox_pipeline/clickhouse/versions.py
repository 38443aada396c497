"""Which versions of ClickHouse this package works with: those it was run on, from the oldest of them on."""

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.errors import ConfigurationError

#: A server's version: its first two numbers.
Version = tuple[int, ...]

#: The oldest version on which the tests run.
OLDEST: Version = (25, 8)


def version_of(text: str) -> Version:
    """Return a server's version for comparison, of `26.9.2.1` the numbers 26 and 9."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def require_version(client: EventLogClient) -> None:
    """Raise ConfigurationError where the server is older than what the tests run on."""
    problem = old_server_problem(str(client.driver.server_version), client.where)
    if problem is not None:
        raise ConfigurationError(problem)


def old_server_problem(version: str, where: str) -> str | None:
    """Return the sentence for a server of a version that is too old, None for any other."""
    if version_of(version) >= OLDEST:
        return None
    oldest = ".".join(map(str, OLDEST))
    return f"{where} has version {version}, which is too old: update the server to {oldest} or later."
