"""The gate of the hot path: what it sends, reads, calls and holds, in figures that are the same on every machine.

A figure that has become better is written down here; one that has become worse needs a reason.
"""

import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from outbox_pipeline.clickhouse.client import require_answer
from outbox_pipeline.relay.attempts import request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.known_bytes import require_known_bytes
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.relay.witness import ask_seen
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.costs import arrow_bytes, count_calls, event_rows_read, peaks_of_relay, python_bytes, traffic
from tests.fixtures.events import publish, publish_sized

#: PostgreSQL statements and ClickHouse requests of each step of a first attempt, whatever the size of the batch. Each
#: transaction has one statement of its own (the guard); load is the witness's row, the look at it and, in PostgreSQL,
#: whether its numbers are known, then the insert and the proof. The bulk read's has two, and
#: its first connection is asked which types it knows. Start asks ClickHouse whose the table is, in every attempt,
#: because another outbox may take it while a relay runs for weeks.
_TRAFFIC = {
    "cut": (9, 0),
    "request": (3, 0),
    "start": (3, 1),
    "extract": (6, 0),
    "validate": (6, 0),
    "load": (4, 4),
    "mark": (4, 0),
}
#: One of them is the ledger's id, to be compared with the table's owner, and one which of the newest cuts are known.
_IDLE_TICK_STATEMENTS = 15
#: The first time the driver sends three of its own to open a client, which is kept.
_ANSWER_REQUESTS = (4, 1)
#: Which tables there are, which migrations are on record, whose the table is, and which cuts are the newest.
_LOG_REQUESTS = 4

_STEPS = ("extract", "validate", "load", "mark")

#: Rows between two marks of the event log: what ClickHouse reads at least.
_GRANULE = 8_192

#: Calls by which two deliveries differ although they do the same: answers that arrive in more pieces than another
#: time, characters to be quoted in an id. A thing done for each event would be 4,900.
_CALLS_SLACK = 100
_CALLS_PER_PAGE = 30

_needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


@pytest.fixture
def patient(stores: Stores) -> Stores:
    """The stores with leases that are not renewed in the middle of a measurement, however busy the machine.

    The table is this ledger's from before: to claim it is done once in its life. So is the row of known bytes sent:
    it is once in a process.
    """
    claim_table(stores)
    require_known_bytes(stores)
    return replace(stores, settings=stores.settings.model_copy(update={"lease_seconds": 600}))


