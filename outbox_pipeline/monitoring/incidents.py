"""Incidents: what is wrong now compared with what was wrong before, and the notices that follow from it.

Invariant: an incident is told once when it opens and once when it ends, and a notice stays in `unsent` until the
receiver took it. At most two notices wait for one incident, so a receiver that was away for a day gets no storm.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Self

from outbox_pipeline.errors import OutboxError, first_line

Severity = Literal["warning", "critical"]

FIRING = "firing"
RESOLVED = "resolved"

#: Notices sent in one go, so that a slow receiver does not take a tick's minute; the rest goes with the next one.
_SENT_LIMIT = 5


@dataclass(frozen=True)
class Condition:
    """Something that is wrong now. `key` is its identity: `<watch>` or `<watch>:<what>`."""

    key: str
    title: str
    detail: str
    severity: Severity = "critical"


@dataclass(frozen=True)
class Notice:
    """One message about an incident: it fires, or it is resolved. Times are ISO 8601 in UTC."""

    key: str
    status: str
    title: str
    detail: str
    severity: str
    since: str
    at: str

    def payload(self, environment: str) -> dict[str, str]:
        """Return the message as JSON fields; `text` is what Slack and its like show, `id` the same on a repetition."""
        text = f"[{self.status.upper()}] outbox {environment}: {self.title} {self.detail}".strip()
        return {
            # Slack reads these three as markup: <!channel> would call everybody.
            "text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
            "source": "outbox-pipeline",
            "id": f"{self.key}@{self.since}/{self.status}",
            "environment": environment,
            "incident": self.key,
            **{name: value for name, value in asdict(self).items() if name != "key"},
        }


@dataclass(frozen=True)
class Incidents:
    """The incidents that are open, what was not sent yet, and what the watches remember between two looks."""

    is_open: Mapping[str, Notice] = field(default_factory=dict)
    unsent: tuple[Notice, ...] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the whole as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Self:
        """Read what `to_json` wrote; from anything else nothing is open."""
        try:
            stored = json.loads(text or "{}")
            return cls(
                {key: Notice(**notice) for key, notice in stored.get("is_open", {}).items()},
                tuple(Notice(**notice) for notice in stored.get("unsent", ())),
                dict(stored.get("memory", {})),
            )
        except (ValueError, TypeError, AttributeError):
            return cls()

    def after(self, conditions: Collection[Condition], *, unknown: Collection[str], now: datetime) -> Self:
        """Return the incidents now that exactly *conditions* hold.

        What a watch named in *unknown* found before stays open: it could not look.
        """
        at = now.isoformat(timespec="seconds")
        found = {condition.key: condition for condition in conditions}
        is_open, unsent = {}, self.unsent
        for key, notice in self.is_open.items():
            if key in found or key.partition(":")[0] in unknown:
                is_open[key] = notice
            else:
                unsent = (*unsent, replace(notice, status=RESOLVED, detail="", at=at))
        for key, condition in found.items():
            if key not in is_open:
                unsent, is_open[key] = _opened(unsent, condition, at)
        return replace(self, is_open=is_open, unsent=unsent)

    def send(self, post: Callable[[Notice], None]) -> tuple[Self, int, str | None]:
        """Post what is unsent up to the first failure; return what is left, how many went, and the problem."""
        for sent_count, notice in enumerate(self.unsent[:_SENT_LIMIT]):
            try:
                post(notice)
            except OutboxError as error:
                return replace(self, unsent=self.unsent[sent_count:]), sent_count, first_line(error)
        return replace(self, unsent=self.unsent[_SENT_LIMIT:]), len(self.unsent[:_SENT_LIMIT]), None


def _opened(unsent: tuple[Notice, ...], condition: Condition, at: str) -> tuple[tuple[Notice, ...], Notice]:
    # An end that was not sent yet is taken back: to the receiver the incident simply goes on.
    ended = next((one for one in unsent if (one.key, one.status) == (condition.key, RESOLVED)), None)
    notice = Notice(
        condition.key, FIRING, condition.title, condition.detail, condition.severity, ended.since if ended else at, at
    )
    if ended is not None:
        return tuple(one for one in unsent if one is not ended), notice
    return (*unsent, notice), notice
