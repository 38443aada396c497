"""How a step of any job fails: with one sentence, and with nothing that Dagster should not store.

Invariant: Dagster stores and shows an error with all its causes, so nothing is raised from here that has one, and of a
foreign error only kind and place are told.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from outbox_pipeline.errors import sentence_of


@contextmanager
def one_sentence() -> Iterator[None]:
    """Fail the run with one sentence, and without a retry, where the block fails."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it fails the run, in words that may be stored
        raise failure_of(error) from None


def failure_of(error: Exception) -> dg.Failure:
    """Return the failure of a step, with the frames of *error* and one sentence about it."""
    failure = dg.Failure(description=sentence_of(error), allow_retries=False)
    return failure.with_traceback(error.__traceback__)
