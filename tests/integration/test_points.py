"""The boundaries of a delivery: each write has one of its own, so the fault suite can stop between any two."""

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event, text

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.instances import cut_without_number
from tests.fixtures.too_large import let_be_too_large

_WRITES = ("INSERT", "UPDATE", "DELETE", "WITH", "ALTER")


def record(stores: Stores, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[str]:
    """Run *act* and return what happened in order: points by name, writes as `write`."""
    seen: list[str] = []
    run: Callable[..., None] = EventLogClient.run

    def before_statement(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # a heartbeat, which is a write at any time and changes only the lease's end
        body = statement.lstrip().split("\n", 1)[-1] if statement.startswith("--") else statement
        if body.lstrip().startswith(_WRITES) and any(verb in body for verb in ("INSERT INTO", "UPDATE", "DELETE FROM")):
            seen.append("write")

    def counted_run(client: EventLogClient, *args: Any, **kwargs: Any) -> None:
        seen.append("write")
        run(client, *args, **kwargs)

    event.listen(stores.engine, "before_cursor_execute", before_statement)
    monkeypatch.setattr(EventLogClient, "run", counted_run)
    end = listen(seen.append)
    try:
        act()
    finally:
        end()
        event.remove(stores.engine, "before_cursor_execute", before_statement)
        monkeypatch.undo()
    return seen


def redeliver(stores: Stores) -> None:
    """Deliver the only batch once more under a new generation."""
    deliver(start_unrequested(stores, batch_id(stores)), reload=True)


def batch_id(stores: Stores) -> Any:
    """Return the id of the only batch."""
    with stores.engine.begin() as connection:
        return connection.scalar(text("SELECT batch_id FROM outbox.batch"))


@pytest.mark.usefixtures("unclaimed")
def test_every_write_of_a_delivery_has_a_boundary(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes never follow each other without a point between them, in a first delivery and in a repair."""
    publish(stores.engine, 3)
    publish(stores.engine, 1, context="[]")

    first = record(stores, monkeypatch, lambda: relay(stores))
    repair = record(stores, monkeypatch, lambda: redeliver(stores))
    publish(stores.engine, 1)
    cut_without_number(stores)
    numbered = record(stores, monkeypatch, lambda: relay(stores))

    publish(stores.engine, 1, event_type="poison")
    publish(stores.engine, 1)
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")
    refusal = record(stores, monkeypatch, lambda: relay(stores))

    stores.client.run("ALTER TABLE {table:Identifier} DROP CONSTRAINT no_poison")
    publish(stores.engine, 2)
    let_be_too_large(stores)
    split = record(stores, monkeypatch, lambda: relay(stores))

    # A cut is one transaction: its two statements appear together or not at all.
    for sequence in (first[first.index(Point.CUT) :], repair, numbered, split):
        for one, two in pairwise(sequence):
            assert (one, two) != ("write", "write"), sequence
    assert {item for item in first + repair + numbered + refusal + split if item != "write"} == set(Point)


def test_a_listener_can_be_ended(stores: Stores) -> None:
    """A point is announced to listeners of the moment and to nobody afterwards."""
    seen: list[Point] = []
    publish(stores.engine, 1)
    end = listen(seen.append)
    end()
    end()

    relay(stores)

    assert seen == []
