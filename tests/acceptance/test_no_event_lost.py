"""No event is lost or claimed twice, whatever order its transactions commit in."""

import random
import threading
import time
from uuid import UUID

from sqlalchemy import Engine, text

from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from tests.fixtures.events import committed_ids, publish_in

_PRODUCERS = 8
_CUTTERS = 2
_TRANSACTIONS = 40


def produce(engine: Engine, seed: int, committed: list[UUID]) -> None:
    """Publish in transactions of random length; some roll back, some only a savepoint, and collect what committed."""
    chance = random.Random(seed)
    for _ in range(_TRANSACTIONS):
        with engine.connect() as connection, connection.begin() as transaction:
            ids = publish_in(connection, chance.randint(1, 5))
            time.sleep(chance.random() * 0.03)
            with connection.begin_nested() as savepoint:
                inner = publish_in(connection, chance.randint(1, 3))
                if chance.random() < 0.5:
                    savepoint.rollback()
                else:
                    ids += inner
            time.sleep(chance.random() * 0.01)
            if chance.random() < 0.2:
                transaction.rollback()
                continue
        committed += ids


def cut_until(engine: Engine, settings: Settings, done: threading.Event) -> None:
    """Cut without a pause until told that the producers are done."""
    while not done.is_set():
        cut_batches(engine, settings, limit=2)


def test_every_committed_event_is_in_exactly_one_batch(outbox_engine: Engine) -> None:
    """Eight producers with delays, rollbacks and savepoints against two cutters: nothing lost, doubled or invented."""
    settings = Settings(batch_max_events=20)
    committed: list[list[UUID]] = [[] for _ in range(_PRODUCERS)]
    done = threading.Event()
    producers = [threading.Thread(target=produce, args=(outbox_engine, n, committed[n])) for n in range(_PRODUCERS)]
    cutters = [threading.Thread(target=cut_until, args=(outbox_engine, settings, done)) for _ in range(_CUTTERS)]
    for thread in producers + cutters:
        thread.start()
    for thread in producers:
        thread.join()
    done.set()
    for thread in cutters:
        thread.join()
    cut_batches(outbox_engine, settings, limit=1000)
    # The last look of a call may leave a gap, which the next call looks at.
    cut_batches(outbox_engine, settings, limit=1000)

    expected = {event_id for ids in committed for event_id in ids}
    with outbox_engine.begin() as connection:
        rows = connection.execute(
            text(
                "SELECT event_id, (SELECT count(*) FROM outbox.batch WHERE positions @> position) AS batches"
                " FROM outbox.event"
            )
        ).all()
        counted = connection.scalar(text("SELECT sum(event_count) FROM outbox.batch"))
        held = connection.scalar(text("SELECT count(*) FROM outbox.gap"))
        last = connection.scalar(text("SELECT max(position) FROM outbox.event"))
        drawn = connection.scalar(text("SELECT last_value FROM outbox.event_position_seq"))
        # One stretch without an end. Where the last ones drawn were rolled back it may begin behind them.
        unclaimed = connection.scalar(
            text(
                "SELECT lower(positions) FROM outbox.unclaimed"
                " WHERE upper_inf(positions) AND positions = range_merge(positions)::int8multirange"
            )
        )

    assert committed_ids(outbox_engine) == expected
    assert {row.batches for row in rows} == {1}
    assert counted == len(expected)
    assert held == 0
    assert last < unclaimed <= drawn + 1
