"""The file that a command reads events from; a dash stands for stdin."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import typer

_STDIN = "-"


def existing(file: Path) -> Path:
    """Return the file; wrong use when there is none."""
    # typer's own check does not let the dash through.
    if str(file) != _STDIN and not file.is_file():
        raise typer.BadParameter(f"there is no file {file}")
    return file


def name_of(file: Path) -> str:
    """Return what messages call the file."""
    return "stdin" if str(file) == _STDIN else str(file)


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open the file for the length of a block; stdin stays open."""
    with nullcontext(sys.stdin.buffer) if str(file) == _STDIN else file.open("rb") as stream:
        yield stream
