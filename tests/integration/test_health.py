"""The three questions about a running pipeline, each broken on a real server and then asked."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from outbox_pipeline.errors import LedgerError
from outbox_pipeline.monitoring.health import Answer, judge_gaps, judge_lag, judge_ledger, read_health
from outbox_pipeline.operations.quarantine import requeue
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish, publish_in
from tests.fixtures.ledger import execute
from tests.fixtures.moves import move_by_hand
from tests.fixtures.plans import nodes

BAD = {"context": "[1]"}


def lag(stores: Stores, limit_seconds: float = 60) -> Answer:
    """Ask whether something is late."""
    return judge_lag(read_health(stores.engine), limit_seconds=limit_seconds)


def gaps(stores: Stores, limit_seconds: float = 0) -> Answer:
    """Ask whether a transaction holds events back."""
    return judge_gaps(read_health(stores.engine), limit_seconds=limit_seconds)


def ledger(stores: Stores) -> Answer:
    """Ask whether the ledger is sound."""
    return judge_ledger(read_health(stores.engine))


def publish_late(stores: Stores) -> None:
    """Publish an event that is two minutes old."""
    execute(
        stores.engine,
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'test', '{}', clock_timestamp() - interval '120 s')",
    )


def pid_of(connection: Connection) -> int:
    """Return the server process of a session."""
    return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


def test_a_working_pipeline_is_well(stores: Stores) -> None:
    """With delivered, pending and refused events and a young open transaction no question finds anything."""
    publish(stores.engine, 5)
    publish(stores.engine, 2, **BAD)
    relay(stores, until_empty=True)
    publish(stores.engine, 3)
    with stores.engine.connect() as slow, slow.begin():
        publish_in(slow, 1)
        publish(stores.engine, 1)
        cut_batches(stores.engine, stores.settings, limit=1)

        assert lag(stores).is_well
        assert gaps(stores, limit_seconds=60).is_well
        assert ledger(stores) == Answer(
            True, "Every position is in exactly one place, and counts add up.", "", {"broken_rules": 0}
        )


def test_an_empty_outbox_is_well(stores: Stores) -> None:
    """Silence is no fault."""
    assert lag(stores).is_well
    assert gaps(stores).is_well
    assert ledger(stores).is_well


def test_late_pending_events_point_to_the_sensor(stores: Stores) -> None:
    """Events that nobody cuts are counted, and the sensor's page is where to look."""
    publish_late(stores)

    answer = lag(stores)

    assert not answer.is_well
    assert "1 pending, 0 in flight" in answer.said
    assert "outbox_sensor" in answer.said
    assert answer.numbers["lag_seconds"] >= 120


def test_late_failing_events_show_the_error(stores: Stores) -> None:
    """A batch that fails shows its error; once it is parked the next step is to free it."""
    publish_late(stores)
    settings = stores.settings.model_copy(update={"max_attempts": 1})
    cut_batches(stores.engine, settings, limit=1)
    (request,) = request_batches(stores.engine, settings, limit=1)
    limited = Stores(stores.engine, stores.client, settings)
    end_failed(start_requested(limited, request.batch_id, request.attempt), LedgerError("disk full"))

    answer = lag(stores)

    assert "1 parked" in answer.said
    assert "resume_parked_batches" in answer.said
    assert "disk full" in answer.said
    assert answer.cause != lag(stores, limit_seconds=1e6).cause


