"""What is said of PostgreSQL's errors names the fault and quotes no row, however the driver was told of it."""

import traceback
from datetime import date

import pyarrow as pa
import pytest
from sqlalchemy import Engine, text

from outbox_pipeline.errors import ConstraintError, DefectError, LedgerError, OutboxError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.relay import delivery
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish

CONTENT = "ada@example.org"


def all_of(error: BaseException) -> str:
    """Return everything that a traceback of the error shows, causes included."""
    return "".join(traceback.format_exception(error))


def test_a_constraint_is_named_without_the_row(outbox_engine: Engine) -> None:
    """PostgreSQL's DETAIL has the failing row; what is told is the constraint."""
    statement = text(
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'e', CAST(:context AS json), 'infinity')"
    )

    with pytest.raises(ConstraintError) as refused, ledger_transaction(outbox_engine) as connection:
        connection.execute(statement, {"context": f'{{"mail": "{CONTENT}"}}'})

    assert "plain_time" in str(refused.value)
    assert CONTENT not in all_of(refused.value)


def test_a_value_is_not_quoted(outbox_engine: Engine) -> None:
    """An error over a value, a defect of a statement, is told by its name and SQLSTATE."""
    with pytest.raises(LedgerError) as refused, ledger_transaction(outbox_engine) as connection:
        connection.execute(text("SELECT CAST(:mail AS integer)"), {"mail": CONTENT})

    assert "InvalidTextRepresentation, SQLSTATE 22P02" in str(refused.value)
    assert CONTENT not in all_of(refused.value)


def test_a_defect_keeps_its_frames_and_loses_its_words(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of a relay leads to the place; what Arrow says of the value it failed over is not in it."""
    publish(stores.engine, 1, context=f'"{CONTENT}"')

    def fail(events: pa.Table, *_: object) -> None:
        raise pa.ArrowInvalid(f"Could not convert {events['event_context'][0]} with type str")

    monkeypatch.setattr(delivery, "validate_events", fail)

    with pytest.raises(DefectError, match=r"ArrowInvalid at outbox_pipeline/relay/delivery\.py:\d+") as failed:
        relay(stores)

    assert "in validate\n" in all_of(failed.value)
    assert CONTENT not in all_of(failed.value)


def test_a_batch_that_cannot_be_read_is_not_quoted(stores: Stores) -> None:
    """The driver that hands out a batch says no more of a row it fails over."""
    publish(stores.engine, 1, context=f'"{CONTENT}"')
    (request,) = plan_tick(stores.engine, stores.settings, days=(date.min, date.max)).requests
    with stores.engine.begin() as connection:
        columns = connection.scalars(
            text(
                "SELECT CASE attname WHEN 'event_context' THEN 'to_json((event_context #>> ''{}'')::integer)'"
                " || ' AS event_context' ELSE attname END FROM pg_attribute"
                " WHERE attrelid = 'outbox.event'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
            )
        ).all()
        connection.execute(text("ALTER TABLE outbox.event RENAME TO real_event"))
        connection.execute(text(f"CREATE VIEW outbox.event AS SELECT {', '.join(columns)} FROM outbox.real_event"))

    with pytest.raises(OutboxError) as refused:
        extract_events(stores.engine, request.batch_id)

    assert isinstance(refused.value, LedgerError)
    assert "SQLSTATE 22P02" in str(refused.value)
    assert CONTENT not in all_of(refused.value)
