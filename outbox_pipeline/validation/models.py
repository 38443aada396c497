"""Holds contexts against the application's models: one pass in bulk for each type and version.

A page of contexts is one JSON array that pydantic reads in one call; its error says which of them failed and why. Only
where an array cannot be read at all is each of its contexts asked alone, so that one event never fails another.

Invariant: nothing of an event is in what this says. Pydantic's messages may quote values and name keys that come from
the event; of names only those that the model itself has are kept, and of messages only what the model gives away.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from outbox_pipeline.registry import Model, Registry
from outbox_pipeline.validation.contract import MODEL_PROBLEM

#: Bounds of one array. The instances of a page live at once, and beyond a few hundred Python's garbage collector looks
#: through them so often that it costs more than pydantic does.
PAGE_ROWS = 100
PAGE_BYTES = 8_000_000

PROBLEMS_SHOWN = 5
_WORDS_MAX = 500

#: Parts of pydantic's messages that come from the model and not from the event.
_OF_THE_MODEL = {
    "actual_length",
    "class",
    "class_name",
    "decimal_places",
    "discriminator",
    "expected",
    "expected_schemes",
    "expected_tags",
    "expected_version",
    "field_type",
    "ge",
    "gt",
    "le",
    "lt",
    "max_digits",
    "max_length",
    "min_length",
    "multiple_of",
    "pattern",
    "tz_expected",
    "whole_digits",
}
_KNOWN_ERRORS = frozenset(get_args(ErrorType)) - {"value_error", "assertion_error"}
_OWN_CHECK = "refused by a check of the model's own"

Problems = dict[int, str]


def with_model_problems(frame: pd.DataFrame, registry: Registry, is_readable: pa.ChunkedArray) -> pd.DataFrame:
    """Return *frame* with what is wrong with each context, null where nothing is, in the column `MODEL_PROBLEM`.

    Contexts that are not readable, and those of other types and versions, are not looked at.
    """
    problems: list[str | None] = [None] * len(frame)
    contexts = frame["event_context"].array.__arrow_array__()
    for model, rows in _groups(frame, registry, is_readable):
        for page in _pages(contexts.take(rows)):
            start, texts = page
            for place, words in _judge(model, texts).items():
                problems[rows[start + place].as_py()] = words
    return frame.assign(**{MODEL_PROBLEM: pd.arrays.ArrowExtensionArray(pa.array(problems, pa.string()))})


def _groups(frame: pd.DataFrame, registry: Registry, is_readable: pa.ChunkedArray) -> Iterator[tuple[Model, pa.Array]]:
    names = ["event_type", "metadata_version"]
    numbers = {"row": pa.array(range(len(frame)), pa.int64())}
    table = pa.table({name: frame[name].array.__arrow_array__() for name in names} | numbers)
    is_registered = pc.is_in(table["event_type"], value_set=pa.array(list(registry.versions), pa.string()))
    table = table.filter(pc.and_(is_registered, is_readable))
    for group in table.group_by(names).aggregate([("row", "list")]).to_batches():
        for event_type, version, rows in zip(*(group.column(name) for name in [*names, "row_list"]), strict=True):
            model = registry.by_name.get((event_type.as_py(), version.as_py()))
            if model is not None:
                yield model, rows.values


def _pages(contexts: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    # Combining copies even a single chunk.
    contexts = contexts.chunk(0) if contexts.num_chunks == 1 else contexts.combine_chunks()
    rows = min(PAGE_ROWS, max(1, PAGE_BYTES * len(contexts) // (contexts.nbytes or 1)))
    for start in range(0, len(contexts), rows):
        yield start, contexts.slice(start, rows)


def _judge(model: Model, contexts: pa.Array) -> Problems:
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(contexts)], pa.int32()), contexts), ",")
    try:
        read = _reader(model).validate_json(f"[{joined[0].as_py()}]")
    except ValidationError as error:
        return _problems(model, error) or _judge_singly(model, contexts)
    except Exception:  # noqa: BLE001  # a model's own checks can raise anything
        return _judge_singly(model, contexts)
    return {} if len(read) == len(contexts) else _judge_singly(model, contexts)


def _judge_singly(model: Model, contexts: pa.Array) -> Problems:
    words = {place: _problem(model, context) for place, context in enumerate(contexts.to_pylist())}
    return {place: said for place, said in words.items() if said is not None}


def _problem(model: Model, context: str) -> str | None:
    try:
        model.model_validate_json(context)
    except ValidationError as error:
        return _in_words([_told(model, item, item["loc"]) for item in _items(error)])
    except Exception as error:  # noqa: BLE001  # as above; the event is held and this class is what is said of it
        return f"the model failed with {type(error).__name__}"
    return None


@cache
def _reader(model: Model) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[model])  # type: ignore[valid-type]


def _problems(model: Model, error: ValidationError) -> Problems:
    # By place in the array; empty when pydantic could not read the array, which has no place.
    found: dict[int, list[str]] = {}
    for item in _items(error):
        if not item["loc"] or not isinstance(item["loc"][0], int):
            return {}
        found.setdefault(item["loc"][0], []).append(_told(model, item, item["loc"][1:]))
    return {place: _in_words(said) for place, said in found.items()}


def _in_words(said: list[str]) -> str:
    more = f"; and {len(said) - PROBLEMS_SHOWN} more" if len(said) > PROBLEMS_SHOWN else ""
    words = "; ".join(said[:PROBLEMS_SHOWN])
    return f"{words[: _WORDS_MAX - 1]}…{more}" if len(words) > _WORDS_MAX else words + more


def _items(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)


def _told(model: Model, item: ErrorDetails, location: tuple[int | str, ...]) -> str:
    known = _names_of(model)
    parts = [str(part) if isinstance(part, int) or part in known else "*" for part in location]
    return f"{'.'.join(parts)}: {_message(item)}" if parts else _message(item)


def _message(item: ErrorDetails) -> str:
    if item["type"] == "json_invalid":
        # The parser says what it stumbled over and at which column, in words of its own.
        return f"cannot be read as JSON by pydantic: {item['ctx']['error']}"
    if item["type"] not in _KNOWN_ERRORS:
        return _OWN_CHECK
    message = item["msg"]
    for name, value in item.get("ctx", {}).items():
        if name not in _OF_THE_MODEL and str(value):
            message = message.replace(str(value), "…")
    return "".join(one if one.isprintable() else "…" for one in message)


@cache
def _names_of(model: Model) -> frozenset[str]:
    return frozenset(_texts(TypeAdapter(model).core_schema))


def _texts(schema: Any) -> Iterator[str]:
    # Every name a location can have is somewhere in pydantic's own description of the model: fields, aliases, unions.
    remaining, seen = [schema], set()
    for value in remaining:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            remaining.extend([*value.keys(), *value.values()] if isinstance(value, Mapping) else value)