def test_an_open_transaction_is_named_with_its_pid(stores: Stores) -> None:
    """Who holds events back is named by pid, user, application, state and statement, without its values."""
    engine = create_engine(stores.engine.url, connect_args={"application_name": "night-import"})
    with engine.connect() as slow, slow.begin():
        pid = pid_of(slow)
        publish_in(slow, 1)
        slow.execute(
            text("INSERT INTO outbox.event (event_type, environment, event_context) VALUES ('t', 'e', '\"sekret\"')")
        )
        publish(stores.engine, 2)
        cut_batches(stores.engine, stores.settings, limit=1)
        young = gaps(stores, limit_seconds=3600)
        held = gaps(stores)
    engine.dispose()
    cut_batches(stores.engine, stores.settings, limit=1)

    assert young.is_well
    assert not held.is_well
    assert f"pid {pid} (" in held.said
    assert f"pg_terminate_backend({pid})" in held.said
    assert "night-import" in held.said
    assert "idle in transaction, last INSERT INTO outbox.event" in held.said
    assert "sekret" not in held.said + str(held.rows)
    assert held.rows[0]["session"] == f"pid {pid}"
    assert gaps(stores).is_well


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 'sekret'", "last SELECT"),
        ("SELECT 4711", "last SELECT"),
        ("/* sekret */ SELECT 1", "idle in transaction"),
        ("WITH a AS (SELECT 'sekret') SELECT * FROM a", "last WITH"),
        ("UPDATE outbox.unclaimed SET positions = positions WHERE 'sekret' = ''", "last UPDATE outbox.unclaimed"),
    ],
)
def test_of_a_statement_only_command_and_table_are_shown(stores: Stores, statement: str, shown: str) -> None:
    """No value of a statement is shown, whatever it looks like."""
    with stores.engine.connect() as slow, slow.begin():
        publish_in(slow, 1)
        publish(stores.engine, 1)
        cut_batches(stores.engine, stores.settings, limit=1)
        slow.execute(text(statement))
        answer = gaps(stores)

    assert f"{shown})" in answer.said
    assert "sekret" not in answer.said + str(answer.rows)
    assert "4711" not in answer.said + str(answer.rows)


def test_a_prepared_transaction_is_named_by_its_gid(stores: Stores) -> None:
    """A prepared transaction has no session; its gid is named, and quoted in the line that ends it."""
    gid = f"order-{uuid4().hex[:8]}'; DROP TABLE users; --"
    literal = "'" + gid.replace("'", "''") + "'"
    with stores.engine.connect() as connection:
        if connection.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("max_prepared_transactions is 0 on this server")
    with stores.engine.connect() as slow:
        publish_in(slow, 1)
        slow.exec_driver_sql(f"PREPARE TRANSACTION {literal}")
    try:
        publish(stores.engine, 1)
        cut_batches(stores.engine, stores.settings, limit=1)
        answer = gaps(stores)
    finally:
        with stores.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"ROLLBACK PREPARED {literal}")

    assert f"prepared transaction {gid}" in answer.said
    assert f"ROLLBACK PREPARED {literal} ends it" in answer.said


