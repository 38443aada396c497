"""`outbox tail`: what is delivered from now on, in the order of the marks, through outages, by any reader's role."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.event import listen

from outbox_pipeline.batches import MarkedBatch
from outbox_pipeline.monitoring import marks
from outbox_pipeline.monitoring.marks import Marks
from outbox_pipeline.monitoring.tail import DeliveredEvent, More, Outage, Told, Wanted, follow
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.marked import marked_after, marked_between
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.ledger import execute
from tests.fixtures.moves import by_hand, move_by_hand
from tests.fixtures.plans import nodes
from tests.fixtures.proxy import Fault, FaultyProxy, through
from tests.fixtures.roles import LoginUrl

#: Marks batches with one event each at these positions, at one moment.
_MARK = """
INSERT INTO outbox.batch (batch_id, positions, first_position, last_position, recorded_on, event_count, context_bytes,
    oldest_recorded_at, status, rejected, proof, accepted_count, processed_at, proved_at)
SELECT gen_random_uuid(), int8multirange(int8range(n, n + 1)), n, n, '2026-01-01', 1, 1, '2026-01-01', 'processed',
    '{}', '{}', 1, now(), now()
FROM generate_series(CAST(:first AS bigint), :last) AS n
"""

#: What is done while the follower waits, in turn; then it is ended.
Acts = list[Callable[[], object]]


class Done(Exception):  # noqa: N818 - it is no error
    """All acts are done."""


def told(stores: Stores, acts: Acts, wanted: Wanted | None = None) -> list[Told]:
    """Follow while the acts are done, and return what was told."""
    left = iter(acts)

    def wait(_seconds: float) -> None:
        act = next(left, None)
        if act is None:
            raise Done
        act()

    found: list[Told] = []
    with suppress(Done):
        for each in follow(stores.engine, stores.settings, wanted or Wanted(), wait=wait):
            found.append(each)
    return found


def positions(found: list[Told]) -> list[int]:
    """Return the positions of the events."""
    return [each.position for each in found if isinstance(each, DeliveredEvent)]


def test_what_is_delivered_is_told_as_it_is_marked(stores: Stores) -> None:
    """From the first look on each batch is told once, followed by its events; what was there before is not."""
    publish(stores.engine, 1)
    relay(stores, until_empty=True)

    def deliver() -> None:
        publish(stores.engine, 2, event_type="order_paid")
        publish(stores.engine, 1, context="[1]")
        relay(stores, until_empty=True)

    found = told(stores, [deliver, deliver, lambda: None])

    first, *events = found[:3]
    assert isinstance(first, MarkedBatch)
    assert (first.accepted_count, first.rejected_count) == (2, 1)
    assert positions(found) == [2, 3, 5, 6]
    assert all(isinstance(each, DeliveredEvent) and each.event_context is None for each in events)
    assert isinstance(events[0], DeliveredEvent)
    assert (events[0].event_type, events[0].batch_id) == ("order_paid", first.batch_id)
    assert 0 < events[0].lag_seconds < 600
    assert len(found) == 6


def test_what_is_told_is_what_was_asked_for(stores: Stores) -> None:
    """Types, contexts and a limit for a batch are as asked; a batch without a wanted event is not told."""

    def deliver() -> None:
        publish(stores.engine, 1, event_type="it's")
        publish(stores.engine, 3, event_type="order_paid", context='{"n": 1.50}')
        relay(stores, until_empty=True)

    some = told(stores, [deliver], Wanted(frozenset({"order_paid"}), 2, with_context=True))
    quoted = told(stores, [deliver], Wanted(frozenset({"it's"})))
    none = told(stores, [deliver], Wanted(frozenset({"other"})))

    assert [type(each) for each in some] == [MarkedBatch, DeliveredEvent, DeliveredEvent, More]
    assert isinstance(some[1], DeliveredEvent)
    assert some[1].event_context == '{"n": 1.50}'
    assert len(positions(quoted)) == 1
    assert none == []


def test_an_outage_is_told_once_and_nothing_is_lost(
    stores: Stores, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was marked while a server was away is told when it is back, from where the last answer broke off."""
    monkeypatch.setattr("outbox_pipeline.monitoring.tail._PAGE", 2)
    behind = Stores(stores.engine, stores.client, through(proxy, stores.settings))

    def deliver() -> None:
        publish(stores.engine, 5)
        relay(stores, until_empty=True)
        # The driver asks three times.
        proxy.inject(Fault.REFUSE_503, "SELECT event_id, event_type, position", nth=2, times=3)

    found = told(behind, [deliver, lambda: None, lambda: None])

    assert [type(each) for each in found] == [
        *(MarkedBatch, DeliveredEvent, DeliveredEvent, Outage, Outage, DeliveredEvent, DeliveredEvent, DeliveredEvent),
    ]
    assert positions(found) == [1, 2, 3, 4, 5]
    assert [each.said is None for each in found if isinstance(each, Outage)] == [False, True]


