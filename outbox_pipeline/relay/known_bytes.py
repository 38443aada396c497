"""Known bytes first: what is proved of the way to ClickHouse before events are sent over it, or held because of it.

Invariant: a process sends no event over a connection before a row of known bytes has come back from there as it was
sent; and no event is held as refused by ClickHouse unless such a row was taken right before.
"""

from typing import Any
from uuid import UUID
from weakref import WeakSet

from outbox_pipeline.clickhouse.known_bytes import known_bytes_problem
from outbox_pipeline.clickhouse.versions import require_version
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.conditions import read_ledger_id
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.relay.servers import naming_servers
from outbox_pipeline.stores import Stores

#: The connections over which the row has come back.
_proved: WeakSet[Any] = WeakSet()


def require_known_bytes(stores: Stores, ledger_id: UUID | None = None) -> None:
    """Do `send_known_bytes` unless it was done over this connection; the ledger's id is read where it is not given."""
    if stores.client.driver in _proved:
        return
    if ledger_id is None:
        with ledger_transaction(stores.engine) as connection:
            ledger_id = read_ledger_id(connection)
    send_known_bytes(stores, ledger_id)
    _proved.add(stores.client.driver)


def send_known_bytes(stores: Stores, ledger_id: UUID) -> None:
    """Send a row of known bytes as events are sent, into a table of its own, and read it back.

    Raises ConfigurationError when the server is too old, refuses the row or shows another one, or the event log is not
    this ledger's.
    """
    require_version(stores.client)
    with naming_servers(stores.client):
        problem = known_bytes_problem(stores.client, ledger_id)
        announce(Point.KNOWN_BYTES_SENT)
        if problem is not None:
            raise ConfigurationError(problem)
