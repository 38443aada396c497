"""Open a client on the ClickHouse server, and say whether it answers.

No request lasts for ever: one that is silent for too long is given up by the driver, and one that is not done in the
end, though something of an answer comes now and then, by shutting its connection down.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import lru_cache
from typing import Any, TypeVar

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.httpclient import HttpClient

from outbox_pipeline.clickhouse.address import read_url
from outbox_pipeline.clickhouse.errors import translated
from outbox_pipeline.clickhouse.pool import answering_server, close_pool, make_pool
from outbox_pipeline.clickhouse.statement_settings import STATEMENT
from outbox_pipeline.errors import ConfigurationError, InDoubtError, OutboxError, TransientError
from outbox_pipeline.limits import limited
from outbox_pipeline.settings import Settings, shown_url

#: Longest silence in the answer to a request; after it the outcome is in doubt. An insert of one batch into hundreds of
#: months takes minutes, and not every version says meanwhile that it is at work.
ANSWER_TIMEOUT_SECONDS = 300
#: Longest time for a whole request of which something is heard now and then: a delete that waits for a merge for ever.
REQUEST_SECONDS = 1800
#: Longest time to open a client, which takes three requests of the driver's own.
OPEN_SECONDS = 120
#: How much longer than a request may take its delivery keeps the lease: the request ends first and says so.
_SLACK_SECONDS = 60
#: The name of a table's only source.
ONLY_SOURCE = ""
#: Most items of a list among a statement's parameters. Long ones travel as a form, of whose fields ClickHouse reads
#: 128 kB each; what lies before it, such as nginx, reads 8 kB of an address.
MAX_LISTED = 1_000

_CLOSED = "so its connection was closed; look for what keeps it busy."

#: What a client tells of each request: what it does, for how many seconds at most, and when it is over.
During = Callable[[str, float], AbstractContextManager[None]]

_Answer = TypeVar("_Answer")
_Item = TypeVar("_Item")


class Data(bytes):
    """Data of an INSERT, which the driver need not decode to see that it is no query it may send twice.

    It would take a third of the time of a load and four times the memory of the data.
    """

    def decode(self, *_: Any, **__: Any) -> str:
        """Return no text."""
        return ""


class EventLogClient:
    """One connection to ClickHouse and the table it serves; close it after use.

    Thin on purpose: it names the server in errors and leaves out settings that this server's version does not know.
    """

    def __init__(
        self, client: Client, settings: Settings, *, pool: Any = None, request_seconds: float = REQUEST_SECONDS
    ) -> None:
        """Keep the driver's client, where it leads, and the *pool* of connections made for it, if it has its own."""
        self.driver = client
        self._pool = pool
        self.table = settings.clickhouse_table
        #: The outbox, of several in one table, that this client reads and writes for.
        self.source = ONLY_SOURCE
        self.names = {
            "table": self.table,
            "fence": f"{self.table}_fence",
            "completeness": f"{self.table}_completeness",
            "delivered": f"{self.table}_delivered",
            "migrations": f"{self.table}_migrations",
            "sources": f"{self.table}_sources",
            "ledger": f"{self.table}_ledger",
            "known_bytes": f"{self.table}_known_bytes",
        }
        #: Names of the servers that have answered this client; more than one where a name leads to several.
        self.servers: set[str] = set()
        self.where = f"ClickHouse at {shown_url(settings.clickhouse_url)}"
        self._request_seconds = request_seconds
        self._during: During = lambda _doing, _seconds: nullcontext()

    def telling(self, during: During) -> "EventLogClient":
        """Return this client, which is asked by others too, with a listener that is told of the requests made here.

        Its `servers` are those that answer here.
        """
        mine = copy(self)
        mine._during = during
        mine.servers = set()
        return mine

    def of_source(self, source: str) -> "EventLogClient":
        """Return this client working for another source of the table."""
        other = copy(self)
        other.source = source
        return other

    def of_table(self, name: str) -> "EventLogClient":
        """Return this client with another table of the same database in the place of the event log."""
        other = copy(self)
        other.names = {**self.names, "table": name}
        return other

    @contextmanager
    def _request(self, query_id: object = None) -> Iterator[None]:
        seconds = self._request_seconds
        with (
            translated(self.where, query_id),
            self._during("waiting for ClickHouse", seconds + _SLACK_SECONDS),
            limited(seconds) as limit,
        ):
            try:
                yield
            except Exception:
                if not limit.is_over:
                    raise
                raise InDoubtError(f"{self.where} has not ended a request within {seconds:.0f} s, {_CLOSED}") from None
            finally:
                self._note_server()

    def _note_server(self) -> None:
        server = answering_server()
        if server is not None:
            self.servers.add(server)

    @property
    def answered_by(self) -> str | None:
        """The server that answered this thread's last request, None where it has told no name."""
        return answering_server()

    def reconnect(self) -> None:
        """Send the next request over a new connection, which may lead to another server of the same name."""
        if self._pool is not None:
            self._pool.clear()

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a query as dictionaries; besides *parameters* it has `source` and the names of the tables.

        `{table:Identifier}` is the event log, `{fence:Identifier}` its fence, `{completeness:Identifier}` how far each
        day is delivered, `{delivered:Identifier}` the view on that, `{migrations:Identifier}` what made them,
        `{sources:Identifier}` whose they are, `{ledger:Identifier}` the witness of its batches,
        `{known_bytes:Identifier}` rows that are sent to be read back.
        """
        with self._request():
            result = self.driver.query(statement, parameters=self._parameters(statement, parameters))
            return list(result.named_results())

    def value(self, statement: str) -> Any:
        """Return the one value that a statement answers with which takes no format, such as CHECK GRANT."""
        with self._request():
            return self.driver.command(statement)

    def blocks(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Iterator[list[Sequence[Any]]]:
        """Yield a query's rows block by block as they arrive; for answers too large to be held at once."""
        with translated(self.where):
            stream = self.driver.query_row_block_stream(statement, parameters=self._parameters(statement, parameters))
            self._note_server()
            with stream:
                for block in stream:
                    yield list(block)

    def run(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        body: Iterable[bytes | memoryview] | None = None,
    ) -> None:
        """Execute a statement that returns nothing; *body* is an INSERT's data in the format it names, in pieces.

        Without a body long parameters travel as a form; with one they stand in the address, so none may be a list.
        """
        named, own = self._parameters(statement, parameters), self.known(settings or {})
        with self._request((settings or {}).get("query_id")):
            if body is None:
                self.driver.raw_query(statement, parameters=named, settings=own)
            else:
                self.driver.command(statement, parameters=named, data=Data(b"".join(body)), settings=own)

    def _parameters(self, statement: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
        given = {**self.names, "source": self.source}
        named = {name: value for name, value in given.items() if f"{{{name}:" in statement}
        return {**named, **(parameters or {})}

    def known(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return *settings* without those this server's version does not have."""
        mine = self.driver.server_settings
        return {name: value for name, value in settings.items() if name in mine or name in {"query_id"}}

    def close(self) -> None:
        """Close the connection."""
        self.driver.close()
        if self._pool is not None:
            close_pool(self._pool)


def open_client(
    settings: Settings,
    *,
    timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
    request_seconds: float = REQUEST_SECONDS,
    under_profile: bool = False,
) -> EventLogClient:
    """Connect to OUTBOX_CLICKHOUSE_URL; an answer may be silent for *timeout_seconds*, and last for *request_seconds*.

    *under_profile*: statements run with what the user's profile sets, as a person's own do, and not with `STATEMENT`.
    Raises ConfigurationError when it is not set or refuses us, TransientError when nothing answers.
    """
    if settings.clickhouse_url is None:
        raise ConfigurationError(
            "OUTBOX_CLICKHOUSE_URL is not set: set it, or start the embedded engines with 'outbox up'."
        )
    where = f"ClickHouse at {shown_url(settings.clickhouse_url)}"
    address = read_url(settings.clickhouse_url.get_secret_value())
    # Handed on to urllib3, which takes parts of a second.
    limits: dict[str, Any] = {"connect_timeout": min(timeout_seconds, 10), "send_receive_timeout": timeout_seconds}
    pool = make_pool(address, {} if under_profile else STATEMENT)
    try:
        with translated(where), limited(min(timeout_seconds * 3, OPEN_SECONDS)):
            client = HttpClient(
                interface=address.interface,
                host=address.host,
                port=address.port,
                proxy_path=address.path,
                username=address.username,
                password=address.password,
                database=address.database,
                client_cert=address.client_cert,
                tls_mode=address.tls_mode,
                pool_mgr=pool,
                **limits,
                query_limit=0,
                autogenerate_session_id=False,
                client_name="outbox-pipeline",
                tz_mode="aware",
            )
    except OutboxError:
        close_pool(pool)
        raise
    return EventLogClient(client, settings, pool=pool, request_seconds=request_seconds)


@contextmanager
def clickhouse_client(settings: Settings, *, under_profile: bool = False) -> Iterator[EventLogClient]:
    """Open a client for the length of a block."""
    client = open_client(settings, under_profile=under_profile)
    try:
        yield client
    finally:
        client.close()


def require_answer(settings: Settings, *, timeout_seconds: float = 2) -> None:
    """Ask ClickHouse `SELECT 1`; raises TransientError when it does not answer, or not in time."""
    ask(settings, lambda client: client.rows("SELECT 1"), timeout_seconds=timeout_seconds)


def ask(settings: Settings, question: Callable[[EventLogClient], _Answer], *, timeout_seconds: float = 2) -> _Answer:
    """Return the answer to a small question that changes nothing; raises as `require_answer`, and what *question* does.

    The client is kept for the next time: opening one is three requests more, and every tick of a sensor asks.
    """
    try:
        return question(_asking_client(settings, timeout_seconds))
    except InDoubtError as error:
        _asking_client.cache_clear()
        # A question changes nothing, so an answer that got lost leaves no doubt.
        raise TransientError(f"ClickHouse does not answer: {error}") from None
    except OutboxError:
        _asking_client.cache_clear()
        raise


@lru_cache(maxsize=1)
def _asking_client(settings: Settings, timeout_seconds: float) -> EventLogClient:
    return open_client(settings, timeout_seconds=timeout_seconds)


def in_steps(items: Iterable[_Item], limit: int = MAX_LISTED) -> Iterator[list[_Item]]:
    """Yield *items* in lists that one statement can name."""
    left = list(items)
    while left:
        yield left[:limit]
        del left[:limit]
