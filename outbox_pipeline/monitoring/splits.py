"""Whether ClickHouse lacked the memory for whole batches lately, and what to set so that it does not again.

Invariant: it reads the ledger alone and changes nothing.
"""

from sqlalchemy import Engine

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError, sentence_of
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.overview import read_splits

#: The check's name.
SPLIT_BATCHES = "split batches"
#: How far back it looks.
_DAYS = 7


def check_splits(engine: Engine) -> Check:
    """Warn where batches were split in the last days, with the size of the largest."""
    try:
        with ledger_transaction(engine) as connection:
            count, event_count, context_bytes = read_splits(connection, days=_DAYS)
    except OutboxError as error:
        return Check(SPLIT_BATCHES, False, sentence_of(error))
    if not count:
        return Check(SPLIT_BATCHES, True, f"ClickHouse had the memory for every batch of the last {_DAYS} days.")
    said = (
        f"In the last {_DAYS} days ClickHouse lacked the memory for {counted(count, 'batch', 'batches')} of up to "
        f"{counted(event_count, 'event')} and {context_bytes:,} bytes, and each was split, which takes time: give it "
        "more memory (max_memory_usage, max_server_memory_usage), or lower OUTBOX_BATCH_MAX_EVENTS and "
        "OUTBOX_BATCH_MAX_BYTES."
    )
    return Check(SPLIT_BATCHES, True, said, is_warning=True)
