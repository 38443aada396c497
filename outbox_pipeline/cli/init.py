"""Commands that set things up: `init` and `env`."""

import typer

from outbox_pipeline.cli.support.engines import given_urls, ready_settings, running_settings
from outbox_pipeline.errors import ConfigurationError


def add_to(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("init")(init)
    app.command("env")(env)


def init() -> None:
    """Create or migrate the outbox schema and its two roles in PostgreSQL, and the table in ClickHouse.

    Safe to repeat, and to run from several processes at once.

    Example: `OUTBOX_POSTGRES_URL='postgresql+psycopg://user@host/db?sslmode=verify-full' outbox init`
    """
    from outbox_pipeline.clickhouse.client import clickhouse_client
    from outbox_pipeline.clickhouse.table import create_table
    from outbox_pipeline.postgres.engine import create_outbox_engine
    from outbox_pipeline.postgres.schema import migrate, missing_roles
    from outbox_pipeline.settings import shown_url

    with ready_settings() as settings:
        engine = create_outbox_engine(settings, pooled=False)
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
            create_table(client)
            server = client.driver.server_version
        typer.echo(f"ClickHouse {server}: table {settings.clickhouse_table} in {shown_url(settings.clickhouse_url)}")


def env() -> None:
    """Print export lines so that your code, dagster or a notebook use the same engines; starts nothing.

    The URLs are printed with their passwords, that is what this command is for: keep them out of logs.

    Example: `eval "$(outbox env)" && dagster dev`
    """
    settings = running_settings()
    values, missing = given_urls(settings)
    if missing:
        raise ConfigurationError(
            f"Neither set nor served by an embedded engine that runs on {settings.home}: {', '.join(missing)}. "
            "Start the engines with 'outbox up', or set what is missing."
        )
    from outbox_pipeline.orchestration.host.instance import prepare_dagster_home

    values["OUTBOX_HOME"] = str(settings.home)
    values["DAGSTER_HOME"] = str(prepare_dagster_home(settings.home))
    for name, value in values.items():
        typer.echo(f"export {name}={quoted(value)}")


def quoted(value: str) -> str:
    """Return *value* in single quotes, as any POSIX shell reads it back."""
    return "'" + value.replace("'", "'\"'\"'") + "'"
