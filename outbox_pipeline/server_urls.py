"""The URLs of servers, judged as text: what begins wrongly or is ambiguous is refused with a sentence, never shown.

Invariant: no message has a part of the URL, which may be the password.
"""

import re
from urllib.parse import urlsplit

from pydantic import SecretStr


def named_driver(url: str, driver: str) -> str:
    """Return a URL of PostgreSQL with the driver that is meant where it names none, as hosts hand it out."""
    scheme, mark, rest = url.partition("://")
    return f"postgresql+{driver}://{rest}" if mark and scheme in ("postgresql", "postgres") else url


def with_driver(value: SecretStr | None, driver: str) -> SecretStr | None:
    """Return a secret URL of PostgreSQL with its driver named."""
    return None if value is None else SecretStr(named_driver(value.get_secret_value(), driver))


def require_scheme(value: SecretStr | None, schemes: str | tuple[str, ...], name: str) -> SecretStr | None:
    """Return *value*; raises ValueError where it begins otherwise, cannot be read, or names no host for HTTP."""
    # The driver is always named: SQLAlchemy 2.1 changed which one a plain postgresql:// means.
    wanted = (schemes,) if isinstance(schemes, str) else schemes
    if value is not None and not value.get_secret_value().startswith(wanted):
        plain = ["postgresql://"] if wanted[0].startswith("postgresql") else []
        raise ValueError(f"{name} must start with {' or '.join([*plain, *wanted])}")
    if value is not None:
        _require_readable(value.get_secret_value(), name)
    # PostgreSQL's may do without: a socket's folder is a parameter.
    if value is not None and "http://" in wanted and not urlsplit(value.get_secret_value()).hostname:
        raise ValueError(f"{name} names no host")
    return value


def require_celery_url(url: str, name: str) -> None:
    """Raise ValueError where a URL of Celery's is none, or cannot be read; semicolons separate several."""
    if "://" not in url:
        raise ValueError(f"{name} must be a URL, like redis://host:6379/0")
    for one in re.split(r";(?=[a-z+]+://)", url):
        # Some name several hosts in one URL, of which the first is read.
        credentials, at, hosts = one.rpartition("@")
        _require_readable(credentials + at + re.split("[,;]", hosts)[0], name)


def _require_readable(url: str, name: str) -> None:
    rest = url.partition("://")[2]
    credentials = rest.partition("?")[0].rpartition("@")[0]
    begin = rest.partition("/")[0].rpartition("@")[0]
    if any(mark in credentials for mark in "@/") or any(mark in begin for mark in "?#"):
        # Read as they stand, the end of the password would be taken for the host, and shown.
        raise ValueError(_unencoded(name))
    try:
        parts = urlsplit(url)
    except ValueError:
        # The words of this error may be a part of the password.
        raise ValueError(
            f"{name} cannot be read: write [ and ] of a password as %5B and %5D, and what is no ASCII encoded too"
        ) from None
    try:
        _ = parts.port
    except ValueError:
        if "@" in rest and "@" not in parts.netloc:
            raise ValueError(_unencoded(name)) from None
        raise ValueError(f"{name} has a port that is no number up to 65535{_several_hosts(rest, name)}") from None


def require_encoded(url: str, name: str) -> None:
    """Raise ValueError where @ stands behind the host, or # anywhere: over HTTP neither means anything there."""
    if "#" in url or "@" in url.partition("://")[2].removeprefix(urlsplit(url).netloc):
        raise ValueError(_unencoded(name))


def _unencoded(name: str) -> str:
    return f"{name} has a user or password with @, /, ? or # in it: write them as %40, %2F, %3F and %23"


def _several_hosts(rest: str, name: str) -> str:
    if name == "OUTBOX_CLICKHOUSE_URL" or "," not in rest.partition("/")[0]:
        return ""
    return "; several hosts are written as ?host=one:5432&host=two:5432"
