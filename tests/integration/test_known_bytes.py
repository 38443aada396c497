"""A row of known bytes goes first: where it does not come back as it was sent nothing is delivered or held."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from outbox_pipeline.clickhouse import load
from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.event_schema import SENT
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.log import make_log
from outbox_pipeline.relay.attempts import end_failed, start_unrequested
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.commands import run_outbox
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.owners import ledger_id_of
from tests.fixtures.proxy import Change, FaultyProxy, through

pytestmark = pytest.mark.usefixtures("unclaimed")

#: How the statement begins that sends the row, and how any does that sends rows of this form.
KNOWN = "INSERT INTO {known_bytes:"
ANY = "INSERT INTO {"

#: What another value of each kind is made of the one that was sent.
ALTERED = {
    "name": "concat({value}, ' ')",
    "text": "concat({value}, ' ')",
    "json": "replaceAll({value}, ' ', '')",
    "number": "{value} + 1",
    "count": "{value} + 1",
    "uuid": "reinterpretAsUUID(reverse(event_id))",
    "time": "{value} + toIntervalMillisecond(1)",
}


@pytest.fixture
def behind(stores: Stores, proxy: FaultyProxy) -> Iterator[Stores]:
    """The stores with the way to ClickHouse leading through the proxy; the table is this ledger's from before."""
    claim_table(stores)
    with through_proxy(stores, proxy) as found:
        yield found


@contextmanager
def through_proxy(stores: Stores, proxy: FaultyProxy) -> Iterator[Stores]:
    """Open another connection through the proxy, as another process would."""
    settings = through(proxy, stores.settings)
    with clickhouse_client(settings) as client:
        yield replace(stores, client=client, settings=settings)


def count(stores: Stores, statement: str) -> int:
    """Return a number of PostgreSQL."""
    with stores.engine.connect() as connection:
        return int(connection.scalar(text(statement)) or 0)


def rows_of(stores: Stores, role: str) -> int:
    """Return how many rows one of the log's tables has."""
    return int(stores.client.rows(f"SELECT count() AS count FROM {{{role}:Identifier}}")[0]["count"])


def finding(stores: Stores) -> Check:
    """Return what the doctor says of the row."""
    (found,) = [check for check in examine(stores.settings) if check.name == "clickhouse known bytes"]
    return found


def altering(column: str) -> Change:
    """Return what makes ClickHouse store another value in one column of what is sent."""
    (kind,) = [one.kind for one in SENT if one.name == column]
    value = {"event_id": "reinterpretAsUUID(event_id)", "generation": "{generation:UInt32}"}.get(column, column)

    def change(statement: str) -> str:
        head, select, rest = statement.partition("\nSELECT ")
        values, source, end = rest.partition(", {source:String} FROM")
        altered = [ALTERED[kind].format(value=value) if one == value else one for one in values.split(", ")]
        return f"{head}{select}{', '.join(altered)}{source}{end}"

    return change


def as_other_format(statement: str) -> str:
    """Return the statement of a sender whose data the server takes for another format than it has."""
    return statement.replace("FORMAT Arrow", "FORMAT JSONEachRow")


def test_each_process_sends_one_row_before_its_first_batch(stores: Stores, behind: Stores) -> None:
    """A relay sends it before it cuts, a run before it sends, and both once for their connection."""
    publish(stores.engine, 3)
    points: list[Point] = []
    end = listen(points.append)
    relay(stores)
    publish(stores.engine, 1)
    relay(stores)
    publish(stores.engine, 1)
    deliver(start(behind))
    end()

    before = [points[: at + 1] for at, point in enumerate(points) if point == Point.KNOWN_BYTES_SENT]
    assert [Point.CUT in each for each in before] == [False, True]
    assert [each.count(Point.SENDING) for each in before] == [0, 2]
    assert rows_of(stores, "known_bytes") == 2
    assert_each_exactly_once(stores.engine, stores.client)


