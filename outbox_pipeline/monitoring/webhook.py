"""Post a notice to a webhook, within seconds and without ever showing its URL, whose path is often the secret."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from outbox_pipeline.errors import TransientError
from outbox_pipeline.loopback import url_opener

TIMEOUT_SECONDS = 5.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for a refusal: following one would turn the POST into a GET, perhaps elsewhere."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        """Follow nothing."""


def post_json(url: SecretStr, payload: Mapping[str, str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Post *payload* as JSON and return once the receiver has answered 2xx.

    Raises TransientError otherwise, saying what happened but not where.
    """
    request = urllib.request.Request(
        url.get_secret_value(),
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "outbox-pipeline"},
        method="POST",
    )
    try:
        with url_opener(url.get_secret_value(), _NoRedirect).open(request, timeout=timeout_seconds):
            return
    except urllib.error.HTTPError as error:
        error.close()
        problem = f"answers with status {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Only a system call's own words: a parser's may quote the URL.
        reason = getattr(error, "reason", error)
        problem = f"cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"
    raise TransientError(f"The webhook {problem}: check OUTBOX_ALERT_WEBHOOK_URL and its receiver.")
