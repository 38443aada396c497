"""The connections of a client: to which proxy they go, what each request carries, that a limit reaches them, and which
server has answered.

Invariants: a request made within `outbox_pipeline.limits.limited` has its socket held by that limit, and none is sent
once the limit is over: the driver would repeat a question whose connection was closed. And every request carries the
settings that its pool was made with, the driver's own first questions included, which it asks before it takes any.
"""

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from clickhouse_connect.driver.httputil import all_managers, check_env_proxy, get_pool_manager
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from outbox_pipeline.clickhouse.address import Address
from outbox_pipeline.limits import current_limit
from outbox_pipeline.loopback import is_loopback

#: By which each server tells its own name with every answer, whatever stands before it.
_SERVER_HEADER = "X-ClickHouse-Server-Display-Name"

_answer = threading.local()


def answering_server() -> str | None:
    """Return the name of the server that answered this thread's last request, None where it has told none."""
    return getattr(_answer, "server", None)


def make_pool(address: Address, settings: Mapping[str, str]) -> PoolManager:
    """Return connections for one server: through the environment's proxy, unless it is this machine itself.

    Each request carries the *settings*; one that the request itself gives comes after them, and holds.
    """
    # A proxy would get the local engine's statements and events, and the driver would send them to it.
    proxy = None if is_loopback(address.host) else _proxy(address.interface, address.host, address.port)
    # The driver asks a pool that it is given for nothing of TLS.
    pool: PoolManager = get_pool_manager(
        ca_cert=address.ca_cert,
        verify=address.verify,
        client_cert=address.client_cert,
        client_cert_key=address.client_cert_key,
        # The driver's word for the proxy of either kind of address.
        http_proxy=proxy,
    )
    pool.pool_classes_by_scheme = {
        "http": _carrying(settings, PlainPool, _Connection),
        "https": _carrying(settings, EncryptedPool, _EncryptedConnection),
    }
    return pool


def _carrying(settings: Mapping[str, str], pool: type, connection: type) -> type:
    # Put in here they are encoded once: urllib3 looks at every character of an address in Python, and twice.
    carried = type(connection.__name__, (connection,), {"carried": urlencode(settings)})
    return type(pool.__name__, (pool,), {"ConnectionCls": carried})


def close_pool(pool: PoolManager) -> None:
    """Close what is not in use, and make the driver forget the pool, which it would remember for ever."""
    pool.clear()
    all_managers.pop(pool, None)


def _proxy(interface: str, host: str, port: int) -> str | None:
    return check_env_proxy(interface, host, port) or check_env_proxy("http", host, port)


class _Held:
    """A connection whose socket the current limit holds while a request is under way, and that notes who answers."""

    sock: Any
    #: Parameters that each address begins with, encoded.
    carried = ""

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._hold()

    def request(self, method: str, url: str, *arguments: Any, **keywords: Any) -> None:
        self._hold()
        _answer.server = None
        path, _, parameters = url.partition("?")
        url = f"{path}?{'&'.join(filter(None, (self.carried, parameters)))}"
        super().request(method, url, *arguments, **keywords)  # type: ignore[misc]

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        _answer.server = response.headers.get(_SERVER_HEADER)
        return response

    def _hold(self) -> None:
        limit = current_limit()
        if limit is None:
            return
        if limit.is_over:
            raise TimeoutError("the request has taken too long")
        if self.sock is not None:
            limit.hold(self.sock.fileno())


class _Connection(_Held, HTTPConnection):
    pass


class _EncryptedConnection(_Held, HTTPSConnection):
    pass


class PlainPool(HTTPConnectionPool):
    """Connections over HTTP."""

    ConnectionCls = _Connection


class EncryptedPool(HTTPSConnectionPool):
    """Connections over HTTPS."""

    ConnectionCls = _EncryptedConnection
