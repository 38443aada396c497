"""By which settings a process goes, in a digest that another one compares with its own.

Each process reads its own environment: code location, run, worker. Invariant: no secret can be guessed from the digest,
because no password, user or token goes into it, of a URL only the place that it leads to.
"""

import hashlib
from urllib.parse import urlsplit

from pydantic import SecretStr
from sqlalchemy import make_url

from outbox_pipeline.settings import Settings

#: Settings that are for one process or one machine, or have been used up when a run begins.
_OF_ONE_SIDE = frozenset(
    {
        "alert_lag_seconds",
        "alert_webhook_url",
        # Who reaches the same broker has the same one, by whatever address.
        "celery_backend",
        "celery_broker",
        "dagster_ui_url",
        "dagster_url",
        # A run elsewhere begins its partitions with OUTBOX_START_DATE, which has each of them too.
        "first_day",
        "freshness_hours",
        "home",
        "log_format",
        "log_level",
        "owners",
        "sensor_interval_seconds",
        "server_folder",
        "ui_hosts",
    }
)

#: Hexadecimal digits for each setting, few enough for a tag that a person sees.
_DIGITS = 4


def settings_digest(settings: Settings) -> str:
    """Return four digits for the names of the shared settings, and four for each of them in that order."""
    names = _shared_names()
    return "".join(map(_digits, (" ".join(names), *(_text(getattr(settings, name)) for name in names))))


def other_settings(digest: str, settings: Settings) -> list[str] | None:
    """Return the variables that *digest* was made with other values of; None when it is of another list of them."""
    own = settings_digest(settings)
    if len(digest) != len(own) or digest[:_DIGITS] != own[:_DIGITS]:
        return None
    parts = range(_DIGITS, len(own), _DIGITS)
    return [
        f"OUTBOX_{name.upper()}"
        for name, part in zip(_shared_names(), parts, strict=True)
        if digest[part : part + _DIGITS] != own[part : part + _DIGITS]
    ]


def _shared_names() -> list[str]:
    return sorted(Settings.model_fields.keys() - _OF_ONE_SIDE)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return _place(value.get_secret_value())
    return repr(sorted(value) if isinstance(value, frozenset) else value)


def _place(url: str) -> str:
    """Return where a URL leads to, however it is written: its servers and the database there."""
    if url.startswith("postgresql"):
        parts = make_url(url)
        host, port = parts.query.get("host", parts.host), parts.query.get("port", str(parts.port or 5432))
        return repr((host, port, parts.database))
    http = urlsplit(url)
    served_on = http.port or (8443 if http.scheme == "https" else 8123)
    return repr((http.scheme, http.hostname, served_on, http.path.strip("/") or "default"))
