"""Events recorded in the future: what waits is seen as waiting, whatever its time says."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.health import judge_gaps, judge_lag, read_health
from outbox_pipeline.monitoring.metrics import metrics_text
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.commands import run_outbox
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.snapshots import delivered_batches

AHEAD = timedelta(days=400)


@pytest.fixture
def ahead(stores: Stores) -> Stores:
    """Two undelivered events recorded in 400 days, and one recorded now."""
    with stores.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
                " SELECT 't', 'test', '{}', clock_timestamp() + interval '400 days' FROM generate_series(1, 2)"
            )
        )
    publish(stores.engine)
    return stores


def metrics(stores: Stores) -> dict[str, float]:
    """Return the metrics without labels."""
    families = text_string_to_metric_families(metrics_text(stores.settings)[0])
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def is_about_400_days(seconds: float) -> bool:
    """Allow the test an hour."""
    return abs(seconds - AHEAD.total_seconds()) < 3600


def test_what_waits_has_no_lag_of_zero(ahead: Stores) -> None:
    """Status and metrics count what was recorded in the future and say how far ahead it is; delivered, it is over."""
    waiting, shown = read_status(ahead.engine), metrics(ahead)
    relay(ahead, until_empty=True)
    done, shown_then = read_status(ahead.engine), metrics(ahead)

    assert (waiting.pending, waiting.future) == (3, 2)
    assert is_about_400_days(waiting.lag_seconds)
    assert is_about_400_days(waiting.future_seconds)
    assert waiting.future_until is not None
    assert is_about_400_days((waiting.future_until - datetime.now(UTC)).total_seconds())
    assert shown["outbox_future_events"] == 2
    assert is_about_400_days(shown["outbox_lag_seconds"])
    assert is_about_400_days(shown["outbox_future_seconds"])
    assert (done.future, done.lag_seconds, done.future_until) == (0, 0, None)
    assert (shown_then["outbox_future_events"], shown_then["outbox_lag_seconds"]) == (0, 0)
    assert_each_exactly_once(ahead.engine, ahead.client)


def test_a_batch_that_waits_has_no_lag_of_zero(stores: Stores) -> None:
    """The same in flight, when the whole batch is from under a clock that was ahead."""
    publish(stores.engine, 3)
    cut_batches(stores.engine, stores.settings, limit=1)
    shift(stores.engine, days=400)

    found = read_status(stores.engine)

    assert (found.in_flight, found.future) == (3, 3)
    assert is_about_400_days(found.lag_seconds)
    assert metrics(stores)["outbox_future_events"] == 3


def test_the_check_of_the_lag_says_that_a_clock_was_ahead(ahead: Stores) -> None:
    """It is not well, names the clock and how far it was ahead, and says how to go on."""
    answer = judge_lag(read_health(ahead.engine), limit_seconds=600)

    assert not answer.is_well
    assert "2 undelivered events were recorded in the future, up to 96" in answer.said
    assert "ahead of PostgreSQL's clock" in answer.said
    assert answer.numbers["recorded_in_the_future"] == 2
    assert "future" in answer.cause


def test_status_shows_them_to_a_person(
    ahead: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A line of `outbox status` says how many and up to when; without any there is no such line."""
    assert ahead.settings.postgres_url is not None
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", ahead.settings.postgres_url.get_secret_value())
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path_factory.mktemp("home")))

    before = run_outbox("status").output
    relay(ahead, until_empty=True)
    after = run_outbox("status").output

    assert f"2 undelivered, recorded up to {(datetime.now(UTC) + AHEAD):%Y}" in before
    assert "in the future" not in after


def test_the_doctor_names_days_that_have_not_come(stores: Stores) -> None:
    """What was delivered of such a day is told as well: the clock was wrong, and the day's rows are there already."""
    delivered_batches(stores, (3,))
    fine = next(check for check in examine(stores.settings) if check.name == "future days")
    shift(stores.engine, days=400)
    found = next(check for check in examine(stores.settings) if check.name == "future days")

    assert (fine.ok, fine.is_warning) == (True, False)
    assert (found.ok, found.is_warning) == (True, True)
    day = (datetime.now(UTC) + AHEAD).date()
    assert f"1 batch of days that have not come, up to {day}" in found.message


def test_the_last_hour_and_the_last_mark_are_not_in_the_future(stores: Stores) -> None:
    """A mark from under a clock that was ahead is not what came last, and hides no silence since."""
    delivered_batches(stores, (3,))
    shift(stores.engine, days=400)
    only_ahead = metrics(stores)
    publish(stores.engine, 4)
    relay(stores, until_empty=True)
    both = metrics(stores)

    assert "outbox_last_processed_timestamp_seconds" not in only_ahead
    assert (only_ahead["outbox_last_hour_batches"], both["outbox_last_hour_events"]) == (0, 4)
    assert abs(both["outbox_last_processed_timestamp_seconds"] - datetime.now(UTC).timestamp()) < 3600
    found = read_status(stores.engine).last_processed_at
    assert found is not None
    assert abs((found - datetime.now(UTC)).total_seconds()) < 3600


def test_a_gap_seen_in_the_future_is_old(stores: Stores) -> None:
    """A gap from under a clock that was ahead is not shown as one of this moment."""
    with stores.engine.begin() as connection:
        connection.execute(text("INSERT INTO outbox.gap (positions, holders) VALUES ('{[5,6)}', '{4/1}')"))
        connection.execute(text("UPDATE outbox.gap SET observed_at = observed_at + interval '400 days'"))

    assert is_about_400_days(metrics(stores)["outbox_oldest_gap_seconds"])
    assert judge_gaps(read_health(stores.engine), limit_seconds=600).is_well
