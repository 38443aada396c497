"""A ClickHouse that was restored, or has lost the log, gets everything again that PostgreSQL still has."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox_pipeline.embedded.engines import embedded_engines
from tests.fixtures.events import publish
from tests.fixtures.nodes import Node
from tests.fixtures.rehearsal import Rehearsal, Terminal, assert_goes_on, prepare

pytestmark = pytest.mark.failover


@contextmanager
def clickhouse_of(home: Path, rehearsal: Rehearsal, node: Node) -> Iterator[Terminal]:
    """Run the ClickHouse of a home during the block, with a terminal in front of it."""
    with embedded_engines(home, postgres=False) as urls:
        assert urls.clickhouse
        yield rehearsal.at(node, clickhouse_url=urls.clickhouse)


def repair_as_told(life: Terminal, said: str) -> str:
    """Type the repair that a command has named."""
    command = re.search(r"outbox reconcile --from \S+ --to [0-9-]+ --repair", said)
    assert command is not None, said
    return life.type(command[0])


def test_a_backup_of_before(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """What was delivered after ClickHouse's backup is told, and delivered once more."""
    home, backup = tmp_path / "home", tmp_path / "backup"
    with embedded_engines(home, postgres=False) as urls:
        here = rehearsal.start_outbox(clickhouse_url=urls.clickhouse)
        prepare(here)
    shutil.copytree(home, backup, symlinks=True)
    with clickhouse_of(home, rehearsal, here.node) as here:
        here.type("outbox relay --until-empty")
        publish(here.stores.engine, 30)
        here.type("outbox relay --until-empty")
    shutil.rmtree(home)
    backup.rename(home)

    with clickhouse_of(home, rehearsal, here.node) as here:
        publish(here.stores.engine, 5)
        here.type("outbox relay --until-empty")
        said = here.type("outbox delivered", status=1)
        repair_as_told(here, said)
        here.type("outbox delivered")

        assert_goes_on(here)
        rehearsal.assert_told("When ClickHouse was restored")


def test_both_were_restored(rehearsal: Rehearsal, tmp_path: Path) -> None:
    """From backups of two moments: what PostgreSQL's dump has arrives once, whatever ClickHouse's backup lacks."""
    home, backup = tmp_path / "home", tmp_path / "backup"
    with embedded_engines(home, postgres=False) as urls:
        there = rehearsal.start_outbox(clickhouse_url=urls.clickhouse)
        prepare(there)
    shutil.copytree(home, backup, symlinks=True)
    with clickhouse_of(home, rehearsal, there.node) as there:
        there.type("outbox relay --until-empty")
        publish(there.stores.engine, 30)
        there.type("pg_dump --format=custom --file=shop.dump shop")
        there.type("outbox relay --until-empty")
        publish(there.stores.engine, 3)
        there.type("outbox relay --until-empty")
    there.node.kill()
    shutil.rmtree(home)
    backup.rename(home)
    node = rehearsal.nodes.empty()
    shutil.copy(there.node.data.with_name("shop.dump"), node.data.parent)
    node.must("createdb shop && createuser --no-login outbox_producer && createuser --no-login outbox_pipeline")
    node.must("pg_restore --exit-on-error --dbname=shop shop.dump")

    with clickhouse_of(home, rehearsal, node) as here:
        here.type("outbox relay --until-empty", status=1)
        here.type("outbox adopt --yes")
        here.type("outbox relay --until-empty")
        here.type("outbox reconcile --repair")

        assert_goes_on(here)
        rehearsal.assert_told("PostgreSQL and ClickHouse were restored")


def test_a_log_that_was_lost(rehearsal: Rehearsal) -> None:
    """It is made again on demand, and everything is delivered into it once."""
    here = rehearsal.start_outbox()
    prepare(here)
    here.stores.client.run("DROP TABLE {table:Identifier}")

    here.type("outbox relay --until-empty", status=1)
    said = here.type("outbox init --recreate-log")
    repair_as_told(here, said)
    here.type("outbox relay --until-empty")

    assert_goes_on(here)
    rehearsal.assert_told("When ClickHouse has lost the table")
