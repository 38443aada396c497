"""`outbox publish FILE` and the way of its events through the other commands."""

import json
from pathlib import Path
from uuid import uuid4

from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.events import publish


def test_commands_carry_events_from_a_file_to_clickhouse(outbox: Outbox, tmp_path: Path) -> None:
    """publish, relay, status, trace and sql agree on what happened, in JSON on stdout alone."""
    file = tmp_path / "events.jsonl"
    event_id = "00000000-0000-0000-0000-00000000000a"
    context = '{"price": 1.10,  "big": 123456789012345678901234567890}'
    file.write_text(f'{{"event_type": "t", "event_id": "{event_id}", "event_context": {context}}}\n')
    init = outbox("init")
    first, again = outbox("publish", str(file), "--json"), outbox("publish", "-", given=file.read_text())
    relayed = outbox("relay", "--until-empty", "--json")
    status, trace = outbox("status", "--json"), outbox("trace", event_id, "--json")
    asked = outbox("sql", "SELECT event_context FROM event_log", "--format", "RawBLOB")

    assert (init.exit_code, json.loads(first.stdout)) == (0, {"published": 1, "already_there": 0, "differing": []})
    assert (again.stdout, again.stderr) == ("published 0, already there 1\n", "")
    assert json.loads(relayed.stdout)["delivered"] == 1
    assert json.loads(status.stdout)["processed"] == 1
    assert json.loads(trace.stdout)["rows"][0]["position"] == 1
    assert asked.stdout == context


def test_a_file_that_says_something_else_of_a_known_event_is_told(outbox: Outbox, stores: Stores) -> None:
    """The first event stays, the others of the file are published, and the ids that differ are named, no contents."""
    old, new = publish(stores.engine)[0], uuid4()
    file = "".join(
        f'{{"event_type": "t", "event_id": "{event_id}", "event_context": {{"text": "sekret"}}}}\n'
        for event_id in (old, new)
    )

    text, machine = outbox("publish", "-", given=file), outbox("publish", "-", "--json", given=file)

    assert (text.exit_code, text.stdout) == (0, "published 1, already there 1\n")
    assert str(old) in text.stderr
    assert str(new) not in text.stderr
    assert "sekret" not in text.stderr
    assert json.loads(machine.stdout) == {"published": 0, "already_there": 2, "differing": [str(old)]}


def test_bad_line_publishes_nothing_of_the_file(outbox: Outbox, stores: Stores, tmp_path: Path) -> None:
    """However late the bad line stands, the file is one transaction, and its line is named."""
    file = tmp_path / "events.jsonl"
    good = '{"event_type": "t", "event_context": {}}\n'
    file.write_text(good * 6_000 + '{"event_type": "t", "event_context": {]}\n')

    result = outbox("publish", str(file))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{file}:6001: is not valid JSON")
    assert read_status(stores.engine).pending == 0
