"""The answer to one statement as HTTP has it: head and pieces of the result, and a failure after both have begun."""

import json
import time
import uuid
from collections.abc import Iterator

from outbox_pipeline.embedded.compression import compressed
from outbox_pipeline.embedded.execution import Result
from outbox_pipeline.embedded.server_errors import ServerError

#: As much of a result as is taken from the engine at once.
_HANDFUL_BYTES = 1_000_000
_HANDFUL_SECONDS = 0.05


class Answer:
    """A result on its way to the client, a handful of pieces at a time; who reads it calls `take` in a thread."""

    def __init__(self, result: Result, *, encoding: str | None, is_whole: bool) -> None:
        """Take the first pieces; *is_whole* takes all of them, so that a failure is an error and no half answer."""
        self.result = result
        self.handful: list[bytes] = []
        self.is_complete = False
        self._encoding = encoding
        self._failure = _Failure(uuid.uuid4().hex[:16])
        pieces = iter(list(result.pieces)) if is_whole else result.pieces
        # Closed before the end is told: a client that has it may use the session for its next request at once.
        self._pieces = _closing(result, self._failure.told(pieces))
        if encoding:
            self._pieces = compressed(self._pieces, encoding)
        self.take()

    @property
    def has_failed(self) -> bool:
        """True when the pieces told an error, behind which nothing may look like an end."""
        return self._failure.happened

    def take(self) -> None:
        """Take the next pieces: mostly all there are, because each visit of a thread costs as much as a small query."""
        self.handful = []
        size, until = 0, time.monotonic() + _HANDFUL_SECONDS
        while size < _HANDFUL_BYTES and time.monotonic() < until:
            piece = next(self._pieces, None)
            if piece is None:
                self.is_complete = True
                return
            self.handful.append(piece)
            size += len(piece)

    def headers(self) -> dict[str, str]:
        """Return what the head of the response says of the result."""
        told = {"X-ClickHouse-Summary": _summary(self.result), "X-ClickHouse-Exception-Tag": self._failure.tag}
        if self.result.format:
            told["X-ClickHouse-Format"] = self.result.format
        if self._encoding:
            told["Content-Encoding"] = self._encoding
        return told


class _Failure:
    """An error after the status was sent, told in the body between the tags clickhouse-connect looks for."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.happened = False

    def told(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from pieces
        except ServerError as error:
            self.happened = True
            text = error.text.encode() + b"\n"
            tag = self.tag.encode()
            yield b"\r\n__exception__\r\n%s\r\n%s%d %s\r\n__exception__\r\n" % (tag, text, len(text), tag)


def _closing(result: Result, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield from pieces
    result.close()


def _summary(result: Result) -> str:
    counts = {
        "read_rows": result.read_rows,
        "written_rows": result.written_rows,
        "written_bytes": result.written_bytes,
    }
    return json.dumps({name: str(count) for name, count in counts.items()})
