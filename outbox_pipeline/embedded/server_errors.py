"""What goes wrong in the local server, told the way ClickHouse tells it over HTTP: a code, a text, a status.

Clients decide by the code, so every failure has one; nothing leaves the server as a bare 500 with a
traceback.
"""

import re

BAD_ARGUMENTS = 36
CANNOT_READ_ALL_DATA = 33
NOT_IMPLEMENTED = 48
SYNTAX_ERROR = 62
UNKNOWN_COMPRESSION_METHOD = 89
UNKNOWN_SETTING = 115
READONLY = 164
TOO_MANY_SIMULTANEOUS_QUERIES = 202
NOT_ENOUGH_SPACE = 243
CANNOT_DECOMPRESS = 271
SESSION_NOT_FOUND = 372
SESSION_IS_LOCKED = 373
ACCESS_DENIED = 497
AUTHENTICATION_FAILED = 516
STD_EXCEPTION = 1001

# ClickHouse's own mapping in src/Server/HTTP/exceptionCodeToHTTPStatus.cpp; what is not listed is a 500.
_BAD_REQUEST = frozenset({6, 25, 26, 27, 33, 36, 38, 41, 53, 62, 72, 89, 117, 167, 168, 223, 271, 321, 376, 441, 457})
_NOT_FOUND = frozenset({46, 47, 50, 56, 60, 63, 73, 78, 81, 115})
_OTHERS = {48: 501, 159: 408, 202: 503, 372: 404, 497: 403, 516: 403}

_CODE = re.compile(r"Code: (\d+)(?:\. DB::|, type:)")


class ServerError(Exception):
    """A failure to answer a client with: ClickHouse's number for it and the whole message."""

    def __init__(self, code: int, text: str) -> None:
        """Keep the code, and the text in the form clients parse."""
        super().__init__(text)
        self.code = code
        self.text = text if text.startswith("Code: ") else f"Code: {code}. DB::Exception: {text}"

    @property
    def status(self) -> int:
        """The HTTP status ClickHouse answers this code with."""
        if self.code in _BAD_REQUEST:
            return 400
        return 404 if self.code in _NOT_FOUND else _OTHERS.get(self.code, 500)


class ClientGoneError(Exception):
    """The client has left, so no answer is read."""


def from_engine(error: Exception) -> ServerError:
    """Translate what the engine raised. Of several codes in one message the last is the error's own."""
    text = _message(error)
    start = text.find("Code: ")
    codes = _CODE.findall(text)
    return ServerError(int(codes[-1]) if codes else STD_EXCEPTION, text[start:] if start > 0 else text)


def _message(error: Exception) -> str:
    # A message that quotes the user's bytes need not be UTF-8; then the binding raises this in its place.
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="backslashreplace")
    return str(error)
