"""The pytest plugin as an application has it: found by pytest, in an interpreter of its own, on every session kind."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.fixtures.pages import fences

ROOT = Path(__file__).parents[2]
HEAVY = {"dagster", "pandas", "pandera", "pyarrow", "clickhouse_connect", "chdb", "sqlalchemy", "pydantic", "psycopg"}

APPLICATION = """
    from outbox_pipeline import Event, publish_event

    class UserCreated(Event):
        email: str

    class UserCreated2(Event, event_type="user_created", metadata_version=2):
        email: str
        age: int

    def create_user(session, email):
        publish_event(session, UserCreated(email=email), environment="test")
"""


@pytest.fixture
def application(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An application's folder, with this package's entry points as pip would install them."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["pytest11"]
    information = pytester.mkdir("outbox_pipeline-0.0.dist-info")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outbox-pipeline\nVersion: 0.0\n")
    (information / "entry_points.txt").write_text(
        "[pytest11]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
    )
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}:{ROOT}")
    pytester.makepyfile(shop=APPLICATION)
    return pytester


def run(application: pytest.Pytester, source: str) -> None:
    """Run a test module of the application; each of its tests must pass."""
    application.makepyfile(test_shop=source)
    done = application.runpytest_subprocess("-p", "no:cacheprovider")
    assert done.parseoutcomes().keys() == {"passed"}, done.stdout.str()


def test_import_loads_next_to_nothing() -> None:
    """Every pytest run of an environment that has the package imports the plugin."""
    program = (
        "import sys; import outbox_pipeline.testing; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    assert not HEAVY & set(loaded.stdout.split())


def test_what_unittest_needs_is_there_without_pytest() -> None:
    """An application whose tests Django runs need not install pytest."""
    program = "import sys; sys.modules['pytest'] = None; from outbox_pipeline.testing import Outbox, OutboxTestMixin"

    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_isolated_tests_need_no_database(application: pytest.Pytester) -> None:
    """Without an outbox schema, a server or even a session: events are checked, recorded and read back as models."""
    run(
        application,
        """
        import sys
        import pytest
        from outbox_pipeline import PublishError, publish_event, publish_events
        from shop import UserCreated, UserCreated2, create_user

        @pytest.fixture(autouse=True)
        def without_database(outbox):
            outbox.isolate()

        def test_published(outbox):
            create_user(None, "ada@example.org")
            publish_event(None, UserCreated2(email="a", age=7))
            publish_event(None, {"n": 1}, event_type="other")
            assert outbox.published(UserCreated) == [UserCreated(email="ada@example.org")]
            assert outbox.published(UserCreated2) == [UserCreated2(email="a", age=7)]
            assert [event.event_type for event in outbox.published()] == ["user_created", "user_created", "other"]
            (other,) = outbox.published("other")
            assert (other.event_context, other.metadata_version) == ({"n": 1}, 1)
            assert outbox.published()[0].environment == "test"
            outbox.clear()
            assert outbox.published() == []

        def test_each_test_starts_with_nothing(outbox):
            assert outbox.published() == []

        def test_repeats_say_so(outbox):
            event_id = "0b8f1c1e-6c55-4d0a-9a44-0d1f3f2f6a11"
            assert not publish_event(None, {"n": 1}, event_type="t", event_id=event_id).is_repeat
            again = publish_event(None, {"n": 2}, event_type="t", event_id=event_id)
            same = publish_event(None, {"n": 1}, event_type="t", event_id=event_id)
            assert (again.is_repeat, again.differs, same.is_repeat, same.differs) == (True, True, True, False)
            assert [event.event_context for event in outbox.published("t")] == [{"n": 1}]

        def test_what_is_refused_is_not_published(outbox):
            with pytest.raises(PublishError):
                publish_events(None, [{"n": 1}, {"n": float("nan")}], event_type="t")
            assert outbox.published() == []

        def test_a_mapping_that_does_not_fit_is_found(outbox):
            publish_event(None, {"mail": "a"}, event_type="user_created")
            with pytest.raises(ValueError, match="email"):
                outbox.published(UserCreated)

        def test_nothing_heavy_is_loaded():
            assert not {"dagster", "pandas", "clickhouse_connect", "psycopg", "sqlalchemy"} & set(sys.modules)
        """,
    )


def test_transactional_tests_see_what_they_rolled_back(application: pytest.Pytester, postgres_url: str) -> None:
    """Events are written as ever, and known after the application's fixture has rolled everything back."""
    run(
        application,
        f"""
        import pytest
        from sqlalchemy import create_engine, text
        from sqlalchemy.orm import Session
        from outbox_pipeline import NoTransactionError, publish_event
        from shop import UserCreated, create_user

        engine = create_engine({postgres_url!r})

        @pytest.fixture
        def session():
            with engine.connect() as connection:
                transaction = connection.begin()
                yield Session(connection, join_transaction_mode="create_savepoint")
                transaction.rollback()

        def test_commit_in_a_savepoint(session, outbox):
            create_user(session, "ada@example.org")
            session.commit()
            assert outbox.published(UserCreated) == [UserCreated(email="ada@example.org")]
            assert session.scalar(text("SELECT count(*) FROM outbox.event")) == 1

        def test_rolled_back_events_stay(session, outbox):
            create_user(session, "ada@example.org")
            session.rollback()
            assert len(outbox.published(UserCreated)) == 1
            assert session.scalar(text("SELECT count(*) FROM outbox.event")) == 0

        def test_what_was_not_written_is_not_published(session, outbox):
            session.execute(text("SET LOCAL statement_timeout = '200ms'"))
            with engine.begin() as other:
                other.execute(text("LOCK TABLE outbox.event IN EXCLUSIVE MODE"))
                assert publish_event(session, {{}}, event_type="t", required=False) is None
            with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as autocommit:
                with pytest.raises(NoTransactionError):
                    publish_event(autocommit, {{}}, event_type="t")
            assert outbox.published() == []
        """,
    )


