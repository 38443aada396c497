"""Look whether the log can be moved, and what that takes, before anything is changed."""

from dataclasses import dataclass
from uuid import UUID

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.account import hidden_rows_problem
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.log_move.rows import Shown, survey
from outbox_pipeline.clickhouse.log_move.shape import (
    Shape,
    free_bytes,
    moved_engine,
    policies_of,
    shape_of,
    shape_problem,
    shapes_from,
)
from outbox_pipeline.clickhouse.log_move.tables import prefix_of_before, prefix_of_moving
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres import log_move as ledger
from outbox_pipeline.postgres.conditions import require_own_cluster
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import known_bounds
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.lost_log import require_log
from outbox_pipeline.relay.witness import require_own_log
from outbox_pipeline.stores import Stores

#: Room that merges of the new table take beside it.
_MERGES = 0.2


@dataclass(frozen=True)
class Plan:
    """What a move would do.

    `is_moved`: the log has the current sorting key already. `is_begun`: an earlier run has made the new table, with
    `copied_rows` so far. `unknown_*`: under batch ids that the ledger does not know. `needed_bytes` on ClickHouse's
    disk, of which `free_bytes` are free, None where this user may not see it. `views`, `policies`: what stands on the
    log's table and stays with its name; `policies` None where this user may not see them. `before`: tables that were
    the log's before earlier moves.
    """

    table: str
    is_moved: bool
    is_begun: bool = False
    row_count: int = 0
    batch_count: int = 0
    unknown_rows: int = 0
    unknown_batches: int = 0
    copied_rows: int = 0
    needed_bytes: int = 0
    free_bytes: int | None = None
    views: tuple[str, ...] = ()
    policies: tuple[str, ...] | None = None
    before: tuple[str, ...] = ()


def plan_move(stores: Stores) -> Plan:
    """Look at the log and return what a move would do; changes nothing.

    Raises ConfigurationError when something of the log cannot be moved, the log is another outbox's, a right is missing
    or the disk is too small, and what `require_ready` raises.
    """
    require_ready(stores)
    client = stores.client
    log, moving = read_log_shape(client), shapes_from(client, prefix_of_moving(client))
    before = tuple(shape.name for shape in shapes_from(client, prefix_of_before(client)).values())
    if log.has_key_of_today:
        return Plan(client.table, is_moved=True, is_begun=bool(moving), before=before)
    require_movable(client, log)
    rows = survey(client, client.table)
    require_no_parked(stores, rows)
    unknown = _unknown(stores, rows)
    copied = max(moving.values(), key=lambda shape: shape.rows, default=None)
    return Plan(
        client.table,
        is_moved=False,
        is_begun=copied is not None,
        row_count=sum(shown.row_count for shown in rows.values()),
        batch_count=len(rows),
        unknown_rows=sum(rows[batch_id].row_count for batch_id in unknown),
        unknown_batches=len(unknown),
        copied_rows=copied.rows if copied else 0,
        needed_bytes=int(log.bytes * (1 + _MERGES)) - (copied.bytes if copied else 0),
        free_bytes=free_bytes(client),
        views=log.views,
        policies=_policies(client),
        before=before,
    )


def require_ready(stores: Stores) -> None:
    """Raise unless both sides are as they must be and the log is this ledger's, whole for this user.

    Raises ConfigurationError, LedgerError, WitnessError or TransientError, each with the way on.
    """
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
        require_own_cluster(connection)
        if not ledger.may_move(connection):
            raise ConfigurationError(
                "This role may not move the log (UPDATE on outbox.log_move): run 'outbox log move' with an "
                "OUTBOX_POSTGRES_URL of the role that runs 'outbox init'."
            )
    require_log(stores.engine, stores.client)
    require_own_log(stores)
    hidden = hidden_rows_problem(stores.client)
    if hidden is not None:
        raise ConfigurationError(f"{hidden} A copy would lack them.")


def read_log_shape(client: EventLogClient) -> Shape:
    """Return what the log's table is."""
    shape = shape_of(client, client.table)
    assert shape is not None, "require_log has seen it"
    return shape


def require_movable(client: EventLogClient, log: Shape) -> None:
    """Raise ConfigurationError when something of the log's table cannot be taken along."""
    problem = shape_problem(client, log)
    if problem is not None:
        raise ConfigurationError(problem)
    moved_engine(log)


def require_room(plan: Plan) -> None:
    """Raise ConfigurationError where ClickHouse's disk has less free than the new table takes."""
    if plan.free_bytes is not None and plan.free_bytes < plan.needed_bytes:
        raise ConfigurationError(
            f"The new table of {plan.table} needs about {megabytes(plan.needed_bytes)}, and ClickHouse's disk has "
            f"{megabytes(plan.free_bytes)} free: free or add space, then repeat this."
        )


def require_no_parked(stores: Stores, rows: dict[UUID, Shown]) -> None:
    """Raise ConfigurationError where a parked batch has rows in the log: only a person lets it go on."""
    with ledger_transaction(stores.engine) as connection:
        found = [each for each in ledger.read_open(connection) if each.batch_id in rows]
    parked = [each for each in found if each.status == BatchStatus.PARKED]
    if parked:
        raise ConfigurationError(
            f"Batch {parked[0].batch_id} is parked and has rows in the log ({len(parked)} such), and a new table "
            "forgets the tokens that keep them from being doubled: see 'outbox status' for its error, 'outbox resume' "
            "it, and repeat this when it is delivered."
        )


def megabytes(count: int) -> str:
    """Return a size as people read it."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _unknown(stores: Stores, rows: dict[UUID, Shown]) -> list[UUID]:
    with ledger_transaction(stores.engine) as connection:
        known = known_bounds(connection, list(rows))
    return [batch_id for batch_id in rows if batch_id not in known]


def _policies(client: EventLogClient) -> tuple[str, ...] | None:
    found = policies_of(client, client.table)
    return None if found is None else tuple(found)
