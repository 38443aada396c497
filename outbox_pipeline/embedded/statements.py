"""One SQL statement, read only as far as an HTTP server must: first word, format, where its data begins.

The engine parses SQL; this judges it in one thing only: what reaches files and programs and is not among the rights
that the engine's configuration takes away (`rights`). Any other statement that the scanner cannot make sense of is
handed on as it came, and the engine's syntax error is the answer. Pieces are cut as by ClickHouse's own lexer
(`src/Parsers/Lexer.cpp`): what it takes for a comment or a string must be one here too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

_TOKEN = re.compile(
    rb"""
    (?P<space>\s+ | --[^\n]* | //[^\n]* | \#[!\ ][^\n]*
      # Blanks of Unicode, as many as ClickHouse knows.
      | \xc2[\x85\xa0] | \xe1\xa0\x8e | \xe2\x80[\x80-\x8d\xa8\xa9\xaf] | \xe2\x81[\x9f\xa0] | \xe3\x80\x80
      | \xef\xbb\xbf)
  | (?P<comment>/\*)
  | (?P<string>'(?:[^'\\] | \\. | '')*' | \xe2\x80\x98.*?\xe2\x80\x99)
  | (?P<name>`(?:[^`\\] | \\. | ``)*` | "(?:[^"\\] | \\. | "")*" | \xe2\x80\x9c.*?\xe2\x80\x9d)
  | (?P<heredoc>(?P<tag>\$\w*\$).*?(?P=tag))
  | (?P<word>[\w$]+)
  | (?P<mark>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED_BYTE = re.compile(rb"\\x([0-9A-Fa-f]{2})")
_COMMENT_EDGE = re.compile(rb"/\*|\*/")

_INPUT_CALL = re.compile(rb"input\s*\(\s*(?P<structure>'(?:[^'\\]|\\.|'')*')\s*\)", re.IGNORECASE | re.DOTALL)
_DATA_GAP = re.compile(rb"[ \t\f]*\r?\n?")

#: Clauses, functions and engines that reach files or programs and that no grant is asked for.
_REFUSED_CLAUSES = frozenset({b"INFILE", b"OUTFILE"})
_REFUSED_FUNCTIONS = frozenset({b"DISK", b"EVAL", b"EXECUTABLE", b"FILE", b"PYTHON"})
_REFUSED_ENGINES = frozenset(
    {b"DATALAKECATALOG", b"EMBEDDEDROCKSDB", b"EXECUTABLE", b"EXECUTABLEPOOL", b"FILELOG", b"QUERYRUNNER"}
)
#: One of these is in every text that is refused; nearly no text has one, so nearly none is cut into pieces for it.
_SUSPECT = re.compile(
    rb"attach|\\x|"
    + b"|".join(word.lower() for word in sorted(_REFUSED_CLAUSES | _REFUSED_FUNCTIONS | _REFUSED_ENGINES)),
    re.IGNORECASE,
)

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


def refused_part(text: bytes) -> str | None:
    """Return what in a client's statement would reach files or programs past the engine's grants, None for nothing."""
    if not _SUSPECT.search(text):
        return None
    before: tuple[bytes, bytes] = (b"", b"")
    for token, following in pairwise(chain(_tokens(text), [Token("end", b"", len(text), len(text), 0)])):
        word = _spelled(token)
        if token.kind == "word" and word in _REFUSED_CLAUSES:
            return word.decode()
        if token.kind == "word" and word == b"ATTACH" and following.text not in (b"PART", b"PARTITION"):
            return "ATTACH"
        if word in _REFUSED_FUNCTIONS and following.text == b"(":
            return f"{word.decode().lower()}()"
        if word in _REFUSED_ENGINES and (before[1] == b"ENGINE" or before == (b"ENGINE", b"=")):
            return f"ENGINE {text[token.start : token.end].decode()}"
        before = (before[1], word or token.text)
    return None


def _spelled(token: Token) -> bytes:
    """Return a word or a quoted name in capitals, nothing for other pieces."""
    if token.kind == "name":
        name = token.text.strip(b'`"').removeprefix(b"\xe2\x80\x9c").removesuffix(b"\xe2\x80\x9d")
        return _ESCAPED_BYTE.sub(lambda found: bytes([int(found[1], 16)]), name).upper()
    return token.text if token.kind == "word" else b""


def _tokens(text: bytes) -> Iterator[Token]:
    depth = position = 0
    while match := _TOKEN.match(text, position):
        kind = match.lastgroup or "mark"
        piece = match.group()
        position = match.end() if kind != "comment" else _comment_end(text, match.end())
        depth -= kind == "mark" and piece in b")]}"
        if kind not in ("space", "comment"):
            yield Token(kind, piece.upper() if kind == "word" else piece, match.start(), match.end(), depth)
        depth += kind == "mark" and piece in b"([{"


def _comment_end(text: bytes, position: int) -> int:
    # Comments nest. One that is never closed reaches to the end.
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(text, position)):
        depth += 1 if edge.group() == b"/*" else -1
        position = edge.end()
    return len(text) if depth else position


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
