"""Status, trace and doctor on real engines, and the commands that show them."""

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from outbox_pipeline.cli.main import app
from outbox_pipeline.errors import LedgerError
from outbox_pipeline.events import prepare_event
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.clocks import ServerClock, check_clocks
from outbox_pipeline.monitoring.doctor import check_encoding, check_postgres_version, check_variables, examine
from outbox_pipeline.monitoring.doctor_clickhouse import check_clickhouse_version
from outbox_pipeline.monitoring.doctor_dagster import DAGSTER_CHECKS
from outbox_pipeline.monitoring.status import Status, read_status
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations.quarantine import replace, requeue
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.breakage import forget
from tests.fixtures.events import publish, publish_in
from tests.fixtures.servers import Servers

BAD = {"context": "[1]"}


@pytest.fixture
def outbox(stores: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """Run a command against this test's databases."""
    settings = stores.settings
    assert settings.postgres_url
    assert settings.clickhouse_url
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", settings.postgres_url.get_secret_value())
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", settings.clickhouse_url.get_secret_value())
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))

    def run(*arguments: str, given: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=given)

    yield run
    structlog.reset_defaults()


def execute(engine: Engine, statement: str) -> None:
    """Run one statement and commit it."""
    with engine.begin() as connection:
        connection.execute(text(statement))


def finding(settings: Settings, name: str) -> Check:
    """Return one check of the doctor."""
    return next(check for check in examine(settings) if check.name == name)


def test_status_counts_each_event_once_along_its_way(stores: Stores) -> None:
    """An event is pending, then in flight, then processed or quarantined, and never in two of them."""
    engine = stores.engine
    publish(engine, 3)
    publish(engine, 2, **BAD)
    pending = read_status(engine)
    cut_batches(engine, stores.settings, limit=1)
    publish(engine, 4)
    cut = read_status(engine)
    relay(stores, until_empty=True)
    done = read_status(engine)

    assert counts(pending) == (5, 0, 0, 0, 0)
    assert counts(cut) == (4, 5, 0, 0, 0)
    assert cut.open_batches == {"cut": 1}
    assert counts(done) == (0, 0, 0, 7, 2)
    assert done.open_batches == {}
    assert done.last_processed_at is not None


def counts(status: Status) -> tuple[int, int, int, int, int]:
    """Return pending, in flight, parked, processed and quarantined."""
    return status.pending, status.in_flight, status.parked, status.processed, status.quarantined


def test_lag_is_the_age_of_the_oldest_undelivered_event(stores: Stores) -> None:
    """Lag counts pending events and events in open batches, and is 0 when all are delivered."""
    engine = stores.engine
    empty = read_status(engine)
    execute(
        engine,
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'test', '{}', clock_timestamp() - interval '60 s')",
    )
    publish(engine, 1)
    pending = read_status(engine)
    cut_batches(engine, stores.settings, limit=1)
    cut = read_status(engine)
    relay(stores, until_empty=True)

    assert empty.lag_seconds == 0
    assert 60 <= pending.lag_seconds < 120
    assert 60 <= cut.lag_seconds < 120
    assert read_status(engine).lag_seconds == 0


def test_pending_events_are_found_in_gaps(stores: Stores) -> None:
    """An event that commits after later ones were cut is pending, and the gap names who held it open."""
    engine = stores.engine
    with engine.connect() as slow:
        transaction = slow.begin()
        publish_in(slow, 1)
        publish(engine, 2)
        cut_batches(engine, stores.settings, limit=1)
        held = read_status(engine)
        transaction.commit()
        committed = read_status(engine)

    assert (held.pending, held.in_flight, held.gaps, len(held.oldest_gap_holders)) == (0, 2, 1, 1)
    assert isinstance(held.oldest_gap_at, datetime)
    assert (committed.pending, committed.in_flight) == (1, 2)


