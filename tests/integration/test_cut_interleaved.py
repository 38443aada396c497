"""Cutting under interference: something happens between every two statements of a cut, one boundary at a time.

Racing threads rarely hit the windows that matter; this walks through all of them.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, event, text

from outbox_pipeline.errors import TransientError
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from tests.fixtures.events import publish, publish_in
from tests.fixtures.interleave import at_statement

# More than a cut has; boundaries beyond its last statement are simply not reached.
_BOUNDARIES = range(14)


@pytest.fixture
def other_engine(postgres_url: str) -> Iterator[Engine]:
    """A second engine on the same database, whose statements are not counted."""
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


def assert_all_in_one_batch(engine: Engine) -> None:
    """Check that every event is in exactly one batch and that the ledger's sets are whole again."""
    cut_batches(engine, Settings(), limit=10)
    cut_batches(engine, Settings(), limit=10)
    statement = text(
        "SELECT position, (SELECT count(*) FROM outbox.batch WHERE positions @> position) AS batches FROM outbox.event"
    )
    with engine.begin() as connection:
        places = {row.position: row.batches for row in connection.execute(statement)}
        sets = connection.execute(
            text("SELECT positions::text, (SELECT count(*) FROM outbox.gap) FROM outbox.unclaimed")
        ).one()
    assert set(places.values()) == {1}, places
    assert sets == (f"{{[{max(places) + 1},)}}", 0)


@pytest.mark.parametrize("number", _BOUNDARIES)
def test_a_transaction_that_starts_during_a_cut_is_delivered(
    outbox_engine: Engine, other_engine: Engine, number: int
) -> None:
    """A slow transaction draws a position and a later one commits, between any two statements of a cut."""
    publish(outbox_engine)
    with other_engine.connect() as slow:

        def interfere() -> None:
            publish_in(slow)
            publish(other_engine)

        with at_statement(outbox_engine, number, interfere):
            cut_batches(outbox_engine, Settings(), limit=1)
        cut_batches(outbox_engine, Settings(), limit=10)
        cut_batches(outbox_engine, Settings(), limit=10)
        slow.commit()

    assert_all_in_one_batch(outbox_engine)


@pytest.mark.parametrize("number", _BOUNDARIES)
def test_a_transaction_that_commits_during_a_cut_is_delivered(
    outbox_engine: Engine, other_engine: Engine, number: int
) -> None:
    """A gap's last holder commits between any two statements of a cut that may settle the gap."""
    with other_engine.connect() as slow:
        publish_in(slow)
        publish(other_engine)
        cut_batches(outbox_engine, Settings(), limit=1)

        with at_statement(outbox_engine, number, slow.commit):
            cut_batches(outbox_engine, Settings(), limit=1)
        slow.commit()

    assert_all_in_one_batch(outbox_engine)


@pytest.mark.parametrize("number", range(2, 9))
def test_a_second_cutter_waits_for_the_first(outbox_engine: Engine, other_engine: Engine, number: int) -> None:
    """Once a cut holds the ledger's lock no other cut gets past it."""
    publish(outbox_engine, 3)
    refused: list[TransientError] = []

    def cut_too() -> None:
        try:
            cut_batches(other_engine, Settings(lock_timeout_seconds=0.05), limit=1)
        except TransientError as error:
            refused.append(error)

    with at_statement(outbox_engine, number, cut_too):
        cut_batches(outbox_engine, Settings(), limit=1)

    assert len(refused) == 1
    assert_all_in_one_batch(outbox_engine)


def test_what_commits_during_a_cut_waits_for_the_next(outbox_engine: Engine, other_engine: Engine) -> None:
    """A call that has cut all it saw stops, rather than make a batch of the few events that came meanwhile."""
    publish(outbox_engine, 3)

    def publish_more(*_: object) -> None:
        publish(other_engine, 1)

    event.listen(outbox_engine, "commit", publish_more)
    try:
        first = cut_batches(outbox_engine, Settings(), limit=4)
    finally:
        event.remove(outbox_engine, "commit", publish_more)

    assert [batch.event_count for batch in first.batches] == [3]
    assert cut_batches(outbox_engine, Settings(), limit=4).event_count == 1


@pytest.mark.parametrize("number", _BOUNDARIES)
def test_a_commit_during_a_cut_does_not_wait_for_others(
    outbox_engine: Engine, other_engine: Engine, number: int
) -> None:
    """What commits between two statements of the cut that passes it over is cut next, whoever else stays open."""
    with other_engine.connect() as open_for_long, other_engine.connect() as slow:
        publish_in(open_for_long)
        publish_in(slow)
        publish(other_engine)

        with at_statement(outbox_engine, number, slow.commit):
            first = cut_batches(outbox_engine, Settings(), limit=1)
        slow.commit()
        second = cut_batches(outbox_engine, Settings(), limit=1)
        open_for_long.commit()

    assert first.event_count + second.event_count == 2
    assert_all_in_one_batch(outbox_engine)
