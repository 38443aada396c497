"""One request carried out on the engine: statement read, data received, result handed over in pieces.

The body of an INSERT is received whole, into a file, before the engine sees any of it. So a body that is cut
short stores nothing. The other way, chDB's `send_insert`, answers OK with 0 rows when the insert was killed
or ran out of time; an insert from a file fails as it must. What is not an INSERT's data is held in memory, up to a
limit; data goes to disk as it comes, up to another.
"""

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from outbox_pipeline.embedded.chdb_engine import Engine, Loan, Scope, run
from outbox_pipeline.embedded.rights import UPLOAD_VIEW, quoted
from outbox_pipeline.embedded.server_errors import (
    ACCESS_DENIED,
    BAD_ARGUMENTS,
    NOT_ENOUGH_SPACE,
    NOT_IMPLEMENTED,
    READONLY,
    SYNTAX_ERROR,
    ServerError,
    from_engine,
)
from outbox_pipeline.embedded.statements import Statement, read_statement, refused_part

#: How much of a body is searched for the beginning of an INSERT's data; ClickHouse's default max_query_size.
_HEAD_BYTES = 262_144

#: Longest text that is handed to the engine. It reads 262,144 bytes of a query unless max_query_size says more, and
#: all of VALUES; the text is in memory four times meanwhile.
LONGEST_STATEMENT_BYTES = 16 << 20

#: Most data in one INSERT, as it is without compression; a batch of the pipeline has 160 MB by default.
LARGEST_UPLOAD_BYTES = 16 << 30

#: Formats in which the pieces of a result, put together, are the result; others have a head or a foot.
_PIECEWISE = frozenset(
    {"Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "RowBinary", "JSONEachRow"}
)

#: A body that is received has a random UUID for its name.
_UPLOAD_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_WITH_RESULT = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "KILL"})

#: After one of these the database that a connection was set up for is still there.
_KEEPS_DATABASES = _WITH_RESULT | {"INSERT"}


#: Texts whose classes are remembered: a client's statements are few, and to parse one takes as long as a small query.
_MOST_KNOWN = 500
_LONGEST_KNOWN = 20_000


@dataclass(frozen=True)
class _Classes:
    statement_count: int
    is_reading: bool


_known_classes: dict[str, _Classes] = {}


@dataclass(frozen=True)
class Order:
    """What a request asks for: SQL from the URL (the body continues it), parameters, scope."""

    query: str
    parameters: dict[str, str]
    scope: Scope
    default_format: str = "TabSeparated"
    may_write: bool = True


@dataclass
class Result:
    """What a statement gave: pieces of output, to be read once, and counts of what it read and wrote."""

    pieces: Iterator[bytes]
    format: str | None = None
    read_rows: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    is_closed: bool = False
    _resources: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Stop the query if it still runs, and give its connection back."""
        self.is_closed = True
        self._resources.close()


def execute(engine: Engine, order: Order, body: Iterator[bytes], *, uploads: Path) -> Result:
    """Carry out *order* and return its result, which the caller closes; raises ServerError."""
    head, rest = _head(order.query, body)
    statement = read_statement(head)
    if statement.data_start is not None and statement.format and statement.format.argument.upper() == "VALUES":
        # The one format whose data may be expressions.
        head, rest = whole_text(chain([head], rest)), iter(())
        _refuse_other_rights(head)
    with ExitStack() as resources:
        if statement.data_start is not None and (not statement.is_select or statement.inputs):
            data = chain([head[statement.data_start :]], rest)
            said = head[: statement.data_start]
            _refuse_other_rights(said)
            file = resources.enter_context(received(data, uploads))
            text = _with_file(head, statement, file)
        else:
            text = whole_text(chain([head], rest))
            _refuse_other_rights(text)
        if statement.keyword not in _KEEPS_DATABASES:
            # At its end: until then a query of another request may still be under way there.
            resources.callback(engine.forget_kept)
        loan = resources.enter_context(engine.connection(order.scope))
        result = _run(loan, _decoded(text), statement, order, resources)
        result._resources = resources.pop_all()
        return result


def _head(query: str, body: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    head = query.encode() + b"\n" if query else b""
    for piece in body:
        head += piece
        if len(head) >= _HEAD_BYTES:
            break
    return head, body


def whole_text(pieces: Iterator[bytes]) -> bytes:
    """Return a body that is no INSERT's data; raises ServerError when it is longer than a statement may be."""
    kept, size = [], 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        require_statement(size)
    return b"".join(kept)


def require_statement(size: int) -> None:
    """Raise ServerError when this is more than a statement may have."""
    if size > LONGEST_STATEMENT_BYTES:
        raise ServerError(
            SYNTAX_ERROR,
            f"Max query size exceeded: a statement may have {LONGEST_STATEMENT_BYTES} bytes; send data in a FORMAT"
            " behind an INSERT. (SYNTAX_ERROR)",
        )


def _refuse_other_rights(text: bytes) -> None:
    part = refused_part(text)
    if part is not None:
        raise ServerError(
            ACCESS_DENIED,
            f"The embedded server reaches no files, programs or other servers: {part} is refused; a column of that"
            " name goes between backticks. (ACCESS_DENIED)",
        )


