"""Model fields that only read: what PostgreSQL holds, as it would print it.

Nothing is written through them, so they have no form and no preparation of values.
"""

from typing import Any

from django.db import models


class PrintedField(models.TextField):
    """A column of any type, read as PostgreSQL's text of it.

    A context stays as it was published instead of being parsed and written again, and infinity and years before
    Christ, which Python's datetime lacks, can be shown.
    """

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        """Select the column as text."""
        return f"{sql}::text", params


class TextListField(models.Field):
    """A column text[], read as a list."""

    def db_type(self, connection: Any) -> str:
        """Return PostgreSQL's name of the type."""
        return "text[]"
