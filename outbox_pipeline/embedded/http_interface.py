"""ClickHouse's HTTP interface, as far as clickhouse-connect and curl use it, on the engine of this process.

The event loop only moves bytes; every call of the engine runs in a thread, so `/ping` answers during a long
query. A client that leaves has its query killed. A request shows the server's token before anything of it is read but
its head, and requests of a browser are refused even with it. GET only reads. What is not supported is refused with
NOT_IMPLEMENTED, never ignored.
"""

import base64
import binascii
import email
import email.policy
import hmac
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
from anyio import from_thread, to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope

from outbox_pipeline.embedded.answers import Answer
from outbox_pipeline.embedded.chdb_engine import Engine, Scope
from outbox_pipeline.embedded.clickhouse import USER
from outbox_pipeline.embedded.compression import accepted_encoding, decompressed
from outbox_pipeline.embedded.execution import Order, execute, require_statement
from outbox_pipeline.embedded.server_errors import (
    ACCESS_DENIED,
    AUTHENTICATION_FAILED,
    BAD_ARGUMENTS,
    NOT_IMPLEMENTED,
    STD_EXCEPTION,
    ClientGoneError,
    ServerError,
)

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Parameters of the URL that are for the server; every other one that is not `param_…` is a setting.
_FOR_THE_SERVER = frozenset(
    """
    query database default_format session_id session_timeout session_check query_id user password quota_key
    role wait_end_of_query buffer_size compress decompress enable_http_compression
    http_zlib_compression_level client_protocol_version
    send_progress_in_http_headers http_headers_progress_interval_ms
    """.split()  # noqa: SIM905  # a list of words reads better
)

#: As much of a body as is fetched from the event loop at once, where there is more than its first piece.
_VISIT_BYTES = 4_000_000

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))

_KILL_PAUSE_SECONDS = 0.5
_THREADS = 64
_LONGEST_SESSION_SECONDS = 3600


class Incoming:
    """The body of one request, read from the event loop or a thread, and the news that its client left."""

    def __init__(self, receive: Receive) -> None:
        """Read from *receive*."""
        self._receive = receive
        self._complete = anyio.Event()
        self.is_answered = False

    async def next_piece(self) -> bytes | None:
        """Return the next piece, None after the last; raises ClientGoneError if the client leaves before."""
        if self._complete.is_set():
            return None
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if not message.get("more_body", False):
            self._complete.set()
        body: bytes = message.get("body", b"")
        return body

    def pieces(self, first: bytes | None) -> Iterator[bytes]:
        """Yield the body in a worker thread, from its *first* piece on, which is nearly always all of it."""
        pieces = [] if first is None else [first]
        while pieces:
            yield from pieces
            pieces = [] if self._complete.is_set() else from_thread.run(self._next_pieces)

    async def read_statement(self) -> bytes:
        """Return the body; raises ServerError when it is longer than a statement may be."""
        body = b""
        async for piece in self._rest():
            body += piece
            require_statement(len(body))
        return body

    async def drain(self) -> None:
        """Let the client send what is left of the body, and forget it."""
        async for _ in self._rest():
            pass

    async def left(self) -> None:
        """Return once the client has left after it had sent everything, or has its whole answer."""
        await self._complete.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next_pieces(self) -> list[bytes]:
        # A visit to the event loop costs as much as a piece.
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < _VISIT_BYTES and (piece := await self.next_piece()) is not None:
            pieces.append(piece)
        return pieces

    async def _rest(self) -> AsyncIterator[bytes]:
        while (piece := await self.next_piece()) is not None:
            yield piece


