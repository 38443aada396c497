"""Dagster's own database is lost, away or silent while its processes run, and ticks go on by themselves afterwards."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from sqlalchemy import create_engine, text

from tests.fixtures.events import delivered_ids, publish
from tests.fixtures.stack import Running

#: Shorter than any limit of Dagster's or of ours, and longer than all pauses between its looks.
_LOST_SECONDS = 6


@contextmanager
def tables_dropped(running: Running) -> Iterator[None]:
    """Drop the schema with all of Dagster's tables, and make an empty one."""
    engine = create_engine(running.environment["OUTBOX_DAGSTER_URL"])
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    yield


def away(running: Running) -> AbstractContextManager[None]:
    """Break every connection to the database, and refuse new ones."""
    return running.to_storage.away()


def silent(running: Running) -> AbstractContextManager[None]:
    """Keep every connection open and forward nothing."""
    return running.to_storage.quiet()


@pytest.mark.parametrize("lost", [away, silent, tables_dropped], ids=lambda lost: lost.__name__)
def test_ticks_go_on_once_the_storage_is_back(
    running: Running, lost: Callable[[Running], AbstractContextManager[None]]
) -> None:
    """Events published meanwhile are delivered within seconds of its return, and nobody starts anything again."""
    before = dict(running.stack.processes)
    with lost(running):
        published = publish(running.stores.engine, 20)
        running.stay(_LOST_SECONDS)

    running.wait_for_delivery()

    # Not all that is there: a prune of another test has taken events out of PostgreSQL.
    arrived = Counter(delivered_ids(running.stores.client))
    assert [arrived[one] for one in published] == [1] * 20
    assert running.stack.revive() == []
    assert running.stack.processes == before
