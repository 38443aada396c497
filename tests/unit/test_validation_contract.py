"""What validation accepts as a batch, and that nothing outside can switch it off."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather

from outbox_pipeline.errors import BatchDataError
from outbox_pipeline.validation import Reason, Rejection, Rules, validate_events
from outbox_pipeline.validation.contract import ARROW_TYPES


def batch(*events: dict[str, Any]) -> pa.Table:
    """Return a batch of good events, each with the given values instead; positions count from 1."""
    good = {
        "event_type": "user_created",
        "event_date_time": datetime(2026, 3, 1, tzinfo=UTC),
        "environment": "test",
        "event_context": "{}",
        "metadata_version": 1,
        "recorded_at": datetime(2026, 3, 1, tzinfo=UTC),
    }
    ids = [{"position": number, "event_id": number.to_bytes(16, "big")} for number in range(1, len(events) + 1)]
    rows = [good | numbered | event for numbered, event in zip(ids, events, strict=True)]
    return pa.Table.from_pylist(rows, pa.schema(list(ARROW_TYPES.items())))


def replaced(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the table with other values, of any type, in one of its columns."""
    return table.set_column(table.column_names.index(name), name, values)


def latin1(text: str) -> pa.Array:
    """Return a column with one text that is not UTF-8."""
    raw = pa.array([text.encode("latin-1")], pa.binary())
    return pa.Array.from_buffers(pa.string(), 1, raw.buffers())


def test_empty_batch_is_fine() -> None:
    """A table without rows has nothing to reject."""
    assert validate_events(batch(), Rules()) == []


def test_batch_may_come_in_several_chunks() -> None:
    """The result does not depend on how Arrow cut the table up, broken text included."""
    good, broken, empty = batch({}), batch({"position": 2}), batch({"position": 4, "event_type": ""})
    broken = replaced(broken, "event_type", latin1("größe"))
    chunked = pa.concat_tables([good, broken, batch({"position": 3}), empty])

    assert chunked.column("event_type").num_chunks == 4
    assert validate_events(chunked, Rules()) == [
        Rejection(2, (Reason.INVALID_UTF8,)),
        Rejection(4, (Reason.EVENT_TYPE_EMPTY,)),
    ]


def test_driver_types_are_read_as_what_they_store() -> None:
    """Columns of json and uuid as ADBC labels them, and ids as plain binary, are the same batch."""
    table = batch({}, {"event_context": "1"})
    ids = table.column("event_id").combine_chunks()
    labelled = replaced(table, "event_id", pa.ExtensionArray.from_storage(pa.uuid(), ids))
    labelled = replaced(labelled, "event_context", labelled.column("event_context").cast(pa.json_()))
    plain = replaced(table, "event_id", table.column("event_id").cast(pa.binary()))
    expected = [Rejection(2, (Reason.CONTEXT_NOT_OBJECT,))]

    assert validate_events(labelled, Rules()) == expected
    assert validate_events(plain, Rules()) == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns(["event_type"]), "column event_type is missing"),
        (lambda table: table.drop_columns(["recorded_at"]), "column recorded_at is missing"),
        (lambda table: table.append_column("extra", pa.array([1])), "column extra is not known"),
        (lambda table: table.append_column("is_utf8", pa.array([True])), "more than one column is_utf8"),
        (
            lambda table: table.append_column("event_type", pa.array(["twice"])),
            "more than one column event_type",
        ),
        (
            lambda table: replaced(table, "metadata_version", pa.array(["1"])),
            "column metadata_version is string",
        ),
        (lambda table: replaced(table, "event_type", pa.array([7])), "column event_type is int64"),
        (
            lambda table: replaced(table, "event_date_time", pa.array([7])),
            "column event_date_time is int64",
        ),
        (
            lambda table: replaced(table, "recorded_at", table.column("recorded_at").cast(pa.timestamp("ms", "UTC"))),
            "column recorded_at is timestamp",
        ),
        (lambda table: replaced(table, "event_id", pa.array([b"short"])), "cannot be read"),
        (
            lambda table: replaced(table, "position", pa.array([None], pa.int64())),
            "column position has missing values",
        ),
    ],
)
def test_broken_contract_is_an_error_and_no_rejection(change: Callable[[pa.Table], pa.Table], told: str) -> None:
    """A batch of another shape stops with a sentence that names the column; no event is blamed for it."""
    with pytest.raises(BatchDataError, match=told):
        validate_events(change(batch({"event_context": "[]"})), Rules())


@pytest.mark.parametrize("positions", [(2, 1), (1, 1)])
def test_rows_out_of_order_are_an_error(positions: tuple[int, int]) -> None:
    """Rows must be ordered by position, each position once."""
    with pytest.raises(BatchDataError, match="not ordered by position"):
        validate_events(batch(*({"position": position} for position in positions)), Rules())


def test_no_context_appears_in_an_error() -> None:
    """An error about the batch's shape shows no event's content, even when the events are bad too."""
    table = batch({"event_context": '["secret"]'}).drop_columns(["event_type"])

    with pytest.raises(BatchDataError) as caught:
        validate_events(table, Rules())

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("switch", ["PANDERA_VALIDATION_ENABLED=False", "PANDERA_VALIDATION_DEPTH=SCHEMA_ONLY"])
def test_environment_cannot_switch_validation_off(switch: str, tmp_path: Path) -> None:
    """The switches pandera reads in the environment are overruled: bad events stay rejected."""
    feather.write_feather(batch({"metadata_version": 0}), tmp_path / "batch")
    name, _, value = switch.partition("=")
    program = (
        "import sys; from pyarrow import feather; from outbox_pipeline.validation import Rules, validate_events\n"
        "print(len(validate_events(feather.read_table(sys.argv[1]), Rules())))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "batch"],
        env={"PYTHONPATH": ":".join(sys.path), name: value},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "1"
