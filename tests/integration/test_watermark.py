"""Through when all is delivered: what is open, prepared or begun during a write is never promised."""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, func, select, text

from outbox_pipeline.operations import completeness
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.postgres import completeness as watermark
from outbox_pipeline.postgres.cut import read_holders
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.days import recorded_at, today
from tests.fixtures.events import publish, publish_in
from tests.fixtures.interleave import at_statement
from tests.fixtures.ledger import execute
from tests.fixtures.watermark import Promises, Traffic

MIGRATION = Path(watermark.__file__).parent / "migrations" / "sql" / "0006_completeness.sql"


@pytest.mark.parametrize("stage", ["not cut past", "gap", "gap looked at again"])
def test_an_open_transaction_holds_the_day_back(stores: Stores, producers: Engine, stage: str) -> None:
    """What a transaction has inserted and not committed bounds the day, whether a cut has noticed it or not."""
    record_completeness(stores)
    with producers.connect() as slow:
        publish_in(slow)
        at = recorded_at(slow)
        if stage != "not cut past":
            publish(producers, 1)
            relay(stores, until_empty=True)
        if stage == "gap looked at again":
            with producers.connect() as other:
                publish_in(other)
                publish(producers, 1)
                relay(stores, until_empty=True)
            relay(stores, until_empty=True)
        held_back = [today(stores), today(stores)]
        slow.commit()
    committed = today(stores)
    relay(stores, until_empty=True)

    assert all(day.complete_through <= at for day in [*held_back, committed])
    assert today(stores).complete_through > at


@pytest.mark.usefixtures("needs_prepared")
def test_a_prepared_transaction_holds_the_day_back(stores: Stores, producers: Engine) -> None:
    """A transaction that takes another name when it is prepared is still known to be as old as it is."""
    name = f"outbox_{uuid4().hex}"
    record_completeness(stores)
    with producers.connect() as slow:
        publish_in(slow)
        at = recorded_at(slow)
        record_completeness(stores)
        slow.exec_driver_sql(f"PREPARE TRANSACTION '{name}'")
        slow.rollback()
    held_back = [today(stores), today(stores)]
    with producers.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"COMMIT PREPARED '{name}'")
    relay(stores, until_empty=True)

    assert all(day.complete_through <= at for day in held_back)
    assert today(stores).complete_through > at


def test_a_transaction_without_events_holds_nothing_back(stores: Stores, producers: Engine) -> None:
    """Readers and idle transactions do not matter, however long they last."""
    with producers.connect() as reader:
        recorded_at_first = reader.scalar(text("SELECT clock_timestamp()"))
        reader.execute(text("SELECT count(*) FROM outbox.event"))
        day = today(stores)

    assert recorded_at_first is not None
    assert day.complete_through == day.written_at > recorded_at_first


def test_busy_producers_hold_it_back_by_one_write_at_most(stores: Stores, producers: Engine) -> None:
    """While there is always an open transaction, and never the same, the watermark moves on with each write."""
    slow = producers.connect()
    publish_in(slow)
    written = [today(stores)]
    for _ in range(3):
        following = producers.connect()
        publish_in(following)
        slow.rollback()
        slow.close()
        slow = following
        written.append(today(stores))
    slow.close()

    for before, after in pairwise(written):
        assert after.complete_through == before.written_at


def test_a_transaction_that_was_there_before_the_migration_is_of_unknown_age(stores: Stores, producers: Engine) -> None:
    """Nothing is called complete before the transactions have ended that were open when the watermark began."""
    with producers.connect() as slow:
        publish_in(slow)
        with stores.engine.begin() as connection:
            connection.execute(text("DELETE FROM outbox.watermark"))
            insert, update = MIGRATION.read_text().partition("-- Two statements")[2].split(";\n")[:2]
            connection.exec_driver_sql(insert.partition("\n")[2])
            connection.exec_driver_sql(update)
        unknown = today(stores)
        slow.rollback()

    assert unknown.complete_through == datetime(1970, 1, 1, tzinfo=UTC)
    assert today(stores).complete_through > unknown.written_at


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("what", ["inserts", "inserts and commits", "commits what it had inserted"])
def test_what_happens_during_a_write_is_not_promised(stores: Stores, producers: Engine, number: int, what: str) -> None:
    """Between any two statements of a write a transaction inserts, or commits, or both."""
    promises = Promises(stores)
    promises.record()
    with producers.connect() as other:

        def interfere() -> None:
            if "inserts" in what:
                publish_in(other)
            if "commits" in what:
                other.commit()

        if "had" in what:
            publish_in(other)
        with at_statement(stores.engine, number, interfere):
            promises.record()
        other.commit()

    assert not promises.broken()