#: What somebody does by hand, the rule it breaks, and words of the advice.
BREACHES = {
    "claimed again": (
        ["UPDATE outbox.unclaimed SET positions = positions + '{[1,3)}'"],
        "pending_and_in_a_batch",
        "the next cut",
    ),
    "gap over unclaimed": (
        ["INSERT INTO outbox.gap (positions, holders) VALUES ('{[1000,1001)}', '{}')"],
        "unclaimed_and_in_a_gap",
        "by hand",
    ),
    "no upper end": (
        ["UPDATE outbox.unclaimed SET positions = positions * '{[1,1000000)}'"],
        "new_events_unseen",
        "int8range(6, NULL)",
    ),
    "count changed": (["UPDATE outbox.batch SET event_count = 7"], "counts_differ", "materializing"),
    "accepted changed": (["UPDATE outbox.batch SET accepted_count = 7"], "counts_differ", "materializing"),
    "quarantine emptied": (["DELETE FROM outbox.quarantined_event"], "refused_events_missing", "outbox trace"),
    "refused and pending": (
        [
            "UPDATE outbox.unclaimed SET positions = positions + (SELECT int8multirange(int8range(position, position"
            " + 1)) FROM outbox.quarantined_event LIMIT 1)"
        ],
        "refused_and_delivered",
        "requeued",
    ),
    "refused and in a batch": (
        [
            "UPDATE outbox.batch SET positions = positions + (SELECT int8multirange(int8range(position, position + 1))"
            " FROM outbox.quarantined_event), event_count = 6, accepted_count = 5"
        ],
        "refused_and_delivered",
        "position 5",
    ),
    "trigger off": (
        ["ALTER TABLE outbox.event DISABLE TRIGGER event_is_never_updated"],
        "guard_missing",
        "ENABLE TRIGGER",
    ),
    "trigger dropped": (
        ["DROP TRIGGER event_is_never_truncated ON outbox.event"],
        "guard_missing",
        "event_is_never_truncated",
    ),
    "exclusion dropped": (
        ["ALTER TABLE outbox.batch DROP CONSTRAINT batch_positions_belong_to_one_batch"],
        "guard_missing",
        "batch_positions_belong_to_one_batch",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_ledger_changed_by_hand_is_noticed(stores: Stores, name: str) -> None:
    """Each rule that no constraint holds is looked after, and what is said names the place and the next step."""
    statements, rule, advice = BREACHES[name]
    publish(stores.engine, 4)
    publish(stores.engine, 1, **BAD)
    relay(stores, until_empty=True)
    sound = ledger(stores)
    execute(stores.engine, *statements)

    answer = ledger(stores)

    assert sound.is_well
    assert not answer.is_well
    assert [row["rule"] for row in answer.rows] == [rule]
    assert advice in answer.said


def test_a_foreign_cluster_is_part_of_the_answer(stores: Stores) -> None:
    """What stops every cut is shown by the check too."""
    execute(stores.engine, "UPDATE outbox.unclaimed SET timeline = timeline + 1")

    answer = ledger(stores)

    assert not answer.is_well
    assert "outbox adopt" in answer.said


def test_every_step_of_a_batch_is_consistent(stores: Stores) -> None:
    """No state of a delivery, a requeue or a second delivery looks like a breach."""
    publish(stores.engine, 3)
    publish(stores.engine, 2, **BAD)
    cut_batches(stores.engine, stores.settings, limit=1)
    answers = [ledger(stores)]
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt)
    for step in (delivery.extract, delivery.validate, delivery.load, delivery.mark):
        step()
        answers.append(ledger(stores))
    requeue(stores.engine, Filter())
    answers.append(ledger(stores))
    relay(stores, until_empty=True)
    answers.append(ledger(stores))

    assert [answer.said for answer in answers if not answer.is_well] == []


def test_looking_for_breaches_probes_the_batches(stores: Stores) -> None:
    """With many batches and a fragmented unclaimed set, pending stretches are looked up in the batches' index."""
    move_by_hand(
        stores.engine,
        "INSERT INTO outbox.batch (batch_id, positions, first_position, last_position, recorded_on, event_count,"
        " context_bytes, oldest_recorded_at, status, attempt, proof, rejected, accepted_count, processed_at, proved_at)"
        " SELECT gen_random_uuid(), int8multirange(int8range(n * 100 + 1, n * 100 + 51)), n * 100 + 1, n * 100 + 50,"
        " '2026-01-01', 50, 50, now() - interval '9 days', 'processed', 1, '{}', '{}', 50, now() - interval '9 days',"
        " now() FROM generate_series(0, 20000) AS n",
    )
    execute(
        stores.engine,
        "UPDATE outbox.unclaimed SET positions = (SELECT range_agg(int8range(n * 100 + 60, n * 100 + 61))"
        " FROM generate_series(0, 20000, 20) AS n) + '{[3000000,)}'",
    )
    with stores.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE outbox.batch"))
        plan = connection.scalar(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query_text('ledger_breaches')}"))[0]["Plan"]
    on_batch = [node for node in nodes(plan) if node.get("Relation Name") == "batch"]

    assert read_health(stores.engine).breaches == ()
    assert on_batch
    assert not [node for node in on_batch if node["Node Type"] == "Seq Scan"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in on_batch) < 5_000


def test_the_pipelines_role_may_look(stores: Stores, login: Callable[..., Engine]) -> None:
    """The role that only delivers sees all it is asked about, and of a session of others at least who it is."""
    looking = login("outbox_pipeline")
    with stores.engine.connect() as slow, slow.begin():
        pid = pid_of(slow)
        publish_in(slow, 1)
        publish(stores.engine, 1)
        cut_batches(stores.engine, stores.settings, limit=1)
        health = read_health(looking)

    answer = judge_gaps(health, limit_seconds=0)
    assert judge_ledger(health).is_well
    assert f"pid {pid} (" in answer.said
    assert "insufficient" not in answer.said
