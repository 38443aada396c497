"""One event's life: its stations, which batch took it, and its rows in ClickHouse or why there are none."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.engine import RowMapping

from outbox_pipeline.clickhouse.client import EventLogClient, clickhouse_client
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.monitoring.stations import Station, in_order, read_stations, run_url, runs_url
from outbox_pipeline.postgres.elsewhere import read_elsewhere
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import find_batch
from outbox_pipeline.postgres.overview import read_context, read_event_life
from outbox_pipeline.postgres.quarantine import read_history
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.quarantined import Filter, QuarantinedEvent
from outbox_pipeline.settings import Settings

_ROWS = (
    "SELECT event_type, batch_id, generation, position, loaded_at FROM {table:Identifier}"
    " WHERE source = {source:String}"
)

# The table is ordered by type and time: with both an event is found in one granule, without them by reading all ids.
_BY_KEY = (
    f"{_ROWS} AND event_type = {{event_type:String}}"
    " AND event_date_time = fromUnixTimestamp64Micro({event_micros:Int64}, 'UTC') AND event_id = {event_id:UUID}"
    " ORDER BY loaded_at LIMIT 100"
)
_BY_ID = f"{_ROWS} AND event_id = {{event_id:UUID}} ORDER BY loaded_at LIMIT 100"

_CONTEXT = (
    "SELECT event_context FROM {table:Identifier} WHERE source = {source:String}"
    " AND event_type = {event_type:String} AND event_id = {event_id:UUID} LIMIT 1"
)

#: What became for good of an event that validation refused.
_SETTLED = {
    "discarded": "Validation refused it and somebody discarded it; it will not be delivered.",
    "replaced": "Validation refused it and a corrected event was published in its place; it will not be delivered.",
}


@dataclass(frozen=True)
class TracedRow:
    """One row of the event in ClickHouse."""

    event_type: str
    batch_id: UUID
    generation: int
    position: int
    loaded_at: datetime


@dataclass(frozen=True)
class TracedBatch:
    """The batch that carries the event, as the ledger has it."""

    batch_id: UUID
    status: str
    attempt: int
    generation: int
    run_id: str | None
    processed_at: datetime | None
    last_error: str | None
    run_url: str | None = None
    runs_url: str | None = None


@dataclass(frozen=True)
class TracedEvent:
    """The event as the outbox holds it; `published_by` is None for one from before that was noted."""

    event_type: str
    environment: str
    event_date_time: str
    recorded_at: datetime
    published_by: str | None
    position: int


@dataclass(frozen=True)
class Trace:
    """Everything both sides know about one event id.

    `status` is the ledger's word (pending, in_flight, parked, processed, held, discarded, replaced), `gone` for an
    event that only ClickHouse has, `unknown` for one that neither side has. `rows` is None when ClickHouse was not
    asked, `context` when the event's content was not asked for, or neither side has it. `stations` are in order of
    time, with links into Dagster's UI where OUTBOX_DAGSTER_UI_URL says where that is.
    """

    event_id: UUID
    status: str
    explanation: str
    event: TracedEvent | None = None
    batch: TracedBatch | None = None
    reasons: list[str] = field(default_factory=list)
    rows: list[TracedRow] | None = None
    stations: list[Station] = field(default_factory=list)
    context: str | None = None

    @property
    def is_known(self) -> bool:
        """True when at least one side has the event."""
        return self.status != "unknown"


def trace_event(engine: Engine, settings: Settings, event_id: UUID, *, with_context: bool = False) -> Trace:
    """Return the life of an event, and its content on demand only.

    PostgreSQL must answer; without ClickHouse the trace says so instead of showing rows.
    """
    found = _trace(engine, settings, event_id)
    return replace(found, context=_read_context(engine, settings, found)) if with_context else found


def _read_context(engine: Engine, settings: Settings, found: Trace) -> str | None:
    with ledger_transaction(engine) as connection:
        context = read_context(connection, found.event_id)
    if context is not None or not found.rows:
        return context
    with clickhouse_client(settings) as client:
        rows = client.rows(_CONTEXT, {"event_type": found.rows[0].event_type, "event_id": str(found.event_id)})
    return rows[0]["event_context"] if rows else None


def _trace(engine: Engine, settings: Settings, event_id: UUID) -> Trace:
    with ledger_transaction(engine) as connection:
        check_version(connection)
        life = read_event_life(connection, event_id)
        batch_id = life["batch_id"] if life is not None else None
        stations = read_stations(connection, event_id, batch_id, ui_url=settings.dagster_ui_url)
        stays = read_history(connection, Filter(event_ids=frozenset({event_id})))
    try:
        with clickhouse_client(settings) as client:
            rows: list[TracedRow] | None = _rows(client, event_id, life)
            unasked = ""
    except OutboxError as error:
        rows, unasked = None, str(error)
    stations = in_order([*stations, *(_loaded(row) for row in rows or [])])
    if life is None:
        found = _without_event(engine, settings, event_id, rows=rows) if rows else _settled(event_id, stays, rows)
        return replace(found or _unknown(event_id, rows, unasked), stations=stations)
    batch = _batch({**life, "status": life["batch_status"]}, settings.dagster_ui_url) if batch_id else None
    explanation = unasked if rows is None else _explain(life, batch, rows)
    return Trace(event_id, life["status"], explanation, _event(life), batch, list(life["reasons"]), rows, stations)


def _loaded(row: TracedRow) -> Station:
    return Station(row.loaded_at, f"row in ClickHouse, generation {row.generation}", row.batch_id)


def _rows(client: EventLogClient, event_id: UUID, life: RowMapping | None) -> list[TracedRow]:
    wanted: dict[str, Any] = {"event_id": str(event_id)}
    # Published again, it may have another type or time than the row that another instance delivered.
    if life is None or life["event_micros"] is None or life["elsewhere"] is not None:
        found = client.rows(_BY_ID, wanted)
    else:
        key = {"event_type": life["event_type"], "event_micros": life["event_micros"]}
        found = client.rows(_BY_KEY, wanted | key)
    # The driver hands times of a UTC column over without their zone.
    return [TracedRow(**row | {"loaded_at": row["loaded_at"].replace(tzinfo=UTC)}) for row in found]


def _without_event(engine: Engine, settings: Settings, event_id: UUID, *, rows: list[TracedRow]) -> Trace:
    with ledger_transaction(engine) as connection:
        found = find_batch(connection, rows[0].batch_id)
        kept = read_elsewhere(connection, event_id)
    if kept is not None:
        said = (
            "The outbox does not hold this event: another instance of this ledger delivered it, as was learned when "
            f"this one was adopted on {kept[1]:%Y-%m-%d}."
        )
        return Trace(event_id, "gone", said, rows=rows)
    if found is None:
        said = "The outbox does not hold this event, and the ledger does not know its batch: another database sent it."
        return Trace(event_id, "gone", said, rows=rows)
    batch = _batch(vars(found), settings.dagster_ui_url)
    said = "The outbox no longer holds this event: its row was deleted."
    if found.pruned_at is not None:
        said = f"Delivered and proved; its row in PostgreSQL was pruned on {found.pruned_at:%Y-%m-%d}."
    return Trace(event_id, "gone", said, None, batch, rows=rows)


def _settled(event_id: UUID, stays: list[QuarantinedEvent], rows: list[TracedRow] | None) -> Trace | None:
    """Return what quarantine still knows of an event whose row was pruned after it was given up."""
    if not stays or stays[-1].status not in _SETTLED:
        return None
    latest = stays[-1]
    said = f"{_SETTLED[latest.status]} Its row in PostgreSQL was pruned."
    return Trace(event_id, latest.status, said, reasons=list(latest.reasons), rows=rows)


def _unknown(event_id: UUID, rows: list[TracedRow] | None, unasked: str) -> Trace:
    said = "The outbox holds no event with this id"
    if rows is None:
        return Trace(event_id, "unknown", f"{said}. {unasked}", rows=None)
    return Trace(event_id, "unknown", f"{said}, and neither does ClickHouse.", rows=rows)


def _event(life: RowMapping) -> TracedEvent:
    return TracedEvent(**{name: life[name] for name in TracedEvent.__dataclass_fields__})


def _batch(batch: Mapping[str, Any], ui_url: str | None) -> TracedBatch:
    links = {"run_url": run_url(ui_url, batch["run_id"]), "runs_url": runs_url(ui_url, batch["batch_id"])}
    names = TracedBatch.__dataclass_fields__.keys() - links.keys()
    return TracedBatch(**{name: batch[name] for name in names} | links)


def _explain(life: RowMapping, batch: TracedBatch | None, rows: list[TracedRow]) -> str:
    if life["elsewhere"] is not None and any(row.batch_id == life["elsewhere"] for row in rows):
        return _explain_repeated(life, rows)
    if rows:
        return _explain_rows(life, rows)
    match life["status"]:
        case "processed":
            return (
                "ClickHouse had it when its batch was marked and has no row of it now: run 'outbox reconcile --repair'."
            )
        case "held":
            return "Validation refused it; it is held until somebody requeues, replaces or discards it."
        case "discarded" | "replaced" as settled:
            return _SETTLED[settled]
        case "parked":
            return f"Its batch is parked: {_error(batch)} Fix the cause, then run 'outbox resume'."
        case "pending":
            return _explain_pending(life)
        case _:
            return f"Its batch is on the way. {_error(batch)}".strip()


def _explain_repeated(life: RowMapping, rows: list[TracedRow]) -> str:
    said = f"Another instance of this ledger delivered it in batch {life['elsewhere']}"
    if life["status"] == "processed":
        return f"{said}, and it was delivered here as well: ClickHouse has {counted(len(rows), 'row')} of it."
    said += ", and it was published here again"
    if life["status"] == "held":
        return f"{said}: it is held, so that it is not delivered twice, until somebody discards it."
    if life["status"] in _SETTLED:
        return f"{said} and {life['status']}; ClickHouse has it once."
    return f"{said}: it will be held, so that it is not delivered twice."


def _explain_rows(life: RowMapping, rows: list[TracedRow]) -> str:
    if len(rows) > 1:
        return f"ClickHouse has {len(rows)} rows of this event instead of one."
    if life["status"] == "processed":
        return "Delivered and proved."
    return "ClickHouse has its row; the batch is not proved and marked yet."


def _explain_pending(life: RowMapping) -> str:
    if life["is_unclaimed"]:
        return "It waits for the next batch to be cut."
    if life["gap_id"] is not None:
        return "It committed after later events had been cut, and joins the next batch."
    return "The ledger has lost sight of its position: 'outbox reconcile --repair' puts it back."


def _error(batch: TracedBatch | None) -> str:
    if batch is None or batch.last_error is None:
        return ""
    return f"{batch.last_error.rstrip('.')}."
