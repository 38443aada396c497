"""The demo's shop after its report: customers go on coming, so that whoever looks has something to see."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Engine, event, make_url, text

from outbox_pipeline.demo.day import ShopDay
from outbox_pipeline.processes import wait_until
from outbox_pipeline.stores import Stores
from tests.fixtures.servers import Servers
from tests.fixtures.stores import administration, identifier


def written(stores: Stores) -> int:
    """Return the position of the last event."""
    with stores.engine.begin() as connection:
        return int(connection.scalar(text("SELECT max(position) FROM outbox.event")))


@contextmanager
def away(stores: Stores, servers: Servers) -> Iterator[None]:
    """During the block nobody can connect to the test's database, and whoever was connected is not any more."""
    assert stores.settings.postgres_url
    database = make_url(stores.settings.postgres_url.get_secret_value()).database or ""
    ended = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
    with administration(servers) as engine, engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {identifier(database)} ALLOW_CONNECTIONS false"))
        try:
            connection.execute(ended, {"name": database})
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {identifier(database)} ALLOW_CONNECTIONS true"))


def test_customers_come_through_an_outage_until_the_block_ends(stores: Stores, servers: Servers) -> None:
    """Each publishes; while PostgreSQL is away nobody can, and afterwards they come again."""
    refused: list[Any] = []
    note = refused.append
    event.listen(Engine, "handle_error", note)
    try:
        with closing(ShopDay(stores.settings)) as day:
            day.open()
            with day.evening(pause_seconds=0.02):
                assert wait_until(lambda: written(stores) > 5, seconds=30)
                with away(stores, servers):
                    assert wait_until(lambda: len(refused) >= 8, seconds=30)
                before = written(stores)
                assert wait_until(lambda: written(stores) > before + 5, seconds=30)

            assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("shop")]
    finally:
        event.remove(Engine, "handle_error", note)
