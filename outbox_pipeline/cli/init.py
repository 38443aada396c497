"""The command `init`: the schema in PostgreSQL and the tables in ClickHouse."""

from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.support.engines import engine_settings, ledger_engine

if TYPE_CHECKING:
    from outbox_pipeline.operations.log import MadeLog


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
) -> None:
    """Create or migrate the outbox schema and its two roles in PostgreSQL, and the tables in ClickHouse.

    Safe to repeat, and to run from several processes at once. Exit code 1, with nothing made in ClickHouse, when the
    table there is missing although this ledger has delivered into one.

    Example: `OUTBOX_POSTGRES_URL='postgresql+psycopg://user@host/db?sslmode=verify-full' outbox init`
    """
    from outbox_pipeline.clickhouse.client import clickhouse_client
    from outbox_pipeline.operations.log import make_log
    from outbox_pipeline.postgres.schema import migrate, missing_roles
    from outbox_pipeline.settings import shown_url

    # Not `ready_settings`, which would make the table of an embedded engine before it is asked whether it was lost.
    with engine_settings() as (_, settings):
        engine = ledger_engine(settings)
        version = migrate(engine)
        typer.echo(f"PostgreSQL: outbox schema at version {version} in {shown_url(settings.postgres_url)}")
        if missing := missing_roles(engine):
            created = "; ".join(f"CREATE ROLE {name}" for name in missing)
            typer.echo(
                f"Missing, because this role may not create roles: {' and '.join(missing)}. As a superuser {created}; "
                "then SELECT outbox.grant_roles(); as this role.",
                err=True,
            )
        with clickhouse_client(settings) as client:
            made = make_log(engine, client, recreate=recreate_log)
            server = client.driver.server_version
        typer.echo(
            f"ClickHouse {server}: table {settings.clickhouse_table} at version {made.version} in "
            f"{shown_url(settings.clickhouse_url)}"
        )
        _tell_lost(made)


def _tell_lost(made: "MadeLog") -> None:
    if (lost := made.repairable) is not None:
        typer.echo(
            f"The table was made again, empty. To deliver {lost.sentence} again: "
            f"outbox reconcile --from {lost.first_day} --to {lost.last_day} --repair"
        )
    if (gone := made.pruned) is not None:
        typer.echo(
            f"{gone.sentence} were pruned and cannot be sent again; only the ledger knows of them: restore their rows "
            "in ClickHouse from a backup."
        )