def test_postgres_away_is_waited_for(stores: Stores, login_url: LoginUrl) -> None:
    """A server that takes no connection for a while is told once and waited for; the pipeline's role may follow."""
    database = stores.engine.url.database
    admin = stores.engine.execution_options(isolation_level="AUTOCOMMIT")

    def allow(limit: int) -> None:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {database} CONNECTION LIMIT {limit}")

    settings = stores.settings.model_copy(update={"postgres_url": SecretStr(login_url("outbox_pipeline"))})
    reader = Stores(create_outbox_engine(settings, pooled=False), stores.client, settings)

    def deliver() -> None:
        publish(stores.engine, 1)
        relay(stores, until_empty=True)
        allow(0)

    try:
        found = told(reader, [deliver, lambda: None, lambda: allow(-1), lambda: None])
    finally:
        allow(-1)

    assert [type(each) for each in found] == [Outage, Outage, MarkedBatch, DeliveredEvent]


def take(engine: Engine, seen: Marks) -> list[int]:
    """Look once more; return the positions of the batches."""
    with ledger_transaction(engine) as connection:
        return [each.first_position for each in seen.take(connection)]


def test_a_mark_that_commits_late_is_not_missed(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose mark commits behind later ones is told once it is visible, however long that took."""
    # Without it nothing but the transactions that are open says how far back to look.
    monkeypatch.setattr(marks, "_MARGIN", timedelta())
    seen = Marks()
    take(stores.engine, seen)
    with stores.engine.begin() as late:
        by_hand(late).execute(text(_MARK), {"first": 1, "last": 1})
        for position in (2, 3, 4):
            move_by_hand(stores.engine, _MARK, {"first": position, "last": position})
            assert take(stores.engine, seen) == [position]

    assert take(stores.engine, seen) == [1]
    assert take(stores.engine, seen) == []


def test_batches_of_one_moment_are_told_once_each(stores: Stores) -> None:
    """More batches than a look takes, marked at the same moment, come in several looks, without one twice."""
    seen = Marks()
    take(stores.engine, seen)
    move_by_hand(stores.engine, _MARK, {"first": 1, "last": marks.LIMIT + 50})

    first, second = take(stores.engine, seen), take(stores.engine, seen)

    assert (len(first), len(second)) == (marks.LIMIT, 50)
    assert sorted([*first, *second]) == list(range(1, marks.LIMIT + 51))
    assert take(stores.engine, seen) == []


def test_a_look_reads_a_bounded_part_of_the_ledger(stores: Stores) -> None:
    """Among 20,000 batches the marks are found by their index, both those behind the last look and those before it."""
    plans: list[dict[str, Any]] = []

    def explain(connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        driver: Any = connection.connection
        with driver.cursor() as cursor:
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])

    long_ago = _MARK.replace("1, now(), now()", "1, now() - n * interval '1 s', now()")
    move_by_hand(stores.engine, long_ago, {"first": 1, "last": 20_000})
    with stores.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE outbox.batch"))
        listen(connection, "before_cursor_execute", explain)
        now = datetime.now(UTC)
        marked_after(connection, now, limit=100)
        marked_between(connection, now.replace(year=2025), now, limit=100)

    on_batch = [node for plan in plans for node in nodes(plan) if node.get("Relation Name") == "batch"]
    assert {node.get("Index Name") for node in on_batch} <= {"batch_processed_at", "batch_not_pruned"}
    assert {node["Node Type"] for node in on_batch} <= {"Index Scan", "Index Only Scan"}


def test_a_schema_that_is_gone_is_no_outage(stores: Stores) -> None:
    """What no wait mends ends the command with the sentence of every other one."""
    execute(stores.engine, "DROP SCHEMA outbox CASCADE")

    with pytest.raises(Exception, match="outbox init"):
        list(islice(follow(stores.engine, stores.settings, Wanted()), 1))
