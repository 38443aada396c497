"""What a client sends is kept within limits, in memory and on the disk."""

import os
from pathlib import Path

import pytest

from outbox_pipeline.embedded.execution import LONGEST_STATEMENT_BYTES, received, remove_leftovers, whole_text
from outbox_pipeline.embedded.server_errors import ServerError


def test_data_is_kept_until_the_end_of_the_block(tmp_path: Path) -> None:
    """The file has the data, under a name that is a UUID, and goes with the block."""
    with received(iter([b"a", b"", b"bc"]), tmp_path, max_bytes=3) as file:
        assert file.read_bytes() == b"abc"
        assert file.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_data_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """No more than the limit is written; the file is gone, and the rest is not asked for."""
    pieces = iter([b"abc", b"d", b"never"])
    with pytest.raises(ServerError, match="may have 3 bytes") as caught, received(pieces, tmp_path, max_bytes=3):
        pass

    assert caught.value.status == 400
    assert list(tmp_path.iterdir()) == []
    assert next(pieces) == b"never"


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client learns that the disk is full; it is no client that has left."""

    monkeypatch.setattr(Path, "open", lambda _, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), mode))
    with pytest.raises(ServerError, match="disk is full") as caught, received(iter([b"a" * 100_000]), tmp_path):
        pass

    assert caught.value.code == 243


def test_statement_beyond_the_limit_is_refused() -> None:
    """A statement is taken up to the limit, and not a piece more is kept."""
    piece = bytes(1 << 20)
    count = LONGEST_STATEMENT_BYTES >> 20

    assert len(whole_text(iter([piece] * count))) == LONGEST_STATEMENT_BYTES
    with pytest.raises(ServerError, match="Max query size exceeded") as caught:
        whole_text(iter([piece] * count + [b"x"]))
    assert (caught.value.code, caught.value.status) == (62, 400)


def test_only_bodies_are_removed_as_leftovers(tmp_path: Path) -> None:
    """A home may be a folder that had an `uploads` of its own before."""
    left = tmp_path / "4b5e9a5e-1c9a-4a53-9d5c-3a6a1e0c5a4d"
    left.write_text("a body")
    (tmp_path / "holiday.jpg").write_text("a picture")
    (tmp_path / "folder").mkdir()

    remove_leftovers(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "holiday.jpg"]
