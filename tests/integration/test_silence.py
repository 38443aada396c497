"""Servers and networks that stop answering end no work for good: each wait has an end, and another attempt delivers."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from uuid import uuid4

import adbc_driver_manager
import pytest
from adbc_driver_postgresql import dbapi
from pydantic import SecretStr
from sqlalchemy import Engine, text

from outbox_pipeline.batches import BatchRequest
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.errors import InDoubtError, LeaseLostError, TransientError
from outbox_pipeline.limits import StepLimits
from outbox_pipeline.postgres import watchdog
from outbox_pipeline.postgres.adopt import lift_limits
from outbox_pipeline.postgres.conninfo import conninfo_of
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.children import recover
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.proxy import INSERT, Fault, FaultyProxy, through
from tests.fixtures.quiet import QuietNetwork

_PATIENCE_SECONDS = 30

#: What only the read of a batch says.
_READ = b"CROSS JOIN LATERAL unnest(batch.positions) AS stretch"


_TOO_LONG = "it was busy in its own process for 1 s without an end, so its lease is no longer renewed"


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a backend of the test's server, and let it go on at the end; by itself, should nobody get there."""
    waker = threading.Timer(_PATIENCE_SECONDS, os.kill, (pid, signal.SIGCONT))
    waker.daemon = True
    waker.start()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        waker.cancel()
        os.kill(pid, signal.SIGCONT)


def ask(stores: Stores) -> list[BatchRequest]:
    """Draw the next attempt of the batch that is due, if one is."""
    return request_batches(stores.engine, stores.settings, limit=1)


def start(stores: Stores) -> Delivery:
    """Cut what is pending into a batch and begin its first attempt."""
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = ask(stores)
    return start_requested(stores, request.batch_id, request.attempt)


