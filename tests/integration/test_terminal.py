"""What producers wrote is data to a terminal too: it is shown, and never obeyed."""

import json
import os
import pty
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from outbox_pipeline.cli.main import app
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import interrupted_after, run_outbox
from tests.fixtures.events import publish

#: Red, a new title for the window, the one-letter form of ESC [, and a mark that turns the direction of writing.
EVIL = "\x1b[31mRED\x1b]0;OWNED\x07\u009b31m\u202eEND"
OBEYED = ("\x1b[31m", "\x1b]", "\x07", "\u009b", "\u202e")

Outbox = Callable[..., str]


@pytest.fixture
def outbox(environment: None, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """Run a command with its output on a terminal, and return all that arrives there.

    One that goes on is ended as with Ctrl-C once the text *until* has arrived.
    """

    def run(*arguments: str, until: str | None = None) -> str:
        ours, theirs = pty.openpty()
        arrived: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(ours, arrived, until))
        reader.start()
        with (
            monkeypatch.context() as patch,
            os.fdopen(theirs, "w", encoding="utf-8") as terminal,
            interrupted_after(120),
        ):
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            app(list(arguments), standalone_mode=False)
        reader.join()
        os.close(ours)
        return b"".join(arrived).decode()

    return run


def _read_all(terminal: int, arrived: list[bytes], until: str | None) -> None:
    # Linux answers with an error once the other end is closed.
    try:
        while piece := os.read(terminal, 65_536):
            arrived.append(piece)
            if until is not None and until in b"".join(arrived).decode(errors="replace"):
                until = None
                os.kill(os.getpid(), signal.SIGINT)
    except OSError:
        return


@pytest.fixture
def evil(stores: Stores) -> str:
    """One delivered event and one in quarantine whose type and environment a terminal would obey; the former's id."""
    (delivered,) = publish(stores.engine, 1, event_type=EVIL)
    publish(stores.engine, 1, event_type=EVIL, context="[]")
    relay(stores, until_empty=True)
    return str(delivered)


@pytest.mark.parametrize(
    "command",
    [
        "sql|SELECT event_type, environment, event_type AS `\x1b[31mname` FROM event_log",
        "sql|--json|SELECT event_type FROM event_log",
        "sql|--format|TSVRaw|SELECT event_type FROM event_log",
        "trace|EVENT",
        "trace|EVENT|--json",
        "quarantine|list",
        "quarantine|list|--json",
        "quarantine|show|2",
        "status",
        "delivered",
    ],
)
def test_a_terminal_obeys_no_event(outbox: Outbox, evil: str, command: str, stores: Stores) -> None:
    """Every command that names events shows the letters that a terminal would obey as escapes."""
    if "show" in command:
        with stores.engine.begin() as connection:
            command = command.replace(
                "2", str(connection.scalar(text("SELECT quarantine_id FROM outbox.quarantined_event")))
            )

    shown = outbox(*command.replace("EVENT", evil).split("|"))

    assert not [letters for letters in OBEYED if letters in shown]
    if command not in ("status", "delivered"):
        assert "RED" in shown
        assert "u202e" in shown


@pytest.fixture
def deliveries(stores: Stores) -> Iterator[None]:
    """Events that a terminal would obey are delivered one after the other while the test runs."""
    is_over = threading.Event()

    def deliver() -> None:
        while not is_over.wait(0.2):
            publish(stores.engine, 1, event_type=EVIL, context=json.dumps({"a": EVIL}, ensure_ascii=False))
            relay(stores, until_empty=True)

    thread = threading.Thread(target=deliver)
    thread.start()
    yield
    is_over.set()
    thread.join()


@pytest.mark.parametrize(
    ("command", "until"),
    [("tail|--context", '"a": "'), ("tail|--json", '"generation": 0}'), ("status|--watch", "events/s")],
)
def test_a_terminal_obeys_nothing_of_what_goes_on(outbox: Outbox, deliveries: None, command: str, until: str) -> None:
    """A view that goes on shows types and contexts as harmlessly as others, and ends with Ctrl-C without a fault."""
    shown = outbox(*command.split("|"), "--interval", "0.5", until=until)

    assert until in shown
    assert ("u202e" in shown) == command.startswith("tail")
    # Red is a colour of ours, too.
    assert not [letters for letters in ("\x1b[31mRED", *OBEYED[1:]) if letters in shown]
    if "--json" in command:
        first = json.loads(next(line for line in shown.splitlines() if line.startswith("{")))
        assert first["event_type"] == EVIL
        assert "event_context" not in first


def test_what_differs_by_type_is_shown_and_not_obeyed(outbox: Outbox, evil: str, stores: Stores) -> None:
    """The names in the left column are as harmless as the values in the right one."""
    stores.client.run("DELETE FROM {table:Identifier} WHERE true", settings={"mutations_sync": 2})

    shown = outbox("reconcile", "--by-type")

    assert "RED" in shown
    # The sentence that both sides differ is red by itself.
    assert not [letters for letters in ("\x1b[31mRED", *OBEYED[1:]) if letters in shown]


def test_json_on_a_terminal_says_the_same(outbox: Outbox, evil: str) -> None:
    """Escapes on a terminal are JSON's own, so what is copied from there reads back letter for letter."""
    shown = outbox("sql", "--json", "SELECT event_type, 'ä' AS letter FROM event_log")

    assert json.loads(shown) == {"event_type": EVIL, "letter": "ä"}
    assert "ä" in shown


def test_a_table_keeps_lines(outbox: Outbox) -> None:
    """A text of several lines is shown as several lines."""
    shown = outbox("sql", "SELECT 'one\ntwo' AS lines, 1234567 AS number, NULL AS nothing")

    assert "\\n" not in shown
    assert "1234567" in shown
    assert "NULL" in shown


def test_a_terminal_takes_what_a_pipe_takes(outbox: Outbox) -> None:
    """Statements without rows and those with a FORMAT of their own are the same there; only rows look otherwise."""
    for statement in (
        "CREATE TABLE mine (number Int32) ENGINE = MergeTree ORDER BY number",
        "INSERT INTO mine VALUES (1), (2)",
        "INSERT INTO mine FORMAT TSV\n3\n",
        "DELETE FROM mine WHERE number = 1",
    ):
        assert outbox("sql", statement) == ""

    assert outbox("sql", "SELECT number FROM mine ORDER BY number FORMAT CSV").split() == ["2", "3"]
    assert "Row" not in outbox("sql", "SELECT number, 'a' AS letter FROM mine WHERE number < 0")


def test_rows_wider_than_the_terminal_stand_by_themselves(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table whose columns would be torn into stripes is shown one value a line instead."""
    monkeypatch.setenv("COLUMNS", "60")

    shown = outbox("sql", "SELECT number, repeat('x', 40) AS word, 'one\ntwo\t\x1b[31m' AS lines FROM numbers(2)")

    lines = re.sub(r"\x1b\[\d+m", "", shown).splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["Row", "1"],
        ["number", "0"],
        ["word", "x" * 40],
        ["lines", "one"],
        ["two", "\\x1b[31m"],
    ]
    assert "Row 2" in shown
    assert "Row" not in outbox("sql", "SELECT number, 'a' AS word FROM numbers(2)")


def test_a_pipe_gets_the_bytes(environment: None, evil: str) -> None:
    """Into a pipe or a file data goes as it is, byte for byte."""
    piped = run_outbox("sql", "--format", "TSVRaw", "SELECT event_type FROM event_log")
    listed = run_outbox("quarantine", "list", "--json")

    assert piped.stdout_bytes.decode() == f"{EVIL}\n"
    assert "\u202e" in listed.stdout
