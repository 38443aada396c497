"""Two servers behind one name: told by their own names, nothing is doubled, and one of them goes on."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from pydantic import SecretStr

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.client import EventLogClient, clickhouse_client
from outbox_pipeline.clickhouse.schema import migrate_log
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.instances import all_batches
from tests.fixtures.proxy import through
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_clickhouse
from tests.fixtures.too_large import let_be_too_large
from tests.fixtures.two_servers import NAMES, TwoServers, two_servers

ROUNDS = 4


@pytest.fixture
def second(stores: Stores, servers: Servers) -> Iterator[EventLogClient]:
    """The other server, with a log of its own."""
    with ExitStack() as stack:
        url = stack.enter_context(fresh_clickhouse(servers))
        client = stack.enter_context(clickhouse_client(Settings(clickhouse_url=SecretStr(url))))
        migrate_log(client)
        yield client


@pytest.fixture
def balancer(stores: Stores, second: EventLogClient) -> Iterator[TwoServers]:
    """What leads to both."""
    with two_servers(stores.settings, database_of(second)) as found:
        yield found


@pytest.fixture
def behind(stores: Stores, balancer: TwoServers) -> Iterator[Stores]:
    """The stores through the balancer, with attempts enough for every round."""
    update = {"max_attempts": 3 * ROUNDS, "retry_base_seconds": 0}
    settings = through(balancer, stores.settings).model_copy(update=update)
    with clickhouse_client(settings) as client:
        yield replace(stores, client=client, settings=settings)


def fail(stores: Stores) -> None:
    """Make an attempt on the batch that is due, which fails."""
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt)
    with pytest.raises(ConfigurationError) as failure:
        deliver(delivery)
    end_failed(delivery, failure.value)


def database_of(client: EventLogClient) -> str:
    """Return the database of a client."""
    return str(client.driver.database)


@pytest.mark.parametrize(("chosen", "is_claimed"), [(0, True), (1, True), (1, False)], ids=str)
def test_two_servers_are_told_and_nothing_is_doubled(
    stores: Stores, second: EventLogClient, behind: Stores, balancer: TwoServers, chosen: int, is_claimed: bool
) -> None:
    """While they answer in turn each attempt names both and its batch stays as it is; one alone then gets it once."""
    claim_table(stores)
    if is_claimed:
        claim_table(replace(stores, client=second))
    publish(stores.engine, 20)
    cut_batches(stores.engine, stores.settings, limit=1)
    for _ in range(ROUNDS):
        fail(behind)

    (batch,) = all_batches(stores)
    assert (batch.status, batch.attempt, batch.generation) == (BatchStatus.FAILED, ROUNDS, 0)
    assert all(name in str(batch.last_error) for name in NAMES)
    assert "write the address of one of them into OUTBOX_CLICKHOUSE_URL" in str(batch.last_error)
    balancer.stick(chosen)
    relay(behind, until_empty=True)
    (batch,) = all_batches(stores)
    assert (batch.status, batch.generation) == (BatchStatus.PROCESSED, 0)
    assert_each_exactly_once(stores.engine, (stores.client, second)[chosen])


def test_nothing_is_split_while_two_servers_answer(
    stores: Stores, second: EventLogClient, behind: Stores, balancer: TwoServers
) -> None:
    """The other one may have the rows that one of them lacks, or lack the fence."""
    for client in (stores.client, second):
        claim_table(replace(stores, client=client))
    publish(stores.engine, 8)
    let_be_too_large(stores)
    for _ in range(ROUNDS):
        fail(behind)
    (batch,) = all_batches(stores)
    balancer.stick(0)
    relay(behind, until_empty=True)

    assert batch.status == BatchStatus.FAILED
    assert all(name in str(batch.last_error) for name in NAMES)
    assert {batch.status for batch in all_batches(stores)} == {BatchStatus.SPLIT, BatchStatus.PROCESSED}
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_doctor_sees_two_servers(behind: Stores, balancer: TwoServers) -> None:
    """It looks several times, names both, and asks nothing of a log that is not one; with one server all is well."""
    named = {check.name: check for check in examine(behind.settings)}
    balancer.stick(0)
    alone = {check.name: check for check in examine(behind.settings)}

    assert not named["clickhouse server"].ok
    assert all(name in named["clickhouse server"].message for name in NAMES)
    assert named["clickhouse table"].message == "Skipped: the check 'clickhouse server' failed."
    assert alone["clickhouse server"].ok
    assert alone["clickhouse table"].ok
