"""Incidents are told once when they open and once when they end, whatever the receiver does meanwhile."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.monitoring.incidents import Condition, Incidents, Notice
from outbox_pipeline.monitoring.webhook import post_json
from outbox_pipeline.settings import load_settings
from tests.fixtures.webhook import receiving

NOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
PARKED = Condition("parked", "1 batch is parked.", "Fix <it> & resume.")
LAG = Condition("lag", "Old.", "Look.", "warning")


class Box:
    """Takes notices, or refuses them."""

    def __init__(self) -> None:
        self.taken: list[Notice] = []
        self.is_away = False

    def post(self, notice: Notice) -> None:
        """Take one."""
        if self.is_away:
            raise TransientError("The webhook is away.")
        self.taken.append(notice)

    def told(self) -> list[tuple[str, str]]:
        """Return what was taken."""
        return [(notice.key, notice.status) for notice in self.taken]


def tick(
    incidents: Incidents, box: Box, *conditions: Condition, unknown: tuple[str, ...] = (), minutes: int = 0
) -> Incidents:
    """Look and send once, and pass the state through text as a cursor does."""
    now = NOW + timedelta(minutes=minutes)
    left, _, _ = incidents.after(conditions, unknown=unknown, now=now).send(box.post)
    return Incidents.from_json(left.to_json())


def test_an_incident_is_told_once_and_its_end_once() -> None:
    """However many ticks find the same, two notices go out."""
    box, incidents = Box(), Incidents()
    for conditions in [(PARKED,), (PARKED,), (PARKED,), (), ()]:
        incidents = tick(incidents, box, *conditions)

    assert box.told() == [("parked", "firing"), ("parked", "resolved")]


def test_a_changed_title_is_no_new_incident() -> None:
    """Two parked batches instead of one are the same incident."""
    box = Box()
    incidents = tick(Incidents(), box, PARKED)

    tick(incidents, box, Condition("parked", "2 batches are parked.", ""))

    assert box.told() == [("parked", "firing")]


def test_what_a_watch_cannot_know_stays_open() -> None:
    """While the ledger cannot be read nothing is called resolved; then it is."""
    box = Box()
    incidents = tick(Incidents(), box, PARKED, Condition("check:a/b", "Failed.", ""))
    incidents = tick(incidents, box, unknown=("parked", "check"))
    untold = box.told()

    tick(incidents, box)

    assert untold == [("parked", "firing"), ("check:a/b", "firing")]
    assert box.told()[2:] == [("parked", "resolved"), ("check:a/b", "resolved")]


def test_nothing_is_lost_while_the_receiver_is_away() -> None:
    """What opened and ended meanwhile is told afterwards, in order, with the times it had."""
    box, incidents = Box(), Incidents()
    box.is_away = True
    incidents = tick(incidents, box, PARKED)
    incidents = tick(incidents, box, minutes=30)
    box.is_away = False

    tick(incidents, box, minutes=60)

    assert box.told() == [("parked", "firing"), ("parked", "resolved")]
    assert [notice.at for notice in box.taken] == ["2026-11-22T03:00:00+00:00", "2026-11-22T03:30:00+00:00"]
    assert {notice.since for notice in box.taken} == {"2026-11-22T03:00:00+00:00"}


def test_fluttering_while_the_receiver_is_away_is_no_storm() -> None:
    """An incident that came and went a hundred times is told twice at most."""
    box, incidents = Box(), Incidents()
    box.is_away = True
    for _ in range(100):
        incidents = tick(incidents, box, PARKED, LAG)
        incidents = tick(incidents, box, LAG)
    box.is_away = False

    tick(incidents, box, LAG)

    assert box.told() == [("parked", "firing"), ("lag", "firing"), ("parked", "resolved")]


def test_an_end_nobody_heard_of_is_taken_back() -> None:
    """To a receiver that was told of the beginning only, the incident simply goes on."""
    box = Box()
    incidents = tick(Incidents(), box, PARKED)
    box.is_away = True
    incidents = tick(incidents, box)
    incidents = tick(incidents, box, PARKED)
    box.is_away = False
    incidents = tick(incidents, box, PARKED)

    tick(incidents, box)

    assert box.told() == [("parked", "firing"), ("parked", "resolved")]


def test_a_failing_receiver_is_asked_once_a_tick() -> None:
    """The first refusal ends the tick's sending; ten waiting notices are not ten timeouts."""
    asked = []

    def refuse(notice: Notice) -> None:
        asked.append(notice)
        raise TransientError("away")

    found = [Condition(f"run:{number}", "Failed.", "") for number in range(10)]
    left, sent_count, problem = Incidents().after(found, unknown=(), now=NOW).send(refuse)

    assert (len(asked), sent_count, problem, len(left.unsent)) == (1, 0, "away", 10)


@pytest.mark.parametrize("text", [None, "", "ClickHouse answers", "[]", '{"is_open": {"a": {"b": 1}}}', "7"])
def test_a_cursor_that_cannot_be_read_starts_anew(text: str | None) -> None:
    """Nothing is open then; the next tick tells of what still holds."""
    assert Incidents.from_json(text) == Incidents()


def test_the_payload_suits_slack_and_machines() -> None:
    """`text` says it all without markup of Slack's; the fields are plain, and the id is the same on a repetition."""
    notice = Incidents().after([PARKED], unknown=(), now=NOW).unsent[0]

    payload = notice.payload("production")

    assert payload["text"] == "[FIRING] outbox production: 1 batch is parked. Fix &lt;it&gt; &amp; resume."
    assert payload["detail"] == "Fix <it> & resume."
    assert payload["id"] == "parked@2026-11-22T03:00:00+00:00/firing"
    assert (payload["incident"], payload["status"], payload["severity"]) == ("parked", "firing", "critical")


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_refusal_says_what_but_not_where(status: int) -> None:
    """The URL's path is a secret; no redirect is followed."""
    with receiving() as receiver:
        receiver.status = status
        with pytest.raises(TransientError, match=f"status {status}") as raised:
            post_json(SecretStr(receiver.url), {"text": "x"})

    assert "sekret" not in str(raised.value)
    assert receiver.asked_count == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/sekret", "http://sekret.invalid/x", "http://127.0.0.1:9/a sekret"])
def test_an_unreachable_receiver_says_so_without_the_url(url: str) -> None:
    """Whatever fails, one sentence names the setting and nothing of its value."""
    with pytest.raises(TransientError, match="OUTBOX_ALERT_WEBHOOK_URL") as raised:
        post_json(SecretStr(url), {"text": "x"})

    assert "sekret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/sekret", "hooks.example.org/sekret", "https://user:sekret@host/x", "https:///sekret"]
)
def test_a_webhook_that_cannot_be_posted_to_is_a_wrong_setting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at the start, by name."""
    monkeypatch.setenv("OUTBOX_ALERT_WEBHOOK_URL", url)

    with pytest.raises(ConfigurationError, match="OUTBOX_ALERT_WEBHOOK_URL") as raised:
        load_settings()

    assert "sekret" not in str(raised.value)
