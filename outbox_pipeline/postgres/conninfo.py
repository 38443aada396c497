"""What the outbox's URL says, read once by SQLAlchemy and handed to both drivers in the same words.

Invariant: the bulk driver gets the very parameters that psycopg gets, as libpq's keyword string. A URL written anew for
it would be read by other rules: a space, several hosts or an encoded character would lead elsewhere, or nowhere.
"""

import os
import re
from functools import cache
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo, PGconn
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.session import ENCODING, PATIENCE

_NAME = "OUTBOX_POSTGRES_URL"
#: What libpq takes several of, one for each server.
_LISTS = ("host", "hostaddr", "port")
#: A name that is no number is refused by one libpq and passed over by another.
_NUMBERS = ("connect_timeout", "port", "tcp_user_timeout")
#: Where libpq may find a host that the URL does not name.
_HOST_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE")


def read_url(text: str) -> URL:
    """Return the URL as SQLAlchemy reads it.

    Raises ConfigurationError when it cannot be read, or names a parameter that is not libpq's own: psycopg's would
    change how transactions begin, and the bulk driver knows none of them.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{_NAME} cannot be read as a URL: postgresql+psycopg://user@host/db is its form."
        ) from None
    if unknown := sorted(set(url.query) - _keywords()):
        raise ConfigurationError(
            f"{_NAME} names {', '.join(unknown)}, no parameter of PostgreSQL's libpq: take it out."
        )
    url = url.set(query={name: _one_value(name, value) for name, value in url.query.items()})
    _require_plain(url)
    try:
        url.get_dialect()().create_connect_args(url)
    except ArgumentError:
        raise ConfigurationError(
            f"{_NAME} names more or fewer ports than hosts: name one port for all of them, or one for each."
        ) from None
    return url


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return what goes to libpq beside the URL: the encoding always, the rest where the URL does not say it."""
    return {name: value for name, value in PATIENCE.items() if name not in url.query} | ENCODING


def conninfo_of(engine: Engine, *, options: str = "") -> str:
    """Return the engine's parameters as libpq's keyword string, *options* after those that there are.

    It holds the password: never show it.
    """
    dsn, arguments = engine.dialect.create_connect_args(engine.url)
    # SQLAlchemy also hands psycopg what is for psycopg alone, how it reads and writes types.
    for_libpq = {name: value for name, value in arguments.items() if name in _keywords()} | connect_arguments(
        engine.url
    )
    if options:
        for_libpq["options"] = f"{for_libpq.get('options') or os.environ.get('PGOPTIONS', '')} {options}"
    if not {"host", "hostaddr", "service"} & for_libpq.keys() and not any(map(os.environ.get, _HOST_VARIABLES)):
        for_libpq["host"] = _socket_folder()
    return make_conninfo(*dsn, **for_libpq)


def _one_value(name: str, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if name not in _LISTS:
        raise ConfigurationError(f"{_NAME} names {name} {len(value)} times: once is enough.")
    # host=one:5432&host=two:5432 is SQLAlchemy's own form.
    return value if name == "host" and _has_ports(value) else ",".join(value)


def _has_ports(hosts: tuple[str, ...]) -> bool:
    return any(":" in host for host in hosts)


def _require_plain(url: URL) -> None:
    if isinstance(url.query.get("host"), tuple) and "port" in url.query:
        raise ConfigurationError(f"{_NAME} names ports beside its hosts and as port=…: once is enough.")
    for name, value in url.query.items():
        if (name in _NUMBERS or name.startswith("keepalives")) and not re.fullmatch(r"-?\d*(,\d*)*", str(value)):
            raise ConfigurationError(f"{_NAME} names {name}, and not as a whole number.")
    values = [url.username, url.password, url.host, url.database, *url.query.values()]
    if any("\0" in part for value in values if value for part in ([value] if isinstance(value, str) else value)):
        # libpq reads up to it and drops what follows.
        raise ConfigurationError(f"{_NAME} has a NUL character (%00) in it, which PostgreSQL does not take.")


@cache
def _keywords() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


@cache
def _socket_folder() -> str:
    # The two drivers bring a libpq each, built to look in different places.
    connection = PGconn.connect_start(b"")
    try:
        return connection.host.decode()
    finally:
        connection.finish()
