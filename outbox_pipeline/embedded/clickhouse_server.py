"""The process that serves ClickHouse on loopback: `python -m outbox_pipeline.embedded.clickhouse_server`.

One engine, one port, one token that its clients show. It ends on SIGTERM, and by itself a few seconds after the last
user of its home has died without saying goodbye, taking PostgreSQL with it. It listens on loopback, because what it is
sent is not encrypted; tests of several hosts let one that belongs to no home listen elsewhere.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn

from outbox_pipeline.embedded.chdb_engine import Engine
from outbox_pipeline.embedded.clickhouse import take_token, write_state
from outbox_pipeline.embedded.execution import remove_leftovers
from outbox_pipeline.embedded.homes import Home, live_users, locked
from outbox_pipeline.embedded.http_interface import build_application
from outbox_pipeline.embedded.http_protocol import BulkProtocol
from outbox_pipeline.embedded.places import data_folders
from outbox_pipeline.embedded.postgres import stop_server
from outbox_pipeline.embedded.server_errors import ServerError

#: uvicorn ticks ten times a second.
_TICKS_BETWEEN_LOOKS = 5
_ALONE_SECONDS = 3.0
_SHUTDOWN_SECONDS = 5
_KILL_PAUSE_SECONDS = 0.5
_LOOPBACK = "127.0.0.1"

_log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Serve until asked to end; return the exit code."""
    options = _parse(arguments)
    home = Home(options.home or options.path.parent)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # uvicorn raises the signal again once it is done; the first handler to be restored is this one.
    signal.signal(signal.SIGTERM, _leave)
    home.create()
    listener = _listen(options.host, options.port)
    # This thread stays free: at the end it stops PostgreSQL.
    with ThreadPoolExecutor(1) as engine_thread:
        try:
            engine = engine_thread.submit(_open_engine, options, home).result()
        except ServerError as error:
            sys.stderr.write(f"{error.text}\n")
            return 1
        remove_leftovers(home.uploads)
        watch = UserWatch(home if options.home else None)
        try:
            token = take_token(home)
            write_state(home, port=listener.getsockname()[1], token=token)
            _serve(engine, home, token, listener, watch)
        except SystemExit:
            return 0
        finally:
            engine_thread.submit(engine.close).result()
            watch.close()
    return 0


def _open_engine(options: argparse.Namespace, home: Home) -> Engine:
    return Engine(options.path, uploads=home.uploads, more_grants=options.grant)


class UserWatch:
    """Tells when no process uses the home any more, and then keeps others from joining until `close`."""

    def __init__(self, home: Home | None) -> None:
        """Watch the users of *home*; with None the server is on its own and stays."""
        self._home = home
        self._alone_since: float | None = None
        self._databases: list[Path] = []
        self._held = contextlib.ExitStack()
        self.is_over = False

    def look(self) -> bool:
        """Return whether the last user has been gone for a while; then the lock of the home is held."""
        if self.is_over or self._home is None:
            return self.is_over
        if not self._home.users.is_dir():
            # The home was removed under the server: no process can join any more.
            self.is_over = True
            return True
        self._databases = data_folders(self._home)
        now = time.monotonic()
        if live_users(self._home):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > _ALONE_SECONDS:
            self.is_over = self._lock_unless_used(self._home)
        return self.is_over

    def close(self) -> None:
        """Stop PostgreSQL too if it was left behind, and give up the lock."""
        for data in self._databases if self.is_over else ():
            stop_server(data)
        self._held.close()

    def _lock_unless_used(self, home: Home) -> bool:
        # Users are added under the lock: with it in hand, an empty list stays empty.
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(locked(home, wait=False)) or live_users(home):
                return False
            self._held = stack.pop_all()
            return True


class _Server(uvicorn.Server):
    """uvicorn, ending when the users are gone, and killing running queries when it ends."""

    def __init__(self, config: uvicorn.Config, engine: Engine, watch: UserWatch) -> None:
        super().__init__(config)
        self._engine = engine
        self._watch = watch

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_BETWEEN_LOOKS == 0 and await asyncio.to_thread(self._watch.look):
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        killing = asyncio.create_task(self._kill_queries())
        await super().shutdown(sockets)
        killing.cancel()

    async def _kill_queries(self) -> None:
        while True:
            await asyncio.to_thread(self._engine.confined, self._engine.kill_all)
            await asyncio.sleep(_KILL_PAUSE_SECONDS)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a chDB data directory over ClickHouse's HTTP interface.")
    parser.add_argument("--path", type=_absolute, required=True, help="data directory, created if missing")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; another one when it is taken")
    parser.add_argument("--home", type=_absolute, help="home whose users are watched; without it the server stays")
    parser.add_argument(
        "--grant", action="append", default=[], help="right beside the usual ones, e.g. READ ON POSTGRES"
    )
    parser.add_argument("--host", default=_LOOPBACK, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.home and options.host != _LOOPBACK:
        parser.error("the server of a home listens on loopback only: requests to it are not encrypted")
    return options


def _absolute(path: str) -> Path:
    # The engine changes the working folder.
    return Path(path).absolute()


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    for candidate in (port, 0):
        # The protocol is named because asyncio turns Nagle off only then: 40 ms less for every answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # A port whose last server was killed is still half closed; without this it could not be had again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
        except OSError:
            listener.close()
            continue
        return listener
    raise OSError(f"No free port on {host}.")


def _serve(engine: Engine, home: Home, token: str, listener: socket.socket, watch: UserWatch) -> None:
    # The port stays the home's; two servers of a machine differ by it.
    host, port = listener.getsockname()
    name = f"{socket.gethostname()}:{port}"
    config = uvicorn.Config(
        build_application(engine, uploads=home.uploads, token=token, name=name, host=host),
        loop="asyncio",
        http=BulkProtocol,
        log_config=None,
        access_log=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    _Server(config, engine, watch).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
