"""The columns of an event, once for every store: what each is called, what kind of value it has and who fills it.

Each store says in one place how it holds a kind: ClickHouse's types are in `clickhouse.table`, Arrow's here, and the
numbered `.sql` files create PostgreSQL's. A new column begins here; `integration/test_event_schema.py` then names every
list that lacks it. `context_bytes` and `published_by` are PostgreSQL's own and never leave it.

Imports nothing, so that every floor may use it; Arrow is loaded where a table is made.
"""

from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

#: A `name` is a text of few different values, a `count` a number of 32 bits, a `number` one of 64.
Kind = Literal["name", "text", "json", "number", "count", "uuid", "time"]


class FilledBy(Enum):
    """Who fills a column."""

    APPLICATION = "the application that publishes the event"
    OUTBOX = "PostgreSQL, when the event is inserted"
    DELIVERY = "the delivery, for all events of a batch"
    CLIENT = "the client of ClickHouse, for all rows of an insert"
    EVENT_LOG = "ClickHouse, when the row is inserted"


class EventColumn(NamedTuple):
    """One column of an event.

    `may_be_missing` tells whether an event can be without a value, `since` with which version of the proof a batch is
    sent with it: one that was frozen before does without for ever.
    """

    name: str
    kind: Kind
    filled_by: FilledBy
    may_be_missing: bool = False
    since: int = 1


#: The version of the proof with which batches are frozen, and the latest that this release can read.
PROOF_VERSION = 2

#: In the order of ClickHouse's table.
EVENT_COLUMNS = (
    EventColumn("event_type", "name", FilledBy.APPLICATION),
    EventColumn("event_date_time", "time", FilledBy.APPLICATION),
    EventColumn("environment", "name", FilledBy.APPLICATION),
    EventColumn("event_context", "json", FilledBy.APPLICATION),
    EventColumn("metadata_version", "number", FilledBy.APPLICATION),
    EventColumn("event_id", "uuid", FilledBy.APPLICATION),
    EventColumn("batch_id", "uuid", FilledBy.DELIVERY),
    EventColumn("generation", "count", FilledBy.DELIVERY),
    EventColumn("position", "number", FilledBy.OUTBOX),
    EventColumn("recorded_at", "time", FilledBy.OUTBOX),
    EventColumn("trace_context", "text", FilledBy.APPLICATION, may_be_missing=True),
    EventColumn("loaded_at", "time", FilledBy.EVENT_LOG),
    EventColumn("source", "name", FilledBy.CLIENT),
)

#: What an application publishes.
PUBLISHED = tuple(column for column in EVENT_COLUMNS if column.filled_by is FilledBy.APPLICATION)
#: What a batch is read with from the outbox, and judged by.
EXTRACTED = tuple(column for column in EVENT_COLUMNS if column.filled_by in (FilledBy.APPLICATION, FilledBy.OUTBOX))
#: What is sent to ClickHouse for each row.
SENT = tuple(column for column in EVENT_COLUMNS if column.filled_by not in (FilledBy.CLIENT, FilledBy.EVENT_LOG))


def sent_columns(version: int) -> tuple[EventColumn, ...]:
    """Return what a batch that was frozen with this version of the proof is sent with."""
    return tuple(column for column in SENT if column.since <= version)


def proved_columns(version: int) -> tuple[EventColumn, ...]:
    """Return the columns whose values this version of the proof ties to their rows, that is to the event's id.

    What is the same for all events of a batch needs none: it is named where the rows are asked for.
    """
    if version == 1:
        return ()
    of_an_event = (column for column in sent_columns(version) if column.filled_by is not FilledBy.DELIVERY)
    return tuple(column for column in of_an_event if column.name != "event_id")


def arrow_schema() -> "pa.Schema":
    """Return the Arrow schema of an extracted batch."""
    import pyarrow as pa

    types = {
        "name": pa.string(),
        "text": pa.string(),
        "json": pa.string(),
        "number": pa.int64(),
        "uuid": pa.binary(16),
        "time": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([(column.name, types[column.kind]) for column in EXTRACTED])
