"""`outbox quarantine …` against real databases: what it prints, what it asks, and when it refuses."""

import json
import os
import pty
import subprocess
import sys
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from outbox_pipeline.operations.quarantine import count_held, show
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox, run_outbox
from tests.fixtures.events import publish_unlimited
from tests.fixtures.held import hold


@pytest.fixture
def outbox(outbox: Outbox) -> Outbox:
    """Run `outbox quarantine …` on this test's databases."""
    return partial(outbox, "quarantine")


def on_a_terminal(*arguments: str, answer: str) -> tuple[int, str]:
    """Run `outbox quarantine …` with a terminal on stdin that answers; return exit code and stdout."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "outbox_pipeline.cli.main", "quarantine", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        output, _ = process.communicate(timeout=60)
    os.close(ours)
    return process.returncode, output


def test_a_list_is_lines_to_copy_from(outbox: Outbox, stores: Stores) -> None:
    """Each held event is one line with number, id, type and reasons, latest first; contexts are not in it."""
    (first,) = hold(stores, context='["sekret"]')
    (second,) = hold(stores, event_type="")

    result = outbox("list")
    narrowed = outbox("list", "--reason", "event_type_empty", "--json")

    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["2", str(second)], ["1", str(first)]]
    assert "context_not_object" in lines[1]
    assert "sekret" not in result.output
    (event,) = json.loads(narrowed.stdout)
    assert (event["event_id"], event["reasons"]) == (str(second), ["event_type_empty", "context_not_object"])


def test_an_empty_list_is_no_failure(outbox: Outbox) -> None:
    """When nothing is held, stdout is empty and the command succeeds."""
    result = outbox("list")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nothing" in result.stderr


def test_a_long_list_says_that_there_is_more(outbox: Outbox, stores: Stores) -> None:
    """The limit never hides events silently."""
    hold(stores, 3)

    result = outbox("list", "--limit", "2")

    assert len(result.stdout.splitlines()) == 2
    assert "There are more" in result.stderr


def test_odd_types_cannot_command_the_terminal(outbox: Outbox, stores: Stores) -> None:
    """Control characters and line ends in what was published are shown, not obeyed."""
    hold(stores, event_type="a\x1b[2Jb\nc")

    result = outbox("list")

    assert len(result.stdout.splitlines()) == 1
    assert "a\\x1b[2Jb\\nc" in result.stdout


def test_names_from_before_there_were_limits_are_cut(outbox: Outbox, stores: Stores, tmp_path: Path) -> None:
    """No line of a list, of an event or of a comparison is as long as the name; machines get all of it."""
    (event_id,) = publish_unlimited(stores.engine, event_type="repeat('x', 5000)", environment="repeat('e', 5000)")
    relay(stores, until_empty=True)
    file = tmp_path / "corrected.json"
    file.write_text('{"event_type": "short", "environment": "test", "event_context": {}}', encoding="utf-8")

    for command in (("list",), ("show", str(event_id)), ("replace", str(event_id), "--with", str(file))):
        said = outbox(*command).output
        assert f"{'x' * 199}…" in said
        assert max(map(len, said.splitlines())) < 500
    traced = run_outbox("trace", str(event_id)).output
    assert f"{'e' * 199}…" in traced
    assert "x" * 200 not in traced
    assert json.loads(outbox("list", "--json").stdout)[0]["event_type"] == "x" * 5000


def test_show_prints_the_event_because_somebody_asked(outbox: Outbox, stores: Stores) -> None:
    """By id or by number: context, reasons and what was done about it."""
    (event_id,) = hold(stores, context='["the content"]')
    outbox("discard", str(event_id), "--note", "nobody needs it")

    text = outbox("show", "1").stdout
    found = json.loads(outbox("show", str(event_id), "--json").stdout)

    assert '["the content"]' in text
    assert "discarded" in text
    assert "nobody needs it" in text
    assert found["content"]["context"] == '["the content"]'
    assert found["content"]["published_by"] == stores.engine.url.username
    assert [stay["status"] for stay in found["history"]] == ["discarded"]


def test_show_shortens_only_for_people(outbox: Outbox, stores: Stores) -> None:
    """A huge context does not flood the terminal; JSON has all of it."""
    context = json.dumps(["x" * 10_000])
    hold(stores, context=context)

    assert len(outbox("show", "1").stdout) < 6_000
    assert json.loads(outbox("show", "1", "--json").stdout)["content"]["context"] == context


def test_named_events_are_changed_without_a_question(outbox: Outbox, stores: Stores) -> None:
    """Whoever types ids has seen them: requeue and discard do as told."""
    first, second, _ = hold(stores, 3)

    requeued = outbox("requeue", str(first), "--json")
    discarded = outbox("discard", str(second), "--note", "test", "--json")

    assert (json.loads(requeued.stdout), requeued.exit_code) == ({"requeued": 1, "refused": []}, 0)
    assert (json.loads(discarded.stdout), discarded.exit_code) == ({"discarded": 1}, 0)
    assert count_held(stores.engine).count == 1


@pytest.mark.parametrize("command", [["requeue"], ["discard", "--note", "why"]])
def test_many_events_are_not_changed_without_asking(outbox: Outbox, stores: Stores, command: list[str]) -> None:
    """Without a terminal and without --yes the count is told and nothing happens; with --yes it does."""
    hold(stores, 3)

    refused = outbox(*command, "--all")
    held = count_held(stores.engine).count
    done = outbox(*command, "--all", "--yes")

    assert (refused.exit_code, refused.stdout, held) == (2, "", 3)
    assert "3 held: context_not_object 3" in refused.stderr
    assert refused.stderr.splitlines()[-1] == "There is no terminal to ask on: repeat with --yes."
    assert (done.exit_code, count_held(stores.engine).count) == (0, 0)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("answer", "code", "output", "left"), [("y\n", 0, "requeued 3\n", 0), ("n\n", 1, "", 3)])
def test_a_person_is_asked_with_the_count(stores: Stores, answer: str, code: int, output: str, left: int) -> None:
    """On a terminal the command goes on after a yes and changes nothing after a no."""
    hold(stores, 3)

    found = on_a_terminal("requeue", "--reason", "context_not_object", answer=answer)

    assert found == (code, output)
    assert count_held(stores.engine).count == left


@pytest.mark.usefixtures("environment")
def test_a_person_is_asked_for_the_note(stores: Stores) -> None:
    """A discard without --note asks why on a terminal, and keeps the answer."""
    (event_id,) = hold(stores)

    found = on_a_terminal("discard", str(event_id), answer="smoke test\n")

    assert found == (0, "discarded 1\n")
    assert show(stores.engine, Filter(event_ids=frozenset({event_id}))).history[0].note == "smoke test"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--since", "yesterday"], "no time"),
        (["list", "--status", "lost"], "no status"),
        (["show", "no-uuid"], "no id of an event"),
        (["requeue"], "Say which events"),
        (["requeue", "1", "--reason", "context_not_object"], "not by both"),
        (["requeue", "--all", "--type", "order_placed"], "--all means every"),
        (["discard", "--all", "--yes"], "--note"),
        (["discard", "1", "--note", "  "], "--note"),
    ],
)
def test_wrong_use_is_exit_code_two(outbox: Outbox, stores: Stores, arguments: list[str], said: str) -> None:
    """What cannot be meant is one sentence on stderr and changes nothing."""
    hold(stores)

    result = outbox(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert count_held(stores.engine).count == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", str(uuid4())], "never been in quarantine: 'outbox trace' tells"),
        (["show", "99"], "99 has never been in quarantine: 'outbox quarantine list' shows numbers"),
        (["requeue", "99"], "Not in quarantine: 99"),
        (["discard", str(uuid4()), "--note", "why"], "Not in quarantine"),
        (["requeue", "--type", "nothing", "--yes"], "No held event matches"),
    ],
)
def test_what_is_not_there_is_exit_code_one(outbox: Outbox, stores: Stores, arguments: list[str], said: str) -> None:
    """An unknown event, and a filter that matches nothing, are one sentence on stderr."""
    hold(stores)

    result = outbox(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr


def test_a_refused_event_is_told(outbox: Outbox, stores: Stores) -> None:
    """An event whose batch is being delivered again stays held, and the exit code says that something is left."""
    (event_id,) = hold(stores)
    delivery = start_unrequested(
        stores, show(stores.engine, Filter(event_ids=frozenset({event_id}))).history[0].batch_id
    )

    result = outbox("requeue", str(event_id), "--json")
    delivery.close()

    assert result.exit_code == 1
    assert json.loads(result.stdout)["refused"][0]["events"] == 1
    assert "Still held: 1 event of batch " in result.stderr
    assert "being delivered again" in result.stderr


@pytest.mark.parametrize("name", ["list", "show", "requeue", "discard"])
def test_each_command_explains_itself_with_an_example(name: str) -> None:
    """`outbox quarantine COMMAND --help` says what it does and shows a line to copy."""
    result = run_outbox("quarantine", name, "--help")

    assert result.exit_code == 0
    assert "Example: " in result.stdout
