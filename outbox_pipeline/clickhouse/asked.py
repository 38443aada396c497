"""A person's own statement: sent as it was written, and answered in the format that it names or in a default.

Invariant: no word is added to the statement; the default goes in a header, which ClickHouse follows only where the
statement names no FORMAT. Each failure is told in ClickHouse's own words.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import DatabaseError

from outbox_pipeline.clickhouse.client import Data, EventLogClient
from outbox_pipeline.clickhouse.errors import answered

_FORMAT_HEADER = "X-ClickHouse-Format"
_PIECE_BYTES = 65_536
#: How an error after the first rows is told in the body: behind this mark and the tag that the headers name.
_TAG_HEADER = "X-ClickHouse-Exception-Tag"
_MARK = b"\r\n__exception__\r\n"
_CODE = re.compile(r"Code: (\d+)\.")


@dataclass(frozen=True)
class Reply:
    """What a statement gave: bytes to be read once, none for one without a result, and the format they are in."""

    format: str | None
    pieces: Iterator[bytes]


@contextmanager
def asked(client: EventLogClient, statement: str, *, default_format: str, is_whole: bool) -> Iterator[Reply]:
    """Send *statement* and yield its reply; with *is_whole* ClickHouse answers once it has all of it, errors included.

    Raises PermanentError in ClickHouse's words, InDoubtError when it did not come to an end, TransientError when no
    ClickHouse answers; the pieces of the reply raise the same.
    """
    settings = {"wait_end_of_query": "1"} if is_whole else None
    wanted = {_FORMAT_HEADER: default_format}
    with answered(client.where):
        answer: Any = client.driver.raw_stream(statement, settings=settings, transport_settings=wanted)
        with answer:
            yield Reply(answer.headers.get(_FORMAT_HEADER), _pieces(answer))


def _pieces(answer: Any) -> Iterator[bytes]:
    tag = answer.headers.get(_TAG_HEADER)
    for piece in answer.stream(_PIECE_BYTES):
        data, _, failure = piece.partition(_MARK + tag.encode()) if tag else (piece, b"", b"")
        if data:
            yield data
        if failure:
            raise _told_late(failure.decode(errors="replace"))


def _told_late(failure: str) -> DatabaseError:
    words, *_ = failure.strip().splitlines()
    error = DatabaseError(words)
    found = _CODE.search(words)
    error.code = int(found[1]) if found else None
    return error


def insert(client: EventLogClient, statement: str, data: bytes) -> None:
    """Send an INSERT that ends with its FORMAT, and its data as they are; raises as `asked`."""
    with answered(client.where):
        client.driver.command(statement, data=Data(data))