def raised(work: Callable[[], object]) -> BaseException | None:
    """Return what a piece of work raises."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - returned to be looked at
        return error
    return None


def has_moved(stores: Stores, until: object) -> Callable[[], bool]:
    """Return what tells whether the lease of the only batch ends at another time than *until*."""
    return lambda: ledger_says(stores, "lease_until") != until


def ledger_says(stores: Stores, what: str) -> object:
    """Return something of the only batch."""
    with stores.engine.begin() as connection:
        return connection.scalar(text(f"SELECT {what} FROM outbox.batch"))


def ask_stopped(engine: Engine) -> None:
    """Send a statement to a backend that does not run."""
    with ledger_transaction(engine, statement_timeout_seconds=1) as connection:
        stop = frozen(connection.scalar(text("SELECT pg_backend_pid()")) or 0)
        with stop:
            connection.execute(text("SELECT 1"))


def processed_count(stores: Stores) -> object:
    """Return how many batches are processed."""
    with stores.engine.begin() as connection:
        return connection.scalar(text("SELECT count(*) FROM outbox.batch WHERE status = 'processed'"))


@pytest.mark.embedded_only
def test_a_stopped_backend_is_given_up(outbox_engine: Engine) -> None:
    """A statement that is never answered ends the transaction with a sentence, and the next one has another session."""
    with pytest.raises(TransientError, match="did not answer a statement within 2 s, so its connection was closed"):
        ask_stopped(outbox_engine)

    with ledger_transaction(outbox_engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_what_may_be_long_is_waited_for(outbox_engine: Engine) -> None:
    """An adoption of very much is ended neither by the server nor from here, where other statements would be."""
    with ledger_transaction(outbox_engine, statement_timeout_seconds=1) as connection:
        lift_limits(connection)
        assert connection.scalar(text("SELECT 1 FROM pg_sleep(2.3)")) == 1


def test_no_end_of_a_transaction_is_waited_for_in_vain(far_engine: Engine, quiet_network: QuietNetwork) -> None:
    """Neither COMMIT, which is then in doubt as after every connection that broke, nor ROLLBACK keeps its caller."""

    def end(error: Exception | None) -> None:
        with ledger_transaction(far_engine, statement_timeout_seconds=1):
            if error is not None:
                raise error

    end(None)
    silences = [quiet_network.silence(words) for words in (b"COMMIT\0", b"ROLLBACK\0")]
    with ThreadPoolExecutor(2) as together:
        ends = list(together.map(lambda error: raised(lambda: end(error)), [None, RuntimeError()]))

    assert [type(each) for each in ends] == [TransientError] * 2, ends
    assert all("did not answer a statement within 2 s" in str(each) for each in ends), ends
    assert all(silence.is_kept for silence in silences)


def test_a_session_that_went_silent_while_idle_is_replaced(far_engine: Engine, quiet_network: QuietNetwork) -> None:
    """Whoever wants a connection does not wait long for one that the network has forgotten."""
    watchdog.watch(far_engine, ping_seconds=1)
    with ledger_transaction(far_engine) as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    silence = quiet_network.silence()

    with ledger_transaction(far_engine) as connection:
        after = connection.scalar(text("SELECT pg_backend_pid()"))

    assert silence.is_kept
    assert before != after


def test_an_idle_connection_for_reading_that_went_silent_is_replaced(
    far_stores: Stores, quiet_network: QuietNetwork
) -> None:
    """The driver of the bulk read would wait for ever for the first statement on it."""
    publish(far_stores.engine, 3)
    (batch,) = cut_batches(far_stores.engine, far_stores.settings, limit=1).batches
    first = extract_events(far_stores.engine, batch.batch_id)
    silence = quiet_network.silence()

    assert extract_events(far_stores.engine, batch.batch_id, seconds=1) == first
    assert silence.is_kept


def test_a_read_that_is_not_answered_is_given_up(far_stores: Stores, quiet_network: QuietNetwork) -> None:
    """Its attempt fails with a sentence that says when it was given up, another delivers, and a late answer is lost."""
    publish(far_stores.engine, 30)
    silence = quiet_network.silence(_READ)

    result = relay(replace(far_stores, limits=StepLimits(reading=1)))
    recover(far_stores)
    silence.over.set()

    (failure,) = result.failures
    assert "did not hand out a batch within 2 s, so its connection was closed" in failure
    assert_each_exactly_once(far_stores.engine, far_stores.client)


def test_one_batch_that_hangs_does_not_keep_the_others(
    stores: Stores, far_stores: Stores, quiet_network: QuietNetwork
) -> None:
    """While the read of one batch is not answered, the relay delivers those behind it."""
    small = replace(far_stores, settings=far_stores.settings.model_copy(update={"batch_max_events": 10}))
    publish(stores.engine, 30)
    silence = quiet_network.silence(_READ)
    with ThreadPoolExecutor(1) as background:
        relayed = background.submit(relay, small, until_empty=True)
        done = wait_until(lambda: processed_count(stores) == 2, seconds=_PATIENCE_SECONDS)
        is_held = silence.is_kept and not relayed.done()
        silence.over.set()

    assert done
    assert is_held
    assert relayed.result().delivered_count == 30
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_lease_of_a_step_that_hangs_runs_out(stores: Stores) -> None:
    """Whatever a step hangs on, another attempt takes its batch; the one that comes back later changes nothing."""
    publish(stores.engine, 30)
    delivery = start(replace(stores, limits=StepLimits(working=1)))
    free = threading.Event()
    end = listen(
        lambda point: threading.current_thread().name == "late_0" and point == Point.EXTRACTED and free.wait(20)
    )
    with ThreadPoolExecutor(1, thread_name_prefix="late") as late, ExitStack() as after:
        after.callback(end)
        after.callback(free.set)
        prepared = late.submit(delivery.prepare)
        assert wait_until(lambda: ledger_says(stores, "last_error_kind") == "silence", seconds=_PATIENCE_SECONDS)
        said = ledger_says(stores, "last_error")
        free.set()
        prepared.result()

    assert said == f"Attempt 1 went silent: {_TOO_LONG}."
    with pytest.raises(LeaseLostError, match=_TOO_LONG):
        delivery.finish()
    requests: list[BatchRequest] = []
    assert wait_until(lambda: requests.extend(ask(stores)) or bool(requests), seconds=_PATIENCE_SECONDS)
    assert ledger_says(stores, "last_error") == said
    deliver(start_requested(stores, requests[0].batch_id, requests[0].attempt))
    with pytest.raises(LeaseLostError, match="the ledger is at attempt 2, processed"):
        delivery.finish()
    assert end_failed(delivery, TransientError("late")) is None
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_slow_answer_keeps_the_lease(stores: Stores, proxy: FaultyProxy) -> None:
    """An answer of ClickHouse may take much longer than a lease, and than a step that waits for nothing."""
    publish(stores.engine, 30)
    held = proxy.inject(Fault.HOLD_ANSWER, INSERT)
    client = open_client(through(proxy, stores.settings))
    delivery = start(Stores(stores.engine, client, stores.settings, StepLimits(working=1)))
    with ThreadPoolExecutor(1) as slow:
        marked = slow.submit(deliver, delivery)
        held.wait_reached()
        for _ in range(3):
            assert wait_until(has_moved(stores, ledger_says(stores, "lease_until")), seconds=_PATIENCE_SECONDS)
        held.release()

        assert marked.result().accepted_count == 30
    client.close()
    assert ledger_says(stores, "(status, attempt, failures)::text") == "(processed,1,0)"
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_request_that_never_ends_is_given_up(stores: Stores, proxy: FaultyProxy) -> None:
    """A request that lasts too long ends in doubt, though its server is not silent for long; the next attempt looks."""
    publish(stores.engine, 30)
    held = proxy.inject(Fault.HOLD_ANSWER, INSERT)
    client = open_client(through(proxy, stores.settings), request_seconds=1)
    delivery = start(replace(stores, client=client))

    with pytest.raises(InDoubtError, match="has not ended a request within 1 s, so its connection was closed") as found:
        deliver(delivery)
    end_failed(delivery, found.value)
    held.release()
    recover(stores)

    client.close()
    assert_each_exactly_once(stores.engine, stores.client)


def test_renewals_go_on_over_another_session(stores: Stores, far_stores: Stores, quiet_network: QuietNetwork) -> None:
    """A heartbeat whose own session went silent renews the lease over another one."""
    watchdog.watch(far_stores.engine, ping_seconds=1)
    publish(stores.engine, 30)
    delivery = start(far_stores)
    silence = quiet_network.silence()
    silence.wait_reached()

    assert wait_until(has_moved(stores, ledger_says(stores, "lease_until")), seconds=_PATIENCE_SECONDS)
    assert silence.is_kept
    deliver(delivery)
    assert_each_exactly_once(stores.engine, stores.client)


class Deaf:
    """Servers that say one thing, or nothing, to whoever connects, and no more; in the end they hang up."""

    def __init__(self) -> None:
        """Start none yet."""
        self.has_ended = threading.Event()
        self._open: list[socket.socket] = []

    def engine(self, said: bytes) -> Engine:
        """Start a server and return an engine on it."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._open.append(listener)
        threading.Thread(target=self._serve, args=(listener, said), daemon=True).start()
        mode = "require" if said else "disable"
        url = f"postgresql+psycopg://u@127.0.0.1:{listener.getsockname()[1]}/d?sslmode={mode}"
        return create_outbox_engine(Settings(postgres_url=SecretStr(url)), pooled=False)

    def end(self) -> None:
        """Hang up."""
        self.has_ended.set()
        for each in self._open:
            each.close()

    def _serve(self, listener: socket.socket, said: bytes) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.sendall(said)
                self._open.append(client)


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    """Servers that never answer."""
    servers = Deaf()
    patience = threading.Timer(_PATIENCE_SECONDS, servers.end)
    patience.daemon = True
    patience.start()
    yield servers
    patience.cancel()
    servers.end()


def test_a_server_that_accepts_and_never_answers_is_given_up(deaf: Deaf) -> None:
    """Neither of both drivers waits for it, before a handshake or in one."""
    plain, encrypted = deaf.engine(b""), deaf.engine(b"S")

    def ask_plain() -> None:
        with ledger_transaction(plain):
            pass

    with ThreadPoolExecutor(2) as together:
        found = list(together.map(raised, [ask_plain, lambda: extract_events(encrypted, uuid4())]))

    assert [type(each) for each in found] == [TransientError] * 2
    assert not deaf.has_ended.is_set()


def test_an_opening_that_is_not_answered_is_given_up(far_engine: Engine, quiet_network: QuietNetwork) -> None:
    """A paused pooler lets the bulk driver in and never answers what it asks before it hands the connection out."""
    silence = quiet_network.silence(b"typreceive")

    with pytest.raises(adbc_driver_manager.Error):
        watchdog.open_watched(lambda: dbapi.connect(conninfo_of(far_engine)), watchdog.ports_of(far_engine), seconds=1)

    assert silence.is_kept
