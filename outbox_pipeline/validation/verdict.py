"""Puts contract and rules into pandera schemas and turns what they find into rejections.

Invariant: no value of an event leaves this module. pandera would put the failing values into its messages,
contexts included; `RuleCheck` gives it positions instead, which is also all the ledger wants to know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.compute as pc
from pandera.api.base.checks import CheckResult
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

from outbox_pipeline.errors import BatchDataError
from outbox_pipeline.validation.contract import MODEL_PROBLEM, batch_frame, columns
from outbox_pipeline.validation.models import with_model_problems
from outbox_pipeline.validation.rules import Find, Reason, Rules, finders, readable

_ORDER = {reason: place for place, reason in enumerate(Reason)}


@dataclass(frozen=True)
class Rejection:
    """One event that must not be sent, with every reason against it in the order `Reason` lists them.

    A reason is its code; after that of `Reason.MODEL` a colon and words follow.
    """

    position: int
    reasons: tuple[str, ...]


class RuleCheck(pandera.Check):
    """A pandera check named after its reason whose failure cases are the positions of the bad events."""

    def __init__(self, reason: Reason, find: Find, rules: Rules) -> None:
        super().__init__(find, name=reason.value)
        self._find, self._rules = find, rules

    def __call__(self, check_obj: pd.DataFrame, column: str | None = None) -> CheckResult:
        """Apply the rule to the frame *check_obj*; pandera calls this, *column* is part of its signature."""
        is_bad = pc.fill_null(self._find(check_obj, self._rules), False)
        positions = check_obj["position"].array.__arrow_array__().filter(is_bad)
        cases = pd.Series(positions.to_numpy(), dtype="int64") if len(positions) else None
        return CheckResult(cases is None, cases is None, check_obj, cases)


def validate_events(table: pa.Table, rules: Rules) -> list[Rejection]:
    """Return the rejected events of *table* in the order of their positions; empty when all is well.

    *table* is a batch: one row an event, ordered by `position`, columns as in `contract.ARROW_TYPES`. Raises
    BatchDataError when it is not, because then no verdict on an event would mean anything.
    """
    frame = batch_frame(table)
    _failures(_contract(), frame)
    if rules.registry.models:
        frame = with_model_problems(frame, rules.registry, readable(frame, rules))
    failures = _failures(_schema(rules), frame)
    return [] if failures is None else list(_rejections(failures, frame))


def _failures(schema: pandera.DataFrameSchema, frame: pd.DataFrame) -> pd.DataFrame | None:
    try:
        # PANDERA_VALIDATION_ENABLED or _DEPTH in the environment must not switch the rules off unnoticed.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            schema.validate(frame, lazy=True, inplace=True)
    except SchemaErrors as errors:
        _require_contract(errors, frame)
        failures: pd.DataFrame = errors.failure_cases
        return failures
    return None


@lru_cache(maxsize=1)
def _contract() -> pandera.DataFrameSchema:
    in_order = pandera.Check(lambda frame: _is_increasing(frame["position"]), name="positions_in_order")
    return pandera.DataFrameSchema(columns(), checks=[in_order], strict=True)


@lru_cache(maxsize=8)
def _schema(rules: Rules) -> pandera.DataFrameSchema:
    return pandera.DataFrameSchema(checks=[RuleCheck(reason, find, rules) for reason, find in finders(rules).items()])


def _is_increasing(positions: pd.Series) -> bool:
    # pandas would make a hash table of them to see that each is there once.
    numbers = positions.array.__arrow_array__()
    return bool(pc.all(pc.less(numbers.slice(0, max(0, len(numbers) - 1)), numbers.slice(1)), min_count=0).as_py())


def _require_contract(errors: SchemaErrors, frame: pd.DataFrame) -> None:
    # A rule that crashed counts too, its events were not judged; but a wrong column is why most would crash.
    broken = [error for error in errors.schema_errors if not _is_verdict(error)]
    causes = [error for error in broken if error.reason_code is not SchemaErrorReason.CHECK_ERROR]
    if broken:
        told = "; ".join(dict.fromkeys(_told(error, frame) for error in causes or broken))
        raise BatchDataError(
            f"The batch is not as validation expects it: {told}. Nothing was sent; run `outbox doctor`."
        ) from None


def _is_verdict(error: SchemaError) -> bool:
    return error.reason_code is SchemaErrorReason.DATAFRAME_CHECK and isinstance(error.check, RuleCheck)


def _told(error: SchemaError, frame: pd.DataFrame) -> str:
    # Written from names and types only: pandera's own messages quote values.
    match error.reason_code:
        case SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
            return f"column {error.failure_cases} is missing"
        case SchemaErrorReason.COLUMN_NOT_IN_SCHEMA:
            return f"column {error.failure_cases} is not known"
        case SchemaErrorReason.WRONG_DATATYPE:
            return f"column {error.schema.name} is {frame[error.schema.name].dtype}, not {error.schema.dtype}"
        case SchemaErrorReason.DATAFRAME_CHECK:
            return "rows are not ordered by position, each once"
        case SchemaErrorReason.SERIES_CONTAINS_NULLS:
            return f"column {error.schema.name} has missing values"
        case _:
            return f"column {error.schema.name}, {error.reason_code}"


def _rejections(cases: pd.DataFrame, frame: pd.DataFrame) -> Iterator[Rejection]:
    words = _words(frame) if MODEL_PROBLEM in frame else {}
    reasons: dict[int, list[Reason]] = {}
    for position, reason in zip(cases["failure_case"].tolist(), cases["check"].tolist(), strict=True):
        reasons.setdefault(position, []).append(Reason(reason))
    for position in sorted(reasons):
        ordered = sorted(reasons[position], key=_ORDER.__getitem__)
        said = (f"{reason}: {words[position]}" if reason is Reason.MODEL else reason for reason in ordered)
        yield Rejection(position, tuple(said))


def _words(frame: pd.DataFrame) -> dict[int, str]:
    told = frame.loc[frame[MODEL_PROBLEM].notna(), ["position", MODEL_PROBLEM]]
    return dict(zip(told["position"].tolist(), told[MODEL_PROBLEM].tolist(), strict=True))
