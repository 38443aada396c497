"""Compressed bodies come through whole or not at all."""

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator

import lz4.frame
import pytest

from outbox_pipeline.embedded.compression import accepted_encoding, compressed, decompressed
from outbox_pipeline.embedded.server_errors import ServerError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut *data* as a network would."""
    return iter([data[start : start + size] for start in range(0, len(data), size)])


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_every_frame_of_a_body_is_read(encoding: str, size: int) -> None:
    """However the frames fall into pieces, the content of all of them comes out in order."""
    frames = [b"first" * 50, b"", b"second" * 70, b"third"]
    body = b"".join(COMPRESS[encoding](frame) for frame in frames)

    assert b"".join(decompressed(in_pieces(body, size), encoding)) == b"".join(frames)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [1_000, 1_000_000])
def test_content_comes_in_small_pieces(encoding: str, size: int) -> None:
    """A few bytes that stand for 100 MB never become more than a megabyte at once, and all of it is there."""
    content = bytes(100_000_000)
    body = COMPRESS[encoding](content) + COMPRESS[encoding](b"end")
    sizes = [len(piece) for piece in decompressed(in_pieces(body, size), encoding)]

    assert sum(sizes) == len(content) + 3
    assert max(sizes) <= 1_000_000


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("length", [999_999, 1_000_000, 1_000_001, 2_000_000])
def test_content_that_fills_its_pieces_is_whole(encoding: str, length: int) -> None:
    """A frame that ends where a piece ends, and the frame behind it, come through to the byte."""
    content = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    body = COMPRESS[encoding](content) + COMPRESS[encoding](b"next")

    assert b"".join(decompressed(in_pieces(body, 65_536), encoding)) == content + b"next"


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("kept", [1, -1])
def test_body_that_ends_inside_a_frame_is_refused(encoding: str, kept: int) -> None:
    """A cut in the last of two frames is an error, not the content of the first."""
    second = COMPRESS[encoding](b"second" * 100)
    body = COMPRESS[encoding](b"first") + second[:kept]

    with pytest.raises(ServerError, match="ends inside a frame") as caught:
        list(decompressed(in_pieces(body, 10), encoding))
    assert (caught.value.code, caught.value.status) == (33, 400)


@pytest.mark.parametrize("encoding", COMPRESS)
def test_damaged_body_is_refused(encoding: str) -> None:
    """Bytes that are no frame are a clear error."""
    with pytest.raises(ServerError) as caught:
        list(decompressed(iter([b"this is not compressed at all"]), encoding))
    assert caught.value.code in (33, 271)


def test_unknown_encoding_is_refused() -> None:
    """An encoding the server does not know is never read as plain text."""
    with pytest.raises(ServerError, match="Unknown compression method: br"):
        decompressed(iter([b""]), "br")


@pytest.mark.parametrize("encoding", ["lz4", "zstd", "gzip"])
def test_response_reads_back(encoding: str) -> None:
    """What is compressed for a response is what a client reads."""
    pieces = [b"a" * 1000, b"b", b"c" * 5000]

    assert b"".join(decompressed(compressed(iter(pieces), encoding), encoding)) == b"".join(pieces)


@pytest.mark.parametrize(
    ("header", "encoding"), [("gzip, lz4;q=0.5", "lz4"), ("GZIP", "gzip"), ("br", None), ("", None)]
)
def test_response_encoding_is_one_the_client_takes(header: str, encoding: str | None) -> None:
    """The best encoding both sides know is used, or none."""
    assert accepted_encoding(header) == encoding
