"""One event's instance, told by the ledger and by ClickHouse."""

import json
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from outbox_pipeline.events import prepare_event
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations.quarantine import replace, requeue
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.attempts import request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import fail_batch
from tests.fixtures.broken_batches import forget
from tests.fixtures.commands import Outbox
from tests.fixtures.events import publish
from tests.fixtures.ledger import execute


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
    (event_id,) = publish(stores.engine, 1, context="[1]")
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
    (bad,) = publish(stores.engine, 1, context="[1]")
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


def test_unknown_event_is_exit_code_one(outbox: Outbox) -> None:
    """Tracing an id that nobody knows says so."""
    result = outbox("trace", str(uuid4()), "--json")

    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "unknown")


def test_an_attempt_without_the_event_is_told_as_such(stores: Stores) -> None:
    """After a repair the attempt of a batch that a held event has left is no station of the event's own."""
    (refused,) = publish(stores.engine, 1, context="[1]")
    publish(stores.engine, 1)
    relay(stores, until_empty=True)
    before = trace_event(stores.engine, stores.settings, refused)
    stores.client.run("DELETE FROM {table:Identifier} WHERE true", settings={"mutations_sync": 2})
    repair(stores, reconcile(stores))

    said = [station.what for station in trace_event(stores.engine, stores.settings, refused).stations]

    assert not any("the event" in station.what for station in before.stations)
    assert f"attempt 2 of batch {before.stations[1].batch_id}, which the event had left, started" in said
    assert "batch proved and marked processed, without the event" in said


def test_trace_is_readable(stores: Stores, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts, stations and links are apart, ids and addresses stand there once, and content only on demand."""
    monkeypatch.setenv("OUTBOX_DAGSTER_UI_URL", "https://dagster.example.org")
    (event_id,) = publish(stores.engine, 1, context='{"secret": "word"}')
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt, run_id="the-run")
    delivery.load()
    delivery.mark()

    plain, asked = outbox("trace", str(event_id)), outbox("trace", str(event_id), "--context")
    as_json = json.loads(outbox("trace", str(event_id), "--json").stdout)
    stores.engine.dispose()

    facts, stations, links = plain.stdout.split("\n\n")
    assert plain.stdout.count("runs/the-run") == 1
    assert facts.count(str(request.batch_id)) == 1
    assert str(request.batch_id) not in stations
    assert links.count("https://dagster.example.org/runs?") == 1
    assert "secret" not in plain.stdout
    assert '{"secret": "word"}' in asked.stdout
    assert "context" not in as_json


def test_the_content_of_an_event_that_was_pruned_is_clickhouses(stores: Stores) -> None:
    """Where the outbox no longer holds the event, its row has the content."""
    (event_id,) = publish(stores.engine, 1, context='{"n": 1.50}')
    relay(stores, until_empty=True)
    execute(stores.engine, "DELETE FROM outbox.event")

    assert trace_event(stores.engine, stores.settings, event_id, with_context=True).context == '{"n": 1.50}'
