"""Sort what ClickHouse and its driver raise into the four kinds this package acts on.

A code that is in no list is in doubt: the rows may have been written, so the caller looks before it sends again.
Code numbers are ClickHouse's own (`src/Common/ErrorCodes.cpp` in its repository).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_connect.driver.exceptions import ClickHouseError, DataError, Error, OperationalError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from outbox_pipeline.errors import (
    BatchDataError,
    ConfigurationError,
    InDoubtError,
    OutboxError,
    TransientError,
    first_line,
)

#: The server did nothing and may do it later: too busy, too many parts, read-only for a moment, Keeper away.
TRANSIENT_CODES = frozenset({202, 203, 225, 242, 252, 285, 439, 473})
#: Credentials, grants, names, settings and syntax: nothing changes until somebody changes it.
CONFIGURATION_CODES = frozenset(
    {16, 36, 44, 47, 48, 60, 62, 80, 81, 82, 115, 164, 192, 193, 194, 291, 344, 452, 495, 497, 516, 620}
)
#: The content of the request itself: parsing, types, values, constraints.
DATA_CODES = frozenset({6, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 131, 349, 376, 407, 469})
#: `throwIf` in our own statements.
FUNCTION_THROW_CODE = 395


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate what the driver raises inside the block; *where* names the server without its password."""
    try:
        yield
    except OutboxError:
        raise
    except (DataError, ValueError, TypeError, UnicodeEncodeError) as error:
        raise BatchDataError(f"The driver cannot encode this for ClickHouse: {first_line(error)}.") from error
    except (ClickHouseError, HTTPError, OSError) as error:
        raise translate(error, where) from error


def translate(error: Exception, where: str) -> OutboxError:
    """Return this package's error for one of the driver's."""
    code = error.code if isinstance(error, Error) else None
    said = first_line(error)
    if code is None:
        return _without_code(error, f"{where}: {said}")
    if code == 252 and "partitions" in said:
        # The same number means too many parts (wait) and too many partitions in one insert (never works).
        return ConfigurationError(f"{where} refuses the batch: {said}. Raise max_partitions_per_insert_block.")
    if code in TRANSIENT_CODES:
        return TransientError(f"{where} cannot do this now: {said}")
    if code in CONFIGURATION_CODES:
        return ConfigurationError(f"{where} refuses this: {said}. Check URL, user and grants, or run 'outbox init'.")
    if code in DATA_CODES:
        return BatchDataError(f"{where} refuses the content: {said}")
    return InDoubtError(f"{where} may or may not have done this: {said}")


def _without_code(error: Exception, said: str) -> OutboxError:
    # No code means that no server answered, or that something between us did (429, 503).
    if _never_arrived(error):
        return TransientError(f"ClickHouse cannot be reached: {said}. Check that it runs and OUTBOX_CLICKHOUSE_URL.")
    if isinstance(error, OperationalError) and any(status in said for status in ("429", "503")):
        return TransientError(f"ClickHouse is busy: {said}")
    if "401" in said or "403" in said:
        return ConfigurationError(f"ClickHouse refuses the credentials: {said}. Check OUTBOX_CLICKHOUSE_URL.")
    return InDoubtError(f"The connection to ClickHouse broke: {said}")


def _never_arrived(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, NewConnectionError | ConnectTimeoutError | ConnectionRefusedError):
            return True
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
        seen += 1
    return False