@pytest.fixture
def typed(patient: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """The stores with a model for the events that `publish` makes."""
    model = "from outbox_pipeline import Event\n\n\nclass OrderPlaced(Event):\n    n: int\n"
    (tmp_path / "hot_path_models.py").write_text(model, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return replace(patient, settings=patient.settings.model_copy(update={"event_modules": ("hot_path_models",)}))


@pytest.fixture
def grown(patient: Stores) -> Stores:
    """Stores that have delivered 40,000 events, and 1,000 new ones."""
    settings = patient.settings.model_copy(update={"batch_max_events": 10_000})
    publish(patient.engine, 40_000)
    relay(replace(patient, settings=settings), until_empty=True)
    publish(patient.engine, 1_000)
    with patient.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) outbox.event"))
    return patient


def traffic_of_a_batch(stores: Stores) -> dict[str, tuple[int, int]]:
    """Deliver what is pending in one batch and return what each step sent to both sides."""
    counts = {}
    with traffic(stores.engine) as sent:
        cut_batches(stores.engine, stores.settings, limit=1)
        counts["cut"] = sent.counts()
        (request,) = request_batches(stores.engine, stores.settings, limit=1)
        counts["request"] = sent.counts()
        delivery = start_requested(stores, request.batch_id, request.attempt)
        counts["start"] = sent.counts()
        for step in _STEPS:
            getattr(delivery, step)()
            counts[step] = sent.counts()
    return counts


def calls_of_a_batch(stores: Stores, count: int) -> int:
    """Deliver *count* events in one batch and return how many calls this thread's Python made."""
    publish(stores.engine, count)
    delivery = start(stores)
    return sum(count_calls(getattr(delivery, step)).total() for step in _STEPS)


@pytest.mark.parametrize("count", [10, 5_000])
def test_statements_do_not_depend_on_the_size_of_a_batch(patient: Stores, count: int) -> None:
    """Each step sends the same few statements and requests for ten events and for thousands."""
    publish(patient.engine, count)

    assert traffic_of_a_batch(patient) == _TRAFFIC


def test_a_tick_with_nothing_to_do_sends_little(patient: Stores) -> None:
    """Looking whether there is anything costs a fixed number of statements, also with batches in the ledger."""
    publish(patient.engine, 30)
    relay(replace(patient, settings=patient.settings.model_copy(update={"batch_max_events": 10})), until_empty=True)

    with traffic(patient.engine) as sent:
        for most in _ANSWER_REQUESTS:
            require_answer(patient.settings)
            _, requests = sent.counts()
            assert requests <= most
        seen = ask_seen(patient.engine, patient.settings)
        assert sent.counts() == (0, _LOG_REQUESTS)
        plan_tick(patient.engine, patient.settings, days=(date.min, date.max), seen=seen)

    assert sent.counts() == (_IDLE_TICK_STATEMENTS, 0)


def test_postgres_reads_each_event_of_a_batch_twice_and_no_other(grown: Stores) -> None:
    """The cut reads a batch's events once and extract once more; the 40,000 before them are not touched."""
    before = event_rows_read(grown.engine)

    delivery = start(grown)
    delivery.prepare()
    prepared = event_rows_read(grown.engine)
    delivery.finish()

    assert prepared - before == 2_000
    assert event_rows_read(grown.engine) == prepared


def test_the_proof_reads_the_granules_of_its_batch(grown: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one part with everything delivered before, the proof of 1,000 rows reads the two granules they can be in."""
    driver = grown.client.driver
    asked: list[tuple[str, dict[str, Any]]] = []
    query = driver.query

    def record(statement: str, parameters: dict[str, Any]) -> Any:
        asked.append((statement, parameters))
        return query(statement, parameters=parameters)

    monkeypatch.setattr(driver, "query", record)
    start(grown).finish()
    grown.client.run("OPTIMIZE TABLE {table:Identifier} FINAL")
    _, (statement, parameters) = asked
    estimate = query(f"EXPLAIN ESTIMATE {statement}", parameters=parameters).named_results()

    assert sum(part["rows"] for part in estimate) <= 2 * _GRANULE


def test_the_events_are_not_copied_on_their_way(patient: Stores) -> None:
    """No step allocates as much as the contexts of the batch are, but the load, which makes the request's body."""
    publish(patient.engine, 100)
    start(patient).finish()  # what is imported when it is used
    publish_sized(patient.engine, 20_000)
    delivery = start(patient)
    arrow: dict[str, int] = {}
    python: dict[str, int] = {}
    with traffic(patient.engine) as sent:
        for step in _STEPS:
            python[step], arrow[step] = both_peaks(getattr(delivery, step))
    contexts = contexts_bytes(patient)

    # What remains are columns of 8 or 16 bytes for an event of 300. A copy of the contexts would be 1.
    assert {step: size for step, size in arrow.items() if size > contexts / 4} == {}
    # The Arrow file as it is written, and the driver's bytes made of it. The rest is a few KB.
    assert python.pop("load") < 2.1 * max(sent.requests)
    assert {step: size for step, size in python.items() if size > contexts / 4} == {}


def test_the_events_are_not_kept_while_clickhouse_loads_them(patient: Stores) -> None:
    """Once a batch is encoded nothing holds its events, so that the next one has the memory."""
    publish(patient.engine, 100)
    delivery = start(patient)
    delivery.extract()
    events = weakref.ref(delivery._events)
    held: dict[Point, bool] = {}
    end = listen(lambda point: held.update({point: events() is not None}))
    try:
        delivery.finish()
    finally:
        end()

    assert held[Point.SENDING] is False


def contexts_bytes(stores: Stores) -> int:
    """Return how many bytes the contexts of the only large batch are."""
    with stores.engine.connect() as connection:
        return int(connection.scalar(text("SELECT max(context_bytes) FROM outbox.batch")) or 0)


def both_peaks(work: Callable[[], object]) -> tuple[int, int]:
    """Return the most bytes that Python and that Arrow had allocated at once during *work*."""
    python: list[int] = []
    arrow = arrow_bytes(lambda: python.append(python_bytes(work)))
    return python[0], arrow


def test_no_python_runs_for_an_event(patient: Stores) -> None:
    """Delivering 5,000 events makes as many calls as delivering 100."""
    calls_of_a_batch(patient, 100)  # what is made once and kept

    few, many = (calls_of_a_batch(patient, count) for count in (100, 5_000))

    assert abs(many - few) <= _CALLS_SLACK


def test_models_are_asked_page_by_page(typed: Stores) -> None:
    """With a model, 49 pages of 100 events more cost a few calls each and none for an event."""
    calls_of_a_batch(typed, 100)

    few, many = (calls_of_a_batch(typed, count) for count in (100, 5_000))

    assert many - few <= 49 * _CALLS_PER_PAGE + _CALLS_SLACK


@_needs_proc
def test_a_large_batch_fits_in_memory(patient: Stores) -> None:
    """An event of 300 bytes costs a process less than 2,000: with its 170 MB, 200,000 stay below 600 MB."""
    publish_sized(patient.engine, 60_000)

    before, peak = peaks_of_relay(patient.settings)

    # 104 MB, of which libraries that load when they are used are 40. A copy of the events more would be 23.
    assert peak - before < 60_000 * 2_000


@_needs_proc
def test_a_backlog_needs_no_more_memory(patient: Stores) -> None:
    """The second half of 16 batches needs no more than the first, in which two have been in memory at once."""
    publish_sized(patient.engine, 160_000)

    _, *peaks = peaks_of_relay(patient.settings.model_copy(update={"batch_max_events": 10_000}))

    # Eight batches that stay would be 30 MB. Which steps of two batches coincide is chance: 6 MB in twelve runs.
    assert len(peaks) == 16
    assert peaks[-1] - peaks[7] < 15_000_000
