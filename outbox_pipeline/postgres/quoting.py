"""SQL that people are told to run: names and texts in it are quoted, since others may have chosen them."""

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


def _escape(one: str) -> str:
    if one == "\\":
        return "\\\\"
    return one if one.isprintable() else f"\\U{ord(one):08X}"
