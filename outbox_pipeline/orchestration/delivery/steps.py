"""The four ops of a delivery, and the day run that proves a whole partition.

They hand each other nothing: each gets the batch id from the run config, asks the ledger, and can run in a process of
its own. What happens on a crash: the heartbeat dies with the process, the lease runs out, and the sensor asks for the
next attempt, which looks into ClickHouse before it sends anything. Without a batch id a run is for its partition's day:
its batches are proved many at a time, and those of them that differ in ClickHouse are delivered again.
"""

from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from typing import Any

import dagster as dg

from outbox_pipeline.batches import Batch
from outbox_pipeline.counts import counted
from outbox_pipeline.days import Window
from outbox_pipeline.errors import ProofError
from outbox_pipeline.operations.reconcile.repair import prove_days
from outbox_pipeline.operations.replay import Outcome, Replayed, batches_of_days, replay
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.delivery.report import (
    of_extract,
    of_load,
    of_mark,
    of_split,
    of_validate,
    summary_of_batch,
    summary_of_day,
)
from outbox_pipeline.orchestration.delivery.run import RECORDED_ON_TAG, DeliveryConfig, delivering
from outbox_pipeline.orchestration.partitions import days_of
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal
from outbox_pipeline.orchestration.run_limits import comparison_seconds, move_limit, redelivery_seconds
from outbox_pipeline.orchestration.shown import Metadata, of_replay
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import count_accepted, read_batch
from outbox_pipeline.relay.attempts import end_failed
from outbox_pipeline.relay.split import Split

DELIVERED_WHOLE = "delivered_whole"

_AFTER = {"after": dg.In(dg.Nothing)}


@literal
@dg.op(ins={"outbox": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), tags={"kind": "postgres"})
def extract_batch(context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Take the batch's lease and read its events from PostgreSQL.

    Without a batch id: list the batches of the partition's day; the first partition stands for the days before it too,
    the last for those after it. Fails when another run holds the batch (nothing to do:
    that run delivers it) or when events the ledger counts are gone from outbox.event.
    """
    with delivering(context, config, pipeline) as delivery:
        if delivery is not None:
            _tell_other_day(context)
            context.add_output_metadata(of_extract(delivery.extract()))
            return
        batches = _batches(context, config, pipeline)
        events = sum(batch.event_count for batch in batches)
        context.add_output_metadata({"batches": len(batches), "events": events})


@literal
@dg.op(ins=_AFTER, out=dg.Out(dg.Nothing), tags={"kind": "pandas"})
def validate_batch(context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Decide which events go to ClickHouse and freeze that decision in the ledger.

    Rejected events go to quarantine when the batch is marked; they never hold the others up. A decision made by an
    earlier attempt stands, so nothing is validated on a retry, nor in a run for a whole day.
    """
    with delivering(context, config, pipeline) as delivery:
        if delivery is not None:
            context.add_output_metadata(of_validate(delivery.validate()))


@literal
@dg.op(ins=_AFTER, tags={"kind": "clickhouse"})
def load_batch(context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource) -> Any:
    """Load the batch into ClickHouse and prove that exactly its rows are there.

    A failed check means that ClickHouse took the batch several times and still shows other rows: something else changes
    the table. Nothing is marked then. A batch that ClickHouse lacked the memory for three times in a row is split: its
    events are pending again and come in smaller batches, and this run ends without rows. Without a batch id each
    processed batch of the day is proved and, where ClickHouse differs, delivered again; batches in flight or parked are
    named and left alone, and a batch whose events were pruned can only be proved: the check fails when such a one
    differs.
    """
    with delivering(context, config, pipeline) as delivery:
        if delivery is None:
            return _prove_batches(context, config, pipeline)
        try:
            loaded = delivery.load()
        except ProofError as error:
            end_failed(delivery, error)
            return _check(passed=False, shown={"differences": str(error)})
        if isinstance(loaded, Split):
            context.log.warning(loaded.sentence)
        return _check(passed=True, shown=of_split(loaded) if isinstance(loaded, Split) else of_load(loaded))


@literal
@dg.op(ins=_AFTER, tags={"kind": "postgres"})
def mark_processed(
    context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource
) -> dg.Output[None]:
    """Mark the batch processed in the ledger and put its rejected events into quarantine, in one transaction.

    Refused when another attempt has taken the batch over meanwhile. From here on `outbox.event_status` shows each of
    its events as processed.
    """
    with delivering(context, config, pipeline) as delivery:
        if delivery is None:
            return dg.Output(None, metadata={"dagster/partition_row_count": _day_count(context, pipeline)})
        if delivery.split is not None:
            return dg.Output(None, metadata={**of_split(delivery.split), "rows_loaded": 0})
        batch = delivery.batch()
        marked = delivery.mark()
        shown = of_mark(marked, day_row_count=_day_count(context, pipeline))
        return dg.Output(None, metadata={**shown, "summary": summary_of_batch(batch, marked, delivery.event_types)})


def _tell_other_day(context: dg.OpExecutionContext) -> None:
    day = context.run.tags.get(RECORDED_ON_TAG)
    if day is not None:
        context.log.warning(
            f"This batch was recorded on {day}, which is no partition: it is delivered under {context.partition_key}. "
            "PostgreSQL's clock was wrong then, or the partitions of this code server begin with a later day: start it "
            "again, and they begin with the ledger's first."
        )


def _days(context: dg.OpExecutionContext) -> Window:
    return days_of(date.fromisoformat(context.partition_key))


def _batches(context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource) -> list[Batch]:
    if config.batch_id is None:
        days = _days(context)
        return batches_of_days(pipeline.engine, days.first_day, days.last_day)
    with ledger_transaction(pipeline.engine) as connection:
        return [read_batch(connection, pipeline.as_uuid(config.batch_id))]


def _prove_batches(context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource) -> Any:
    replayed = []
    again = partial(move_limit, context.instance, context.run_id, redelivery_seconds(pipeline.settings))
    for item in _replay(context, config, pipeline, on_batch=again):
        replayed.append(item)
        if item.outcome != Outcome.PROVEN:
            context.log.info(f"Batch {item.batch_id}: {item.outcome}, {counted(item.row_count, 'row')}. {item.detail}")
    bad = [item for item in replayed if item.outcome in (Outcome.FAILED, Outcome.PRUNED)]
    return _check(passed=not bad, shown={**of_replay(replayed), "summary": summary_of_day(replayed)})


def _replay(
    context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource, *, on_batch: Callable[[], None]
) -> Iterator[Replayed]:
    first = comparison_seconds(1) + redelivery_seconds(pipeline.settings)
    move_limit(context.instance, context.run_id, first)
    if config.batch_id is None and not config.reload:
        yield from prove_days(pipeline.stores, _days(context), run_id=context.run_id, on_batch=on_batch)
        return
    for item in replay(
        pipeline.stores, _batches(context, config, pipeline), reload=config.reload, run_id=context.run_id
    ):
        yield item
        on_batch()


def _check(*, passed: bool, shown: Metadata) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=passed, check_name=DELIVERED_WHOLE, asset_key=EVENT_LOG, metadata=shown)


def _day_count(context: dg.OpExecutionContext, pipeline: PipelineResource) -> int:
    days = _days(context)
    with ledger_transaction(pipeline.engine) as connection:
        return count_accepted(connection, days.first_day, days.last_day)
