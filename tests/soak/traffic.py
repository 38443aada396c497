"""Producers for the soak: threads that publish, roll back and survive a PostgreSQL that goes away."""

import random
import threading
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from outbox_pipeline import publish_event
from outbox_pipeline.ids import uuid7


@dataclass
class Journal:
    """What the producers know: ids whose commit was answered, and ids that were rolled back."""

    committed: set[UUID] = field(default_factory=set)
    rolled_back: set[UUID] = field(default_factory=set)
    in_doubt: set[UUID] = field(default_factory=set)


def start_producers(engine: Engine, count: int, stop: threading.Event) -> tuple[Journal, list[threading.Thread]]:
    """Start *count* producers that publish until *stop* is set."""
    journal = Journal()
    threads = [threading.Thread(target=_produce, args=(engine, seed, journal, stop)) for seed in range(count)]
    for thread in threads:
        thread.start()
    return journal, threads


def _produce(engine: Engine, seed: int, journal: Journal, stop: threading.Event) -> None:
    chance = random.Random(seed)
    while not stop.wait(chance.uniform(0.05, 0.3)):
        ids = {uuid7() for _ in range(chance.randint(1, 8))}
        try:
            _transact(engine, ids, chance, journal)
        except SQLAlchemyError:
            # PostgreSQL went away: whether the commit happened is for PostgreSQL to say.
            journal.in_doubt |= ids


def _transact(engine: Engine, ids: set[UUID], chance: random.Random, journal: Journal) -> None:
    with engine.connect() as connection, connection.begin() as transaction:
        for event_id in ids:
            context = {"seed": chance.random(), "text": "x" * chance.randint(0, 400)}
            publish_event(connection, context, event_type="soaked", event_id=event_id)
        if chance.random() < 0.15:
            transaction.rollback()
            journal.rolled_back |= ids
            return
    journal.committed |= ids