def test_counting_stops_at_its_bound(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more pending events than are counted, the number says that it is a lower bound."""
    monkeypatch.setattr("outbox_pipeline.monitoring.status.PENDING_LIMIT", 3)
    publish(stores.engine, 3)

    status = read_status(stores.engine)

    assert (status.pending, status.pending_is_at_least) == (3, True)


def test_status_probes_stretches_and_scans_nothing(stores: Stores) -> None:
    """However fragmented the sets are, the event table is read through its primary key only."""
    publish(stores.engine, 20_000)
    execute(
        stores.engine,
        "UPDATE outbox.unclaimed SET positions ="
        " (SELECT range_agg(int8range(n, n + 1)) FROM generate_series(1, 20000, 20) AS n) + '{[20001,)}'",
    )
    execute(stores.engine, "ANALYZE outbox.event")
    with stores.engine.begin() as connection:
        statement = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query_text('status')}")
        plan = connection.scalar(statement, {"limit": 1_000_000, "max_stretches": 20_000})[0]["Plan"]
    on_event = [node for node in nodes(plan) if node.get("Relation Name") == "event"]

    assert on_event
    assert all("Index" in node["Node Type"] for node in on_event)
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in on_event) < 2_000


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every node of a plan."""
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


def fail_batch(stores: Stores, reason: str, *, max_attempts: int = 10) -> UUID:
    """Cut a batch and let its first attempt fail."""
    settings = stores.settings.model_copy(update={"max_attempts": max_attempts, "retry_base_seconds": 60})
    cut_batches(stores.engine, settings, limit=1)
    (request,) = request_batches(stores.engine, settings, limit=1)
    limited = Stores(stores.engine, stores.client, settings)
    end_failed(start_requested(limited, request.batch_id, request.attempt), LedgerError(reason))
    return request.batch_id


def test_last_error_names_its_batch(stores: Stores) -> None:
    """The error of the batch tried last is shown until that batch is delivered."""
    publish(stores.engine, 1)
    batch_id = fail_batch(stores, "disk full at postgresql://user:sekret@host/db")

    status = read_status(stores.engine)

    assert (status.last_error_batch_id, status.last_error_kind) == (batch_id, "unexpected")
    assert status.last_error == "disk full at postgresql://user:***@host/db"
    assert status.open_batches == {"failed": 1}


def test_a_ledger_that_is_stopped_is_told_by_status(outbox: Callable[..., Result], stores: Stores) -> None:
    """The first line is the sentence that every cut ends with; machines get it as `problem`, null while all is well."""
    publish(stores.engine, 1)
    before = json.loads(outbox("status", "--json").stdout)
    execute(stores.engine, "UPDATE outbox.unclaimed SET system_identifier = system_identifier + 1")
    shown, after = outbox("status"), json.loads(outbox("status", "--json").stdout)
    refused = outbox("relay", "--until-empty")

    assert before["problem"] is None
    assert refused.stderr.strip().startswith(after["problem"])
    assert "run 'outbox adopt'" in after["problem"]
    assert shown.stdout.splitlines()[0].split(maxsplit=1) == ["problem", after["problem"]]
    assert (shown.exit_code, after["pending"]) == (0, 1)


def test_parked_events_are_apart_from_those_in_flight(stores: Stores) -> None:
    """A parked batch needs a person: its events are not in flight, and still lag."""
    publish(stores.engine, 2)
    fail_batch(stores, "poison", max_attempts=1)

    status = read_status(stores.engine)

    assert (status.in_flight, status.parked, status.open_batches) == (0, 2, {"parked": 1})
    assert status.lag_seconds > 0


def test_trace_follows_an_event_to_its_row(stores: Stores) -> None:
    """A delivered event shows its batch and exactly one row, under the batch's generation."""
    (event_id,) = publish(stores.engine, 1)
    waiting = trace_event(stores.engine, stores.settings, event_id)
    relay(stores, until_empty=True)

    found = trace_event(stores.engine, stores.settings, event_id)

    assert (waiting.status, waiting.batch, waiting.rows) == ("pending", None, [])
    assert waiting.event is not None
    assert waiting.event.published_by == stores.engine.url.username
    assert found.status == "processed"
    assert found.batch is not None
    assert found.rows is not None
    assert [(row.batch_id, row.generation) for row in found.rows] == [(found.batch.batch_id, found.batch.generation)]
    assert found.rows[0].loaded_at.utcoffset() == timedelta()


def test_trace_links_each_station_to_its_runs(stores: Stores) -> None:
    """From recording to the row in ClickHouse in order of time; runs by id, all attempts of a batch by its tag."""
    (event_id,) = publish(stores.engine, 1)
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt, run_id="the-run")
    delivery.load()
    delivery.mark()
    settings = stores.settings.model_copy(update={"dagster_ui_url": "https://dagster.example.org/"})

    found = trace_event(stores.engine, settings, event_id)
    unlinked = trace_event(stores.engine, stores.settings, event_id)

    runs = f"https://dagster.example.org/runs?q%5B0%5D=tag%3Aoutbox%2Fbatch_id%3D{request.batch_id}"
    assert [(station.what.split(" batch")[0], station.run_url, station.runs_url) for station in found.stations] == [
        ("recorded in the outbox", None, None),
        ("cut into", None, runs),
        ("attempt 1 started", "https://dagster.example.org/runs/the-run", runs),
        ("row in ClickHouse, generation 0", None, None),
        ("batch proved and marked processed", "https://dagster.example.org/runs/the-run", runs),
    ]
    assert found.batch is not None
    assert found.batch.runs_url == runs
    assert [station.what for station in unlinked.stations] == [station.what for station in found.stations]
    assert {station.runs_url for station in unlinked.stations} == {None}


