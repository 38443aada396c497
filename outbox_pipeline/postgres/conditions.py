"""What the ledger must be before it is relied on: this cluster's own, readable whole, its sequence never set back.

Invariant: nothing is cut, delivered or pruned where a condition does not hold that it rests on; the sentence of each
says what to do.
"""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, select

from outbox_pipeline.batches import LedgerIdentity
from outbox_pipeline.errors import LedgerError
from outbox_pipeline.postgres import cut
from outbox_pipeline.postgres.errors import hidden_sentence
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.quoting import quoted_name
from outbox_pipeline.postgres.tables import unclaimed


@dataclass(frozen=True)
class LedgerConditions:
    """What the ledger found about itself, its cluster and its table.

    `unclaimed` are the unclaimed positions that one cut looks at: the first `stretch_count` stretches and the open
    end. `begun_on` is the ledger's first day (UTC). `has_former`: some of the unclaimed positions were in a batch
    that was split. `has_elsewhere`: ids are kept of events that another instance delivered. `is_own_database`: of
    the cluster's identity all but the timeline is right, so its files are this server's or copies of them.
    """

    unclaimed: str
    stretch_count: int
    ledger_id: UUID
    last_cut_number: int
    witness_floor: int
    begun_on: date
    open_numbers: list[int]
    has_former: bool
    has_elsewhere: bool
    is_own_cluster: bool
    is_own_database: bool
    can_read_sequence: bool
    last_drawn: int
    last_known: int
    bytes_an_event: int | None
    sequence_cache: int
    identity_kind: str
    table_kind: str
    has_children: bool
    is_subscribed: bool
    role_name: str
    hidden_tables: list[str]

    @property
    def may_have_gone_back(self) -> bool:
        """True when the sequence stands too low, or was set by whatever copied the rows from another server."""
        return not self.is_own_database or self.last_drawn < self.last_known

    def first_day(self, start_date: date) -> date:
        """Return the day that no event counts before: OUTBOX_START_DATE, or the ledger's first if that is earlier."""
        return min(start_date, self.begun_on)

    @property
    def identity(self) -> LedgerIdentity:
        """Which ledger this is."""
        return LedgerIdentity(self.ledger_id, self.witness_floor, tuple(self.open_numbers), self.has_elsewhere)


def read_conditions(connection: Connection) -> LedgerConditions:
    """Read the unclaimed set and everything its meaning depends on. Changes nothing."""
    found = connection.execute(query("ledger_conditions"), {"max_stretches": cut.MAX_UNCLAIMED_STRETCHES})
    return LedgerConditions(**found.one()._mapping)


def require_sound(conditions: LedgerConditions) -> None:
    """Raise LedgerError naming the first condition of the ledger that does not hold."""
    problem = ledger_problem(conditions)
    if problem is not None:
        raise LedgerError(problem)


def require_own_cluster(connection: Connection) -> LedgerIdentity:
    """Return which ledger this is.

    Raises LedgerError where an attempt must not begin: the old instance may deliver it too, or rows are hidden.
    """
    conditions = read_conditions(connection)
    if not conditions.is_own_cluster or conditions.hidden_tables:
        require_sound(conditions)
    return conditions.identity


def read_begun_on(connection: Connection) -> date:
    """Return the ledger's first day (UTC) and nothing of its conditions."""
    begun_on: date = connection.execute(select(unclaimed.c.begun_on)).scalar_one()
    return begun_on


def read_ledger_id(connection: Connection) -> UUID:
    """Return the ledger's id and nothing of its conditions."""
    ledger_id: UUID = connection.execute(select(unclaimed.c.ledger_id)).scalar_one()
    return ledger_id


def ledger_problem(conditions: LedgerConditions) -> str | None:
    """Return the sentence for the first condition that does not hold, None when the ledger is sound."""
    if not conditions.is_own_cluster:
        return (
            "This ledger belongs to another cluster, database or timeline (a restore, a clone or a failover): the "
            "old instance may have delivered the same events. Nothing is cut or delivered here until you stop the old "
            "instance for good and run 'outbox adopt' on this one."
        )
    if conditions.hidden_tables:
        return hidden_sentence(conditions.role_name, conditions.hidden_tables)
    if not conditions.can_read_sequence:
        return (
            "This role cannot read the sequence of outbox.event, so it cannot tell which positions exist: "
            f"GRANT SELECT ON SEQUENCE outbox.event_position_seq TO {quoted_name(conditions.role_name)}; as the owner "
            "of outbox.event."
        )
    if conditions.last_drawn < conditions.last_known:
        return (
            f"The sequence of outbox.event stands at {conditions.last_drawn}, below position {conditions.last_known} "
            "that the ledger knows, so new events hide in old batches. Run 'outbox reconcile --repair', which sets it "
            "forward and has those that were published meanwhile delivered."
        )
    if conditions.identity_kind != "a" or conditions.sequence_cache != 1:
        return (
            "outbox.event.position must be GENERATED ALWAYS AS IDENTITY with CACHE 1: ALTER TABLE outbox.event "
            "ALTER COLUMN position SET GENERATED ALWAYS SET CACHE 1; as the owner of outbox.event."
        )
    if conditions.table_kind != "r" or conditions.has_children:
        return "outbox.event must be one plain table: partitions and inheritance hide who still inserts."
    if conditions.is_subscribed:
        return "outbox.event is fed by logical replication, which hides who still inserts: publish into it directly."
    return None
