"""Cutting: each visible event into one batch, late commits and rollbacks included."""

from datetime import date

import pytest
from sqlalchemy import Connection, Engine, text

from outbox_pipeline.postgres import cut as ledger
from outbox_pipeline.postgres import gaps
from outbox_pipeline.postgres.conditions import read_conditions
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from tests.fixtures.events import publish, publish_in


def places(engine: Engine) -> dict[int, int]:
    """Return, for each event in the outbox, how many batches hold its position."""
    statement = text(
        "SELECT position, (SELECT count(*) FROM outbox.batch WHERE positions @> position) AS batches FROM outbox.event"
    )
    with engine.begin() as connection:
        return {row.position: row.batches for row in connection.execute(statement)}


def ledger_sets(engine: Engine) -> tuple[str, list[str]]:
    """Return the unclaimed set and the positions of all gaps as text."""
    with engine.begin() as connection:
        unclaimed = connection.scalar(text("SELECT positions::text FROM outbox.unclaimed"))
        gap_rows = connection.execute(text("SELECT positions::text FROM outbox.gap ORDER BY gap_id")).scalars()
        return str(unclaimed), list(gap_rows)


def test_nothing_pending_cuts_nothing(outbox_engine: Engine) -> None:
    """An empty outbox gives no batch and leaves the ledger as it was."""
    result = cut_batches(outbox_engine, Settings(), limit=4)

    assert result.batches == []
    assert ledger_sets(outbox_engine) == ("{[1,)}", [])


def test_a_cut_takes_everything_visible_in_order(outbox_engine: Engine) -> None:
    """A batch holds the oldest events first, up to its limit, and the next batch the rest."""
    publish(outbox_engine, 5)

    result = cut_batches(outbox_engine, Settings(batch_max_events=3), limit=4)

    assert [batch.event_count for batch in result.batches] == [3, 2]
    assert set(places(outbox_engine).values()) == {1}
    assert ledger_sets(outbox_engine) == ("{[6,)}", [])


def test_a_batch_is_bounded_by_bytes_but_takes_at_least_one_event(outbox_engine: Engine) -> None:
    """The size limit counts context bytes; one event larger than it travels alone."""
    publish(outbox_engine, 3, context='{"text": "' + "x" * 90 + '"}')

    result = cut_batches(outbox_engine, Settings(batch_max_bytes=50), limit=10)

    assert [batch.event_count for batch in result.batches] == [1, 1, 1]


def test_late_commit_is_not_skipped(outbox_engine: Engine) -> None:
    """An event whose transaction commits after a later position was cut is delivered by a later cut."""
    with outbox_engine.connect() as slow:
        publish_in(slow)
        publish(outbox_engine)
        first = cut_batches(outbox_engine, Settings(), limit=4)
        assert ledger_sets(outbox_engine) == ("{[3,)}", ["{[1,2)}"])
        slow.commit()

    second = cut_batches(outbox_engine, Settings(), limit=4)

    assert (first.event_count, second.event_count) == (1, 1)
    assert places(outbox_engine) == {1: 1, 2: 1}
    assert ledger_sets(outbox_engine) == ("{[3,)}", [])


def test_rolled_back_position_is_forgotten_once_its_transaction_ended(outbox_engine: Engine) -> None:
    """A gap stays while its transaction is open and is forgotten when it rolled back."""
    with outbox_engine.connect() as slow:
        publish_in(slow)
        publish(outbox_engine)
        cut_batches(outbox_engine, Settings(), limit=4)
        cut_batches(outbox_engine, Settings(), limit=4)
        assert ledger_sets(outbox_engine)[1] == ["{[1,2)}"]
        slow.rollback()

    cut_batches(outbox_engine, Settings(), limit=4)

    assert ledger_sets(outbox_engine) == ("{[3,)}", [])


def test_one_publishing_transaction_does_not_hold_others_up(outbox_engine: Engine) -> None:
    """While one transaction has published and stays open, others' late events and rollbacks still settle."""
    with outbox_engine.connect() as open_for_long, outbox_engine.connect() as slow:
        publish_in(open_for_long)
        publish_in(slow)
        publish(outbox_engine)
        cut_batches(outbox_engine, Settings(), limit=4)
        slow.commit()

        result = cut_batches(outbox_engine, Settings(), limit=4)

        assert result.event_count == 1
        assert ledger_sets(outbox_engine)[1] == ["{[1,2)}"]
        open_for_long.commit()
    assert cut_batches(outbox_engine, Settings(), limit=4).event_count == 1


@pytest.mark.parametrize("most", [1, 4, 7, 100])
@pytest.mark.parametrize("unclaimed", ["{[1,)}", "{[1,3),[5,6),[8,)}", "{[2,9)}"])
def test_both_ways_to_pick_agree(outbox_engine: Engine, unclaimed: str, most: int) -> None:
    """Where everything looked at is picked, the statement that sorts nothing says what the thorough one says."""
    with outbox_engine.connect() as connection:
        for count in (3, 2, 4):
            publish(outbox_engine, count)
            publish_in(connection)
            connection.rollback()
        limits = {"unclaimed": unclaimed, "max_events": most, "max_bytes": 9999, "first_day": date(2026, 1, 1)}
        quick, thorough = (
            dict(connection.execute(query(name), limits).one()._mapping) for name in ("pick_events", "pick_part")
        )

    assert quick.pop("is_whole")
    assert quick.pop("oldest_age_seconds") <= thorough.pop("oldest_age_seconds")
    assert quick == thorough


