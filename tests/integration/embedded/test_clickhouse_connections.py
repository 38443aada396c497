"""A connection of the embedded ClickHouse's engine that is kept for the next request brings nothing of the last."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from outbox_pipeline.processes import wait_until
from tests.fixtures.plain_http import Ask

_ASKED = {"database": "default", "max_threads": "3"}
_THREADS = b"SELECT getSetting('max_threads')"

#: Three requests, the second of which is to stop when it is already done; prints who had each connection first.
_ORDERED_TO_STOP = """
import sys
from pathlib import Path
from outbox_pipeline.embedded.chdb_engine import Engine, Scope, run

engine = Engine(Path(sys.argv[1]), uploads=Path(sys.argv[2]))
for request_id in ("first", "stopped", "last"):
    with engine.connection(Scope(request_id, database="default")) as loan:
        run(loan.connection, "SELECT 1")
        loan.is_unchanged = True
        if request_id == "stopped":
            engine.kill(request_id)
    print(loan.name)
engine.close()
"""

#: A connection to a database that goes right after it was taken from those that are kept; prints what is kept then.
_FORGOTTEN_WHEN_TAKEN = """
import sys
from pathlib import Path
from outbox_pipeline.embedded.chdb_engine import Engine, Scope, run

class Dropping(Engine):
    drops = False

    def _take_kept(self, setup):
        kept = super()._take_kept(setup)
        if self.drops:
            self.ask("DROP DATABASE leaving")
            self.forget_kept()
        return kept

engine = Dropping(Path(sys.argv[1]), uploads=Path(sys.argv[2]))
engine.ask("CREATE DATABASE leaving")
for engine.drops in (False, True):
    with engine.connection(Scope("one", database="leaving")) as loan:
        run(loan.connection, "SELECT 1")
        loan.is_unchanged = True
    print(len(engine._kept))
engine.close()
"""


def said(ask: Ask, body: bytes, **parameters: str) -> str:
    """Return the text of an answer."""
    return ask(body, **parameters).read().decode().strip()


def printed(program: str, folder: Path) -> list[str]:
    """Return what a program prints that has an engine of its own."""
    folders = [folder / "data", folder / "uploads"]
    for each in folders:
        each.mkdir()
    ran = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_a_query_runs_under_its_own_settings(ask: Ask) -> None:
    """Whatever was asked before, each request has the settings and the database that it names, and no others."""
    said(ask, b"CREATE DATABASE IF NOT EXISTS elsewhere")
    for _ in range(2):
        assert said(ask, _THREADS, **_ASKED) == "3"
        assert said(ask, _THREADS, database="default", max_threads="4") == "4"
        assert said(ask, b"SELECT currentDatabase()", database="elsewhere", max_threads="3") == "elsewhere"
        assert said(ask, b"SELECT currentDatabase()", **_ASKED) == "default"


@pytest.mark.parametrize("change", [b"SET max_threads = 9", b"USE system", b"CREATE TEMPORARY TABLE kept (x UInt8)"])
def test_a_statement_that_changes_its_connection_has_it_alone(ask: Ask, change: bytes) -> None:
    """What a request without a session sets, uses or makes for itself is gone with it."""
    said(ask, _THREADS, **_ASKED)
    said(ask, change, **_ASKED)
    for _ in range(2):
        assert said(ask, _THREADS, **_ASKED) == "3"
        assert said(ask, b"SELECT currentDatabase()", **_ASKED) == "default"
        assert "UNKNOWN_TABLE" in said(ask, b"SELECT * FROM kept", **_ASKED)


def test_parameters_are_those_of_their_request(ask: Ask) -> None:
    """A parameter that a query has does not stand in for one that the next lacks."""
    assert said(ask, b"SELECT {x:String}", **_ASKED, param_x="one") == "one"
    assert "`x` is not set" in said(ask, b"SELECT {x:String}", **_ASKED)


def test_a_database_that_is_gone_is_unknown(ask: Ask) -> None:
    """A request for a dropped database is refused, also right after one that was answered there."""
    said(ask, b"CREATE DATABASE gone")
    assert said(ask, b"SELECT 1", database="gone") == "1"
    said(ask, b"DROP DATABASE gone")

    assert "UNKNOWN_DATABASE" in said(ask, b"SELECT 1", database="gone")


def test_a_request_may_be_read_only(ask: Ask) -> None:
    """Settings that forbid to set any are met again and again."""
    for _ in range(3):
        assert said(ask, b"SELECT 1", database="default", readonly="1") == "1"


def test_a_database_that_goes_during_a_query_is_unknown_after_it(ask: Ask) -> None:
    """A query that was under way in a database when it was dropped keeps no connection to it."""
    said(ask, b"CREATE DATABASE leaving")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(said, ask, b"SELECT sleep(2)", database="leaving")
        running = b"SELECT count() FROM system.processes WHERE query = 'SELECT sleep(2)'"
        assert wait_until(lambda: said(ask, running) == "1", seconds=10)
        said(ask, b"DROP DATABASE leaving")
        slow.result()

    assert "UNKNOWN_DATABASE" in said(ask, b"SELECT 1", database="leaving")


def test_a_request_may_bound_the_length_of_its_statement(ask: Ask) -> None:
    """A limit that a statement of the server's own would pass is met again and again."""
    for _ in range(3):
        assert said(ask, b"SELECT 1", database="default", max_query_size="50") == "1"


def test_an_order_to_stop_reaches_no_later_request(tmp_path: Path) -> None:
    """It goes by the connection, which is nobody's any more once a request on it was to be stopped."""
    assert printed(_ORDERED_TO_STOP, tmp_path) == ["first", "first", "last"]


def test_a_database_that_goes_as_its_connection_is_taken_is_unknown_after_it(tmp_path: Path) -> None:
    """The order to forget finds the connection neither kept nor, yet, under way."""
    assert printed(_FORGOTTEN_WHEN_TAKEN, tmp_path) == ["1", "0"]


def test_a_text_that_one_request_cannot_parse_is_judged_anew(ask: Ask) -> None:
    """A limit of its own to the parser's depth lets no other request send two statements, or none by GET."""
    said(ask, b"CREATE TABLE still_here (x UInt8) ENGINE = Memory", database="default")
    two = b"SELECT 1; DROP TABLE still_here"
    assert "TOO_DEEP_RECURSION" in said(ask, two, database="default", max_parser_depth="2")
    assert "Multi-statements are not allowed" in said(ask, two, database="default")
    assert said(ask, b"SELECT count() FROM still_here", database="default") == "0"

    for limits, answer in ({"max_parser_depth": "2"}, "TOO_DEEP_RECURSION"), ({}, "81"):
        assert answer in ask(method="GET", query="SELECT 81", **limits).read().decode()
