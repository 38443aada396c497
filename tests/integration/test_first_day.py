"""The ledger's first day: with it Dagster's partitions begin, and it never moves to a later one."""

from datetime import date, timedelta
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from outbox_pipeline.operations.first_day import find_first_day
from outbox_pipeline.postgres import adopt as adoption
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.migrations.files import script
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.events import publish
from tests.fixtures.sensors import NOWHERE

LONG_AGO = "2026-02-03"


def today(engine: Engine) -> date:
    """Return today (UTC) by the server's clock."""
    with engine.connect() as connection:
        found: date = connection.execute(text("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")).scalar_one()
    return found


def publish_on(engine: Engine, day: str) -> None:
    """Publish one event that was recorded on a day."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
                " VALUES ('t', 'test', '{}', CAST(:day AS timestamptz))"
            ),
            {"day": f"{day} 12:00Z"},
        )


def set_first_day(engine: Engine, day: date | str) -> None:
    """Let the ledger have begun on a day."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET begun_on = CAST(:day AS date)"), {"day": str(day)})


def test_it_is_the_day_of_init(outbox_engine: Engine, settings: Settings) -> None:
    """A new ledger begins today, and what is delivered later moves nothing."""
    first_day = today(outbox_engine)
    publish(outbox_engine, 3)
    cut_batches(outbox_engine, settings, limit=1)

    assert find_first_day(settings) == first_day


@pytest.mark.parametrize(("earliest", "expected"), [(LONG_AGO, LONG_AGO), (None, None)])
def test_a_ledger_of_before_begins_with_its_earliest_batch(
    outbox_engine: Engine, settings: Settings, earliest: str | None, expected: str | None
) -> None:
    """The migration takes the day from the ledger, so that no partition with deliveries is lost; without any, today."""
    if earliest:
        publish_on(outbox_engine, earliest)
        publish(outbox_engine)
        cut_batches(outbox_engine, settings, limit=2)
    with outbox_engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox.unclaimed DROP COLUMN begun_on"))
        connection.exec_driver_sql(script("0016_first_day.sql"))

    assert str(find_first_day(settings)) == (expected or str(today(outbox_engine)))


def test_an_earlier_batch_moves_it_and_a_later_one_does_not(outbox_engine: Engine, settings: Settings) -> None:
    """Events that were recorded before the ledger was made, as in a restored table, keep their day."""
    publish(outbox_engine)
    cut_batches(outbox_engine, settings, limit=1)
    publish_on(outbox_engine, LONG_AGO)
    (earlier,) = cut_batches(outbox_engine, settings, limit=1).batches
    publish(outbox_engine)
    cut_batches(outbox_engine, settings, limit=1)

    assert str(earlier.recorded_on) == str(find_first_day(settings)) == LONG_AGO


def test_a_clock_far_behind_moves_it_to_the_start_date_at_most(outbox_engine: Engine, settings: Settings) -> None:
    """An event of 2001 does not make twenty-five years of empty partitions."""
    publish_on(outbox_engine, "2001-01-01")

    (batch,) = cut_batches(outbox_engine, settings, limit=1).batches

    assert batch.recorded_on == find_first_day(settings) == settings.start_date


def test_a_later_start_date_hides_no_day_of_the_ledger(outbox_engine: Engine, settings: Settings) -> None:
    """OUTBOX_START_DATE after the ledger's first day puts no event onto a day of the future."""
    publish(outbox_engine)

    (batch,) = cut_batches(outbox_engine, settings.model_copy(update={"start_date": date(2999, 1, 1)}), limit=1).batches

    assert batch.recorded_on == today(outbox_engine)


def test_a_ledger_made_under_a_clock_that_was_ahead_is_put_right(outbox_engine: Engine, settings: Settings) -> None:
    """Its first day is then in the future, until the first batch moves it to the day that it is."""
    set_first_day(outbox_engine, today(outbox_engine) + timedelta(days=400))
    publish(outbox_engine)

    (batch,) = cut_batches(outbox_engine, settings, limit=1).batches

    assert batch.recorded_on == find_first_day(settings) == today(outbox_engine)


def test_an_adopted_batch_moves_it(outbox_engine: Engine, settings: Settings) -> None:
    """What the old instance delivered on an earlier day has its partition here too."""
    publish_on(outbox_engine, LONG_AGO)
    batch_id = uuid4()
    with ledger_transaction(outbox_engine) as connection:
        adoption.create_stage(connection)
        staged = text("INSERT INTO pg_temp.shown_row SELECT :batch_id, position, true FROM outbox.event")
        connection.execute(staged, {"batch_id": batch_id})
        adoption.insert_adopted(
            connection, batch_id, attempt=1, generation=0, has_strangers=False, first_day=settings.start_date
        )

    assert str(find_first_day(settings)) == LONG_AGO


def test_env_prints_it(stores: Stores, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code server that is started from the shell begins its partitions there; of another ledger nothing stays."""
    assert stores.settings.postgres_url
    url = stores.settings.postgres_url.get_secret_value()
    monkeypatch.setenv("OUTBOX_DAGSTER_URL", url.replace("+psycopg:", "+psycopg2:"))

    printed = outbox("env")
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", f"postgresql+psycopg://user:secret@{NOWHERE}/outbox")
    away = outbox("env")

    assert f"export OUTBOX_FIRST_DAY='{today(stores.engine)}'" in printed.stdout.splitlines()
    assert (away.exit_code, away.stdout.splitlines()[-1]) == (0, "unset OUTBOX_FIRST_DAY")
    assert "Without OUTBOX_FIRST_DAY" in away.stderr
    assert "secret" not in away.stderr


def test_a_url_that_leads_nowhere_is_one_sentence(settings: Settings) -> None:
    """What starts a code server can say why the day is not known."""
    away = settings.model_copy(update={"postgres_url": SecretStr(f"postgresql+psycopg://u:secret@{NOWHERE}/outbox")})

    with pytest.raises(Exception, match="cannot be reached") as raised:
        find_first_day(away)

    assert "secret" not in str(raised.value)