def test_trace_shows_every_stay_in_quarantine(stores: Stores) -> None:
    """Held, requeued, held again, replaced: each with its time, and both events name each other."""
    (event_id,) = publish(stores.engine, 1, **BAD)
    relay(stores, until_empty=True)
    requeue(stores.engine, Filter())
    relay(stores, until_empty=True)
    corrected = replace(stores.engine, Filter(), prepare_event({}, event_type="t", environment="test"))
    relay(stores, until_empty=True)

    found = trace_event(stores.engine, stores.settings, event_id)
    successor = trace_event(stores.engine, stores.settings, corrected)

    said = [station.what for station in found.stations if "batch" not in station.what and "attempt" not in station.what]
    assert said == [
        "recorded in the outbox",
        "held in quarantine: context_not_object",
        "requeued",
        "held in quarantine: context_not_object",
        f"replaced by {corrected}",
    ]
    assert [station.at for station in found.stations] == sorted(station.at for station in found.stations)
    assert (found.status, "corrected event" in found.explanation) == ("replaced", True)
    assert successor.stations[0].what == f"recorded in place of {event_id}"


def test_trace_says_why_there_is_no_row(stores: Stores) -> None:
    """A quarantined event shows its reasons, a parked one its batch's error."""
    (bad,) = publish(stores.engine, 1, **BAD)
    relay(stores, until_empty=True)
    (stuck,) = publish(stores.engine, 1)
    fail_batch(stores, "poison", max_attempts=1)

    held = trace_event(stores.engine, stores.settings, bad)
    parked = trace_event(stores.engine, stores.settings, stuck)

    assert (held.status, held.reasons, held.rows) == ("held", ["context_not_object"], [])
    assert parked.status == "parked"
    assert "poison" in parked.explanation


def test_trace_of_an_event_in_no_place_names_what_puts_it_back(stores: Stores) -> None:
    """The command in the explanation is the one that helps."""
    (event_id,) = publish(stores.engine, 1)
    forget(stores.engine, "{[1,2)}")

    lost = trace_event(stores.engine, stores.settings, event_id)
    repair(stores, reconcile(stores))
    relay(stores, until_empty=True)

    assert "outbox reconcile --repair" in lost.explanation
    assert trace_event(stores.engine, stores.settings, event_id).status == "processed"


