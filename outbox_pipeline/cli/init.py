"""The command `init`: the schema in PostgreSQL and the tables in ClickHouse, this outbox's from then on."""

from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.support.asking import require_agreement
from outbox_pipeline.cli.support.engines import engine_settings, ledger_engine
from outbox_pipeline.counts import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from outbox_pipeline.operations.log import MadeLog
    from outbox_pipeline.operations.owner import Taking
    from outbox_pipeline.settings import Settings
    from outbox_pipeline.stores import Stores


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    recreate_log: Annotated[
        bool,
        typer.Option(
            "--recreate-log",
            help="Make the table in ClickHouse again, empty, although this ledger has delivered into one; name the "
            "days to reconcile.",
        ),
    ] = False,
    take: Annotated[
        bool,
        typer.Option("--take-table", help="Take the table in ClickHouse from the outbox to which it belongs."),
    ] = False,
    is_confirmed: Annotated[bool, typer.Option("--yes", help="Take the table without asking.")] = False,
) -> None:
    """Create or migrate the outbox schema and its two roles in PostgreSQL, and the tables in ClickHouse.

    Safe to repeat, and to run from several processes at once. Exit code 1, with nothing made in ClickHouse, when the
    table there is missing although this ledger has delivered into one. At the end a row of known bytes is
    sent, as events are, and read back.

    A table belongs to one outbox: the first to run this claims it, and for any other this ends with exit code 1. With
    --take-table the table changes hands, for a ledger that was made anew on purpose: stop the other outbox first. The
    rows in it stay, and what of this ledger's events is among them counts as delivered; the command says how many are
    of no batch of this ledger and asks, and without a terminal it wants --yes.

    Example: `OUTBOX_POSTGRES_URL='postgresql+psycopg://user@host/db?sslmode=verify-full' outbox init`
    """
    from outbox_pipeline.clickhouse.client import clickhouse_client
    from outbox_pipeline.operations.log import make_log
    from outbox_pipeline.operations.owner import take_table
    from outbox_pipeline.relay.known_bytes import require_known_bytes
    from outbox_pipeline.relay.owner import claim_table
    from outbox_pipeline.settings import shown_url
    from outbox_pipeline.stores import Stores

    # Not `ready_settings`, which would make the table of an embedded engine before it is asked whether it was lost.
    with engine_settings() as (_, settings):
        engine = ledger_engine(settings)
        _migrate(engine, settings)
        with clickhouse_client(settings) as client:
            stores = Stores(engine, client, settings)
            if take:
                _agree_to_take(stores, is_confirmed=is_confirmed)
            made = make_log(engine, client, recreate=recreate_log, take=take)
            (take_table if take else claim_table)(stores)
            require_known_bytes(stores)
            server = client.driver.server_version
        typer.echo(
            f"ClickHouse {server}: table {settings.clickhouse_table} at version {made.version} in "
            f"{shown_url(settings.clickhouse_url)}"
        )
        if made.old_key is not None:
            typer.echo(made.old_key)
        _tell_lost(made)


def _tell_lost(made: "MadeLog") -> None:
    if (lost := made.repairable) is not None:
        typer.echo(
            f"The table was made again, empty. To deliver {lost.sentence}, again: "
            f"outbox reconcile --from {lost.first_day} --to {lost.last_day} --repair"
        )
    if (gone := made.pruned) is not None:
        typer.echo(
            f"Pruned, so only in the ledger and not to be sent again: {gone.sentence}. Restore their rows in "
            "ClickHouse from a backup."
        )


def _migrate(engine: "Engine", settings: "Settings") -> None:
    from outbox_pipeline.postgres.schema import latest_version, migrate, missing_roles
    from outbox_pipeline.settings import shown_url

    version = migrate(engine)
    newer = "" if version == latest_version() else ", of a newer release, which this one runs on,"
    typer.echo(f"PostgreSQL: outbox schema at version {version}{newer} in {shown_url(settings.postgres_url)}")
    if missing := missing_roles(engine):
        created = "; ".join(f"CREATE ROLE {name}" for name in missing)
        typer.echo(
            f"Missing, because this role may not create roles: {' and '.join(missing)}. As a superuser {created}; "
            "then SELECT outbox.grant_roles(); as this role.",
            err=True,
        )


def _agree_to_take(stores: "Stores", *, is_confirmed: bool) -> None:
    from outbox_pipeline.operations.owner import find_taking

    found = find_taking(stores)
    if found is not None:
        typer.echo(_sentence(stores.client.table, found), err=True)
        if not is_confirmed:
            require_agreement("Is the other outbox stopped for good? Shall this one take the table?")


def _sentence(table: str, found: "Taking") -> str:
    owners = " and ".join(f"{claim.label} since {claim.registered_at:%Y-%m-%d %H:%M} UTC" for claim in found.previous)
    return (
        f"Table {table} belongs to {owners or 'no outbox'}. Of no batch of this ledger in it: "
        f"{counted(found.unknown_rows, 'row')}. What is there stays: what of this ledger's events is in it counts as "
        "delivered, the rest 'outbox reconcile' will report as rows of unknown batches, and the days are told anew "
        "without it."
    )
