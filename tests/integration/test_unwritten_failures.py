"""A failure that the ledger does not take: it is logged, and the batch goes on once its lease is over."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text
from structlog.testing import capture_logs

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.errors import (
    OutboxError,
    TransientError,
)
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.relay.attempts import end_failed
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.roles import LoginUrl


@pytest.fixture
def delivery(stores: Stores) -> Iterator[Delivery]:
    """The first attempt on a batch of ten events."""
    publish(stores.engine, 10)
    yield (started := start(stores))
    started.close()


def run_out(engine: Engine) -> None:
    """Let every lease be over."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET lease_until = now() - interval '1 s' WHERE holder <> ''"))


def test_a_failure_that_cannot_be_written_is_logged(stores: Stores, delivery: Delivery) -> None:
    """A server that takes no writes in mid-run: the lease runs out, and the same batch goes on by itself."""
    with stores.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION public.read_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'cannot execute UPDATE in a read-only transaction' USING ERRCODE = '25006'; END $$;"
            "CREATE TRIGGER read_only BEFORE INSERT OR UPDATE ON outbox.batch"
            " FOR EACH STATEMENT EXECUTE FUNCTION public.read_only()"
        )
    with pytest.raises(TransientError, match="make it writable again") as raised:
        delivery.validate()
    with capture_logs() as lines:
        status = end_failed(delivery, raised.value)

    assert status is None
    (line,) = [line for line in lines if line["event"] == "failure_not_written"]
    assert (line["batch_id"], "25006" in line["refused"]) == (str(delivery.lease.batch_id), True)
    with stores.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER read_only ON outbox.batch")
    assert status_of(stores, delivery) == (BatchStatus.DELIVERING, 1)

    run_out(stores.engine)
    relay(stores, until_empty=True)

    assert status_of(stores, delivery) == (BatchStatus.PROCESSED, 2)
    assert_each_exactly_once(stores.engine, stores.client)


def status_of(stores: Stores, delivery: Delivery) -> tuple[BatchStatus, int]:
    """Return the status and attempt of the delivery's batch."""
    with ledger_transaction(stores.engine) as connection:
        batch = read_batch(connection, delivery.lease.batch_id)
    return batch.status, batch.attempt


def test_a_failure_without_a_connection_is_logged(stores: Stores, login_url: LoginUrl) -> None:
    """A role that is let in no more in mid-run ends in a line of the log; the batch goes on when it is let in."""
    url = login_url("outbox_pipeline")
    settings = stores.settings.model_copy(update={"postgres_url": SecretStr(url)})
    engine = create_outbox_engine(settings)
    publish(stores.engine, 10)
    delivery = start(Stores(engine, stores.client, settings))
    role = engine.url.username
    admin = create_engine(stores.engine.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"ALTER ROLE {role} NOLOGIN"))
        connection.execute(
            text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = :role"), {"role": role}
        )

        with pytest.raises(OutboxError) as raised:
            delivery.validate()
        with capture_logs() as lines:
            assert end_failed(delivery, raised.value) is None

        assert "failure_not_written" in [line["event"] for line in lines]
        connection.execute(text(f"ALTER ROLE {role} LOGIN"))
    admin.dispose()
    run_out(stores.engine)
    relay(Stores(engine, stores.client, settings), until_empty=True)
    engine.dispose()
    assert_each_exactly_once(stores.engine, stores.client)