def test_trace_shows_doubled_and_lost_rows(stores: Stores) -> None:
    """What somebody changed in ClickHouse by hand is said, not glossed over."""
    doubled, lost = publish(stores.engine, 2)
    relay(stores, until_empty=True)
    stores.client.run(
        "INSERT INTO {table:Identifier} SELECT * FROM {table:Identifier} WHERE event_id = {id:UUID}"
        " SETTINGS insert_deduplicate = 0",
        {"id": str(doubled)},
    )
    stores.client.run("DELETE FROM {table:Identifier} WHERE event_id = {id:UUID}", {"id": str(lost)})

    assert "2 rows" in trace_event(stores.engine, stores.settings, doubled).explanation
    assert "has no row" in trace_event(stores.engine, stores.settings, lost).explanation


def test_trace_answers_without_clickhouse(stores: Stores) -> None:
    """When ClickHouse does not answer, the ledger's half is shown and the other named as unknown."""
    (event_id,) = publish(stores.engine, 1)
    settings = stores.settings.model_copy(update={"clickhouse_url": SecretStr("http://u:sekret@127.0.0.1:1")})

    found = trace_event(stores.engine, settings, event_id)

    assert (found.status, found.rows) == ("pending", None)
    assert "cannot be reached" in found.explanation
    assert "sekret" not in found.explanation


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "294276-12-31 00:00:00+00"])
def test_trace_bears_times_that_python_has_no_word_for(stores: Stores, moment: str) -> None:
    """Times that only PostgreSQL knows are shown as its text."""
    statement = text(
        "INSERT INTO outbox.event (event_id, event_type, environment, event_context, event_date_time)"
        " VALUES (:event_id, 't', 'test', '{}', CAST(:moment AS timestamptz))"
    )
    with stores.engine.begin() as connection:
        connection.execute(statement, {"event_id": UUID(int=1), "moment": moment})

    found = trace_event(stores.engine, stores.settings, UUID(int=1))

    assert found.event is not None
    assert found.event.event_date_time == moment


def test_doctor_finds_nothing_wrong_with_a_good_setup(stores: Stores, servers: Servers) -> None:
    """On fresh databases every check passes; what Dagster has not begun yet is no finding."""
    settings = stores.settings.model_copy(update={"dagster_url": SecretStr(servers.dagster_url)})

    checks = examine(settings)
    assert [check for check in checks if check.ok is False] == []
    assert {check.name for check in checks if not check.ok} <= set(DAGSTER_CHECKS) - {"dagster storage"}


@pytest.mark.parametrize(
    ("statement", "name", "said"),
    [
        ("DROP SCHEMA outbox CASCADE", "schema", "run 'outbox init'"),
        ("UPDATE outbox.schema_version SET version_num = '9999'", "schema", "newer than this code"),
        ("UPDATE outbox.unclaimed SET timeline = timeline + 1", "ledger", "another cluster"),
        ("ALTER SEQUENCE outbox.event_position_seq CACHE 10", "ledger", "CACHE 1"),
        ("ALTER TABLE outbox.event SET (autovacuum_enabled = off)", "postgres vacuum", "outbox.event"),
        ("ALTER TABLE outbox.batch SET (autovacuum_enabled = false)", "postgres vacuum", "RESET (autovacuum_enabled)"),
    ],
)
def test_doctor_finds_what_is_wrong_in_postgres(stores: Stores, statement: str, name: str, said: str) -> None:
    """A schema that is missing or newer and a ledger that must not go on are found."""
    execute(stores.engine, statement)

    check = finding(stores.settings, name)

    assert check.ok is False
    assert said in check.message


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["DROP TABLE {table:Identifier}"], "has no table event_log: run 'outbox init'"),
        (["ALTER TABLE {table:Identifier} DROP COLUMN trace_context"], "lacks column trace_context"),
        (["ALTER TABLE {table:Identifier} MODIFY COLUMN generation UInt64"], "generation as UInt64"),
        (
            ["ALTER TABLE {table:Identifier} RESET SETTING non_replicated_deduplication_window"],
            "no deduplication window",
        ),
        (["DROP TABLE {table:Identifier}", "CREATE TABLE {table:Identifier} (a Int8) ENGINE = Log"], "engine Log"),
    ],
)
def test_doctor_finds_what_is_wrong_in_clickhouse(stores: Stores, statements: list[str], said: str) -> None:
    """A table that is missing, has other columns, another engine or no window is found."""
    for statement in statements:
        stores.client.run(statement)

    check = finding(stores.settings, "clickhouse table")

    assert check.ok is False
    assert said in check.message


