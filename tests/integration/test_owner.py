"""A source on a table belongs to one ledger: a second one is refused before anything is sent, and spoils nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text
from typer.testing import Result

from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.clickhouse.owner import read_claims
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.commands import Outbox, run_outbox
from tests.fixtures.events import assert_each_exactly_once, committed_ids, publish
from tests.fixtures.instances import everything
from tests.fixtures.owners import WAYS_ON, ledger_id_of, on_table, owners_of, told_days
from tests.fixtures.snapshots import delivered_batches

pytestmark = pytest.mark.usefixtures("unclaimed")

#: Whatever would send, compare, delete or tell.
COMMANDS = (
    *("init", "doctor", "relay --until-empty", "up --port 0", "replay --from 2026-01-01 --reload"),
    *("reconcile", "reconcile --repair", "prune", "delivered"),
)


def test_a_second_outbox_is_refused(outbox_on: Outbox, stores: Stores, moved: Stores) -> None:
    """Whatever would send, compare or delete ends with 1 and the sentence that helps; both sides are as they were."""
    before = everything(stores), everything(moved), told_days(stores)

    results = {command: outbox_on(moved, *command.split()) for command in COMMANDS}

    assert [command for command, result in results.items() if result.exit_code != 1] == []
    wanted = ("belongs to another outbox", *WAYS_ON)
    said = {command: " ".join(result.output.split()) for command, result in results.items()}
    assert [command for command in said if not all(word in said[command] for word in wanted)] == []
    assert (everything(stores), everything(moved), told_days(stores)) == before


def test_a_table_of_another_outbox_is_not_adopted_from(outbox_on: Outbox, stores: Stores, moved: Stores) -> None:
    """What stands in it was delivered by no old instance of this ledger."""
    with moved.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))
    before = everything(stores), everything(moved)

    result = outbox_on(moved, "adopt", "--dry-run")

    assert result.exit_code == 1
    assert "belongs to another outbox" in result.stderr
    assert (everything(stores), everything(moved)) == before


def test_an_embedded_table_belongs_to_one_outbox_too(
    stores: Stores, other: Stores, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of a home makes its table by itself; the first to deliver claims it, another database is refused."""
    monkeypatch.setenv("OUTBOX_HOME", str(own_home))
    monkeypatch.delenv("OUTBOX_CLICKHOUSE_URL", raising=False)

    def run(on: Stores, *arguments: str) -> Result:
        assert on.settings.postgres_url
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", on.settings.postgres_url.get_secret_value())
        return run_outbox(*arguments)

    publish(stores.engine, 3)
    publish(other.engine, 2)
    with embedded_engines(own_home, postgres=False):
        first, second = (run(each, "relay") for each in (stores, other))
        shown = run(stores, "sql", "--format", "TabSeparated", "SELECT event_id FROM event_log")
    structlog.reset_defaults()

    assert (first.exit_code, second.exit_code) == (0, 1)
    assert "belongs to another outbox" in second.stderr
    assert sorted(shown.stdout.split()) == sorted(map(str, committed_ids(stores.engine)))


def test_after_the_refusal_both_outboxes_are_right(outbox_on: Outbox, stores: Stores, moved: Stores) -> None:
    """The first one's days and comparison are its own, and the second delivers into a table of its own."""
    outbox_on(moved, "relay", "--until-empty")
    outbox_on(moved, "delivered")
    publish(stores.engine, 2)
    relay(stores, until_empty=True)
    record_completeness(stores)
    found = reconcile(stores)

    assert (found.is_clean, found.unknown) == (True, ())
    assert [day.event_count for day in read_delivered(stores.client)] == [5]
    assert_each_exactly_once(stores.engine, stores.client)
    with on_table(moved, "other_log") as own:
        relay(own, until_empty=True)
        assert_each_exactly_once(own.engine, own.client)


@pytest.mark.parametrize("act", [relay, record_completeness, start])
def test_a_table_without_an_owner_belongs_to_the_first_that_writes(
    stores: Stores, other: Stores, act: Callable[[Stores], object]
) -> None:
    """A relay, a run of Dagster or a write of the days claims it, once, and the other outbox is refused."""
    publish(stores.engine, 3)
    end = act(stores)
    claims = read_claims(stores.client)
    if isinstance(end, Delivery):
        end.finish()
    relay(stores)

    assert [claim.ledger_id for claim in claims] == [ledger_id_of(stores)]
    publish(other.engine, 1)
    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        relay(other)

    assert read_claims(stores.client) == claims


def test_a_look_claims_nothing(outbox_on: Outbox, stores: Stores) -> None:
    """To compare, to prune and to examine leave a table without an owner as it is."""
    codes = [outbox_on(stores, *command).exit_code for command in (["reconcile"], ["prune"])]
    examined = outbox_on(stores, "doctor")

    assert codes == [0, 0]
    assert "belongs to no outbox yet" in " ".join(examined.output.split())
    assert read_claims(stores.client) == []


def test_a_lost_log_of_another_outbox_is_not_made_again(outbox_on: Outbox, stores: Stores, other: Stores) -> None:
    """A refused init makes and migrates nothing there, so the owner goes on learning that its log is lost."""
    delivered_batches(stores, (3,))
    stores.client.run("DROP TABLE {table:Identifier}")

    refused = outbox_on(other, "init")
    owner = outbox_on(stores, "relay")

    assert (refused.exit_code, owner.exit_code) == (1, 1)
    assert "belongs to another outbox" in refused.stderr
    assert "'outbox init --recreate-log'" in owner.stderr


def test_rows_of_an_unknown_ledger_are_not_claimed_silently(outbox_on: Outbox, stores: Stores, other: Stores) -> None:
    """Where the claims are lost a stranger is refused with the number of rows, and makes nothing; the owner is not."""
    delivered_batches(stores, (3,))
    stores.client.run("DROP TABLE {sources:Identifier}")

    refused = outbox_on(other, "init")
    tables = read_log(stores.client).tables
    mine = outbox_on(stores, "init")

    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert "belongs to no outbox, but holds 3 rows of batches that this ledger does not know" in said
    assert all(word in said for word in WAYS_ON)
    assert "sources" not in tables
    assert mine.exit_code == 0, mine.output
    assert owners_of(stores) == [ledger_id_of(stores)]


def test_a_table_of_before_is_claimed_by_init(outbox_on: Outbox, stores: Stores, other: Stores) -> None:
    """Without the table of owners nothing is delivered; `outbox init` makes it and claims, once."""
    publish(stores.engine, 3)
    for role in ("sources", "migrations"):
        stores.client.run(f"DROP TABLE {{{role}:Identifier}}")
    with pytest.raises(ConfigurationError, match="run 'outbox init'"):
        relay(stores)

    codes = [outbox_on(each, "init").exit_code for each in (stores, stores, other)]
    relay(stores, until_empty=True)

    assert codes == [0, 0, 1]
    assert len(read_claims(stores.client)) == 1
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_doctor_says_whose_the_table_is(outbox_on: Outbox, stores: Stores, other: Stores) -> None:
    """It is fine for the owner; for another outbox it names the owner's database without user or password."""
    relay(stores)

    mine, theirs = outbox_on(stores, "doctor"), outbox_on(other, "doctor")

    assert "belongs to this outbox" in mine.output
    assert theirs.exit_code == 1
    assert f"another outbox (postgresql:///{stores.engine.url.database}," in " ".join(theirs.output.split())
