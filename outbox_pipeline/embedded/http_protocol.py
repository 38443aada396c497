"""How bytes of a connection become requests: uvicorn's protocol on httptools, for bodies of many megabytes.

The parser is C; uvicorn copies each piece of a body twice and lets the system hand it over in small ones, and parses
addresses of 64 KB at most. Invariants: a piece of a body is the bytes that the parser cut out, not a copy of them; the
head of a request has a limit, because it is read before its token is.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Longest head of a request, address included.
LONGEST_HEAD_BYTES = 1 << 20

#: As much as is taken from the system at once; asyncio's own limit is a quarter of that.
_READ_BYTES = 1 << 20


class BulkProtocol(HttpToolsProtocol):
    """One connection, read by the megabyte."""

    _head_bytes = 0
    _is_in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own signature
        """Begin a connection."""
        # Known to asyncio's own transports; any other one reads as it does.
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; a head without end is refused."""
        self._head_bytes += len(data) if self._is_in_head else 0
        super().data_received(data)
        if self._is_in_head and self._head_bytes > LONGEST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        """Hand the request on, its address cut here: the parser of addresses counts to 65,535."""
        self._is_in_head, self._head_bytes = False, 0
        self.url, _, query = self.url.partition(b"?")
        super().on_headers_complete()
        # The application has not begun: its task runs when this piece of data has been taken.
        self.scope["query_string"] = query.partition(b"#")[0]

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body until the application asks for it."""
        cycle: Any = self.cycle
        if cycle.response_complete or cycle.body:
            # What is added to must be able to grow: a body may come in thousands of pieces of a few bytes.
            cycle.body = bytearray(cycle.body) if isinstance(cycle.body, bytes) else cycle.body
            super().on_body(body)
            return
        cycle.body = body
        if len(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End the request; what follows is the head of the next one."""
        self._is_in_head = True
        super().on_message_complete()
