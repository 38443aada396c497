"""Commands that only look: `status`, `trace` and `doctor`."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from outbox_pipeline.cli.support.engines import engine_settings, ready_settings
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.monitoring.check import Check
    from outbox_pipeline.monitoring.status import Status
    from outbox_pipeline.monitoring.trace import Trace
    from outbox_pipeline.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("status")(status)
    app.command("trace")(trace)
    app.command("doctor")(doctor)


def status(as_json: AsJson = False) -> None:
    """Show how many events are where, how old the oldest undelivered one is, and what failed last.

    Example: `outbox status --json`
    """
    from outbox_pipeline.monitoring.status import read_status
    from outbox_pipeline.postgres.engine import create_outbox_engine

    with ready_settings(clickhouse=False) as settings:
        found = read_status(create_outbox_engine(settings, pooled=False))
    if as_json:
        print_json(found)
    else:
        print_facts(_status_facts(found))


def trace(
    event_id: Annotated[UUID, typer.Argument(help="The event's id, a UUID.")],
    as_json: AsJson = False,
) -> None:
    """Show one event's life: its stations with links to their runs, its row in ClickHouse or why there is none.

    Links need OUTBOX_DAGSTER_UI_URL, or an 'outbox up' on this home. Exit code 1 when neither side knows the event.

    Example: `outbox trace 412d8176-416a-5d43-8b59-333d72dce3f0`
    """
    from outbox_pipeline.monitoring.trace import trace_event
    from outbox_pipeline.postgres.engine import create_outbox_engine

    with ready_settings() as settings:
        settings = _with_ui(settings)
        found = trace_event(create_outbox_engine(settings, pooled=False), settings, event_id)
    if as_json:
        print_json(found)
    else:
        print_facts(_trace_facts(found))
    if not found.is_known:
        raise typer.Exit(1)


def _with_ui(settings: "Settings") -> "Settings":
    from outbox_pipeline.orchestration.host.stack import running_stack

    if settings.dagster_ui_url is not None:
        return settings
    return settings.model_copy(update={"dagster_ui_url": running_stack(settings.home)})


def doctor(as_json: AsJson = False) -> None:
    """Check settings, servers, grants, schemas, clocks, ledger, Dagster; say what to do about each thing that is wrong.

    Changes nothing. Exit code 1 when a check fails; a warning fails nothing.

    Example: `outbox doctor`
    """
    checks = _examine()
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        print_facts([(f"{_mark(check)} {check.name}", check.message) for check in checks])
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _examine() -> "list[Check]":
    from outbox_pipeline.monitoring.doctor import examine, unusable

    try:
        with engine_settings() as (_, settings):
            return examine(settings)
    except OutboxError as error:
        return unusable(error)


def _mark(check: "Check") -> str:
    return "WARN " if check.is_warning else {True: "ok   ", False: "WRONG", None: "-    "}[check.ok]


def _status_facts(found: "Status") -> list[tuple[str, object]]:
    batches = ", ".join(f"{count} {name}" for name, count in sorted(found.open_batches.items()))
    facts: list[tuple[str, object]] = [
        ("pending", f"at least {found.pending:,}" if found.pending_is_at_least else found.pending),
        ("in flight", found.in_flight),
        ("parked", found.parked),
        ("processed", found.processed),
        ("quarantined", found.quarantined),
        ("lag", f"{found.lag_seconds:,.1f} s"),
        ("open batches", batches or "none"),
        ("last processed", found.last_processed_at),
        ("last error", found.last_error or "none"),
    ]
    if found.future:
        facts.insert(6, ("in the future", f"{found.future:,} undelivered, recorded up to {shown(found.future_until)}"))
    if found.last_error_batch_id is not None:
        facts.append(("… of batch", found.last_error_batch_id))
    if found.gaps:
        holders = ", ".join(found.oldest_gap_holders) or "nobody any more"
        facts.append(("gaps", f"{found.gaps:,}, oldest since {shown(found.oldest_gap_at)}, held by {holders}"))
    return facts


def _trace_facts(found: "Trace") -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("event", found.event_id),
        ("status", found.status),
        ("", found.explanation),
    ]
    if found.event is not None:
        facts += [
            (_label(name), shortened(value) if isinstance(value, str) else value)
            for name, value in vars(found.event).items()
        ]
    if found.batch is not None:
        facts += [(f"batch {_label(name.removeprefix('batch_'))}", value) for name, value in vars(found.batch).items()]
    if found.reasons:
        facts.append(("reasons", ", ".join(found.reasons)))
    for row in found.rows or []:
        where = f"batch {row.batch_id}, generation {row.generation}, loaded {shown(row.loaded_at)}"
        facts.append(("in ClickHouse", where))
    for station in found.stations:
        facts.append((shown(station.at), " ".join(filter(None, [station.what, station.run_url or station.runs_url]))))
    return facts


def _label(name: str) -> str:
    return name.removesuffix("_at").replace("_", " ")
