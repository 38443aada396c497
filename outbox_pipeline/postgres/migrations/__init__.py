"""Numbered migrations of the outbox schema: the SQL in `sql/`, Alembic's order in `versions/`."""
