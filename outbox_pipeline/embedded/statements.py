"""One SQL statement, read only as far as an HTTP server must: first word, format, where its data begins.

The engine parses SQL; this never judges it. A statement the scanner cannot make sense of is handed on as it
came, and the engine's syntax error is the answer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_TOKEN = re.compile(
    rb"""
    (?P<space>\s+ | --[^\n]* | \#[!\ ][^\n]* | /\*.*?\*/)
  | (?P<string>'(?:[^'\\] | \\. | '')*')
  | (?P<name>`(?:[^`\\] | \\. | ``)*` | "(?:[^"\\] | \\. | "")*")
  | (?P<heredoc>(?P<tag>\$\w*\$).*?(?P=tag))
  | (?P<word>\w+)
  | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_INPUT_CALL = re.compile(rb"input\s*\(\s*(?P<structure>'(?:[^'\\]|\\.|'')*')\s*\)", re.IGNORECASE | re.DOTALL)
_DATA_GAP = re.compile(rb"[ \t\f]*\r?\n?")

#: After one of these a word is part of an expression (a column called `format`) and opens no clause.
_BEFORE_OPERAND = frozenset(b", . = < > + - * / % ( SELECT BY AS AND OR NOT WHERE ON IN LIKE".split())


@dataclass(frozen=True)
class Token:
    """One piece of the text: kind, what it says (words in capitals), where it lies, how deep in brackets."""

    kind: str
    text: bytes
    start: int
    end: int
    depth: int


@dataclass(frozen=True)
class Clause:
    """A stretch of the text and its argument: `Arrow` of `FORMAT Arrow`, `'a Int8'` of `input('a Int8')`."""

    start: int
    end: int
    argument: str


@dataclass(frozen=True)
class Statement:
    """What was found in the text of one statement.

    `format` is its FORMAT clause. For an INSERT, `data_start` is where data follows the clause,
    `source_start` where a clause that names a file would go, and `inputs` are its calls of `input()`.
    """

    keyword: str
    format: Clause | None = None
    data_start: int | None = None
    source_start: int | None = None
    is_select: bool = False
    inputs: tuple[Clause, ...] = ()


def read_statement(text: bytes) -> Statement:
    """Read the statement *text* begins with; what follows an INSERT's format is data and not looked at."""
    tokens = _tokens(text)
    first = next(tokens, None)
    if first is None or first.kind != "word":
        return Statement("")
    if first.text == b"INSERT":
        return _read_insert(text, tokens)
    return Statement(first.text.decode(), format=_last_format(text, tokens))


def _tokens(text: bytes) -> Iterator[Token]:
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "mark"
        piece = match.group()
        depth -= kind == "mark" and piece in b")]}"
        if kind != "space":
            yield Token(kind, piece.upper() if kind == "word" else piece, match.start(), match.end(), depth)
        depth += kind == "mark" and piece in b"([{"


def _last_format(text: bytes, tokens: Iterator[Token]) -> Clause | None:
    found = None
    before = b""
    for token, following in pairwise(tokens):
        if _opens_clause(token, before) and token.text == b"FORMAT" and following.kind == "word":
            found = _format_clause(text, token, following)
        before = token.text
    return found


def _read_insert(text: bytes, tokens: Iterator[Token]) -> Statement:
    before = _skip_table_name(tokens)
    is_select, source_start = False, None
    inputs: list[Clause] = []
    for token, following in pairwise(tokens):
        clause = token.text if _opens_clause(token, before) else b""
        if clause == b"FORMAT" and following.kind == "word":
            found = _format_clause(text, token, following)
            start = source_start or token.start
            return Statement("INSERT", found, _data_start(text, found), start, is_select, tuple(inputs))
        if clause == b"VALUES" and not is_select:
            break
        if clause == b"SETTINGS" and not is_select:
            source_start = token.start
        is_select = is_select or clause in (b"SELECT", b"WITH")
        if is_select and token.text == b"INPUT" and (call := _INPUT_CALL.match(text, token.start)):
            inputs.append(Clause(call.start(), call.end(), call["structure"].decode()))
        before = token.text
    return Statement("INSERT", is_select=is_select, inputs=tuple(inputs))


def _skip_table_name(tokens: Iterator[Token]) -> bytes:
    # The name may be any word, FORMAT and VALUES included.
    for token in tokens:
        if token.text not in (b"INTO", b"TABLE", b"FUNCTION"):
            return token.text
    return b""


def _opens_clause(token: Token, before: bytes) -> bool:
    return token.kind == "word" and token.depth == 0 and before not in _BEFORE_OPERAND


def _format_clause(text: bytes, word: Token, name: Token) -> Clause:
    return Clause(word.start, name.end, text[name.start : name.end].decode())


def _data_start(text: bytes, clause: Clause) -> int:
    # ClickHouse's ParserInsertQuery: data begins after the first line end, or else after the blanks.
    gap = _DATA_GAP.match(text, clause.end)
    return gap.end() if gap else clause.end
