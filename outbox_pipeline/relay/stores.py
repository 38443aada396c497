"""The two stores a procedure works on, opened and closed together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.settings import Settings


@dataclass(frozen=True)
class Stores:
    """Open connections to both sides, and the settings they were opened with."""

    engine: Engine
    client: EventLogClient
    settings: Settings


@contextmanager
def open_stores(settings: Settings) -> Iterator[Stores]:
    """Open both stores for the length of a block."""
    engine = create_outbox_engine(settings)
    try:
        client = open_client(settings)
        try:
            yield Stores(engine, client, settings)
        finally:
            client.close()
    finally:
        engine.dispose()
