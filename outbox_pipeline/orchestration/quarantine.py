"""Quarantine in the UI: a check that is yellow while events are held, and jobs that requeue or discard them.

The jobs change nothing until their dry run is turned off. health_sensor reports the check.
"""

import dagster as dg
from pydantic import Field

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import UsageError
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.quarantine import Held, Requeued
from outbox_pipeline.orchestration.assets import OUTBOX_KEY
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal
from outbox_pipeline.orchestration.run_limits import statements_seconds
from outbox_pipeline.orchestration.run_tags import max_runtime
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.orchestration.shown import ROWS_SHOWN, Metadata, table
from outbox_pipeline.orchestration.step_failures import one_sentence
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.settings import load_settings

QUARANTINE_EMPTY = "quarantine_empty"

#: A look and a change, a transaction each.
_TAGS = max_runtime(statements_seconds(16)) | settings_tag(load_settings())

_NEXT_STEP = "Look with 'outbox quarantine list', fix the cause, then run requeue_quarantined or discard_quarantined."


class ChoiceConfig(dg.Config):
    """Which held events are meant, and whether anything is changed."""

    event_ids: list[str] = Field(
        default=[], description="Events by id, or by their number in quarantine. Leave the other filters empty then."
    )
    event_type: str = Field(default="", description="Only events of this type.")
    reason: str = Field(default="", description="Only events refused for this reason, e.g. context_too_large.")
    since: str = Field(default="", description="Only events held since this UTC date or time or later.")
    until: str = Field(default="", description="Only events held before this UTC date or time.")
    batch_id: str = Field(default="", description="Only events that this batch refused.")
    everything: bool = Field(
        default=False, description="All held events; needed to change them when no filter is given."
    )
    dry_run: bool = Field(
        default=True, description="Only count what matches, without a filter all. Set to false to change it."
    )

    def chosen(self) -> Filter:
        """Return the filter; a dry run without one counts all.

        Raises UsageError when it cannot be read, or leaves open what is to be changed.
        """
        wanted = quarantine.parse_filter(
            self.event_ids,
            event_type=self.event_type or None,
            reason=self.reason or None,
            since=self.since or None,
            until=self.until or None,
            batch_id=self.batch_id or None,
        )
        if wanted == Filter() and not self.everything and not self.dry_run:
            raise UsageError("No filter is given: name events, choose a filter, or set everything to true.")
        return wanted


class DiscardConfig(ChoiceConfig):
    """Which held events are given up, and why."""

    note: str = Field(description="Why these events are given up; kept with each of them.")


@literal
@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "postgres"})
def requeue_held(context: dg.OpExecutionContext, config: ChoiceConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Give held events back to delivery: the next batch validates them anew and delivers them, or holds them again.

    One transaction: a run that dies has changed nothing or everything. Events of a batch that is being delivered
    again at this moment stay held and are named.
    """
    with one_sentence():
        chosen = quarantine.preview(pipeline.engine, config.chosen())
        context.add_output_metadata(of_held(chosen.held))
        if _is_dry(context, config, chosen.held):
            return
        done = quarantine.requeue(pipeline.engine, chosen.wanted)
        context.log.info(f"Requeued {counted(done.count, 'event')}; outbox_sensor puts them into the next batch.")
        for refusal in done.refused:
            held = counted(refusal.event_count, "event")
            context.log.warning(f"Still held: {held} of batch {refusal.batch_id}: {refusal.why}.")
        context.add_output_metadata(_of_requeue(chosen.held, done))


@literal
@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "postgres"})
def discard_held(context: dg.OpExecutionContext, config: DiscardConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Give held events up for good and keep the note with each of them; they will never be delivered.

    One transaction: a run that dies has changed nothing or everything. The events stay in outbox.event until they
    are pruned.
    """
    with one_sentence():
        chosen = quarantine.preview(pipeline.engine, config.chosen())
        context.add_output_metadata(of_held(chosen.held))
        if _is_dry(context, config, chosen.held):
            return
        count = quarantine.discard(pipeline.engine, chosen.wanted, note=config.note)
        context.log.info(f"Discarded {counted(count, 'event')}.")
        context.add_output_metadata({**of_held(chosen.held), "discarded": count})


@dg.job(
    description=(
        "Deliver events that validation refused, once the cause is fixed (e.g. OUTBOX_CONTEXT_MAX_BYTES or "
        "OUTBOX_EVENT_TYPES). Run it as it is first: it only counts. Then choose events, set dry_run to false and run "
        "it again. What is still bad comes back into quarantine, so trying costs nothing."
    ),
    run_tags=_TAGS,
)
def requeue_quarantined() -> None:
    """Requeue what its config chooses."""
    requeue_held()


@dg.job(
    description=(
        "Give up events that validation refused and that are not needed. This cannot be taken back: a discarded event "
        "is never delivered. Run it with dry_run true first to see how many it means; the note is required and keeps "
        "the reason with each event."
    ),
    run_tags=_TAGS,
)
def discard_quarantined() -> None:
    """Discard what its config chooses."""
    discard_held()


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=QUARANTINE_EMPTY,
    description=(
        "No event is held in quarantine. Yellow while some are: they were refused by validation and stay held "
        "until they are requeued or discarded; all others are delivered. health_sensor keeps it fresh."
    ),
)
def quarantine_empty(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Count what is held; a warning, because nothing that is good is kept waiting by it."""
    held = quarantine.count_held(pipeline.engine)
    return dg.AssetCheckResult(
        passed=held.count == 0,
        severity=dg.AssetCheckSeverity.WARN,
        description=told(held),
        metadata=of_held(held),
    )


def told(held: Held) -> str:
    """Say how much is held and what to do about it."""
    return f"{held.summary()}. {_NEXT_STEP}" if held.count else "Nothing is held."


def _is_dry(context: dg.OpExecutionContext, config: ChoiceConfig, held: Held) -> bool:
    if config.dry_run:
        context.log.info(f"Dry run, nothing was changed: {held.summary()}. Set dry_run to false to go on.")
    return config.dry_run


def of_held(held: Held) -> Metadata:
    """Show how many events are held, or were before the change, for which reasons and since when."""
    since = {} if held.oldest_at is None else {"oldest_held_at": dg.MetadataValue.timestamp(held.oldest_at)}
    return {"held": held.count, "reasons": dg.MetadataValue.json(held.by_reason), **since}


def _of_requeue(held: Held, done: Requeued) -> Metadata:
    """Show what was requeued and what stays held."""
    refused: list[dict[str, int | str]] = [
        {"batch_id": str(item.batch_id), "events": item.event_count, "why": item.why}
        for item in done.refused[:ROWS_SHOWN]
    ]
    return {**of_held(held), "requeued": done.count, "refused": table(refused)}
