"""A promoted standby delivers nothing twice; what was committed and never reached it is told, and nothing else is."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError

from outbox_pipeline import publish_event
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import committed_ids, delivered_ids, publish, publish_in, quarantined_ids
from tests.fixtures.instances import value
from tests.fixtures.nodes import Node
from tests.fixtures.rehearsal import Rehearsal, Terminal, assert_goes_on, prepare

pytestmark = pytest.mark.failover

_SECONDS = 60.0


@dataclass
class Traffic:
    """The ids of events whose commit was answered, and how many events were delivered."""

    answered: set[UUID] = field(default_factory=set)
    delivered_count: int = 0


@contextmanager
def traffic(stores: Stores) -> Iterator[Traffic]:
    """Publish and deliver until the server is gone."""
    done = Traffic()

    def publish_on() -> None:
        with suppress(OperationalError):
            while True:
                done.answered.update(publish(stores.engine, 2))

    def deliver_on() -> None:
        with suppress(OutboxError):
            while True:
                done.delivered_count += relay(stores).delivered_count

    threads = [threading.Thread(target=one) for one in (publish_on, deliver_on)]
    for thread in threads:
        thread.start()
    yield done
    for thread in threads:
        thread.join(_SECONDS)
        assert not thread.is_alive()


def wait_for_replay(primary: Node, standby: Node) -> None:
    """Wait until the standby shows all that the primary has written."""
    written = primary.sql("SELECT pg_current_wal_flush_lsn()::text")
    has_it = f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
    assert wait_until(lambda: bool(standby.sql(has_it)), seconds=_SECONDS)


def make_synchronous(primary: Node) -> None:
    """Let commits wait for the standby from now on."""
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    primary.sql("SELECT pg_reload_conf()")
    states = "SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication"
    assert wait_until(lambda: bool(primary.sql(states)), seconds=_SECONDS)


def test_a_synchronous_standby_has_every_commit(rehearsal: Rehearsal) -> None:
    """Killed amid publishing and delivering: all that was answered is there, and nothing is only in ClickHouse."""
    there = rehearsal.start_outbox()
    prepare(there)
    standby = rehearsal.nodes.standby_of(there.node)
    make_synchronous(there.node)
    with traffic(there.stores) as done:
        # Of the events of the traffic itself some are delivered, too.
        assert wait_until(lambda: done.delivered_count > 250, seconds=_SECONDS)
        there.node.kill()
    here = rehearsal.at(standby)

    here.type("pg_ctl promote")
    here.type("outbox relay --until-empty", status=1)
    adopted = here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")
    here.type("outbox reconcile")

    assert done.answered <= committed_ids(here.stores.engine)
    assert re.search(r"only in ClickHouse +0 rows in 0 batches", adopted)
    assert_goes_on(here)
    rehearsal.assert_told("A standby promoted, no commit lost")


def test_a_synchronous_standby_that_is_away(rehearsal: Rehearsal) -> None:
    """Deliveries wait with their commit, before a byte is sent, and go on by themselves when it is back."""
    here = rehearsal.start_outbox()
    prepare(here)
    standby = rehearsal.nodes.standby_of(here.node)
    make_synchronous(here.node)
    standby.kill()
    with ThreadPoolExecutor() as pool:
        delivering = pool.submit(relay, here.stores, until_empty=True)
        waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"
        assert wait_until(lambda: bool(here.node.sql(waiting)), seconds=_SECONDS)
        arrived = here.type("outbox sql 'SELECT count() FROM event_log'")
        standby.start()
        delivered_count = delivering.result(_SECONDS).delivered_count

    assert (arrived.strip(), delivered_count) == ("1000", 200)
    assert_goes_on(here)


def test_an_asynchronous_standby_that_had_caught_up(rehearsal: Rehearsal) -> None:
    """A switch without load: the standby has everything, a batch that was on its way included."""
    there = rehearsal.start_outbox()
    prepare(there)
    standby = rehearsal.nodes.standby_of(there.node)
    cut_batches(there.stores.engine, there.stores.settings, limit=1)
    with there.stores.engine.connect() as late:
        publish_in(late, 4)
        publish(there.stores.engine, 6)
        late.commit()
    committed = committed_ids(there.stores.engine)
    wait_for_replay(there.node, standby)
    there.node.kill()
    here = rehearsal.at(standby)

    here.type("pg_ctl promote")
    here.type("outbox relay --until-empty", status=1)
    here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")

    assert committed_ids(here.stores.engine) == committed
    assert_goes_on(here)


def lose_commits(rehearsal: Rehearsal, repeated: list[UUID]) -> tuple[Terminal, Terminal, set[UUID]]:
    """Kill a primary whose standby has stopped following: some of what it delivered since exists nowhere else.

    *repeated* are ids of events that the application gives itself. Returns terminals at the primary and at the promoted
    standby, and the ids that were delivered and lost.
    """
    there = rehearsal.start_outbox()
    prepare(there)
    standby = rehearsal.nodes.standby_of(there.node)
    cut_batches(there.stores.engine, there.stores.settings, limit=1)
    late = there.stores.engine.connect()
    lost = set(publish_in(late, 5))
    publish(there.stores.engine, 10)
    wait_for_replay(there.node, standby)
    standby.stop()
    late.commit()
    late.close()
    lost |= set(publish(there.stores.engine, 15))
    there.type("outbox relay --until-empty")
    lost |= set(publish(there.stores.engine, 60))
    publish_under(there.stores, repeated)
    there.type("outbox relay --until-empty")
    publish(there.stores.engine, 30)
    there.node.kill()
    standby.start()
    here = rehearsal.at(standby)
    here.type("pg_ctl promote")
    return there, here, lost | set(repeated)


def publish_under(stores: Stores, event_ids: list[UUID]) -> None:
    """Publish events under ids that the application gives, as one that may repeat itself does."""
    with stores.engine.begin() as connection:
        for event_id in event_ids:
            publish_event(connection, {"n": 1}, event_type="order_placed", environment="test", event_id=event_id)


def test_an_asynchronous_standby_that_lacks_commits(rehearsal: Rehearsal) -> None:
    """What was delivered and lost is told and left alone; what reached the standby arrives once."""
    there, here, lost = lose_commits(rehearsal, [])
    publish(here.stores.engine, 50)

    here.type("outbox relay --until-empty", status=1)
    here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")
    here.type("outbox reconcile", status=1)
    there.node.start()
    publish(there.stores.engine, 3)
    there.type("outbox relay --until-empty", status=1)

    assert_goes_on(here, lost=lost)
    rehearsal.assert_told("A standby promoted, commits lost")


def test_lost_events_that_the_application_repeats(rehearsal: Rehearsal) -> None:
    """Under their own ids they are in ClickHouse already: each stands there once, and is held here as delivered."""
    repeated = [UUID(int=number) for number in range(1, 21)]
    _, here, lost = lose_commits(rehearsal, repeated)
    new = set(publish(here.stores.engine, 50))
    publish_under(here.stores, repeated)

    here.type("outbox relay --until-empty", status=1)
    here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")

    arrived = delivered_ids(here.stores.client)
    assert len(arrived) == len(set(arrived))
    assert set(arrived) == committed_ids(here.stores.engine) | lost
    assert set(quarantined_ids(here.stores.engine)) == set(repeated)
    assert new <= set(arrived)
    said = here.type(f"outbox trace {repeated[0]}")
    assert "Another instance of this ledger delivered it in batch" in said
    here.type('outbox quarantine discard --reason already_delivered --note "delivered before the failover" --yes')
    assert value(here.stores, "SELECT count(*) FROM outbox.event_status WHERE status = 'discarded'") == 20
    publish_under(here.stores, [UUID(int=21)])
    here.type("outbox relay --until-empty")
    assert set(delivered_ids(here.stores.client)) == set(arrived) | {UUID(int=21)}
    rehearsal.assert_told("Lost events that the application repeats")