@pytest.mark.usefixtures("needs_prepared")
@pytest.mark.parametrize("seed", range(4))
def test_no_write_promises_too_much(patient: Stores, producers: Engine, seed: int) -> None:
    """Open, late, prepared and rolled back transactions, cuts, deliveries, failures and requeues in any order."""
    traffic = Traffic(patient, producers, seed)

    traffic.run(45)

    assert not traffic.promises.broken()
    with patient.engine.begin() as connection:
        assert today(patient).complete_through > recorded_at(connection)


def observe_without_holders(connection: Connection) -> tuple[datetime, datetime]:
    """Move the watermark on as if nobody had a transaction open."""
    at = connection.scalars(select(func.clock_timestamp())).one()
    return at, at


def observe_late(connection: Connection) -> tuple[datetime, datetime]:
    """Read the clock after the holders instead of before them."""
    holders = read_holders(connection)
    at = connection.scalars(select(func.clock_timestamp())).one()
    return at, connection.scalars(query("watermark"), {"observed_at": at, "holders": holders}).one()


def observe_forgetting_names(connection: Connection) -> tuple[datetime, datetime]:
    """Take a transaction that has just been prepared for a new one."""
    with connection.begin_nested():
        connection.execute(
            text("UPDATE outbox.watermark SET holders = (SELECT coalesce(jsonb_object_agg(key, value), '{}')"
                 " FROM jsonb_each(holders) WHERE key LIKE '-1/%')")
        )  # fmt: skip
    return watermark.observe(connection)


@pytest.mark.usefixtures("needs_prepared")
@pytest.mark.parametrize("broken", [observe_without_holders, observe_forgetting_names])
def test_the_traffic_finds_a_watermark_that_promises_too_much(
    patient: Stores, producers: Engine, monkeypatch: pytest.MonkeyPatch, broken: object
) -> None:
    """A watermark that ignores open transactions, or loses sight of one that is prepared, does not pass."""
    monkeypatch.setattr(completeness, "observe", broken)
    found = ""
    for seed in range(10):
        traffic = Traffic(patient, producers, seed)
        traffic.run(40)
        if found := traffic.promises.broken():
            break

    assert found


def test_a_clock_read_after_the_holders_promises_too_much(
    stores: Stores, producers: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the statements is what the promise rests on: in the other one a transaction in between is missed."""
    monkeypatch.setattr(completeness, "observe", observe_late)
    promises = Promises(stores)
    with producers.connect() as late:
        for number in range(1, 12):
            with at_statement(stores.engine, number, lambda: publish_in(late)):
                promises.record()
            late.commit()
            relay(stores, until_empty=True)

    assert promises.broken()


@pytest.mark.parametrize("when", ["before the look", "after the look"])
def test_after_a_clock_that_was_ahead_an_open_transaction_is_of_unknown_age(
    stores: Stores, producers: Engine, when: str
) -> None:
    """Who came after a look at a time in the future has not recorded after it: nothing is complete until they end."""
    with producers.connect() as slow:
        if when == "before the look":
            publish_in(slow)
        record_completeness(stores)
        shift(stores.engine, days=400, table="watermark")
        execute(
            stores.engine,
            "UPDATE outbox.watermark SET holders = coalesce((SELECT jsonb_object_agg(key, value::text::timestamptz"
            " + interval '400 days') FROM jsonb_each_text(holders)), '{}')",
        )
        publish_in(slow)
        unknown = [today(stores), today(stores)]
        slow.commit()
    relay(stores, until_empty=True)

    assert [day.complete_through.year for day in unknown] == [1970, 1970]
    assert today(stores).complete_through > unknown[-1].written_at
