"""SQL that people are told to run: names and texts in it are quoted, since others may have chosen them."""

from collections.abc import Iterable

from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.base import PGDialect

#: Knows PostgreSQL's reserved words; in text that no driver reads as a template, percent signs mean themselves.
_NAMES = PGDialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]  # SQLAlchemy gives it none


def quoted_text(text: str) -> str:
    r"""Return *text* as a literal of PostgreSQL, with `\` and what cannot be seen as escapes of an `E''` literal."""
    doubled = text.replace("'", "''")
    if text.isprintable() and "\\" not in text:
        return f"'{doubled}'"
    return "E'" + "".join(_escape(one) for one in doubled) + "'"


def quoted_name(name: str) -> str:
    """Return *name* as an identifier of PostgreSQL, as it is where that needs no quotes."""
    return str(_NAMES.quote(name))


def reset_statements(url: URL, names: Iterable[str]) -> str:
    """Return what ends a role's own settings for the sessions of *url*, those that a pooler has open included."""
    role = "CURRENT_USER" if url.username is None else quoted_name(url.username)
    resets = "; ".join(f"ALTER ROLE {role} RESET {name}" for name in names)
    database = "" if url.database is None else f" {quoted_name(url.database)}"
    return (
        f"{resets}; the same with ALTER ROLE {role} IN DATABASE{database} and ALTER DATABASE{database}, wherever it is "
        "set; then let the pooler open new sessions (pgbouncer: RECONNECT)"
    )


def _escape(one: str) -> str:
    if one == "\\":
        return "\\\\"
    return one if one.isprintable() else f"\\U{ord(one):08X}"
