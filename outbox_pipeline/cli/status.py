"""The command `status`: how many events are where."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings, with_running_clickhouse
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown, until_interrupted
from outbox_pipeline.cli.support.watching import watch as watch_status

if TYPE_CHECKING:
    from outbox_pipeline.monitoring.clickhouse_state import ClickHouseState
    from outbox_pipeline.monitoring.status import Status


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, with events a second, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        Optional[float],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Option(
            "--interval", min=0.5, max=3600, metavar="SECONDS", help="Pause between two looks: 2 when left out."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how many events are where, how old the oldest undelivered one is, what failed last, if ClickHouse answers.

    ClickHouse is asked now, for a few seconds at most. Where it does not answer, the line says when it last proved a
    delivery: since when it is away the ledger does not know. Where the ledger is stopped, after a restore for example,
    its first line says why; the exit code stays 0. With --watch a terminal has a table that stays in its place, a pipe
    one line a look, and outages are waited for.

    Example: `outbox status --json`
    """
    from outbox_pipeline.monitoring.clickhouse_state import look_at_clickhouse
    from outbox_pipeline.monitoring.status import read_status

    if interval is not None and not watch:
        raise typer.BadParameter("--interval is for --watch")
    if watch:
        with until_interrupted(), ready_settings(clickhouse=False) as settings:
            engine = ledger_engine(settings)
            watch_status(lambda: read_status(engine), interval_seconds=interval or 2, as_json=as_json)
        return
    with ready_settings(clickhouse=False) as settings:
        engine = ledger_engine(settings)
        found = read_status(engine)
        asked = with_running_clickhouse(settings)
        state = None if asked.clickhouse_url is None else look_at_clickhouse(engine, asked)
    if as_json:
        print_json({**asdict(found), **_plain(state)})
    else:
        print_facts(_facts(found, state))


def _facts(found: "Status", state: "ClickHouseState | None") -> list[tuple[str, object]]:
    batches = ", ".join(f"{count} {name}" for name, count in sorted(found.open_batches.items()))
    facts: list[tuple[str, object]] = [
        ("pending", f"at least {found.pending:,}" if found.pending_is_at_least else found.pending),
        ("in flight", found.in_flight),
        ("parked", found.parked),
        ("processed", found.processed),
        ("quarantined", found.quarantined),
        ("ClickHouse", _said_of(state, found)),
        ("lag", f"{found.lag_seconds:,.1f} s"),
        ("open batches", batches or "none"),
        ("last processed", found.last_processed_at),
        ("last error", found.last_error or "none"),
    ]
    if found.problem is not None:
        facts.insert(0, ("problem", found.problem))
    if found.future:
        facts.insert(-3, ("in the future", f"{found.future:,} undelivered, recorded up to {shown(found.future_until)}"))
    if found.split_batches:
        facts.insert(-2, ("split batches", f"{found.split_batches:,}, for want of memory in ClickHouse"))
    if found.last_error_batch_id is not None:
        facts.append(("… of batch", found.last_error_batch_id))
    if found.gaps:
        holders = ", ".join(found.oldest_gap_holders) or "no open transaction"
        facts.append(("gaps", f"{found.gaps:,}, oldest since {shown(found.oldest_gap_at)}, held by {holders}"))
    return facts


def _plain(state: "ClickHouseState | None") -> dict[str, object]:
    if state is None:
        return {"clickhouse_answers": None, "clickhouse_problem": None}
    return {"clickhouse_answers": not state.is_away, "clickhouse_problem": state.problem}


def _said_of(state: "ClickHouseState | None", found: "Status") -> str:
    if state is None:
        return "not asked: no URL is set, and no embedded one runs on this home"
    if state.problem is None:
        return "answers"
    if not state.is_away:
        return f"takes no deliveries: {state.problem}"
    last = found.last_processed_at
    proved = "no delivery yet" if last is None else f"a delivery last at {shown(last)}"
    return f"does not answer now; it proved {proved}: {state.problem}"
