"""Texts of a command line that go into a statement.

Invariant: they are UTF-8. Python hands bytes of any other encoding on as lone surrogates, which no server takes.
"""

import typer


def in_utf8(text: str | None) -> str | None:
    """Return the text; wrong use when its bytes are not UTF-8."""
    if text is not None and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter("is not in UTF-8: write it in UTF-8, which the servers keep all text in") from None
    return text