def test_a_batch_never_spans_two_days(outbox_engine: Engine) -> None:
    """Events of two UTC days that interleave by position give one batch a day."""
    with outbox_engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
                " SELECT 't', 'test', '{}', timestamptz '2026-03-01 23:59:59Z' + make_interval(secs => (n % 2) * 2)"
                " FROM generate_series(1, 100) AS n"
            )
        )

    result = cut_batches(outbox_engine, Settings(), limit=10)

    assert sorted((batch.recorded_on, batch.event_count) for batch in result.batches) == [
        (date(2026, 3, 1), 50),
        (date(2026, 3, 2), 50),
    ]
    assert set(places(outbox_engine).values()) == {1}


def test_a_day_without_partition_is_clamped(outbox_engine: Engine) -> None:
    """An event recorded in 2099 or long ago belongs to the nearest day that has a partition."""
    with outbox_engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
                " VALUES ('t', 'test', '{}', '2001-01-01Z'), ('t', 'test', '{}', '2099-01-01Z')"
            )
        )
        today = connection.scalar(text("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date"))

    result = cut_batches(outbox_engine, Settings(start_date=date(2026, 1, 1)), limit=10)

    assert [batch.recorded_on for batch in result.batches] == [date(2026, 1, 1), today]


def test_lingering_waits_for_a_fuller_batch(outbox_engine: Engine) -> None:
    """With a linger time a small batch waits; a full one does not."""
    publish(outbox_engine, 2)

    waiting = cut_batches(outbox_engine, Settings(linger_seconds=3600), limit=1)
    full = cut_batches(outbox_engine, Settings(linger_seconds=3600, batch_max_events=2), limit=1)

    assert (waiting.event_count, waiting.lingering_count) == (0, 2)
    assert full.event_count == 2


def test_a_position_put_back_by_hand_does_not_stop_cutting(outbox_engine: Engine) -> None:
    """A position that is unclaimed and in a batch at once is taken out of unclaimed, and the cut goes on."""
    publish(outbox_engine, 2)
    cut_batches(outbox_engine, Settings(), limit=1)
    with outbox_engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET positions = '{[1,)}'"))
    publish(outbox_engine, 1)

    result = cut_batches(outbox_engine, Settings(), limit=4)

    assert result.event_count == 1
    assert places(outbox_engine) == {1: 1, 2: 1, 3: 1}


# What the order of the statements protects from: each test below takes one protection away and loses an event.


def _cut_with(connection: Connection, picked: ledger.PickedEvents, *, holders: list[str]) -> None:
    conditions = read_conditions(connection)
    ledger.take_positions(
        connection,
        picked,
        unclaimed_positions=conditions.unclaimed,
        last_drawn=conditions.last_drawn,
        holders=holders,
        cut_number=conditions.last_cut_number,
    )


def test_holders_read_before_the_sequence_would_lose_one(outbox_engine: Engine) -> None:
    """A position drawn after the holders were read must not become a gap: nobody in it can fill it."""
    with outbox_engine.connect() as slow:
        with outbox_engine.begin() as cutter:
            ledger.lock_unclaimed(cutter)
            too_early = ledger.read_holders(cutter)
            publish_in(slow)
            publish(outbox_engine)
            picked = ledger.pick_events(cutter, "{[1,)}", max_events=9, max_bytes=999, first_day=date(2026, 1, 1))
            assert picked is not None
            in_time = ledger.read_holders(cutter)
            _cut_with(cutter, picked, holders=too_early)
        with outbox_engine.begin() as cutter:
            gaps.settle_gaps(cutter, gaps.gaps_to_settle(cutter, in_time), holding=too_early)
        slow.commit()

    assert len(in_time) == 1
    assert too_early == []
    assert ledger_sets(outbox_engine) == ("{[3,)}", []), "position 1 is in no set any more: lost"


def test_repeatable_read_would_lose_a_late_commit(outbox_engine: Engine) -> None:
    """Settling a gap under one snapshot forgets an event that committed after the snapshot was taken."""
    with outbox_engine.connect() as slow:
        publish_in(slow)
        publish(outbox_engine)
        cut_batches(outbox_engine, Settings(), limit=1)
        frozen = outbox_engine.connect().execution_options(isolation_level="REPEATABLE READ")
        with frozen, frozen.begin():
            frozen.execute(text("SELECT count(*) FROM outbox.event"))
            slow.commit()
            holding = ledger.read_holders(frozen)
            gaps.settle_gaps(frozen, gaps.gaps_to_settle(frozen, holding), holding=holding)

    assert ledger_sets(outbox_engine) == ("{[3,)}", []), "position 1 is in no set any more: lost"


@pytest.mark.parametrize("ahead", [10, 1000])
def test_positions_the_sequence_has_not_drawn_are_never_a_gap(outbox_engine: Engine, ahead: int) -> None:
    """An event written with a position ahead of the sequence does not make the positions before it forgotten."""
    with outbox_engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event (position, event_type, environment, event_context)"
                " OVERRIDING SYSTEM VALUE VALUES (:position, 't', 'test', '{}')"
            ),
            {"position": ahead},
        )
    cut_batches(outbox_engine, Settings(), limit=1)

    unclaimed, gap_rows = ledger_sets(outbox_engine)

    assert unclaimed == f"{{[1,{ahead}),[{ahead + 1},)}}"
    assert gap_rows == []


def test_a_batch_full_by_bytes_does_not_linger(outbox_engine: Engine) -> None:
    """When the next event would exceed the size limit nothing can join the batch, so it does not wait."""
    publish(outbox_engine, 3, context='{"text": "' + "x" * 90 + '"}')

    result = cut_batches(outbox_engine, Settings(linger_seconds=3600, batch_max_bytes=250), limit=1)

    assert result.event_count == 2
