"""The door in front of Dagster's webserver: what the page of another site makes a browser send does not get in.

The webserver has no login and takes a mutation in any form, so any page that a person opens could start or stop things
through that person's browser. Browsers say in headers where a request comes from; programs send none of these headers
and pass. Invariant: everything but the pages themselves is for pages of this very address, and only a POST with a JSON
body changes something. The door decides by the head of a request and neither holds nor reads a body.
"""

import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Names of this machine for itself; no other machine can give them a meaning.
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

#: What the webserver answers beside its pages and their files. A link on another site may lead to a page only.
DATA_PATHS = ("/graphql", "/logs/", "/notebook", "/dagit/notebook", "/download_debug/", "/report_asset_")

#: Answered under any name: which version runs. Load balancers ask it by address, some without a name.
_HEALTH_PATH = "/server_info"
#: Dagster's UI shows a notebook in a frame of its own page.
_FRAMED_PATHS = ("/notebook", "/dagit/notebook")

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?P<port>:\d{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Refusal:
    """Why a request does not get in."""

    status: int
    sentence: str


UNKNOWN_HOST = Refusal(
    421,
    f"This UI answers under {', '.join(LOOPBACK_NAMES)} and the names in OUTBOX_UI_HOSTS only: add the name that you "
    "use to OUTBOX_UI_HOSTS and start the webserver again.",
)
OTHER_SITE = Refusal(
    403,
    "The page of another site may not use this UI: open the UI's own address; a proxy in front of it must pass on the "
    "Host header, port included, or OUTBOX_UI_HOSTS must name host and port that the browser shows.",
)
NOT_JSON = Refusal(403, "GraphQL and every change need a POST with a JSON body: send Content-Type: application/json.")


class Door:
    """An ASGI application that lets requests in to another one."""

    def __init__(self, application: Application, *, hosts: Collection[str] = (), path_prefix: str = "") -> None:
        """Guard *application*, which serves below *path_prefix* and is called by loopback names and by *hosts*."""
        self._application = application
        self._path_prefix = path_prefix
        self._origins = frozenset(hosts)
        self._names = frozenset(LOOPBACK_NAMES) | {_name_of(host) for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that does not get in; hand all others on, with answers that no other page can frame."""
        if scope["type"] not in ("http", "websocket"):
            await self._application(scope, receive, send)
            return
        asked = _Asked(scope, self._path_prefix)
        refusal = self._refusal(asked)
        if refusal is not None:
            await _refuse(scope, send, refusal)
        else:
            await self._application(scope, receive, _unframed(send, is_framed=asked.path in _FRAMED_PATHS))

    def _refusal(self, asked: "_Asked") -> Refusal | None:
        if asked.method in _READING and asked.path == _HEALTH_PATH:
            return None
        if _name_of(asked.host) not in self._names:
            return UNKNOWN_HOST
        if not all(self._is_own(origin, asked) for origin in asked.all("origin")):
            return OTHER_SITE
        if asked.method in _READING:
            return _refusal_of_reading(asked)
        if asked.site not in (None, "same-origin"):
            return OTHER_SITE
        return None if asked.is_websocket or (asked.method == "POST" and asked.is_json) else NOT_JSON

    def _is_own(self, origin: str, asked: "_Asked") -> bool:
        scheme, _, rest = origin.lower().partition("://")
        default = _DEFAULT_PORTS.get(scheme)
        if default is None:
            return False
        given = rest.removesuffix(default)
        is_this_one = given == asked.host.removesuffix(default)
        return is_this_one or not self._origins.isdisjoint((given, given + default))


class _Asked:
    """The head of a request, as far as the door looks at it."""

    def __init__(self, scope: Scope, path_prefix: str) -> None:
        self.is_websocket = scope["type"] == "websocket"
        self.method = "WEBSOCKET" if self.is_websocket else str(scope["method"])
        self.path = str(scope["path"]).removeprefix(path_prefix)
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])

    def all(self, name: str) -> list[str]:
        """Return each value of a header."""
        return [value.decode("latin-1").strip() for key, value in self._headers if key == name.encode()]

    def only(self, name: str) -> str | None:
        """Return the value of a header, None without it; several have no meaning and are an empty one."""
        values = self.all(name)
        return None if not values else values[0] if len(values) == 1 else ""

    @property
    def host(self) -> str:
        """The name that the UI was called by; empty where that is not clear."""
        return (self.only("host") or "").lower()

    @property
    def site(self) -> str | None:
        """Whose page the browser asks for: same-origin, same-site, cross-site, or none for an address typed in."""
        return self.only("sec-fetch-site")

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON by its type alone.

        Dagster looks for these letters anywhere, and a browser sends other types elsewhere without asking.
        """
        return (self.only("content-type") or "").partition(";")[0].rstrip() == "application/json"

    @property
    def is_page(self) -> bool:
        """Whether a browser opens it as a page of its own tab."""
        opened = self.only("sec-fetch-mode") == "navigate" and self.only("sec-fetch-dest") == "document"
        return opened and not self.path.startswith(DATA_PATHS)


def _refusal_of_reading(asked: _Asked) -> Refusal | None:
    if asked.site not in (None, "same-origin", "none") and not asked.is_page:
        return OTHER_SITE
    # Where HTML is accepted, in these letters, Dagster shows the page that queries are written on; else it runs them.
    if asked.path == "/graphql" and "text/html" not in (asked.all("accept") or [""])[0]:
        return NOT_JSON
    return None


def _name_of(host: str) -> str | None:
    found = _HOST.fullmatch(host)
    return found["name"] if found else None


def _unframed(send: Send, *, is_framed: bool) -> Send:
    # Where the webserver has a policy of its own, a browser keeps to both.
    ancestors, options = (b"'self'", b"SAMEORIGIN") if is_framed else (b"'none'", b"DENY")
    added = [(b"content-security-policy", b"frame-ancestors " + ancestors), (b"x-frame-options", options)]

    async def send_unframed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_unframed


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    is_websocket = scope["type"] == "websocket"
    if is_websocket and "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    kind = "websocket.http.response" if is_websocket else "http.response"
    body = f"{refusal.sentence}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
        (b"x-frame-options", b"DENY"),
    ]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