def test_doctor_finds_a_missing_database(stores: Stores) -> None:
    """A database that does not exist is named, and what depends on it is skipped."""
    assert stores.settings.postgres_url
    url = stores.settings.postgres_url.get_secret_value()
    database = stores.engine.url.database or ""
    checks = examine(stores.settings.model_copy(update={"postgres_url": SecretStr(url.replace(database, "nowhere"))}))
    found = {check.name: check for check in checks}

    assert found["postgres"].ok is False
    assert "nowhere" in found["postgres"].message
    assert found["schema"].ok is found["ledger"].ok is None
    assert found["clickhouse table"].ok is True


def test_doctor_finds_a_misspelt_setting() -> None:
    """A variable one letter away from a setting is named with it; one of another program is only listed."""
    wrong = check_variables({"OUTBOX_LEASE_SECOND": "5", "PATH": ""})
    other = check_variables({"OUTBOX_LEASE_SECONDS": "5", "OUTBOX_XYZ": ""})

    assert (wrong.ok, other.ok) == (False, True)
    assert "OUTBOX_LEASE_SECOND is no setting: OUTBOX_LEASE_SECONDS is" in wrong.message
    assert "OUTBOX_XYZ" in other.message


def test_doctor_finds_a_start_in_the_future(stores: Stores) -> None:
    """Before the first partition no event has a day Dagster knows."""
    check = finding(stores.settings.model_copy(update={"start_date": date(2999, 1, 1)}), "start date")

    assert check.ok is False
    assert "OUTBOX_START_DATE" in check.message


def test_doctor_finds_clocks_that_differ() -> None:
    """The two clocks furthest apart are named; a slow answer alone is no finding."""
    ahead = ServerClock("PostgreSQL", timedelta(seconds=4), timedelta())
    behind = ServerClock("ClickHouse", timedelta(seconds=-3), timedelta())
    slow = ServerClock("ClickHouse", timedelta(seconds=6), timedelta(seconds=5))

    assert "PostgreSQL and ClickHouse are 7.0 s apart" in check_clocks([ahead, behind]).message
    assert check_clocks([ahead, behind]).ok is False
    assert check_clocks([ahead]).ok is True
    assert check_clocks([slow]).ok is True
    assert check_clocks([]).ok is None


@pytest.mark.parametrize(
    "check",
    [
        check_postgres_version(140012, "postgresql://h"),
        check_clickhouse_version("25.7.1.2", "http://h"),
        check_clickhouse_version("24.12.1.2", "http://h"),
    ],
)
def test_doctor_finds_servers_that_are_too_old(check: Check) -> None:
    """PostgreSQL before 15 and ClickHouse before 25.8 are findings."""
    assert check.ok is False


def test_doctor_warns_of_another_encoding() -> None:
    """Text of a database that is not UTF-8 arrives, but not every character can be published there."""
    check = check_encoding("LATIN1")

    assert (check.ok, check.is_warning) == (True, True)
    assert "LATIN1 lacks" in check.message


def test_commands_carry_events_from_a_file_to_clickhouse(outbox: Callable[..., Result], tmp_path: Path) -> None:
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


def test_a_file_that_says_something_else_of_a_known_event_is_told(
    outbox: Callable[..., Result], stores: Stores
) -> None:
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


def test_bad_line_publishes_nothing_of_the_file(outbox: Callable[..., Result], stores: Stores, tmp_path: Path) -> None:
    """However late the bad line stands, the file is one transaction, and its line is named."""
    file = tmp_path / "events.jsonl"
    good = '{"event_type": "t", "event_context": {}}\n'
    file.write_text(good * 6_000 + '{"event_type": "t", "event_context": {]}\n')

    result = outbox("publish", str(file))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{file}:6001: is not valid JSON")
    assert read_status(stores.engine).pending == 0


