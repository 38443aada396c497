"""The command `relay`: cut and deliver batches here, without Dagster."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_json, progress
from outbox_pipeline.errors import OutboxError

if TYPE_CHECKING:
    from outbox_pipeline.relay.loop import RelayResult
    from outbox_pipeline.stores import Stores


@dataclass(frozen=True)
class RelayReport:
    """What a relay did and what it leaves behind."""

    batches: int
    delivered: int
    quarantined: int
    seconds: float
    failures: tuple[str, ...]
    splits: tuple[str, ...]
    failed_batches: int
    parked_batches: int

    @property
    def has_failed(self) -> bool:
        """True when a batch failed in this call, or one that failed before still waits."""
        return bool(self.failures or self.failed_batches or self.parked_batches)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("relay")(relay)


def relay(
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="Go on until nothing is pending and nothing is due.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cut pending events into batches and deliver them here, without Dagster; one batch unless told otherwise.

    Several relays and Dagster may work on one outbox at once. Exit code 1 when a batch failed or is parked; a failed
    batch is kept and tried again by a later relay once its wait is over. Ctrl-C and SIGTERM end it once the batches
    under way are delivered.

    Example: `outbox relay --until-empty`
    """
    from outbox_pipeline.relay.memory import keep_freed_memory
    from outbox_pipeline.stores import open_stores

    if until_empty:
        keep_freed_memory()
    with _sigterm_as_ctrl_c(), ready_settings() as settings, open_stores(settings) as stores:
        report = _relay(stores, until_empty=until_empty)
    if as_json:
        print_json(report)
    else:
        typer.echo(_sentence(report))
    for said in (*report.splits, *report.failures):
        complain(said)
    if report.has_failed:
        complain(_left_behind(report))
        raise typer.Exit(1)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    # What a supervisor sends. A container's first process is not ended by it at all unless it has a handler.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _relay(stores: "Stores", *, until_empty: bool) -> RelayReport:
    from outbox_pipeline.logs import configure_logs
    from outbox_pipeline.monitoring.status import read_status
    from outbox_pipeline.relay import loop

    started = time.monotonic()
    with progress("batches", "events", "events/s") as display:
        # Now stderr is the display's, and log lines appear above it instead of through it.
        configure_logs(stores.settings)
        task = display.add_task("Relaying", total=None, **_fields(loop.RelayResult(), 1))

        def show(result: "RelayResult") -> None:
            display.update(task, **_fields(result, time.monotonic() - started))

        result = loop.relay(stores, until_empty=until_empty, on_progress=show)
    _record_completeness(stores)
    open_batches = read_status(stores.engine).open_batches
    return RelayReport(
        batches=result.batch_count,
        delivered=result.delivered_count,
        quarantined=result.quarantined_count,
        seconds=round(time.monotonic() - started, 3),
        failures=result.failures,
        splits=result.splits,
        failed_batches=open_batches.get("failed", 0),
        parked_batches=open_batches.get("parked", 0),
    )


def _record_completeness(stores: "Stores") -> None:
    # Analysts are told how far each day is delivered; that they are not is no failure of a delivery.
    from outbox_pipeline.operations.completeness import record_completeness

    try:
        record_completeness(stores)
    except OutboxError as error:
        complain(f"How far each day is delivered was not written: {error}")


def _fields(result: "RelayResult", seconds: float) -> dict[str, Any]:
    events = result.delivered_count + result.quarantined_count
    return {"batches": result.batch_count, "events": f"{events:,}", "events/s": f"{events / seconds:,.0f}"}


def _sentence(report: RelayReport) -> str:
    counts = f"delivered {report.delivered}, quarantined {report.quarantined}, batches {report.batches}"
    return f"{counts}, seconds {report.seconds:.1f}"


def _left_behind(report: RelayReport) -> str:
    return (
        f"{report.failed_batches} failed and {report.parked_batches} parked batches remain. A later relay tries failed "
        "ones again after their wait; 'outbox status' shows the last error, 'outbox resume' frees parked ones."
    )
