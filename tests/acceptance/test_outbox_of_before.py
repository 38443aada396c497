"""An outbox of an early release is migrated by `outbox init` while producers publish, and everything in it arrives."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog
from sqlalchemy import create_engine, text

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.processes import wait_until
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.before import make_ledger_of_before, make_log_of_before
from tests.fixtures.children import recover
from tests.fixtures.commands import run_outbox
from tests.fixtures.events import assert_each_exactly_once, committed_ids
from tests.fixtures.instances import all_batches
from tests.fixtures.owners import ledger_id_of, owners_of
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_clickhouse, fresh_database, url_of


@pytest.fixture
def before(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    """The outbox as the early release left it; commands of this one lead there."""
    with fresh_database(servers) as name, fresh_clickhouse(servers) as clickhouse_url:
        url = url_of(servers, name)
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", url)
        monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", clickhouse_url)
        settings = Settings(lease_seconds=2, request_seconds=5, retry_base_seconds=0.1, retry_max_seconds=1)
        engine, client = create_outbox_engine(settings), open_client(settings)
        with engine.begin() as connection:
            make_ledger_of_before(connection)
        make_log_of_before(client)
        yield Stores(engine, client, settings)
        client.close()
        engine.dispose()
        structlog.reset_defaults()


@contextmanager
def publishing(url: str) -> Iterator[list[int]]:
    """Publish in two threads, a transaction an event; yields how many each has committed, and fails with them."""
    is_over, counts = threading.Event(), [0, 0]
    failed: list[Exception] = []

    def publish(number: int) -> None:
        engine = create_engine(url)
        try:
            while not is_over.is_set():
                with engine.begin() as connection:
                    connection.execute(text("SELECT outbox.publish('live', '{}')"))
                counts[number] += 1
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)
        engine.dispose()

    threads = [threading.Thread(target=publish, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert failed == []


def rows_up_to(stores: Stores, position: object) -> list[dict[str, object]]:
    """Return which batch and generation each row up to a position is of, and when it arrived."""
    return stores.client.rows(
        "SELECT position, batch_id, generation, loaded_at FROM {table:Identifier}"
        " WHERE position <= {position:UInt64} ORDER BY position, loaded_at",
        {"position": position},
    )


def test_an_outbox_of_before_is_migrated_while_it_is_published_into(before: Stores) -> None:
    """Open batches, one that was sent and not marked, and a parked one: each event arrives once, and proofs hold.

    What the early release had sent is found by the look and stays as it was: nothing of it is sent again.
    """
    (last,) = before.client.rows("SELECT max(position) AS position FROM {table:Identifier}")
    sent = rows_up_to(before, last["position"])
    assert before.settings.postgres_url
    with publishing(before.settings.postgres_url.get_secret_value()) as counts:
        assert wait_until(lambda: min(counts) > 0, seconds=60)
        refused = run_outbox("relay")
        migrated = run_outbox("init")
        after = list(counts)
        assert wait_until(lambda: min(counts) > max(after), seconds=60)
    statuses = {batch.status for batch in all_batches(before)}
    resumed = run_outbox("resume")
    recover(before)

    assert (refused.exit_code, migrated.exit_code, resumed.exit_code) == (1, 0, 0), migrated.output
    assert "this code needs" in refused.stderr
    assert "run 'outbox init'" in refused.stderr
    assert BatchStatus.PARKED in statuses
    assert owners_of(before) == [ledger_id_of(before)]
    assert {batch.status for batch in all_batches(before)} == {BatchStatus.PROCESSED}
    assert len(committed_ids(before.engine)) == 3500 + sum(counts)
    assert rows_up_to(before, last["position"]) == sent
    assert_each_exactly_once(before.engine, before.client)
    assert reconcile(before).is_clean
