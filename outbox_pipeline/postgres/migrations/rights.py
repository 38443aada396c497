"""What the user that migrates may do, asked before anything is done, for every tool that migrates.

Imports no driver. Invariant: what is there is not created again. PostgreSQL asks for the right to create also where
`IF NOT EXISTS` leaves nothing to be done, and the owner of schema outbox needs no right on the database.
"""

from dataclasses import dataclass

from outbox_pipeline.postgres.migrations.files import VERSION_TABLE

#: One row, the fields of `Rights`. Asks the catalogs, which answer also where the schema may not be looked into.
READ_RIGHTS = f"""
SELECT quote_ident(current_user), quote_ident(current_database()), quote_ident(pg_get_userbyid(schema.nspowner)),
       quote_ident(pg_get_userbyid(versions.relowner)), has_database_privilege(current_database(), 'CREATE'),
       coalesce(has_schema_privilege(schema.oid, 'USAGE') AND has_schema_privilege(schema.oid, 'CREATE'), false),
       coalesce(pg_has_role(versions.relowner, 'USAGE'), false),
       coalesce(has_schema_privilege(schema.oid, 'USAGE') AND has_table_privilege(versions.oid, 'SELECT'), false)
FROM (SELECT) AS one_row
LEFT JOIN pg_namespace AS schema ON schema.nspname = 'outbox'
LEFT JOIN pg_class AS versions ON versions.relnamespace = schema.oid AND versions.relname = '{VERSION_TABLE}'
"""  # noqa: S608 - a constant


@dataclass(frozen=True)
class Rights:
    """Who migrates what, and whether they may; names are quoted where SQL needs it.

    `schema_owner` and `tables_owner` are None where there is no schema, or no table in it yet.
    """

    role: str
    database: str
    schema_owner: str | None
    tables_owner: str | None
    may_create_schema: bool
    may_create_tables: bool
    is_tables_owner: bool
    may_read_version: bool

    def problem(self) -> str | None:
        """Return what keeps this role from migrating and which statement changes that, None when it may."""
        if self.schema_owner is None:
            return None if self.may_create_schema else self._no_schema()
        if self.tables_owner is not None and not self.is_tables_owner:
            return (
                f"Role {self.role} may not migrate schema outbox, whose tables belong to {self.tables_owner}: repeat "
                f"it as {self.tables_owner}."
            )
        return None if self.may_create_tables else self._no_tables()

    def _no_schema(self) -> str:
        return (
            f"Role {self.role} may not create schema outbox in database {self.database}: "
            f"GRANT CREATE ON DATABASE {self.database} TO {self.role}; or "
            f"CREATE SCHEMA outbox AUTHORIZATION {self.role}; either as a superuser, and repeat it."
        )

    def _no_tables(self) -> str:
        return (
            f"Role {self.role} may not create tables in schema outbox: "
            f"GRANT USAGE, CREATE ON SCHEMA outbox TO {self.role}; as {self.schema_owner}, and repeat it."
        )
