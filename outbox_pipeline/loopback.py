"""Requests to this machine go straight there, whatever proxy the environment names.

A proxy would get the local engine's statements and events, and its own loopback is another machine's.
"""

import urllib.request
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit


def is_loopback(host: str | None) -> bool:
    """Return whether *host* is this machine's own loopback, by name or by address."""
    name = (host or "").strip("[]").rstrip(".").lower()
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def url_opener(url: str, *handlers: Any) -> urllib.request.OpenerDirector:
    """Return what opens *url* with these handlers: without a proxy on loopback, else as the environment says."""
    straight = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(url).hostname) else []
    return urllib.request.build_opener(*straight, *handlers)
