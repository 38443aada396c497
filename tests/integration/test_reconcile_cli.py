"""`outbox reconcile` and `outbox replay` against real databases: what they print, change and exit with."""

import json
from uuid import UUID

import pytest

from outbox_pipeline.batches import Batch
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import BREAKAGES, change, copy_to_unknown_batch, prune, read_all
from tests.fixtures.commands import Outbox
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.snapshots import delivered_batches


@pytest.fixture
def batches(stores: Stores) -> list[Batch]:
    """Three processed batches of 100 events each."""
    return delivered_batches(stores)


def generations(stores: Stores) -> list[int]:
    """Return each batch's generation."""
    return [batch.generation for batch in read_all(stores.engine)]


def test_reconcile_exits_by_what_remains(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """0 when both sides agree, 1 with a sentence while they differ, 0 once repaired."""
    clean = outbox("reconcile")
    BREAKAGES["missing rows"].do(stores.client, batches[1].batch_id)

    broken = outbox("reconcile", "--from", str(today()), "--to", str(today()))
    repaired = outbox("reconcile", "--repair")
    again = outbox("reconcile", "--by-type")

    assert [result.exit_code for result in (clean, broken, repaired, again)] == [0, 1, 0, 0]
    assert "97 rows instead of 100: 3 missing" in broken.stderr
    assert "outbox reconcile --repair" in broken.stderr
    assert generations(stores) == [0, 1, 0]
    assert_each_exactly_once(stores.engine, stores.client)


def test_reconcile_speaks_json(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """`--json` has the days, each differing batch with its numbers, and what was done about it."""
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)
    unknown = copy_to_unknown_batch(stores.client, positions=(1, 2))

    result = outbox("reconcile", "--repair", "--json")

    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert told["is_clean"] is False
    assert told["days"][0] | {"day": str(today()), "batches": 3, "differing": 1, "found_rows": 250} == told["days"][0]
    (difference,) = told["differences"]
    assert (difference["batch_id"], difference["missing"]) == (str(batches[1].batch_id), 50)
    assert [item["outcome"] for item in told["repaired"]] == ["redelivered"]
    assert [item["batch_id"] for item in told["unknown"]] == [str(unknown)]
    assert len(told["left"]) == 1


def test_a_dry_replay_counts_and_changes_nothing(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """`--dry-run` says how many batches and events are meant, and sends nothing."""
    prune(stores.engine, batches[0].batch_id)

    result = outbox("replay", "--from", str(today()), "--reload", "--dry-run", "--json")

    told = json.loads(result.stdout)
    assert (result.exit_code, told["dry_run"], told["batches"], told["events"], told["pruned_batches"]) == (
        0,
        True,
        3,
        300,
        1,
    )
    assert generations(stores) == [0, 0, 0]


def test_a_reload_sends_again_and_doubles_nothing(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """`--reload` sends what is whole under a new generation: not swallowed as a repetition, and no row twice."""
    result = outbox("replay", "--batch", str(batches[1].batch_id), "--reload")

    assert result.exit_code == 0
    assert generations(stores) == [0, 1, 0]
    assert stores.client.rows("SELECT DISTINCT generation AS n FROM {table:Identifier} ORDER BY n") == [
        {"n": 0},
        {"n": 1},
    ]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_replay_without_reload_sends_only_what_differs(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """Proven batches stay as they are; the outcomes are counted."""
    BREAKAGES["doubled rows"].do(stores.client, batches[1].batch_id)

    result = outbox("replay", "--to", str(today()), "--json")

    assert json.loads(result.stdout)["outcomes"] == {"proven": 2, "redelivered": 1}
    assert generations(stores) == [0, 1, 0]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_type_cannot_command_the_terminal_nor_fill_it(outbox: Outbox, stores: Stores) -> None:
    """By type the beginning of each name is shown, control characters as escapes; machines get all of it."""
    name = "\x1b[2J" + "x" * 400
    publish(stores.engine, 2, event_type=name)
    relay(stores, until_empty=True)
    change(stores.client, "DELETE FROM {table:Identifier} WHERE position = 1", UUID(int=0))

    told, machine = outbox("reconcile", "--by-type"), outbox("reconcile", "--by-type", "--json")

    (line,) = [line for line in told.stdout.splitlines() if "1 of 2" in line and "rows" not in line]
    assert f"\\x1b[2J{'x' * 195}…" in line
    assert "\x1b" not in line
    assert json.loads(machine.stdout)["types"][0]["event_type"] == name


def test_a_replay_by_type_takes_the_batches_that_hold_it(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """By type the batches with such events are replayed, whole; a pruned one is found in ClickHouse."""
    for _ in range(2):
        publish(stores.engine, 3, event_type="order_cancelled")
        publish(stores.engine, 4)
        relay(stores)
    prune(stores.engine, read_all(stores.engine)[3].batch_id)

    result = outbox("replay", "--type", "order_cancelled", "--reload", "--json")

    told = json.loads(result.stdout)
    assert (told["batches"], told["events"], told["outcomes"]) == (2, 14, {"proven": 1, "redelivered": 1})
    assert generations(stores) == [0, 0, 0, 0, 1]
    assert json.loads(outbox("replay", "--type", "never_seen", "--json").stdout)["batches"] == 0


def test_a_pruned_batch_that_differs_is_refused(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """Exit code 1 and a sentence: its events are gone, and the batch stays as it is."""
    prune(stores.engine, batches[1].batch_id)
    BREAKAGES["missing rows"].do(stores.client, batches[1].batch_id)

    result = outbox("replay", "--batch", str(batches[1].batch_id), "--reload")

    assert result.exit_code == 1
    assert "can be proved but not sent again" in result.stderr
    assert generations(stores) == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["replay"], 2),
        (["replay", "--from", "2026-03-02", "--to", "2026-03-01"], 2),
        (["reconcile", "--from", "yesterday"], 2),
        (["replay", "--to", "2026-02-30"], 2),
        (["replay", "--batch", "01a20479-aecd-7199-bf78-efa95fc0a6e0"], 1),
    ],
)
def test_wrong_use_is_told(outbox: Outbox, arguments: list[str], code: int) -> None:
    """What cannot be meant is refused before anything happens."""
    result = outbox(*arguments)

    assert result.exit_code == code
    assert result.stderr
