"""The hosts that this folder's tests share: a database, a ClickHouse, workers, and one that only cuts."""

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from outbox_pipeline.embedded.accounts import server_account
from outbox_pipeline.embedded.clickhouse import take_token
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.processes import wait_until
from outbox_pipeline.stores import Stores
from tests.fixtures.clusters import PASSWORD, START_SECONDS, initialise, server_command
from tests.fixtures.hosts import LEASE_SECONDS, Host, Hosts, Network, Worker, networked, serve
from tests.fixtures.servers import Servers

_PORT = 5432
_SETTINGS = ("max_connections=100", "shared_buffers=32MB", "dynamic_shared_memory_type=mmap", f"port={_PORT}")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A host for PostgreSQL 15, one for ClickHouse, two for workers and one for the sensor's part."""
    # Not above: pytest looks into the assertions of a plugin only when nothing has imported it before.
    from tests.fixtures.nodes import kept_folder, postgres_programs

    programs = postgres_programs()
    with ExitStack() as stack:
        network = stack.enter_context(networked())
        database, clickhouse, *workers, control = map(network.host, ("db", "ch", "worker1", "worker2", "control"))
        folder = stack.enter_context(kept_folder())
        postgres_url = _start_postgres(programs, folder, network, database, stack)
        clickhouse_url = _start_clickhouse(tmp_path_factory.mktemp("ch"), clickhouse, stack)
        servers = Servers(postgres_url, clickhouse_url, "", None)
        yield Hosts(network, database, clickhouse, tuple(workers), control, servers)


def _start_postgres(programs: Path, folder: Path, network: Network, host: Host, stack: ExitStack) -> str:
    account = server_account()
    initialise(programs, folder, account)
    with (folder / "data" / "pg_hba.conf").open("a", encoding="utf-8") as file:
        file.write(f"host all all {network.range} scram-sha-256\n")
    server = server_command(programs, folder / "data", account, [*_SETTINGS, f"listen_addresses={host.address}"])
    stack.enter_context(serve(host, server, log=folder / "server.log", environment={"PATH": "/usr/bin:/bin"}))
    url = f"postgresql://postgres:{PASSWORD}@{host.address}:{_PORT}/postgres"

    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    assert wait_until(answers, seconds=START_SECONDS), (folder / "server.log").read_text()
    return url.replace("postgresql://", "postgresql+psycopg://")


def _start_clickhouse(folder: Path, host: Host, stack: ExitStack) -> str:
    port = 8123
    server = [sys.executable, "-m", "outbox_pipeline.embedded.clickhouse_server", "--path", str(folder / "data")]
    server += ["--host", host.address, "--port", str(port)]
    log = folder / "server.log"
    stack.enter_context(serve(host, server, log=log, environment={"PATH": "/usr/bin:/bin", "TZ": "UTC"}))

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{host.address}:{port}/ping", timeout=2):
                return True
        except OSError:
            return False

    assert wait_until(answers, seconds=START_SECONDS), log.read_text()
    return f"http://outbox:{take_token(Home(folder))}@{host.address}:{port}/default"


@pytest.fixture(scope="session")
def servers(hosts: Hosts) -> Servers:
    """The servers of the hosts, for all fixtures that make databases."""
    return hosts.servers


@pytest.fixture
def environment(stores: Stores) -> dict[str, str]:
    """The settings of every host: this test's databases and short waits."""
    assert stores.settings.postgres_url
    assert stores.settings.clickhouse_url
    return {
        "OUTBOX_POSTGRES_URL": stores.settings.postgres_url.get_secret_value(),
        "OUTBOX_CLICKHOUSE_URL": stores.settings.clickhouse_url.get_secret_value(),
        "OUTBOX_LEASE_SECONDS": str(LEASE_SECONDS),
        "OUTBOX_REQUEST_SECONDS": "5",
        "OUTBOX_RETRY_BASE_SECONDS": "0.1",
        "OUTBOX_RETRY_MAX_SECONDS": "1",
    }


@pytest.fixture
def workers(hosts: Hosts, environment: dict[str, str]) -> Iterator[tuple[Worker, Worker]]:
    """Both worker hosts, ready; afterwards every link is there again."""
    started = tuple(Worker(host, environment) for host in hosts.workers)
    for worker in started:
        worker.wait_ready()
    yield started
    for worker in started:
        worker.close()
        worker.host.plug()
