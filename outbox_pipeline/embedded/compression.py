"""Compressed bodies, read and written as streams.

A body is any number of frames, one after another, and every one of them is read. A body that ends inside a
frame is refused: what it still held is unknown, so nothing of it may be stored.
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

    def decompress(self, data: bytes) -> bytes:
        """Return what *data* adds to the content."""


_DECOMPRESSORS: dict[str, Callable[[], Decompressor]] = {
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
    "gzip": lambda: zlib.decompressobj(_GZIP),
    "deflate": lambda: zlib.decompressobj(_ZLIB),
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
            content = _feed(frame, rest, encoding)
            if content:
                yield content
            rest = b""
            if frame.eof:
                rest, frame = frame.unused_data or b"", None
    if frame is not None:
        raise ServerError(
            CANNOT_READ_ALL_DATA,
            f"Cannot read all data: the {encoding} body ends inside a frame. (CANNOT_READ_ALL_DATA)",
        )


def _feed(frame: Decompressor, data: bytes, encoding: str) -> bytes:
    try:
        return frame.decompress(data)
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
