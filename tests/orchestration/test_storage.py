"""Dagster's storage keeps its connection, and survives the loss of it."""

from collections.abc import Callable, Iterator

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from outbox_pipeline.processes import wait_until


def use_all_parts(instance: dg.DagsterInstance) -> None:
    """Ask each of the three parts of the storage something, twice."""
    for _ in range(2):
        instance.get_runs_count()
        instance.all_instigator_state()
        instance.fetch_run_status_changes(dg.DagsterEventType.RUN_SUCCESS, limit=1)


@pytest.fixture
def sessions(dagster_url: str) -> Iterator[Callable[[str], set[int]]]:
    """Return a function that shows something of Dagster's sessions, their pid by default."""
    engine = create_engine(dagster_url)

    def show(what: str = "pid") -> set[int]:
        statement = text(
            f"SELECT {what} FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with engine.begin() as connection:
            return set(connection.execute(statement).scalars())

    yield show
    engine.dispose()


def test_an_instance_keeps_one_connection(instance: dg.DagsterInstance, sessions: Callable[..., set[int]]) -> None:
    """The packaged dagster.yaml asks for it: statements one after another need no second process of PostgreSQL."""
    use_all_parts(instance)
    assert wait_until(lambda: len(sessions()) == 1, seconds=10), sessions()
    before = sessions()

    use_all_parts(instance)

    assert sessions() == before


def test_a_lost_connection_is_replaced(instance: dg.DagsterInstance, sessions: Callable[..., set[int]]) -> None:
    """After a restart of PostgreSQL nobody sees an error."""
    use_all_parts(instance)
    lost = sessions()
    assert sessions("pg_terminate_backend(pid)") == {True}

    use_all_parts(instance)

    assert not lost & sessions()