def test_relay_fails_while_a_batch_is_parked(outbox: Callable[..., Result], stores: Stores) -> None:
    """A parked batch is exit code 1 until somebody resumes it; then the relay delivers it."""
    publish(stores.engine, 1)
    fail_batch(stores, "poison", max_attempts=1)
    parked = outbox("relay", "--until-empty", "--json")
    resumed = outbox("resume")
    delivered = outbox("relay", "--until-empty")

    assert (parked.exit_code, json.loads(parked.stdout)["parked_batches"]) == (1, 1)
    assert (resumed.exit_code, resumed.stdout) == (0, "resumed 1\n")
    assert delivered.exit_code == 0


def test_resuming_what_is_not_parked_says_what_it_is(outbox: Callable[..., Result], stores: Stores) -> None:
    """An id that no batch has, a batch that is retried by itself, one that is processed: each has its next step."""
    publish(stores.engine, 1)
    fail_batch(stores, "poison")
    with stores.engine.begin() as connection:
        batch_id = str(connection.scalar(text("SELECT batch_id FROM outbox.batch")))
    unknown, failed = outbox("resume", str(uuid4())), outbox("resume", batch_id)
    execute(stores.engine, "UPDATE outbox.batch SET next_attempt_at = now()")
    outbox("relay", "--until-empty")
    processed = outbox("resume", batch_id)

    assert [(result.exit_code, result.stdout) for result in (unknown, failed, processed)] == [(1, "")] * 3
    assert "The ledger knows no batch" in unknown.stderr
    assert f"{batch_id} is failed, not parked" in failed.stderr
    assert f"outbox replay --batch {batch_id}" in processed.stderr


def test_unknown_event_is_exit_code_one(outbox: Callable[..., Result]) -> None:
    """Tracing an id that nobody knows says so."""
    result = outbox("trace", str(uuid4()), "--json")

    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "unknown")


@pytest.mark.parametrize("arguments", [["status"], ["relay"], ["publish", "-"], ["resume"], ["trace", str(uuid4())]])
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP SCHEMA outbox CASCADE", "run 'outbox init'"),
        ("UPDATE outbox.schema_version SET version_num = '9999'", "update outbox-pipeline"),
    ],
)
def test_schema_that_does_not_fit_is_one_sentence(
    outbox: Callable[..., Result], stores: Stores, arguments: list[str], statement: str, said: str
) -> None:
    """On a real server a missing schema is not created by the way, and a newer one is left alone."""
    execute(stores.engine, statement)

    result = outbox(*arguments, given="")

    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr


def test_refused_query_says_what_clickhouse_says(outbox: Callable[..., Result]) -> None:
    """A wrong query is the asker's own text; the answer does not send them to their setup."""
    result = outbox("sql", "SELECT nonsense")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "nonsense" in result.stderr
    assert "outbox init" not in result.stderr
    assert "PostgreSQL" not in result.stderr


@pytest.mark.parametrize("query", ["SELECT * FROM outbox.event LIMIT 1", "SELECT 1 FROM Outbox . batch, event_log"])
def test_a_query_of_the_ledger_is_sent_to_postgres(outbox: Callable[..., Result], query: str) -> None:
    """Tables of the schema outbox are in PostgreSQL, and this command asks ClickHouse."""
    result = outbox("sql", query)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "'outbox sql' asks ClickHouse" in result.stderr
    assert "psql" in result.stderr


def test_doctor_finds_a_table_that_forgets_in_a_power_failure(stores: Stores) -> None:
    """A table that answers before its rows are on disk is named with the statement that changes it."""
    stores.client.run("ALTER TABLE {table:Identifier} MODIFY SETTING fsync_after_insert = 0")

    checks = {check.name: check for check in examine(stores.settings)}

    assert checks["postgres durability"].ok
    assert checks["clickhouse durability"].ok is False
    assert "MODIFY SETTING fsync_after_insert = 1" in checks["clickhouse durability"].message


def test_delivered_says_whether_each_day_is_whole(outbox: Callable[..., Result], stores: Stores) -> None:
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


def test_a_missing_days_table_is_named_and_fails_no_relay(outbox: Callable[..., Result], stores: Stores) -> None:
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
