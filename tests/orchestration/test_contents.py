"""What a run leaves behind never quotes an event: not the ledger, no log line, nothing in Dagster's own storage."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._serdes import serialize_value
from dagster._utils.error import serializable_error_info_from_exc_info
from structlog.testing import capture_logs

from outbox_pipeline.errors import TransientError
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.orchestration.delivery import run as runs
from outbox_pipeline.orchestration.step_failures import one_sentence
from outbox_pipeline.relay import delivery
from outbox_pipeline.stores import Stores
from outbox_pipeline.validation import validate_events
from tests.fixtures.events import publish
from tests.fixtures.runs import batch_row, execute, requested

#: Words that stand in the event alone.
CONTENT = ("ada@example", "DE8937")
CONTEXT = '{"ip": "PII ada@example.org DE8937"}'
#: What ClickHouse cannot make of that, and says so with the words.
ADDRESS = "toIPv4(JSONExtractString(event_context, 'ip'))"


def hang_view(stores: Stores) -> None:
    """Hang a materialized view on the event log, as somebody who analyses events does."""
    stores.client.run(
        "CREATE MATERIALIZED VIEW by_address ENGINE = MergeTree ORDER BY tuple() AS"
        f" SELECT {ADDRESS} AS it FROM {stores.client.table}"
    )


def add_constraint(stores: Stores) -> None:
    """Let the event log take only what has an address."""
    stores.client.run(
        f"ALTER TABLE {stores.client.table} ADD CONSTRAINT has_address CHECK {ADDRESS} != toIPv4('0.0.0.0')"
    )


def all_that_dagster_stored(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return every entry of the run's event log as it is stored, with errors and their causes."""
    return "\n".join(serialize_value(entry) for entry in instance.all_logs(run_id))


@pytest.mark.parametrize(
    ("hinder", "most_retries", "ending", "told"),
    [
        (add_constraint, 3, dg.DagsterEventType.STEP_UP_FOR_RETRY, "CANNOT_PARSE_IPV4 (code 675)"),
        (add_constraint, 0, dg.DagsterEventType.STEP_FAILURE, "CANNOT_PARSE_IPV4 (code 675)"),
        (hang_view, 3, dg.DagsterEventType.STEP_FAILURE, "code 675, view"),
    ],
)
def test_no_word_of_an_event_stays_behind(
    instance: dg.DagsterInstance,
    stores: Stores,
    monkeypatch: pytest.MonkeyPatch,
    hinder: Callable[[Stores], None],
    most_retries: int,
    ending: dg.DagsterEventType,
    told: str,
) -> None:
    """What cannot read an event makes a step try again, or fail; what is told of it names the error alone."""
    monkeypatch.setattr(runs, "RETRIES", dg.RetryPolicy(max_retries=most_retries))
    publish(stores.engine, 3, context=CONTEXT)
    config = requested(stores)
    hinder(stores)

    with capture_logs() as lines:
        result = execute(instance, config, raise_on_error=False)

    stored = all_that_dagster_stored(instance, result.run_id)
    assert ending in {entry.dagster_event_type for entry in instance.all_logs(result.run_id)}
    assert told in stored
    everything = "\n".join([stored, str(batch_row(stores)), str(lines), str(read_status(stores.engine))])
    assert not [words for words in CONTENT if words in everything]


def test_a_foreign_error_is_told_by_kind_and_place(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an error that no store has translated, Arrow's for one, the words stay out, and the frames stay."""
    publish(stores.engine, 3, context=CONTEXT)
    config = requested(stores)

    def fail(events: pa.Table, *_: object) -> None:
        raise pa.ArrowInvalid(f"Could not convert {events['event_context'][0]} with type str")

    monkeypatch.setattr(delivery, "validate_events", fail)

    result = execute(instance, config, raise_on_error=False)

    stored = all_that_dagster_stored(instance, result.run_id)
    status, _, last_error = batch_row(stores)
    assert not result.success
    assert status == "failed"
    assert str(last_error).startswith("ArrowInvalid at outbox_pipeline/relay/delivery.py:")
    assert "in validate\\n" in stored
    assert not [words for words in CONTENT if words in stored + str(last_error)]


def test_a_step_that_is_tried_again_stores_no_cause(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a passing error was raised from stays out of Dagster's storage, whoever raised it."""
    publish(stores.engine, 3, context=CONTEXT)
    config = requested(stores)
    judge, failures = validate_events, iter([True])

    def fail_once(events: pa.Table, *rest: Any) -> Any:
        if next(failures, False):
            raise TransientError("Not now") from pa.ArrowInvalid(str(events["event_context"][0]))
        return judge(events, *rest)

    monkeypatch.setattr(delivery, "validate_events", fail_once)

    result = execute(instance, config)

    stored = all_that_dagster_stored(instance, result.run_id)
    assert "Not now" in stored
    assert not [words for words in CONTENT if words in stored]


def test_a_job_that_fails_stores_one_sentence_and_no_cause() -> None:
    """Also of the jobs that a person starts: what the foreign error said is nowhere in what Dagster keeps."""
    words = "".join(["ada", "@example.org"])
    with pytest.raises(dg.Failure) as failed, one_sentence():
        raise ValueError(words)

    stored = serializable_error_info_from_exc_info((failed.type, failed.value, failed.tb))
    assert "ValueError" in str(failed.value.description)
    assert words not in str(stored)
