"""The names an event carries beside its context: how long they may be, and how much of one is shown.

An event from before PostgreSQL refused longer ones can still have a name of any length, so whatever is made for people
cuts it. Imports nothing, so that every floor may use it.
"""

#: Most bytes, in UTF-8, of each text beside the context; constraints of `outbox.event` say the same.
MAX_BYTES = {"event_type": 500, "environment": 200, "trace_context": 8_192}

_SHOWN_CHARACTERS = 200


def shortened(name: str) -> str:
    """Return *name* as lists and metadata show it: the first 200 characters, and an ellipsis for more."""
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[: _SHOWN_CHARACTERS - 1]}…"
