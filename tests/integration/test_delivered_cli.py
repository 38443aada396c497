"""`outbox delivered`: whether each day is whole."""

import json

from outbox_pipeline.stores import Stores
from tests.fixtures.checks import finding
from tests.fixtures.commands import Outbox
from tests.fixtures.events import publish
from tests.fixtures.ledger import execute


def test_delivered_says_whether_each_day_is_whole(outbox: Outbox, stores: Stores) -> None:
    """A day on its way fails the command until it is delivered; JSON has the table's columns."""
    execute(
        stores.engine,
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'test', '{}', clock_timestamp() - interval '1 day')",
    )
    before = outbox("delivered")
    outbox("relay", "--until-empty")
    after = outbox("delivered")
    (day, _) = json.loads(outbox("delivered", "--json").stdout)

    assert before.exit_code == 1
    assert "1 on their way" in before.stdout.splitlines()[0]
    assert after.exit_code == 0
    assert after.stdout.splitlines()[0].split() == [day["day"], "complete", "1", "delivered"]
    assert (day["event_count"], day["is_complete"]) == (1, True)
    assert outbox("delivered", "--from", day["day"], "--to", day["day"], "--json").stdout.count('"day"') == 1
    assert outbox("delivered", "--from", "2026-03-02", "--to", "2026-03-01").exit_code == 2


def test_a_missing_days_table_is_named_and_fails_no_relay(outbox: Outbox, stores: Stores) -> None:
    """Delivery goes on; relay, delivered and doctor say what to run."""
    stores.client.run("DROP TABLE {completeness:Identifier}")
    publish(stores.engine, 1)

    relayed = outbox("relay", "--until-empty", "--json")
    asked = outbox("delivered")
    found = finding(stores.settings, "delivered days")

    assert (relayed.exit_code, json.loads(relayed.stdout)["delivered"]) == (0, 1)
    assert "event_log_completeness: run 'outbox init'" in relayed.stderr
    assert (asked.exit_code, "run 'outbox init'" in asked.stderr) == (1, True)
    assert (found.ok, "run 'outbox init'" in found.message) == (False, True)
