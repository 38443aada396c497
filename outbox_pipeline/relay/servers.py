"""Notice two servers behind one name: a load balancer in front of servers that do not share the log.

Each server tells its own name with every answer. Invariant: a batch whose attempt was answered by several is marked
only when no answer of theirs lacks its rows, and its generation rises only when the server that took an insert shows
other rows; rows that another server does not have are no reason to send the batch again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.logs import log

_REMEDY = (
    "write the address of one of them into OUTBOX_CLICKHOUSE_URL, or let the load balancer lead all requests to one "
    "(sticky sessions)."
)

#: Looks until each server has answered, each over a connection of its own. One of two that are drawn at random is
#: missed by all of them once in a thousand times.
_MAX_LOOKS = 10


def shown_by_all(client: EventLogClient, look: Callable[[], bool], *, taken_by: str | None) -> bool:
    """Return what *look* says of a batch's rows, where several servers have answered this attempt, of all of them.

    *taken_by* is the server that took the insert, None where it is not known. Raises ConfigurationError, which names
    the servers, when one has rows that another has not.
    """
    is_shown = look()
    if len(client.servers) < 2 or client.answered_by is None:
        return is_shown
    shown = {client.answered_by: is_shown}
    for _ in range(_MAX_LOOKS):
        if client.servers <= shown.keys():
            break
        log().warning("looked_again", servers=sorted(client.servers), is_shown=is_shown)
        client.reconnect()
        is_shown = look()
        shown[client.answered_by or ""] = is_shown
    if all(shown.values()):
        return True
    if any(shown.values()) or (taken_by is not None and taken_by not in shown):
        raise ConfigurationError(_sentence(client))
    return False


@contextmanager
def naming_servers(client: EventLogClient) -> Iterator[None]:
    """Where several servers have answered this attempt, say so in place of what one of them lacks."""
    try:
        yield
    except ConfigurationError as error:
        if len(client.servers) < 2:
            raise
        told = ConfigurationError(_sentence(client))
        # What a server answered counts all the same.
        told.answer = error.answer
        raise told from None


def several_problem(client: EventLogClient) -> str | None:
    """Look who answers, some times over connections of their own; say so when it is not always the same server."""
    for _ in range(_MAX_LOOKS):
        client.reconnect()
        client.rows("SELECT 1")
    if len(client.servers) < 2:
        return None
    return f"{client.where} leads to {_listed(client)}, and a log can be on one server only: {_REMEDY}"


def _sentence(client: EventLogClient) -> str:
    return f"{client.where} leads to {_listed(client)}, and they do not share table {client.table}: {_REMEDY}"


def _listed(client: EventLogClient) -> str:
    return f"{len(client.servers)} servers ({', '.join(sorted(client.servers))}) that answer in turn"
