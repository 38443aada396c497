"""The `:name` parameters of a statement, in the styles that drivers take. Imports no driver.

Only for statements of this package, which are constants: whatever follows a single colon is taken for a name, so casts
are written as CAST, and values are never part of the text.
"""

import re
from functools import cache

_PARAMETER = re.compile(r":(\w+)")


@cache
def pyformat(statement: str) -> str:
    """Return *statement* with `%(name)s`, for psycopg and Django."""
    return _PARAMETER.sub(r"%(\1)s", statement)


@cache
def numbered(statement: str) -> tuple[str, tuple[str, ...]]:
    """Return *statement* with `$1`, `$2` and so on, for asyncpg, and the name that each number stands for."""
    names = tuple(_PARAMETER.findall(statement))
    numbers = iter(range(1, len(names) + 1))
    return _PARAMETER.sub(lambda _: f"${next(numbers)}", statement), names
