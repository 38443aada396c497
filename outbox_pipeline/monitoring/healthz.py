"""`/healthz` beside the metrics: whether this process answers, which is what a supervisor wants to know of it.

The status is 200 whenever the process can answer at all. A ledger that is away is told in the body and changes no
status: to start this process again would not bring the ledger back, and would take from Prometheus the answer that it
is away. Invariant: the answer does not wait for the ledger, whose silence would look like the silence of this process,
and has no name or address in it.
"""

import json
import threading
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from outbox_pipeline.errors import OutboxError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: Of the second that Kubernetes gives a probe.
_WAIT_SECONDS = 0.5
_STATEMENT_SECONDS = 4


class LedgerProbe:
    """Asks the ledger in a thread of its own, one question at a time."""

    def __init__(self, engine: Engine) -> None:
        """Connect nowhere yet."""
        self._engine = engine
        self._lock = threading.Lock()
        self._asking = threading.Thread()
        self._said = ""

    def answer(self) -> str:
        """Return `answers`, `does not answer`, or `silent` for one that has said nothing within half a second."""
        with self._lock:
            if not self._asking.is_alive():
                # A daemon's: a server that is silent for long does not keep this process from ending.
                self._asking = threading.Thread(target=self._ask, daemon=True)
                self._asking.start()
            asking = self._asking
        asking.join(_WAIT_SECONDS)
        return "silent" if asking.is_alive() else self._said

    def _ask(self) -> None:
        try:
            with ledger_transaction(self._engine, statement_timeout_seconds=_STATEMENT_SECONDS) as connection:
                check_version(connection)
        except (OutboxError, SQLAlchemyError):
            # Why is in the log of each scrape.
            self._said = "does not answer"
        else:
            self._said = "answers"


def with_healthz(app: WsgiApp, engine: Engine) -> WsgiApp:
    """Return *app* with `/healthz` in front of it: JSON that says that the process is alive, and how its ledger is."""
    probe = LedgerProbe(engine)

    def answering(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz":
            return app(environ, start_response)
        body = json.dumps({"process": "alive", "ledger": probe.answer()}).encode() + b"\n"
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body if environ["REQUEST_METHOD"] != "HEAD" else b""]

    return answering
