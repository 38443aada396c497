"""What the outbox's URL says, read once by SQLAlchemy and handed to both drivers in the same words.

Invariant: the bulk driver gets the very parameters that psycopg gets, as libpq's keyword string. A URL written anew for
it would be read by other rules: a space, several hosts or an encoded character would lead elsewhere, or nowhere.
"""

import os
from functools import cache
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.session import ENCODING, PATIENCE

_NAME = "OUTBOX_POSTGRES_URL"
#: What libpq takes several of, one for each server.
_LISTS = ("host", "hostaddr", "port")


def read_url(text: str) -> URL:
    """Return the URL as SQLAlchemy reads it.

    Raises ConfigurationError when it cannot be read, or names a parameter that is not libpq's own: psycopg's would
    change how transactions begin, and the bulk driver knows none of them.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"{_NAME} is no URL that SQLAlchemy can read: check its form and its port.") from None
    if unknown := sorted(set(url.query) - _keywords()):
        raise ConfigurationError(
            f"{_NAME} names {', '.join(unknown)}, no parameter of PostgreSQL's libpq: take it out."
        )
    return url.set(query={name: _one_value(name, value) for name, value in url.query.items()})


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return what goes to libpq beside the URL: the encoding always, the rest where the URL does not say it."""
    return {name: value for name, value in PATIENCE.items() if name not in url.query} | ENCODING


def conninfo_of(engine: Engine, *, options: str = "") -> str:
    """Return the engine's parameters as libpq's keyword string, *options* after those that there are.

    It holds the password: never show it.
    """
    dsn, arguments = engine.dialect.create_connect_args(engine.url)
    # SQLAlchemy also hands psycopg what is for psycopg alone, how it reads and writes types.
    for_libpq = {name: value for name, value in arguments.items() if name in _keywords()}
    if options:
        given = for_libpq.get("options") or os.environ.get("PGOPTIONS", "")
        for_libpq["options"] = f"{given} {options}"
    return make_conninfo(*dsn, **for_libpq | connect_arguments(engine.url))


@cache
def _keywords() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _one_value(name: str, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if name not in _LISTS:
        raise ConfigurationError(f"{_NAME} names {name} {len(value)} times: once is enough.")
    # host=one:5432&host=two:5432 is SQLAlchemy's own form, which takes no port beside it.
    return value if name == "host" and any(":" in host for host in value) else ",".join(value)