class Interface:
    """The ASGI endpoint that takes queries."""

    def __init__(self, engine: Engine, *, uploads: Path, token: str, name: str) -> None:
        """Serve *engine* to clients that have the *token*; bodies of inserts are received in *uploads*.

        Every answer to a query tells the server's *name*.
        """
        self._engine = engine
        self._name = name
        self._credentials = f"{USER}:{token}".encode()
        self._uploads = uploads
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope)
        if request.method != "POST" and "query" not in request.query_params:
            await (await _ping(request))(scope, receive, send)
            return
        if not hmac.compare_digest(_credentials(request), self._credentials):
            await _send_error(_UNKNOWN_CLIENT, {"Connection": "close"}, send)
            return
        incoming = Incoming(receive)
        request_id = str(uuid.uuid4())

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                incoming.is_answered = True
            await send(message)

        async with anyio.create_task_group() as group:
            group.start_soon(self._kill_when_left, incoming, request_id)
            try:
                await self._answer(request, incoming, request_id, tell)
            except ClientGoneError:
                pass
            except OSError:
                _log.debug("A client left while it was answered.")
            finally:
                group.cancel_scope.cancel()

    async def _kill_when_left(self, incoming: Incoming, request_id: str) -> None:
        # Again and again: the query may not have begun when the first order to stop arrives.
        await incoming.left()
        while not incoming.is_answered:
            await to_thread.run_sync(self._engine.confined, partial(self._engine.kill, request_id))
            await anyio.sleep(_KILL_PAUSE_SECONDS)

    async def _answer(self, request: Request, incoming: Incoming, request_id: str, send: Send) -> None:
        query_id = request.query_params.get("query_id") or request_id
        headers = {
            "X-ClickHouse-Query-Id": _in_head(query_id),
            "X-ClickHouse-Timezone": self._engine.timezone,
            "X-ClickHouse-Server-Display-Name": self._name,
        }
        try:
            order, body = await self._read(request, incoming, request_id)
            timezone = order.scope.settings.get("session_timezone") or self._engine.timezone
            headers["X-ClickHouse-Timezone"] = _in_head(timezone)
            answer = await self._in_thread(partial(self._begin, request, order, body))
            try:
                await self._hand_over(answer, headers, send)
            finally:
                if not answer.result.is_closed:
                    with anyio.CancelScope(shield=True):
                        await self._in_thread(answer.result.close)
        except ServerError as error:
            await incoming.drain()
            await _send_error(error, headers, send)
        except (ClientGoneError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # a client must get a code, and the log the traceback
            _log.exception("A request failed in a way the server does not know.")
            await _send_error(ServerError(STD_EXCEPTION, f"{type(error).__name__}: {error}"), headers, send)

    async def _read(self, request: Request, incoming: Incoming, request_id: str) -> tuple[Order, Iterator[bytes]]:
        if _is_from_browser(request):
            raise ServerError(ACCESS_DENIED, "Browsers may not send queries. (ACCESS_DENIED)")
        parameters = dict(request.query_params)
        content_type = request.headers.get("content-type", "")
        body: Iterator[bytes]
        if content_type.startswith("multipart/form-data"):
            form = await incoming.read_statement()
            # A form of many parts takes seconds, in which all other requests would wait.
            parameters |= await self._in_thread(partial(_form_fields, content_type, form))
            body = iter(())
        else:
            body = decompressed(
                incoming.pieces(await incoming.next_piece()), request.headers.get("content-encoding", "")
            )
        return _order(parameters, request, request_id), body

    def _begin(self, request: Request, order: Order, body: Iterator[bytes]) -> Answer:
        """Carry out *order*, and take the first pieces of its result in the same visit of a thread."""
        result = execute(self._engine, order, body, uploads=self._uploads)
        parameters = request.query_params
        encoding = None
        if parameters.get("enable_http_compression") == "1" and result.format:
            encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
        try:
            return Answer(result, encoding=encoding, is_whole=parameters.get("wait_end_of_query") == "1")
        except BaseException:
            result.close()
            raise

    async def _hand_over(self, answer: Answer, headers: dict[str, str], send: Send) -> None:
        start = Response(headers={**headers, **answer.headers(), "Content-Type": "application/octet-stream"})
        raw = [(name, value) for name, value in start.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        while True:
            for piece in answer.handful:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if answer.is_complete:
                break
            await self._in_thread(answer.take)
        # A response that failed on the way is left without its end, so that no client takes it for complete.
        if not answer.has_failed:
            await send({"type": "http.response.body", "body": b""})

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(self._engine.confined, call, limiter=self._threads)


def build_application(engine: Engine, *, uploads: Path, token: str, name: str, host: str) -> Starlette:
    """Return the application that serves *engine* on *host* under a *name* to clients that have the *token*."""
    interface = Interface(engine, uploads=uploads, token=token, name=name)
    return Starlette(
        # A page whose name was made to point at loopback comes with that name.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[host, "127.0.0.1", "localhost"])],
        routes=[Route("/ping", _ping), Route("/", interface, methods=["GET", "POST"])],
    )


def _in_head(text: str) -> str:
    """Return what a client named as a head may have it: other than printable ASCII is encoded as in a URL."""
    return quote(text, safe=_PRINTABLE)


async def _ping(_: Request) -> Response:
    return PlainTextResponse("Ok.\n")


_UNKNOWN_CLIENT = ServerError(
    AUTHENTICATION_FAILED,
    "Authentication failed: this URL has no password or one that no longer holds; 'outbox env' shows the URL that does."
    " (AUTHENTICATION_FAILED)",
)


def _credentials(request: Request) -> bytes:
    """Return the user and password of a request as `user:password`, nothing when it has none."""
    key = request.headers.get("x-clickhouse-key")
    if key is not None:
        return f"{request.headers.get('x-clickhouse-user', '')}:{key}".encode()
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(value.strip(), validate=True) if scheme.lower() == "basic" else b""
    except binascii.Error:
        return b""


def _is_from_browser(request: Request) -> bool:
    """Tell whether a browser made this request, for a page or because its user followed a link.

    A link that leads elsewhere first keeps the site `none` of what the user did, so the site alone says too little.
    """
    headers = request.headers
    return (
        "origin" in headers
        or headers.get("sec-fetch-site", "none") != "none"
        or headers.get("sec-fetch-mode") == "navigate"
        or headers.get("sec-fetch-dest", "empty") != "empty"
    )


def _order(parameters: dict[str, str], request: Request, request_id: str) -> Order:
    for name in ("compress", "decompress", "role"):
        if parameters.get(name, "0") != "0":
            raise ServerError(NOT_IMPLEMENTED, f"The embedded server does not support {name}. (NOT_IMPLEMENTED)")
    settings = {
        name: value
        for name, value in parameters.items()
        if name not in _FOR_THE_SERVER and not name.startswith("param_")
    }
    scope = Scope(
        request_id,
        database=parameters.get("database"),
        settings=settings,
        session_id=parameters.get("session_id"),
        session_seconds=_session_seconds(parameters.get("session_timeout", "60")),
        session_must_exist=parameters.get("session_check") == "1",
    )
    bound = {name.removeprefix("param_"): value for name, value in parameters.items() if name.startswith("param_")}
    default = request.headers.get("x-clickhouse-format") or parameters.get("default_format") or "TabSeparated"
    return Order(parameters.get("query", ""), bound, scope, default_format=default, may_write=request.method == "POST")


def _session_seconds(text: str) -> float:
    if not text.isdecimal() or int(text) > _LONGEST_SESSION_SECONDS:
        raise ServerError(
            BAD_ARGUMENTS,
            f"session_timeout must be a number of seconds up to {_LONGEST_SESSION_SECONDS}. (BAD_ARGUMENTS)",
        )
    return int(text)


def _form_fields(content_type: str, body: bytes) -> dict[str, str]:
    """Return the text fields of a form, in which clickhouse-connect sends a query with long parameters."""
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message: Any = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    fields = {}
    for part in message.iter_parts():
        if part.get_filename() is not None:
            raise ServerError(NOT_IMPLEMENTED, "The embedded server does not support external data. (NOT_IMPLEMENTED)")
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str) or part.is_multipart():
            raise ServerError(BAD_ARGUMENTS, "A part of the form has no name, or parts of its own. (BAD_ARGUMENTS)")
        fields[name] = part.get_payload(decode=True).decode()
    return fields


async def _send_error(error: ServerError, headers: dict[str, str], send: Send) -> None:
    response = PlainTextResponse(
        error.text + "\n",
        status_code=error.status,
        headers={**headers, "X-ClickHouse-Exception-Code": str(error.code)},
    )
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})
