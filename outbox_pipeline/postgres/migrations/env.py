"""Alembic's entry: run the migrations on the connection that `schema.migrate` has opened and locked."""

from alembic import context

from outbox_pipeline.postgres.migrations.files import VERSION_TABLE
from outbox_pipeline.postgres.tables import SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
