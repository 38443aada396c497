"""The stations of one event on its way, each with the place in Dagster's UI that shows more.

Nothing here asks ClickHouse or changes a row. A batch remembers its latest run; earlier ones are found in the UI by
the tag that every run of a batch carries.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.engine import RowMapping

from outbox_pipeline.batches import BATCH_ID_TAG
from outbox_pipeline.postgres.overview import read_batch_times, read_former_batches, read_recorded_at
from outbox_pipeline.postgres.quarantine import read_history, read_replaced
from outbox_pipeline.quarantined import Filter, QuarantinedEvent


@dataclass(frozen=True)
class Station:
    """What happened to an event, when, and where the UI shows it; the links are None without a UI.

    `run_url` is the run that did it, `runs_url` the list of all runs of its batch.
    """

    at: datetime
    what: str
    batch_id: UUID | None = None
    run_id: str | None = None
    run_url: str | None = None
    runs_url: str | None = None


def read_stations(
    connection: Connection, event_id: UUID, batch_id: UUID | None, *, ui_url: str | None
) -> list[Station]:
    """Return what the ledger knows of an event's way, first to last; *batch_id* is the batch it is in now."""
    stays = read_history(connection, Filter(event_ids=frozenset({event_id})))
    batch_ids = {stay.batch_id for stay in stays} | ({batch_id} if batch_id else set())
    batch_ids |= set(read_former_batches(connection, event_id))
    batches = {row["batch_id"]: row for row in read_batch_times(connection, batch_ids)}
    left_at = {stay.batch_id: stay.quarantined_at for stay in stays}
    stations = [*_recorded(connection, event_id)]
    for found in batches.values():
        stations += _of_batch(found, ui_url, left_at.get(found["batch_id"]))
    for stay in stays:
        stations += _of_stay(stay, batches.get(stay.batch_id), ui_url)
    return in_order(stations)


def in_order(stations: Iterable[Station]) -> list[Station]:
    """Return stations by time; those of one moment stay as they were."""
    return sorted(stations, key=lambda station: station.at)


def run_url(ui_url: str | None, run_id: str | None) -> str | None:
    """Return the address of a run's page, None without a UI or a run."""
    return f"{ui_url.rstrip('/')}/runs/{run_id}" if ui_url and run_id else None


def runs_url(ui_url: str | None, batch_id: UUID) -> str | None:
    """Return the address of the list of all runs of a batch, None without a UI."""
    wanted = quote(f"tag:{BATCH_ID_TAG}={batch_id}", safe="")
    return f"{ui_url.rstrip('/')}/runs?q%5B0%5D={wanted}" if ui_url else None


def _recorded(connection: Connection, event_id: UUID) -> Iterator[Station]:
    recorded_at = read_recorded_at(connection, event_id)
    original = read_replaced(connection, event_id)
    if recorded_at is not None:
        yield Station(recorded_at, f"recorded in place of {original}" if original else "recorded in the outbox")


def _of_batch(found: RowMapping, ui_url: str | None, left_at: datetime | None) -> Iterator[Station]:
    batch_id = found["batch_id"]
    links = _links(batch_id, found, ui_url)
    yield Station(found["cut_at"], f"cut into batch {batch_id}", batch_id, runs_url=links[2])
    # The ledger keeps the times of a batch's latest attempt, a repair for instance.
    is_behind = left_at is not None and found["started_at"] is not None and found["started_at"] > left_at
    without = f" of batch {batch_id}, which the event had left," if is_behind else ""
    if found["started_at"] is not None:
        yield Station(found["started_at"], f"attempt {found['attempt']}{without} started", batch_id, *links)
    if found["split_at"] is not None:
        said = "batch split, because ClickHouse lacked the memory for it; the event is pending again"
        yield Station(found["split_at"], said, batch_id, *links)
    elif found["processed_at"] is not None:
        said = f"batch proved and marked processed{', without the event' if is_behind else ''}"
        yield Station(found["processed_at"], said, batch_id, *links)


def _of_stay(stay: QuarantinedEvent, found: RowMapping | None, ui_url: str | None) -> Iterator[Station]:
    links = _links(stay.batch_id, found, ui_url)
    yield Station(stay.quarantined_at, f"held in quarantine: {', '.join(stay.reasons)}", stay.batch_id, *links)
    if stay.resolved_at is not None:
        by = f" by {stay.replaced_by}" if stay.replaced_by else ""
        yield Station(stay.resolved_at, f"{stay.status}{by}" + (f": {stay.note}" if stay.note else ""))


def _links(batch_id: UUID, found: RowMapping | None, ui_url: str | None) -> tuple[str | None, str | None, str | None]:
    run_id = found["run_id"] if found else None
    return run_id, run_url(ui_url, run_id), runs_url(ui_url, batch_id)
