"""Which columns a batch has when validation receives it, and the pandas frame the rules look at.

This is about the shape of a batch, which our own code makes; whether an event in it is good belongs to
`rules`. So a difference found here is a bug or a changed table, never a reason to quarantine an event.

Invariant: once a frame exists, every text in it is valid UTF-8 and as many bytes long as the original, so no
rule can stumble over a single broken row; `is_utf8` remembers which rows were broken.
"""

import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa

from outbox_pipeline.errors import BatchDataError
from outbox_pipeline.event_schema import EXTRACTED, arrow_schema

#: Column → Arrow type, in no particular order; a batch has exactly these.
ARROW_TYPES: dict[str, pa.DataType] = {field.name: field.type for field in arrow_schema()}

#: Columns in which every event has a value.
REQUIRED = tuple(column.name for column in EXTRACTED if not column.may_be_missing)

#: Column added once a batch fits the contract and there are models: what is wrong with a context, null for nothing.
MODEL_PROBLEM = "model_problem"

_TEXTS = tuple(name for name, arrow_type in ARROW_TYPES.items() if arrow_type == pa.string())


def columns() -> dict[str, pandera.Column]:
    """Return pandera's description of the frame: each column's type; values are the rules' business."""
    described = {
        name: pandera.Column(pd.ArrowDtype(arrow_type), nullable=name != "position")
        for name, arrow_type in ARROW_TYPES.items()
    }
    return described | {"is_utf8": pandera.Column(pd.ArrowDtype(pa.bool_()))}


def batch_frame(table: pa.Table) -> pd.DataFrame:
    """Return *table* as a pandas frame on the same memory, one row an event, plus the column `is_utf8`.

    Raises BatchDataError when a column appears twice or an `event_id` is not 16 bytes long. Missing
    columns and wrong types pass, pandera names them all at once.
    """
    _refuse_doubled_columns([*table.column_names, "is_utf8"])
    table = _with_plain_types(table)
    is_utf8 = pa.repeat(True, table.num_rows)
    for name in _TEXTS:
        if name in table.column_names and not _is_valid(table.column(name)):
            table, is_utf8 = _without_broken_text(table, name, is_utf8)
    frame: pd.DataFrame = table.append_column("is_utf8", is_utf8).to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def _refuse_doubled_columns(names: list[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BatchDataError(f"The batch has more than one column {', '.join(doubled)}.")


def _with_plain_types(table: pa.Table) -> pa.Table:
    # ADBC labels json and uuid columns with extension types; what they store is what the contract names.
    fields = [pa.field(field.name, _plain_type(field.type)) for field in table.schema]
    try:
        return table.cast(pa.schema(fields))
    except pa.ArrowInvalid as error:
        # Arrow's own words may quote a value.
        raise BatchDataError(f"The batch's columns cannot be read: {type(error).__name__}.") from None


def _plain_type(arrow_type: pa.DataType) -> pa.DataType:
    stored = arrow_type.storage_type if isinstance(arrow_type, pa.BaseExtensionType) else arrow_type
    return pa.binary(16) if pa.types.is_binary(stored) else stored


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _without_broken_text(table: pa.Table, name: str, is_utf8: pa.Array) -> tuple[pa.Table, pa.Array]:
    originals = table.column(name).cast(pa.binary()).to_pylist()
    texts = [None if raw is None else _repaired(raw) for raw in originals]
    is_kept = [kept and raw == text for kept, raw, text in zip(is_utf8.to_pylist(), originals, texts, strict=True)]
    repaired = pa.chunked_array([pa.array(texts, pa.binary()).cast(pa.string())])
    return table.set_column(table.column_names.index(name), name, repaired), pa.array(is_kept)


def _repaired(raw: bytes) -> bytes:
    # One question mark per undecodable byte, so that a limit on bytes still counts what PostgreSQL holds.
    return raw.decode("utf-8", "surrogateescape").encode("utf-8", "replace")
