"""Letting parked batches be tried again: the procedure on real databases, and `outbox resume`."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, text

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.operations.resume import resume
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import fail_batch
from tests.fixtures.broken_batches import read_all
from tests.fixtures.commands import Outbox
from tests.fixtures.events import publish
from tests.fixtures.interleave import before_words
from tests.fixtures.ledger import execute
from tests.fixtures.moves import by_hand
from tests.fixtures.snapshots import delivered_batches


@pytest.fixture
def batches(stores: Stores) -> list[Batch]:
    """Three processed batches of 100 events each."""
    return delivered_batches(stores)


def set_status(stores: Stores, batch: Batch, status: BatchStatus, *, error: str | None = None) -> UUID:
    """Give a batch another status and last error; return its id."""
    statement = text(
        "UPDATE outbox.batch SET status = :status, last_error = :error, failures = 10,"
        " lease_until = clock_timestamp(), holder = CASE WHEN :status = 'delivering' THEN 'a run' END"
        " WHERE batch_id = :batch_id"
    )
    with stores.engine.begin() as connection:
        by_hand(connection).execute(statement, {"status": status, "error": error, "batch_id": batch.batch_id})
    return batch.batch_id


def test_each_resumed_batch_says_what_it_was_parked_for(stores: Stores, batches: list[Batch]) -> None:
    """Parked batches become due with no failures, those with the oldest events first; the others stay as they are."""
    first = set_status(stores, batches[0], BatchStatus.PARKED, error="no table")
    last = set_status(stores, batches[2], BatchStatus.PARKED)

    resumed = resume(stores.engine, lock_timeout_seconds=5)

    assert resumed.sentences == [
        f"Batch {first}, 100 events, was parked: no table",
        f"Batch {last}, 100 events, was parked: no error is kept.",
    ]
    assert resumed.event_count == 200
    found = read_all(stores.engine)
    assert [batch.status for batch in found] == ["failed", "processed", "failed"]
    assert [found[0].failures, found[2].failures] == [0, 0]


def test_a_named_batch_is_resumed_alone(stores: Stores, batches: list[Batch]) -> None:
    """Other parked batches stay parked."""
    set_status(stores, batches[0], BatchStatus.PARKED)
    second = set_status(stores, batches[1], BatchStatus.PARKED)

    resumed = resume(stores.engine, second, lock_timeout_seconds=5)

    assert [batch.batch_id for batch in resumed.batches] == [second]
    assert [batch.status for batch in read_all(stores.engine)] == ["parked", "failed", "processed"]


def test_without_parked_batches_nothing_is_resumed(stores: Stores, batches: list[Batch]) -> None:
    """That is no error when no batch is named."""
    assert resume(stores.engine, lock_timeout_seconds=5).batches == ()
    assert [batch.status for batch in read_all(stores.engine)] == ["processed"] * 3


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - {BatchStatus.PARKED, BatchStatus.SPLIT}))
def test_a_batch_that_is_not_parked_is_refused_with_what_it_is(
    stores: Stores, batches: list[Batch], status: BatchStatus
) -> None:
    """A processed batch can be proved again; any other is delivered by itself. Nothing is changed."""
    batch_id = set_status(stores, batches[0], status)
    set_status(stores, batches[1], BatchStatus.PARKED)

    with pytest.raises(ConfigurationError) as caught:
        resume(stores.engine, batch_id, lock_timeout_seconds=5)

    expected = "'outbox replay --batch" if status == BatchStatus.PROCESSED else f"is {status}, not parked"
    assert expected in str(caught.value)
    assert [batch.status for batch in read_all(stores.engine)] == [status, "parked", "processed"]


def test_an_id_of_no_batch_is_refused(stores: Stores) -> None:
    """The ledger says that it knows no such batch."""
    with pytest.raises(ConfigurationError, match="The ledger knows no batch"):
        resume(stores.engine, uuid4(), lock_timeout_seconds=5)


def test_nothing_is_resumed_in_a_schema_of_another_version(stores: Stores, batches: list[Batch]) -> None:
    """The version is looked at before anything is written."""
    set_status(stores, batches[0], BatchStatus.PARKED)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.schema_version SET version_num = '9999'"))

    with pytest.raises(ConfigurationError, match="update outbox-pipeline"):
        resume(stores.engine, lock_timeout_seconds=5)

    assert read_all(stores.engine)[0].status == BatchStatus.PARKED


def test_a_batch_that_is_parked_meanwhile_is_resumed_by_a_repeat(stores: Stores, batches: list[Batch]) -> None:
    """Its last attempt failed between the change and the look: it is not told to be delivered by itself."""
    batch_id = set_status(stores, batches[0], BatchStatus.FAILED)

    with (
        before_words(
            stores.engine, "SELECT outbox.batch", lambda: set_status(stores, batches[0], BatchStatus.PARKED) and None
        ),
        pytest.raises(ConfigurationError) as caught,
    ):
        resume(stores.engine, batch_id, lock_timeout_seconds=1)

    assert "run the resume again" in str(caught.value)
    assert [batch.batch_id for batch in resume(stores.engine, batch_id, lock_timeout_seconds=1).batches] == [batch_id]


def test_a_locked_batch_is_not_waited_for_longer_than_the_limit(stores: Stores, batches: list[Batch]) -> None:
    """All are resumed or none: one row that stays locked ends the transaction."""
    set_status(stores, batches[0], BatchStatus.PARKED)
    locked = set_status(stores, batches[1], BatchStatus.PARKED)

    begun: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: dict[str, Any], *_: object) -> None:
        if "set_config" in statement:
            begun.append(json.loads(parameters["settings"])["lock_timeout"])

    with stores.engine.begin() as connection:
        connection.execute(text("SELECT FROM outbox.batch WHERE batch_id = :id FOR UPDATE"), {"id": locked})
        event.listen(stores.engine, "before_cursor_execute", note)
        with pytest.raises(TransientError):
            resume(stores.engine, lock_timeout_seconds=0.05)

    assert begun == ["50ms"]
    assert [batch.status for batch in read_all(stores.engine)] == ["parked", "parked", "processed"]


def test_the_command_shows_what_each_batch_was_parked_for(outbox: Outbox, stores: Stores, batches: list[Batch]) -> None:
    """A line for each batch on stderr, without control characters; the count alone on stdout."""
    batch_id = set_status(stores, batches[0], BatchStatus.PARKED, error="no table\x1b[2J")
    resumed, again = outbox("resume"), outbox("resume")

    assert (resumed.exit_code, resumed.stdout) == (0, "resumed 1\n")
    assert resumed.stderr == f"Batch {batch_id}, 100 events, was parked: no table\\x1b[2J\n"
    assert (again.exit_code, again.stdout, again.stderr) == (0, "resumed 0\n", "")


def test_relay_fails_while_a_batch_is_parked(outbox: Outbox, stores: Stores) -> None:
    """A parked batch is exit code 1 until somebody resumes it; then the relay delivers it."""
    publish(stores.engine, 1)
    fail_batch(stores, "poison", max_attempts=1)
    parked = outbox("relay", "--until-empty", "--json")
    resumed = outbox("resume")
    delivered = outbox("relay", "--until-empty")

    assert (parked.exit_code, json.loads(parked.stdout)["parked_batches"]) == (1, 1)
    assert (resumed.exit_code, resumed.stdout) == (0, "resumed 1\n")
    assert delivered.exit_code == 0


def test_resuming_what_is_not_parked_says_what_it_is(outbox: Outbox, stores: Stores) -> None:
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
