"""A log that this ledger has delivered into and ClickHouse has lost is made again by one option and by nothing else."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from pydantic import SecretStr
from sqlalchemy import text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.schema import has_log
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.events import assert_each_exactly_once, committed_ids, publish
from tests.fixtures.snapshots import delivered_batches

#: Every command that makes a table where it is missing, or needs it.
COMMANDS = (
    ["init"],
    ["relay", "--until-empty"],
    ["up", "--port", "0"],
    ["demo", "--events", "10", "--exit", "--port", "0"],
    ["reconcile", "--repair"],
    ["replay", "--from", "2026-01-01", "--reload"],
    ["prune"],
    ["adopt", "--yes"],
    ["delivered"],
)


@pytest.fixture
def outbox(outbox: Outbox, dagster_url: str, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """Run a command on this test's databases and a storage of Dagster's."""
    monkeypatch.setenv("OUTBOX_DAGSTER_URL", dagster_url)
    monkeypatch.setenv("OUTBOX_HOME", str(own_home))
    return outbox


def ledger_of(stores: Stores) -> list[Any]:
    """Return what a refused command must leave as it is."""
    with stores.engine.begin() as connection:
        batches = connection.execute(text("SELECT * FROM outbox.batch ORDER BY batch_id")).all()
        return [*batches, connection.execute(text("SELECT positions FROM outbox.unclaimed")).scalar_one()]


def assert_refused(done: Result) -> None:
    """Check that a command has said in one sentence all that may be the case."""
    assert done.exit_code == 1, done.output
    (sentence,) = [line for line in done.stderr.splitlines() if "has no table" in line]
    assert "make it again with 'outbox init --recreate-log'" in sentence
    assert "OUTBOX_CLICKHOUSE_URL or OUTBOX_CLICKHOUSE_TABLE" in sentence
    assert "GRANT" not in sentence


def reconcile_as_printed(outbox: Outbox, printed: str) -> Result:
    """Run the command that `outbox init --recreate-log` names."""
    command = re.search(r"outbox (reconcile --from \S+ --to \S+ --repair)", printed)
    assert command is not None, printed
    return outbox(*shlex.split(command[1]))


def test_a_lost_log_is_made_again_on_demand_and_filled(stores: Stores, outbox: Outbox) -> None:
    """Each command refuses and changes nothing; then it is made, reconciled as printed, and holds each event once."""
    delivered_batches(stores, (3,))
    publish(stores.engine, 2, context="[1]")
    publish(stores.engine, 4)
    relay(stores, until_empty=True)
    publish(stores.engine, 5)
    stores.client.run("DROP TABLE {table:Identifier}")
    before = ledger_of(stores)

    for command in COMMANDS:
        assert_refused(outbox(*command))
        assert not has_log(stores.client), command
        assert ledger_of(stores) == before, command
    (said,) = [check for check in examine(stores.settings) if check.name == "clickhouse table"]
    assert (said.ok, "'outbox init --recreate-log'" in said.message) == (False, True)

    made = outbox("init", "--recreate-log")
    assert made.exit_code == 0, made.output
    assert "To deliver 7 events of " in made.stdout
    assert "Pruned" not in made.stdout
    repaired = reconcile_as_printed(outbox, made.stdout)
    assert repaired.exit_code == 0, repaired.output
    assert outbox("relay", "--until-empty").exit_code == 0
    assert_each_exactly_once(stores.engine, stores.client)
    assert "again" not in outbox("init", "--recreate-log").stdout
    assert outbox("reconcile").exit_code == 0


def test_events_that_only_the_ledger_knows_are_counted(stores: Stores, outbox: Outbox) -> None:
    """Of pruned batches nothing can be sent again: how many events of which days that are is said when it is made."""
    delivered_batches(stores, (6,))
    with stores.engine.begin() as connection:
        for column in ("processed_at", "proved_at", "cut_at", "oldest_recorded_at"):
            connection.execute(text(f"UPDATE outbox.batch SET {column} = {column} - interval '20 days'"))
        day = connection.execute(text("SELECT DISTINCT recorded_on FROM outbox.batch")).scalar_one()
    prune(replace(stores, settings=stores.settings.model_copy(update={"retention_days": 14})))
    kept = publish(stores.engine, 2)
    relay(stores, until_empty=True)
    assert committed_ids(stores.engine) == set(kept)
    stores.client.run("DROP TABLE {table:Identifier}")

    made = outbox("init", "--recreate-log")

    assert made.exit_code == 0, made.output
    assert f"To deliver 2 events of {day}, again: outbox reconcile --from {day} --to {day} --repair" in made.stdout
    assert f"not to be sent again: 6 events of {day}. Restore their rows" in made.stdout
    repaired = reconcile_as_printed(outbox, made.stdout)
    assert (repaired.exit_code, "can be proved but not sent again" in repaired.stderr) == (1, True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_ledger_that_has_delivered_nothing_gets_its_log_again(stores: Stores, outbox: Outbox) -> None:
    """Batches of refused events alone have put nothing into the log, so nothing is lost with it."""
    publish(stores.engine, 2, context="[1]")
    relay(stores, until_empty=True)
    publish(stores.engine, 3)
    stores.client.run("DROP TABLE {table:Identifier}")

    assert outbox("init").exit_code == 0

    assert outbox("relay", "--until-empty").exit_code == 0
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.embedded_only
def test_an_embedded_engine_that_is_empty_gets_no_log_by_itself(
    stores: Stores, outbox: Outbox, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that was removed is another ClickHouse: each command refuses, one that only asks makes nothing either."""
    delivered_batches(stores, (3,))
    monkeypatch.delenv("OUTBOX_CLICKHOUSE_URL")
    with embedded_engines(own_home, postgres=False) as urls:
        assert urls.clickhouse is not None
        here = stores.settings.model_copy(update={"clickhouse_url": SecretStr(urls.clickhouse)})
        client = open_client(here)

        for command in (["relay"], ["up", "--port", "0"], ["demo", "--events", "10", "--exit"], ["init"]):
            assert_refused(outbox(*command))
        assert outbox("sql", "SELECT 1").exit_code == 0
        assert not has_log(client)

        made = outbox("init", "--recreate-log")
        assert reconcile_as_printed(outbox, made.stdout).exit_code == 0
        assert_each_exactly_once(stores.engine, client)
        client.close()