def test_it_goes_by_the_statement_of_a_batch(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement and settings of row and batch differ in the table and in what names the batch, and in nothing else."""
    sent: list[tuple[str, dict[str, Any]]] = []
    command = stores.client.driver.command

    def record(statement: str, *, settings: dict[str, Any], data: Any, **named: Any) -> Any:
        if data is not None and "FORMAT Arrow" in statement:
            sent.append((statement, settings))
        return command(statement, settings=settings, data=data, **named)

    monkeypatch.setattr(stores.client.driver, "command", record)
    publish(stores.engine, 3)
    relay(stores)
    (known, known_settings), (batch, settings) = sent
    own = {"insert_deduplication_token", "query_id", "log_comment"}

    assert known == batch.replace("{table:", "{known_bytes:")
    assert {name: value for name, value in known_settings.items() if name not in own} == {
        name: value for name, value in settings.items() if name not in own
    }
    assert known_settings.keys() == settings.keys()


@pytest.mark.parametrize("column", [column.name for column in SENT if column.name != "batch_id"])
def test_nothing_is_delivered_where_a_column_arrives_otherwise(
    stores: Stores, behind: Stores, proxy: FaultyProxy, column: str
) -> None:
    """The sentence names the column, nothing is cut, sent or held, and all of it arrives once the way is right."""
    publish(stores.engine, 2)
    proxy.change(ANY, altering(column))

    with pytest.raises(ConfigurationError, match=rf"shows other known bytes than were sent \({column}\)"):
        relay(behind)
    assert count(stores, "SELECT count(*) FROM outbox.batch") == 0
    assert rows_of(stores, "table") == 0

    proxy.change_nothing()
    relay(behind)
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_attempt_stops_before_its_first_byte(stores: Stores, behind: Stores, proxy: FaultyProxy) -> None:
    """A run that no relay's look came before fails with the sentence, as configuration, and sends nothing."""
    publish(stores.engine, 2)
    proxy.change(ANY, altering("event_id"))
    delivery = start(behind)

    with pytest.raises(ConfigurationError, match="with no event") as failed:
        deliver(delivery)
    end_failed(delivery, failed.value)
    assert count(stores, "SELECT count(*) FROM outbox.batch WHERE last_error_kind = 'configuration'") == 1
    assert (rows_of(stores, "table"), rows_of(stores, "ledger")) == (0, 0)

    proxy.change_nothing()
    deliver(start_unrequested(behind, delivery.lease.batch_id))
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_row_that_does_not_arrive_is_told(stores: Stores, behind: Stores, proxy: FaultyProxy) -> None:
    """An insert that is answered OK and stores nothing is a finding, too."""
    publish(stores.engine, 2)
    proxy.change(KNOWN, lambda statement: statement.replace("\nFORMAT Arrow", " AND position = 0\nFORMAT Arrow"))

    with pytest.raises(ConfigurationError, match="shows 0 rows where one of known bytes was sent"):
        relay(behind)


@pytest.mark.parametrize("number", [1, 3])
def test_a_server_that_refuses_every_event_holds_none(
    stores: Stores, behind: Stores, proxy: FaultyProxy, number: int
) -> None:
    """It refuses known bytes as well, so the batch fails and waits, also one of a single event."""
    publish(stores.engine, 1)
    relay(behind)
    publish(stores.engine, number)
    proxy.change(ANY, as_other_format)

    failed = relay(behind)

    assert "refuses even a row of known bytes" in failed.failures[0]
    assert "with no event" in failed.failures[0]
    assert count(stores, "SELECT count(*) FROM outbox.quarantined_event") == 0
    assert count(stores, "SELECT count(*) FROM outbox.batch WHERE rejected_count > 0 OR generation > 0") == 0
    proxy.change_nothing()
    (batch_id,) = failed_batches(stores)
    deliver(start_unrequested(behind, batch_id))
    assert_each_exactly_once(stores.engine, stores.client)


def failed_batches(stores: Stores) -> list[Any]:
    """Return the ids of failed batches."""
    with stores.engine.connect() as connection:
        return list(connection.execute(text("SELECT batch_id FROM outbox.batch WHERE status = 'failed'")).scalars())


def test_a_server_that_came_to_alter_events_holds_none(stores: Stores, behind: Stores, proxy: FaultyProxy) -> None:
    """A refusal is looked at once more with known bytes: what has been proved at the first delivery may be over."""
    publish(stores.engine, 1)
    relay(behind)
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT none CHECK event_type = 'order_placed'")
    publish(stores.engine, 1)
    proxy.change(ANY, altering("event_type"))

    failed = relay(behind)

    assert "shows other known bytes than were sent (event_type)" in failed.failures[0]
    assert count(stores, "SELECT count(*) FROM outbox.quarantined_event") == 0


@pytest.mark.parametrize("number", [1, 3])
def test_events_that_clickhouse_refuses_are_held(stores: Stores, number: int) -> None:
    """Known bytes are taken, so the events are judged one by one, also where there is one."""
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")
    publish(stores.engine, number - 1)
    publish(stores.engine, 1, event_type="poison")

    done = relay(stores)

    assert (done.delivered_count, done.quarantined_count) == (number - 1, 1)
    # One before the first batch, one before the event was held.
    assert rows_of(stores, "known_bytes") == 2


def test_two_processes_at_once_do_not_disturb_each_other(stores: Stores, behind: Stores) -> None:
    """Each reads the row back that it has sent, whatever else stands in the table."""
    publish(stores.engine, 1)

    with ThreadPoolExecutor(2) as both:
        done = list(both.map(relay, [stores, behind]))

    assert [each.failures for each in done] == [(), ()]
    assert rows_of(stores, "known_bytes") == 2
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_table_forgets_its_rows(stores: Stores) -> None:
    """A row is gone a day after it was sent, so that the table does not grow with every run."""
    relay(stores)
    stores.client.run(
        "INSERT INTO {known_bytes:Identifier} (position, loaded_at) SELECT 1, now64(6) - toIntervalDay(2)"
    )
    stores.client.run("OPTIMIZE TABLE {known_bytes:Identifier} FINAL")

    assert rows_of(stores, "known_bytes") == 1


def test_the_doctor_and_init_say_it_too(
    stores: Stores, behind: Stores, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both send the row, and end with the sentence where it comes back otherwise."""
    for name in ("postgres_url", "clickhouse_url"):
        url = getattr(behind.settings, name)
        monkeypatch.setenv(f"OUTBOX_{name.upper()}", url.get_secret_value())

    assert finding(behind).ok is True
    assert run_outbox("init").exit_code == 0
    assert proxy.count(KNOWN) == 2
    proxy.change(ANY, altering("position"))
    said = finding(behind)
    init = run_outbox("init")

    sentence = "shows other known bytes than were sent (position)"
    assert (said.ok, sentence in said.message) == (False, True)
    assert (init.exit_code, sentence in " ".join(init.stderr.split())) == (1, True)


def test_the_doctor_sends_nothing_into_a_table_that_is_not_its_own(stores: Stores, other: Stores) -> None:
    """Where nobody has claimed the table there is nothing to be proved yet, and where another outbox has neither."""
    unclaimed = finding(stores)
    claim_table(other)

    assert (unclaimed.ok, "belongs to no outbox yet" in unclaimed.message) == (True, True)
    assert ledger_id_of(other) != ledger_id_of(stores)
    assert finding(stores).ok is None
    assert rows_of(stores, "known_bytes") == 0


def test_a_server_older_than_promised_is_refused(stores: Stores, proxy: FaultyProxy) -> None:
    """Making the log, the doctor and a delivery end with one sentence before anything is made, cut or sent."""
    version = str(stores.client.driver.server_version)
    proxy.change_answers(version, f"1{version[1:]}")
    publish(stores.engine, 1)

    said = rf"has version 1{version[1:]}, which is too old: update the server to 25\.8 or later"
    with through_proxy(stores, proxy) as old:
        for refused in (lambda: make_log(old.engine, old.client), lambda: relay(old)):
            with pytest.raises(ConfigurationError, match=said):
                refused()
        (found,) = [check for check in examine(old.settings) if check.name == "clickhouse"]

        assert (found.ok, "which is too old" in found.message) == (False, True)
        assert proxy.count("INSERT") == 0
    assert count(stores, "SELECT count(*) FROM outbox.batch") == 0


@pytest.fixture
def with_binary_ids(monkeypatch: pytest.MonkeyPatch, stores: Stores) -> Iterator[None]:
    """Send ids as Arrow's 16 bytes, which ClickHouse is to take for a UUID: right from 26.5 on, and wrong before."""
    version = tuple(int(part) for part in str(stores.client.driver.server_version).split(".")[:2])
    if version >= (26, 5):
        pytest.skip("this ClickHouse reads Arrow's 16 bytes as the UUID that they are")
    monkeypatch.setattr(load, "_ID_IN_FILE", "UUID")
    monkeypatch.setattr(load, "_ID_OF_FILE", "{name}")
    monkeypatch.setattr(load, "_as_held", lambda events: events["event_id"])
    load._fenced_insert.cache_clear()
    yield
    load._fenced_insert.cache_clear()


def test_ids_that_an_older_server_misreads_are_never_sent(with_binary_ids: None, stores: Stores) -> None:
    """Without the form that every version reads, the delivery stops at the known bytes: no event is held or altered."""
    publish(stores.engine, 8)

    with pytest.raises(ConfigurationError, match="known bytes"):
        relay(stores)

    assert count(stores, "SELECT count(*) FROM outbox.quarantined_event") == 0
    assert rows_of(stores, "table") == 0