@contextmanager
def received(data: Iterator[bytes], uploads: Path, *, max_bytes: int = LARGEST_UPLOAD_BYTES) -> Iterator[Path]:
    """Keep *data* in a file of *uploads* during the block, written as it comes.

    Raises ServerError when it has more bytes than that, or than the disk can take.
    """
    path = uploads / str(uuid.uuid4())
    try:
        try:
            _write(data, path, max_bytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ServerError(NOT_ENOUGH_SPACE, "The disk is full: nothing was stored. (NOT_ENOUGH_SPACE)") from error
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write(data: Iterator[bytes], path: Path, max_bytes: int) -> None:
    size = 0
    with path.open("wb") as file:
        for piece in data:
            size += len(piece)
            if size > max_bytes:
                raise ServerError(
                    BAD_ARGUMENTS,
                    f"The data of an INSERT may have {max_bytes} bytes without compression: send it in"
                    " several. (BAD_ARGUMENTS)",
                )
            file.write(piece)


def _with_file(head: bytes, statement: Statement, file: Path) -> bytes:
    """Return the INSERT reading its data from *file* in place of the request."""
    clause = statement.format
    assert clause is not None
    if not statement.is_select:
        source = f"FROM INFILE {quoted(str(file))} COMPRESSION 'none' ".encode()
        at = statement.source_start or clause.start
        return head[:at] + source + head[at : clause.end]
    if len(statement.inputs) != 1:
        raise ServerError(NOT_IMPLEMENTED, "This server takes one call of input() in an INSERT. (NOT_IMPLEMENTED)")
    call = statement.inputs[0]
    arguments = f"id={quoted(file.name)}, format={quoted(clause.argument)}, structure={call.argument}"
    source = f"{UPLOAD_VIEW}({arguments})".encode()
    return head[: call.start] + source + head[call.end : clause.start]


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ServerError(SYNTAX_ERROR, f"The statement is not UTF-8: {error}. (SYNTAX_ERROR)") from error


def _run(loan: Loan, text: str, statement: Statement, order: Order, resources: ExitStack) -> Result:
    connection = loan.connection
    _refuse(connection, text, statement, order)
    output = statement.format.argument if statement.format else order.default_format
    if statement.keyword in ("SELECT", "WITH") and output in _PIECEWISE and _classified(connection, text).is_reading:
        return _stream(loan, text, statement, output, order, resources)
    result = run(connection, text, output=output, parameters=order.parameters)
    data = result.bytes()
    return Result(
        iter([data] if data else []),
        format=output if data or statement.keyword in _WITH_RESULT else None,
        read_rows=result.storage_rows_read(),
        written_rows=result.rows_written(),
        written_bytes=result.bytes_written(),
    )


def _refuse(connection: Any, text: str, statement: Statement, order: Order) -> None:
    """Raise for what the engine would answer with OK and something other than what was asked, or allowed."""
    if not text.strip():
        raise ServerError(SYNTAX_ERROR, "Empty query. (SYNTAX_ERROR)")
    if statement.inputs and statement.format is None:
        raise ServerError(BAD_ARGUMENTS, "An INSERT from input() must name the FORMAT of its data. (BAD_ARGUMENTS)")
    if statement.keyword != "INSERT" and _classified(connection, text).statement_count > 1:
        raise ServerError(SYNTAX_ERROR, "Multi-statements are not allowed. (SYNTAX_ERROR)")
    if not order.may_write and not _classified(connection, text).is_reading:
        # What cannot be parsed gets its own error.
        run(connection, f"SELECT formatQuery({quoted(text)})")
        raise ServerError(
            READONLY,
            "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. You should use"
            " method POST for modifying queries. (READONLY)",
        )


def _classified(connection: Any, text: str) -> _Classes:
    """Return what the engine's parser says of a text, which is the same for every request that can parse it."""
    known = _known_classes.get(text)
    if known is None:
        found = connection._conn.classify_query(text)
        known = _Classes(found["statement_count"], str(found["query_class"]).endswith("READ_ONLY"))
        # What does not parse under this request's max_parser_depth has no statements, and may have under another's.
        if known.statement_count > 0 and len(text) <= _LONGEST_KNOWN:
            if len(_known_classes) >= _MOST_KNOWN:
                _known_classes.clear()
            _known_classes[text] = known
    return known


def _stream(loan: Loan, text: str, statement: Statement, output: str, order: Order, resources: ExitStack) -> Result:
    connection = loan.connection
    try:
        stream = connection.send_query(text, output, params=order.parameters)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise from_engine(error) from error
    resources.callback(stream.close)
    pieces = _pieces(stream, loan)
    # The first piece is fetched now: most queries that fail do so before it, and get an honest status.
    first = next(pieces, None)
    if first is None:
        header = _native_header(connection, text, statement, order) if output == "Native" else b""
        return Result(iter([header] if header else []), format=output)
    return Result(chain([first], pieces), format=output)


def _pieces(stream: Any, loan: Loan) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.fetch()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise from_engine(error) from error
        if piece is None:
            loan.is_unchanged = True
            return
        yield piece.bytes()


def _native_header(connection: Any, text: str, statement: Statement, order: Order) -> bytes:
    """Return the block without rows that ClickHouse sends for an empty result: clients learn its columns."""
    query = text.encode()[: statement.format.start].decode() if statement.format else text
    described = run(
        connection,
        f"DESCRIBE TABLE ({query.rstrip().rstrip(';')}\n)",
        output="JSONCompactEachRow",
        parameters=order.parameters,
    )
    columns = [json.loads(line)[:2] for line in described.bytes().splitlines()]
    names = b"".join(_counted(text) for column in columns for text in column)
    return _varint(len(columns)) + _varint(0) + names


def _counted(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def remove_leftovers(uploads: Path) -> None:
    """Remove bodies that a server which was killed had received, and nothing else that lies there."""
    with os.scandir(uploads) as entries:
        for entry in entries:
            if _UPLOAD_NAME.fullmatch(entry.name):
                Path(entry.path).unlink(missing_ok=True)
