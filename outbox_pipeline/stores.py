"""The two stores a procedure works on, opened and closed together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.limits import USUAL_LIMITS, StepLimits
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.settings import Settings


@dataclass(frozen=True)
class Stores:
    """Open connections to both sides, the settings they were opened with, and how long a step on them may take."""

    engine: Engine
    client: EventLogClient
    settings: Settings
    limits: StepLimits = USUAL_LIMITS


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
