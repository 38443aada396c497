"""How a name is written in ClickHouse's SQL, where a person is told to run it or ClickHouse takes no parameter."""

import re

_PLAIN = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def quoted_name(name: str) -> str:
    """Return a name as SQL has it, between backticks where it needs them."""
    if _PLAIN.fullmatch(name):
        return name
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
