"""The command `init`: the schema in PostgreSQL and the table in ClickHouse."""

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init() -> None:
    """Create or migrate the outbox schema and its two roles in PostgreSQL, and the table in ClickHouse.

    Safe to repeat, and to run from several processes at once.

    Example: `OUTBOX_POSTGRES_URL='postgresql+psycopg://user@host/db?sslmode=verify-full' outbox init`
    """
    from outbox_pipeline.clickhouse.client import clickhouse_client
    from outbox_pipeline.clickhouse.table import create_table
    from outbox_pipeline.postgres.schema import migrate, missing_roles
    from outbox_pipeline.settings import shown_url

    with ready_settings() as settings:
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
            version = create_table(client)
            server = client.driver.server_version
        typer.echo(
            f"ClickHouse {server}: table {settings.clickhouse_table} at version {version} in "
            f"{shown_url(settings.clickhouse_url)}"
        )