def test_sessions_that_are_awaited_and_raw_drivers(application: pytest.Pytester, postgres_url: str) -> None:
    """AsyncSession, psycopg's two connections and asyncpg are heard once for each event, isolated or not."""
    run(
        application,
        f"""
        import asyncio
        import asyncpg
        import psycopg
        import pytest
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
        from outbox_pipeline import publish_event, publish_events_async
        from shop import UserCreated

        url = {postgres_url!r}
        plain = url.replace("+psycopg", "")
        event = UserCreated(email="ada@example.org")

        async def with_session():
            async with AsyncSession(create_async_engine(url)) as session:
                await publish_events_async(session, [event, event])
                await session.commit()

        async def with_psycopg():
            async with await psycopg.AsyncConnection.connect(plain) as connection:
                await publish_events_async(connection, [event, event])

        async def with_asyncpg():
            connection = await asyncpg.connect(plain)
            async with connection.transaction():
                await publish_events_async(connection, [event, event])
            await connection.close()

        @pytest.mark.parametrize("isolated", [False, True])
        @pytest.mark.parametrize("publishing", [with_session, with_psycopg, with_asyncpg])
        def test_awaited(outbox, publishing, isolated):
            if isolated:
                outbox.isolate()
            asyncio.run(publishing())
            assert outbox.published(UserCreated) == [event, event]

        def test_called(outbox):
            with psycopg.connect(plain) as connection:
                publish_event(connection, event)
            assert outbox.published(UserCreated) == [event]

        def test_isolated_events_were_not_written():
            with psycopg.connect(plain) as connection:
                assert connection.execute("SELECT count(*) FROM outbox.event").fetchone() == (7,)
        """,
    )


def test_the_snippets_of_the_docs_pass(application: pytest.Pytester, postgres_url: str) -> None:
    """The page's model, function and test, each copied into its file, run as they stand."""
    page = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    section = re.search(r"^## Testing\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    snippets = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL))
    package = application.mkdir("bookshop")
    alone = "test_orders_without_pytest.py"
    assert list(snippets) == ["bookshop/orders.py", "test_orders.py", "conftest.py", alone, "engines.py"]
    for name, source in snippets.items():
        (package.parent / name).write_text(source, encoding="utf-8")
    by_unittest = subprocess.run(
        [sys.executable, "-m", "unittest", alone], cwd=package.parent, capture_output=True, text=True, check=False
    )
    done = application.runpytest_subprocess("-p", "no:cacheprovider")

    assert "Ran 1 test" in by_unittest.stderr, by_unittest.stderr
    assert by_unittest.stderr.endswith("OK\n"), by_unittest.stderr
    assert done.parseoutcomes() == {"passed": 3}, done.stdout.str()


@pytest.mark.embedded_only
def test_the_engines_of_the_docs_run(application: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's fixture yields engines with an outbox on each, for a test that follows an event."""
    (source,) = [code for code in fences(ROOT / "docs" / "publishing.md", "python") if code.startswith("# engines.py")]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("OUTBOX_HOME", "OUTBOX_POSTGRES_URL", "OUTBOX_CLICKHOUSE_URL"):
        monkeypatch.setenv(name, "")
    application.makepyfile(engines=source)
    run(
        application,
        """
        import subprocess
        from sqlalchemy import create_engine
        from outbox_pipeline import publish_event
        from engines import engines

        def test_an_event_arrives(engines):
            with create_engine(engines.postgres).begin() as connection:
                publish_event(connection, {"n": 1}, event_type="t")
            subprocess.run(["outbox", "relay", "--until-empty"], check=True)
            query = ["outbox", "sql", "SELECT event_context FROM event_log", "--format", "TSVRaw"]
            assert subprocess.run(query, check=True, capture_output=True, text=True).stdout == '{"n":1}\\n'
        """,
    )
