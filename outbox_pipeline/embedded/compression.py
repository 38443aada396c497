"""Compressed bodies, read and written as streams.

A body is any number of frames, one after another, and every one of them is read. A body that ends inside a
frame is refused: what it still held is unknown, so nothing of it may be stored. Content comes out in pieces of at most
1 MB, however much of it a few bytes stand for.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import lz4.frame

from outbox_pipeline.embedded.server_errors import (
    CANNOT_DECOMPRESS,
    CANNOT_READ_ALL_DATA,
    UNKNOWN_COMPRESSION_METHOD,
    ServerError,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What a response may be compressed with, best first.
RESPONSE_ENCODINGS = ("lz4", "zstd", "gzip")

#: Most content that is held at once.
_PIECE_BYTES = 1_000_000

# zlib's own numbers for its containers: 31 reads and writes gzip, 15 zlib.
_GZIP, _ZLIB = 31, 15


class Decompressor(Protocol):
    """One frame being read; the standard library's shape, which lz4 and zstd share."""

    @property
    def eof(self) -> bool:
        """True once the frame is complete."""

    @property
    def unused_data(self) -> bytes | None:
        """What followed the complete frame."""

    @property
    def needs_input(self) -> bool:
        """False as long as what was given holds more content."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return at most *max_length* bytes of what *data* adds to the content."""


class _Zlib:
    """A frame of zlib or gzip in the same shape."""

    def __init__(self, container: int) -> None:
        self._frame = zlib.decompressobj(container)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self._frame.decompress(self._frame.unconsumed_tail + data, max_length)
        # zlib may hold more content than fitted although it has taken all of its input.
        self.needs_input = len(content) < max_length and not self._frame.unconsumed_tail
        return content


_DECOMPRESSORS: dict[str, Callable[[], Decompressor]] = {
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
    "gzip": lambda: _Zlib(_GZIP),
    "deflate": lambda: _Zlib(_ZLIB),
}


def decompressed(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the content of a body with this Content-Encoding.

    Raises ServerError when the encoding is not known, or the body is damaged or ends too soon.
    """
    if encoding in ("", "identity"):
        return chunks
    if encoding not in _DECOMPRESSORS:
        raise ServerError(
            UNKNOWN_COMPRESSION_METHOD,
            f"Unknown compression method: {encoding}. (UNKNOWN_COMPRESSION_METHOD)",
        )
    return _read_frames(chunks, encoding)


def _read_frames(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    frame: Decompressor | None = None
    for chunk in chunks:
        rest = chunk
        while rest:
            frame = frame or _DECOMPRESSORS[encoding]()
            yield from _contents(frame, rest, encoding)
            rest = b""
            if frame.eof:
                rest, frame = frame.unused_data or b"", None
    if frame is not None:
        raise ServerError(
            CANNOT_READ_ALL_DATA,
            f"Cannot read all data: the {encoding} body ends inside a frame. (CANNOT_READ_ALL_DATA)",
        )


def _contents(frame: Decompressor, data: bytes, encoding: str) -> Iterator[bytes]:
    content = _feed(frame, data, encoding)
    while content:
        yield content
        if frame.eof or frame.needs_input:
            return
        content = _feed(frame, b"", encoding)


def _feed(frame: Decompressor, data: bytes, encoding: str) -> bytes:
    try:
        return frame.decompress(data, _PIECE_BYTES)
    except (RuntimeError, zlib.error, zstd.ZstdError) as error:
        raise ServerError(
            CANNOT_DECOMPRESS, f"Cannot decompress the {encoding} body: {error}. (CANNOT_DECOMPRESS)"
        ) from error


def accepted_encoding(accept_encoding: str) -> str | None:
    """Return the encoding to answer with, None for a client that takes none of ours."""
    wanted = {item.partition(";")[0].strip().lower() for item in accept_encoding.split(",")}
    return next((encoding for encoding in RESPONSE_ENCODINGS if encoding in wanted), None)


def compressed(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield *chunks* as one frame of *encoding*."""
    frame: Any = _compressor(encoding)
    if encoding == "lz4":
        yield frame.begin()
    for chunk in chunks:
        data = frame.compress(chunk)
        if data:
            yield data
    yield frame.flush()


def _compressor(encoding: str) -> Any:
    if encoding == "lz4":
        return lz4.frame.LZ4FrameCompressor()
    return zstd.ZstdCompressor(level=1) if encoding == "zstd" else zlib.compressobj(level=1, wbits=_GZIP)
