"""Other ways to bring events from PostgreSQL to ClickHouse, as their users write them, for `side_by_side`.

Each reads what a round has published, from `outbox.event` itself or from a status table with the same events, and
writes a table of its own in ClickHouse with the DDL of our event log, its fsync settings included. Where there was a
choice the faster one was taken: contexts in status tables are text, so nobody parses them, and rows are picked without
FOR UPDATE SKIP LOCKED.
"""

from datetime import datetime
from uuid import UUID

import pandas as pd
from sqlalchemy import BigInteger, DateTime, Text, Uuid, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox_pipeline.stores import Stores

#: What ClickHouse needs beside its usual rights to read PostgreSQL itself.
NATIVE_GRANTS = ("READ ON POSTGRES",)

_FRAME_ROWS = 100_000
_LOOP_ROWS = 1_000

_COLUMNS = [
    *("position", "event_id", "event_type", "event_date_time", "environment"),
    *("event_context", "metadata_version", "recorded_at"),
]

# PostgreSQL's session time zone would shift a timestamptz on its way into ClickHouse, hence timezone('UTC', …).
_NATIVE = """
INSERT INTO native_log (event_type, event_date_time, environment, event_context, metadata_version, event_id, batch_id,
    generation, position, recorded_at, trace_context)
SELECT event_type, event_date_time, environment, event_context, metadata_version, event_id,
    toUUID('00000000-0000-0000-0000-000000000001'), 0, position, recorded_at, ifNull(trace_context, '')
FROM postgresql({address:String}, {database:String}, (
    SELECT position, event_id, event_type, timezone('UTC', event_date_time) AS event_date_time, environment,
        event_context, metadata_version, timezone('UTC', recorded_at) AS recorded_at, trace_context
    FROM outbox.event WHERE position > %d AND position <= %d
), 'postgres', '')
"""

_STATUS_TABLE = """
CREATE TABLE {name} (
    position bigint PRIMARY KEY, event_id uuid NOT NULL UNIQUE, event_type text NOT NULL,
    event_date_time timestamptz NOT NULL, environment text NOT NULL, event_context text NOT NULL,
    metadata_version bigint NOT NULL, recorded_at timestamptz NOT NULL,
    status text NOT NULL DEFAULT 'pending', processed_at timestamptz
);
CREATE INDEX ON {name} (position) WHERE status = 'pending'
"""


class Base(DeclarativeBase):
    """The loop's mapped classes."""


class LoopEvent(Base):
    """An event with a status, as an application's ORM sees it."""

    __tablename__ = "status_loop"

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    event_id: Mapped[UUID] = mapped_column(Uuid)
    event_type: Mapped[str] = mapped_column(Text)
    event_date_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    environment: Mapped[str] = mapped_column(Text)
    event_context: Mapped[str] = mapped_column(Text)
    metadata_version: Mapped[int] = mapped_column(BigInteger)
    recorded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    status: Mapped[str] = mapped_column(Text)


def create_tables(stores: Stores) -> None:
    """Create the status tables and the tables in ClickHouse."""
    with stores.engine.begin() as connection:
        for name in ("status_frames", "status_loop"):
            connection.execute(text(_STATUS_TABLE.format(name=name)))
    for name in ("native_log", "frames_log", "loop_log"):
        stores.client.run(f"CREATE TABLE {name} AS {stores.client.table}")


def fill_status_table(stores: Stores, name: str, *, after: int, until: int) -> None:
    """Copy published events into a status table, all of them pending."""
    columns = ", ".join(_COLUMNS)
    statement = text(
        f"INSERT INTO {name} ({columns}) SELECT {columns} FROM outbox.event"  # noqa: S608 - names of this module
        " WHERE position > :after AND position <= :until ORDER BY position"
    )
    with stores.engine.begin() as connection:
        connection.execute(statement, {"after": after, "until": until})


def copy_natively(stores: Stores, *, after: int, until: int) -> None:
    """Let ClickHouse read the events from PostgreSQL by itself: what the two engines can do at best."""
    url = stores.engine.url
    folder = url.query["host"]
    stores.client.run(_NATIVE % (after, until), {"address": f"{folder}:5432", "database": url.database})


def deliver_frames(stores: Stores) -> None:
    """Read pending rows into pandas, insert the frame, mark it with one UPDATE; 100,000 rows at a time."""
    pick = text(
        f"SELECT {', '.join(_COLUMNS)} FROM status_frames"  # noqa: S608 - names of this module
        f" WHERE status = 'pending' ORDER BY position LIMIT {_FRAME_ROWS}"
    )
    # Not by the range of positions: what committed in between would be marked and never delivered.
    mark = text("UPDATE status_frames SET status = 'processed', processed_at = now() WHERE position = ANY(:positions)")
    while True:
        with stores.engine.begin() as connection:
            frame = pd.read_sql(pick, connection)
            if frame.empty:
                return
            stores.client.driver.insert_df("frames_log", frame)
            connection.execute(mark, {"positions": frame["position"].tolist()})


def deliver_loop(stores: Stores) -> None:
    """Read 1,000 objects, insert them, set the status of each, commit; again until none is pending."""
    pick = select(LoopEvent).where(LoopEvent.status == "pending").order_by(LoopEvent.position).limit(_LOOP_ROWS)
    with Session(stores.engine) as session:
        while events := session.scalars(pick).all():
            rows = [[getattr(event, name) for name in _COLUMNS] for event in events]
            stores.client.driver.insert("loop_log", rows, column_names=_COLUMNS)
            for event in events:
                event.status = "processed"
            session.commit()
