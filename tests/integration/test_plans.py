"""Query plans of the hot path: no statement scans the event table, however fragmented the ledger is."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.event import listen, remove

from outbox_pipeline.postgres.elsewhere import FIRST, prune_elsewhere
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.postgres.retention import old_batches, oldest_kept
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.settings import Settings
from tests.fixtures.events import publish, publish_in
from tests.fixtures.moves import by_hand, move_by_hand
from tests.fixtures.plans import explained, nodes, rows_read, touched_of

_PROCESSED = (
    "UPDATE outbox.batch SET status = 'processed', processed_at = now(), proved_at = now(), accepted_count = 2000,"
    " rejected = '{}', proof = '{}'"
)
_PRUNED_LEDGER = """
INSERT INTO outbox.batch (batch_id, positions, first_position, last_position, recorded_on, event_count, context_bytes,
    oldest_recorded_at, status, rejected, proof, accepted_count, processed_at, proved_at, pruned_at)
SELECT gen_random_uuid(), int8multirange(int8range(n, n + 1)), n, n, '2026-01-01', 1, 1, '2026-01-01', 'processed',
    '{}', '{}', 1, '2026-01-01', '2026-01-01', CASE WHEN n % 2000 > 0 THEN now() END
FROM generate_series(1, 20000) AS n
"""


@pytest.mark.parametrize(("statement", "readings"), [("pick_events", 2), ("pick_part", 1)])
def test_picking_events_probes_only_unclaimed_stretches(fragmented: Engine, statement: str, readings: int) -> None:
    """A cut under 2,000 stretches reads about as many rows as it picks, the quick one their positions once more."""
    with fragmented.begin() as connection:
        unclaimed = connection.scalar(text("SELECT positions::text FROM outbox.unclaimed"))
        kinds, touched = rows_read(
            connection,
            query_text(statement),
            {"unclaimed": unclaimed, "max_events": 200_000, "max_bytes": 64_000_000, "first_day": "2026-01-01"},
        )

    assert kinds <= {"Index Scan", "Index Only Scan"}
    assert touched <= 2_100 * readings


@pytest.mark.parametrize(("statement", "readings"), [("pick_events", 2), ("pick_part", 1)])
def test_picking_events_stops_when_it_has_enough(fragmented: Engine, statement: str, readings: int) -> None:
    """A cut of 100 events under 2,000 stretches probes the first hundred."""
    with fragmented.begin() as connection:
        unclaimed = connection.scalar(text("SELECT positions::text FROM outbox.unclaimed"))
        parameters = {"unclaimed": unclaimed, "max_events": 100, "max_bytes": 64_000_000, "first_day": "2026-01-01"}
        _, touched = rows_read(connection, query_text(statement), parameters)

    assert touched <= 150 * readings


def test_reading_the_conditions_hands_out_a_bounded_part(fragmented: Engine) -> None:
    """Of 2,000 unclaimed stretches a cut is given the first 100 and the open end, without a look at the events."""
    with fragmented.begin() as connection:
        found = connection.execute(text(query_text("ledger_conditions")), {"max_stretches": 100}).one()
        kinds, _ = rows_read(connection, query_text("ledger_conditions"), {"max_stretches": 100})

    assert found.stretch_count == 100
    assert found.unclaimed.count("[") == 101
    assert found.unclaimed.endswith("[60001,)}")
    assert kinds == set()


def test_extracting_a_fragmented_batch_probes_its_stretches(fragmented: Engine) -> None:
    """Reading a batch of 2,000 stretches reads its rows and not the table."""
    with fragmented.begin() as connection:
        connection.execute(text("SELECT set_config('outbox.batch_id', batch_id::text, true) FROM outbox.batch"))
        kinds, touched = rows_read(connection, query_text("extract_events"), {})

    assert kinds == {"Index Scan"}
    assert touched <= 2_100


def test_settling_gaps_probes_only_the_gaps(fragmented: Engine) -> None:
    """Looking again at a gap of 2,000 stretches reads only what has become visible in it."""
    with fragmented.begin() as connection:
        gap_id = connection.scalar(
            text(
                "INSERT INTO outbox.gap (positions, holders) SELECT range_agg(int8range(n, n + 1)), '{9/9}'"
                " FROM generate_series(7, 60000, 30) AS n RETURNING gap_id"
            )
        )
        kinds, touched = rows_read(
            connection,
            query_text("settle_gaps"),
            {
                "gap_ids": [gap_id],
                "holding": [],
                "prepared": [],
                "max_stretches": 20_000,
                "max_events": 100_000,
                "stretches_a_gap": 2_000,
            },
        )

    assert kinds <= {"Index Scan", "Index Only Scan"}
    assert touched <= 2_100


@pytest.mark.parametrize(
    ("portion", "bound"), [({"max_stretches": 100}, 200), ({"max_events": 100}, 250)], ids=["stretches", "events"]
)
def test_settling_gaps_stops_after_a_portion(fragmented: Engine, portion: dict[str, int], bound: int) -> None:
    """However much is due, one statement probes so many stretches and reads so many events."""
    given = {"max_stretches": 20_000, "max_events": 100_000, "stretches_a_gap": 500, **portion}
    with fragmented.begin() as connection:
        rows = connection.execute(
            text(
                "INSERT INTO outbox.gap (positions, holders) SELECT range_agg(int8range(n, n + 1)), '{9/9}'"
                " FROM generate_series(7, 60000, 30) AS n GROUP BY n / 6000 RETURNING gap_id"
            )
        )
        gap_ids = list(rows.scalars())
        parameters = {"gap_ids": gap_ids, "holding": [], "prepared": [], **given}
        _, touched = rows_read(connection, query_text("settle_gaps"), parameters)

    assert touched <= bound


@pytest.mark.parametrize("name", ["status", "metrics"])
def test_gaps_whose_holders_are_all_there_are_not_probed(fragmented: Engine, name: str) -> None:
    """Lag and status ask for events where somebody may have committed, not in every gap of an open transaction."""
    parameters = {"limit": 1_000_000, "max_stretches": 20_000, "quantiles": [0.5]}
    insert = text(
        "INSERT INTO outbox.gap (positions, holders)"
        " SELECT range_agg(int8range(n, n + 1)), ARRAY(SELECT DISTINCT virtualtransaction FROM pg_locks"
        "  WHERE relation = 'outbox.event'::regclass AND mode = 'RowExclusiveLock')"
        " FROM generate_series(7, 60000, 30) AS n"
    )
    with fragmented.connect() as open_for_long, fragmented.connect() as connection:
        publish_in(open_for_long)
        connection.execute(text("UPDATE outbox.unclaimed SET positions = '{[60001,)}'"))
        connection.execute(insert)
        _, held = rows_read(connection, query_text(name), parameters)
        open_for_long.rollback()
        _, due = rows_read(connection, query_text(name), parameters)

    assert held <= 10
    assert due >= 2_000


def test_no_statement_of_a_tick_scans_the_events_or_the_ledger(fragmented: Engine) -> None:
    """A tick that cuts and one that does not, among 20,000 batches: events and batches are read by indexes."""
    move_by_hand(fragmented, _PROCESSED)
    move_by_hand(fragmented, _PRUNED_LEDGER.replace("n, n + 1)", "-n, 1 - n)").replace("n, n, '2026", "-n, -n, '2026"))
    with fragmented.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE outbox.batch"))
    plans: list[dict[str, Any]] = []

    def explain(connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        driver: Any = connection.connection
        with driver.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])

    with fragmented.connect() as slow:
        publish_in(slow)
        publish(fragmented)
        listen(fragmented, "before_cursor_execute", explain)
        first = plan_tick(fragmented, Settings(), days=(date.min, date.max))
        slow.rollback()
        second = plan_tick(fragmented, Settings(), days=(date.min, date.max))
        remove(fragmented, "before_cursor_execute", explain)

    scanned = {node["Relation Name"] for plan in plans for node in nodes(plan) if node["Node Type"] == "Seq Scan"}
    assert len(first.cut.batches) == 1
    assert second.cut.batches == []
    assert scanned.isdisjoint({"event", "batch", "quarantined_event"})


def test_status_and_lag_probe_only_what_is_not_delivered(fragmented: Engine) -> None:
    """Counting the pending and finding the oldest of them reads the unclaimed stretches and not the table."""
    with fragmented.begin() as connection:
        kinds, touched = rows_read(connection, query_text("status"), {"limit": 1_000_000, "max_stretches": 20_000})

    assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert touched <= 10_000


def test_pruning_a_fragmented_batch_probes_its_stretches(fragmented: Engine) -> None:
    """Deleting a batch of 2,000 stretches reads its rows, and takes each by its place in the table."""
    with fragmented.begin() as connection:
        by_hand(connection).execute(text(_PROCESSED))
        batch_id = connection.scalar(text("SELECT batch_id FROM outbox.batch"))
        kinds, touched = rows_read(connection, query_text("delete_events"), {"batch_id": batch_id})

    assert kinds <= {"Index Scan", "Tid Scan", "ModifyTable"}
    assert touched <= 4_200


def test_pruning_discarded_events_probes_each(fragmented: Engine) -> None:
    """Deleting 100 discarded events reads these and not the table."""
    with fragmented.begin() as connection:
        by_hand(connection).execute(text(_PROCESSED))
        connection.execute(
            text(
                "INSERT INTO outbox.quarantined_event"
                " (position, event_id, event_type, batch_id, reasons, status, resolved_at)"
                " SELECT 30 * n, gen_random_uuid(), 't', batch_id, '{bad}', 'discarded', now() - interval '30 days'"
                " FROM outbox.batch, generate_series(1, 500) AS n"
            )
        )
        kinds, touched = rows_read(
            connection, query_text("delete_discarded"), {"now": datetime.now(UTC), "days": 14, "limit": 100}
        )

    assert kinds <= {"Index Scan", "Tid Scan", "ModifyTable"}
    assert touched <= 400


def test_forgetting_kept_ids_looks_at_each_once(fragmented: Engine) -> None:
    """Ids whose event is here stay: a step behind a thousand of them looks at the next thousand and at no other."""
    with fragmented.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.delivered_elsewhere (event_id, batch_id, position, adopted_at)"
                " SELECT event_id, gen_random_uuid(), position, '2026-01-01' FROM outbox.event"
            )
        )
    with fragmented.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE outbox.delivered_elsewhere"))
    now = datetime(2026, 3, 1, tzinfo=UTC)
    with fragmented.begin() as connection:
        forgotten, after = prune_elsewhere(connection, now=now, days=14, after=FIRST, limit=1_000)
        assert after is not None
        parameters = {"now": now, "days": 14, "after_time": after[0], "after_id": after[1], "limit": 1_000}
        plan = explained(connection, query_text("delete_elsewhere"), parameters)

    assert forgotten == 0
    assert touched_of(plan, "event") <= 1_100
    assert touched_of(plan, "delivered_elsewhere") <= 1_100


def test_what_may_be_pruned_is_found_without_the_pruned(outbox_engine: Engine) -> None:
    """Among 20,000 pruned batches the ten that are not are found by indexes of their own."""
    plans: list[dict[str, Any]] = []

    def explain(connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        driver: Any = connection.connection
        with driver.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])

    move_by_hand(outbox_engine, _PRUNED_LEDGER)
    with outbox_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE outbox.batch"))
        listen(connection, "before_cursor_execute", explain)
        found = old_batches(connection, now=datetime.now(UTC), days=14, after=None, limit=100)
        oldest_kept(connection)

    assert len(found) == 10
    on_batch = [node for plan in plans for node in nodes(plan) if node.get("Relation Name") == "batch"]
    assert {node.get("Index Name") for node in on_batch} == {"batch_not_pruned", "batch_open"}


def test_delivered_days_probe_only_what_is_pending(fragmented: Engine) -> None:
    """Telling how far each day is delivered reads the unclaimed stretches and not the table."""
    parameters = {"first_day": "2026-01-01", "from_day": None, "until_day": "2026-01-01", "since": None, "days": []}
    with fragmented.begin() as connection:
        kinds, touched = rows_read(
            connection,
            query_text("delivered_days"),
            {**parameters, "watermark": "2026-01-01", "limit": 1_000_000},
        )

    assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert touched <= 10_000
