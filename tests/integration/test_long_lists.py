"""Lists of any length reach ClickHouse past a proxy that reads 8 kB of an address, and fit into a field of a form."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from outbox_pipeline.batches import Batch
from outbox_pipeline.clickhouse.batch_rows import MAX_FOREIGN_STRETCHES
from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.clickhouse.completeness import drop_days, read_delivered
from outbox_pipeline.clickhouse.fences import drop_fences
from outbox_pipeline.clickhouse.load import delete_older_generations
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse
from outbox_pipeline.clickhouse.reconcile import shown_proofs, shown_types, unknown_rows
from outbox_pipeline.clickhouse.witness import Cut, add_cuts, look_before_sending
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.replay import Outcome, batches_of_days, replay
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.proxy import FaultyProxy, Request, through

#: nginx's buffer for a request line (`large_client_header_buffers`), and ClickHouse's for a field of a form.
LONGEST_LINE = 8192
LONGEST_FIELD = 131_072
#: More items than one statement names.
MANY = 3_500


class Front(FaultyProxy):
    """A proxy as people put it before ClickHouse: nginx with its defaults, and ClickHouse's own limit behind it."""

    longest_line = 0
    max_body: int | None = None

    def _answer(self, request: Request) -> bytes | None:
        line = len(request.head.partition(b"\r\n")[0]) + 2
        self.longest_line = max(line, self.longest_line)
        if line > LONGEST_LINE:
            return b"HTTP/1.1 414 Request-URI Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if self.max_body is not None and len(request.body) > self.max_body:
            return b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if any(len(field) > LONGEST_FIELD for field in _fields(request)):
            said = b"Poco::Exception. Code: 1000, HTML Form Exception: Field value too long (POCO_EXCEPTION)"
            head = f"HTTP/1.1 500 Error\r\nX-ClickHouse-Exception-Code: 1000\r\nContent-Length: {len(said)}\r\n\r\n"
            return head.encode() + said
        return None


def _fields(request: Request) -> list[bytes]:
    _, is_form, boundary = request.head.partition(b"multipart/form-data; boundary=")
    return request.body.split(b"--" + boundary.split(b"\r\n")[0]) if is_form else []


@pytest.fixture
def front(stores: Stores) -> Iterator[Front]:
    """The proxy, in front of this test's ClickHouse."""
    assert stores.settings.clickhouse_url is not None
    front = Front.to(stores.settings.clickhouse_url.get_secret_value())
    yield front
    front.close()


@pytest.fixture
def behind(stores: Stores, front: Front) -> Iterator[Stores]:
    """The stores as a process has them whose way to ClickHouse leads through the proxy."""
    settings = through(front, stores.settings)
    with clickhouse_client(settings) as client:
        yield replace(stores, client=client, settings=settings)


def newest(stores: Stores) -> Batch:
    """Return the batch that was cut last."""
    return batches_of_days(stores.engine, date(1970, 1, 1), date(2199, 1, 1))[-1]


def ids(count: int) -> list[UUID]:
    """Return new ids."""
    return [uuid4() for _ in range(count)]


def test_everything_passes_a_proxy_with_defaults(behind: Stores, front: Front) -> None:
    """A delivery, a repair and a comparison need no more than half of an address."""
    publish(behind.engine, 20)
    relay(behind, until_empty=True)
    (sent,) = replay(behind, [newest(behind)], reload=True)

    assert sent.outcome == Outcome.REDELIVERED
    assert reconcile(behind, by_type=True).is_clean
    assert_each_exactly_once(behind.engine, behind.client)
    assert 0 < front.longest_line < LONGEST_LINE * 2 // 3


def test_many_fences_are_dropped(behind: Stores) -> None:
    """All of them, in steps that a form takes."""
    batch_ids = ids(MANY)
    values = ", ".join(f"('', '{batch_id}', 2)" for batch_id in batch_ids)
    behind.client.run(
        "INSERT INTO {fence:Identifier} (source, batch_id, attempt) FORMAT Values", body=[values.encode()]
    )

    drop_fences(behind.client, batch_ids)

    assert behind.client.rows("SELECT count() AS found FROM {fence:Identifier}") == [{"found": 0}]


def test_many_foreign_stretches_are_left_alone(behind: Stores) -> None:
    """Proof and delete of an adopted batch with more stretches than one statement names."""
    publish(behind.engine, 20)
    relay(behind, until_empty=True)
    far = 10**15
    count = 2 * MAX_FOREIGN_STRETCHES + 1
    batch = replace(
        newest(behind), foreign_positions=tuple((far + 10 * each, far + 10 * each + 5) for each in range(count))
    )
    proof, _ = proof_in_clickhouse(behind.client, replace(batch, last_position=far + 10 * count), generation=0)

    delete_older_generations(behind.client, batch, 1)

    assert proof.row_count == 20
    assert behind.client.rows("SELECT count() AS found FROM {table:Identifier}") == [{"found": 0}]


def test_many_days_are_dropped(behind: Stores) -> None:
    """A table that changes hands loses all days at once."""
    days = [date(1990, 1, 1) + timedelta(days=each) for each in range(11_000)]
    behind.client.run(
        "INSERT INTO {completeness:Identifier} (day, written_at)"
        " VALUES ('1990-01-01', '2026-01-01 00:00:00'), ('2020-02-02', '2026-01-01 00:00:00')"
    )

    drop_days(behind.client, days, written_after=datetime(2000, 1, 1, tzinfo=UTC))

    assert read_delivered(behind.client) == []


def test_many_batches_are_asked_for(behind: Stores) -> None:
    """Proofs, types and unknown batches of more ids than one statement names."""
    publish(behind.engine, 20)
    relay(behind, until_empty=True)
    batch = newest(behind)
    others = [replace(batch, batch_id=batch_id) for batch_id in ids(MANY)]

    proofs = shown_proofs(behind.client, [*others, batch])
    types = shown_types(behind.client, [batch, *others])
    unknown = unknown_rows(behind.client, [*ids(MANY), batch.batch_id])

    assert [each[0].row_count for each in proofs.values()] == [20]
    assert [each.row_count for each in types] == [20]
    assert [each.row_count for each in unknown] == [20]


def test_many_numbers_are_looked_up(behind: Stores) -> None:
    """The look of an attempt names every number below its own that is not sent yet."""
    cuts = [Cut(number, uuid4()) for number in range(1, 30_001)]
    add_cuts(behind.client, cuts, uuid4())

    looks = look_before_sending(behind.client, 29_999, further=range(1, 29_000), lease_seconds=1)
    found = [cut for some, _ in looks for cut in some]

    assert sorted(cut.cut_number for cut in found) == [*range(1, 29_000), 29_999, 30_000]


def test_a_body_that_a_proxy_refuses_is_a_setting_of_the_proxy(behind: Stores, front: Front) -> None:
    """The sentence says which; nothing is quarantined, and once it is set everything arrives."""
    publish(behind.engine, 500)
    front.max_body = 5_000
    relay(behind)
    with pytest.raises(ConfigurationError, match="client_max_body_size"):
        behind.client.run("INSERT INTO {fence:Identifier} (attempt) FORMAT Values", body=[b"(1)," * 5_000])

    front.max_body = None
    # Once its backoff is over, which is longer than the statement above takes.
    assert wait_until(lambda: relay(behind).delivered_count == 500, seconds=30)

    assert_each_exactly_once(behind.engine, behind.client)
