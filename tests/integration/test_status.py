"""Status on real engines: each event counted once along its way, and what is wrong said first."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import text

from outbox_pipeline.cli.support.watching import Watched, watch
from outbox_pipeline.errors import TransientError
from outbox_pipeline.monitoring.status import Status, read_status
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import fail_batch
from tests.fixtures.commands import Outbox
from tests.fixtures.events import publish, publish_in
from tests.fixtures.ledger import execute
from tests.fixtures.plans import nodes
from tests.fixtures.sensors import NOWHERE


def test_status_counts_each_event_once_along_its_way(stores: Stores) -> None:
    """An event is pending, then in flight, then processed or quarantined, and never in two of them."""
    engine = stores.engine
    publish(engine, 3)
    publish(engine, 2, context="[1]")
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


def test_last_error_names_its_batch(stores: Stores) -> None:
    """The error of the batch tried last is shown until that batch is delivered."""
    publish(stores.engine, 1)
    batch_id = fail_batch(stores, "disk full at postgresql://user:sekret@host/db")

    status = read_status(stores.engine)

    assert (status.last_error_batch_id, status.last_error_kind) == (batch_id, "unexpected")
    assert status.last_error == "disk full at postgresql://user:***@host/db"
    assert status.open_batches == {"failed": 1}


def test_a_ledger_that_is_stopped_is_told_by_status(outbox: Outbox, stores: Stores) -> None:
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


def test_status_says_whether_clickhouse_answers(
    outbox: Outbox, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks now, and where nothing answers says when ClickHouse last proved a delivery; no password is shown."""
    publish(stores.engine, 1)
    relay(stores, until_empty=True)
    before, plain = outbox("status").stdout, json.loads(outbox("status", "--json").stdout)
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", f"http://user:sekret@{NOWHERE}")
    away, plain_away = outbox("status"), json.loads(outbox("status", "--json").stdout)
    stores.client.run("DROP TABLE {fence:Identifier}")
    assert stores.settings.clickhouse_url
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", stores.settings.clickhouse_url.get_secret_value())
    unfit = json.loads(outbox("status", "--json").stdout)

    (line,) = [line for line in before.splitlines() if line.startswith("ClickHouse")]
    (away_line,) = [line for line in away.stdout.splitlines() if line.startswith("ClickHouse")]
    last = read_status(stores.engine).last_processed_at
    assert line.split() == ["ClickHouse", "answers"]
    assert away.exit_code == 0
    assert "does not answer now; it proved a delivery last at" in away_line
    assert f"{last:%H:%M:%S}" in away_line
    assert "sekret" not in away.output
    assert (plain["clickhouse_answers"], plain["clickhouse_problem"]) == (True, None)
    assert plain_away["clickhouse_answers"] is False
    assert (unfit["clickhouse_answers"], "outbox init" in unfit["clickhouse_problem"]) == (True, True)


def test_parked_events_are_apart_from_those_in_flight(stores: Stores) -> None:
    """A parked batch needs a person: its events are not in flight, and still lag."""
    publish(stores.engine, 2)
    fail_batch(stores, "poison", max_attempts=1)

    status = read_status(stores.engine)

    assert (status.in_flight, status.parked, status.open_batches) == (0, 2, {"parked": 1})
    assert status.lag_seconds > 0


def test_status_is_watched_in_a_pipe(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    """Each look is a line, as JSON on demand."""
    publish(stores.engine, 1)
    for as_json in (False, True):
        with pytest.raises(KeyboardInterrupt):
            watch(looks(stores, None, None), interval_seconds=0, as_json=as_json)
    *lines, first, second = capsys.readouterr().out.splitlines()

    assert [line.partition(", lag ")[0] for line in lines] == ["pending 1, in flight 0, events/s 0"] * 2
    assert json.loads(first)["pending"] == json.loads(second)["pending"] == 1
    assert json.loads(second)["events_per_second"] == 0


def looks(stores: Stores, *errors: Exception | None) -> Callable[[], Status]:
    """Return what looks at the status, or fails, in turn; then it ends as with Ctrl-C."""
    left = iter(errors)

    def look() -> Status:
        error = next(left, KeyboardInterrupt())
        if error is not None:
            raise error
        return read_status(stores.engine)

    return look


def test_what_is_watched_adds_up(stores: Stores) -> None:
    """A rate is what was marked between two looks; a replay, which takes batches back, is none below zero."""
    watched = Watched()
    publish(stores.engine, 6)
    watched.add(read_status(stores.engine), 10.0)
    relay(stores, until_empty=True)
    watched.add(read_status(stores.engine), 12.0)
    rate, line, pending = watched.rate(), watched.sparkline("events/s"), watched.sparkline("pending")
    watched.add(replace(read_status(stores.engine), processed=0), 13.0)

    assert (rate, line, pending) == (3.0, "▁█", "█▁")
    assert watched.rate() == 0


def test_a_watch_goes_on_through_an_outage(capsys: pytest.CaptureFixture[str], stores: Stores) -> None:
    """PostgreSQL away is one line on stderr, and one more when it is back."""
    away = TransientError("PostgreSQL is away.")
    with pytest.raises(KeyboardInterrupt):
        watch(looks(stores, away, away, None), interval_seconds=0, as_json=False)

    told = capsys.readouterr()
    assert told.out.startswith("pending 0,")
    assert told.err.splitlines() == [
        "PostgreSQL is away. This goes on by itself when the server is back.",
        "PostgreSQL answers again.",
    ]
