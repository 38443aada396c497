"""Start the engines of a home again when they have ended, for as long as a process uses them.

Invariants: it acts under the home's lock, so no two processes start an engine, and waits for no other process that has
the lock; an engine that does not stay up is started at growing intervals, and what keeps it from starting is told once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.errors import ConfigurationError

#: Pauses between two starts of one engine; each is twice the one before, until it has stayed up for the longest.
_SHORTEST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass
class _Kept:
    """An engine that is watched: its name, how it is looked at and started, and when it may be started next."""

    name: str
    is_up: Callable[[Home], bool]
    start: Callable[[Home], object]
    pause_seconds: float = _SHORTEST_PAUSE_SECONDS
    not_before: float = 0.0
    is_told: bool = False


class EngineKeeper:
    """Watches the engines that this process uses on a home; call `revive` about once a second."""

    def __init__(self, home: Path, *, postgres: bool = True, clickhouse: bool = True) -> None:
        """Start nothing yet. The process is among the home's users already, by `embedded_engines`."""
        self._home = Home(home.expanduser().resolve())
        self._kept = []
        if postgres:
            self._kept.append(_Kept("PostgreSQL", lambda of: running_postgres(of) is not None, start_postgres))
        if clickhouse:
            self._kept.append(_Kept("ClickHouse", lambda of: running_clickhouse(of) is not None, start_clickhouse))

    def revive(self) -> list[str]:
        """Start each engine that has ended, and return a sentence for each that was started, or that cannot be."""
        if not self._home.users.is_dir():
            # The home was removed; its servers end by themselves.
            return []
        return [told for kept in self._kept if (told := self._revive_one(kept)) is not None]

    def _revive_one(self, kept: _Kept) -> str | None:
        now = time.monotonic()
        if kept.is_up(self._home) or now < kept.not_before:
            return None
        if now > kept.not_before + _LONGEST_PAUSE_SECONDS:
            kept.pause_seconds = _SHORTEST_PAUSE_SECONDS
        with locked(self._home, wait=False) as is_ours:
            # Who has the lock may be starting it.
            if not is_ours or kept.is_up(self._home):
                return None
            return self._start(kept)

    def _start(self, kept: _Kept) -> str | None:
        try:
            kept.start(self._home)
        except ConfigurationError as error:
            told = None if kept.is_told else f"{kept.name} had ended and cannot be started again: {error}"
            kept.is_told = True
        else:
            told = f"{kept.name} had ended and was started again."
            kept.is_told = False
        kept.not_before = time.monotonic() + kept.pause_seconds
        kept.pause_seconds = min(2 * kept.pause_seconds, _LONGEST_PAUSE_SECONDS)
        return told
