"""What a session of ours depends on: the one list for the ledger's transactions and for the bulk read.

Invariant: nothing that changes what a statement of ours means or returns comes from the role, the database, a pooler or
the environment. Isolation and read write come with BEGIN or right behind it, because a transaction's first snapshot
fixes them; the first statement sets the rest for this transaction alone, so a session that is shared with others is
left as it was.

Not here: whose rights the session has (`role`), and what only makes it slower or faster (the planner's settings,
tablespaces). Those are for the server's operator to say.
"""

import json
from typing import Final
from uuid import UUID

#: What a transaction says first whose driver's BEGIN says nothing.
TRANSACTION: Final = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE"

#: Bounds a statement of the ledger; a sensor tick must fail cleanly long before Dagster gives it up at 60 s.
STATEMENT_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 5
#: Ends the session of a process that froze or lost its machine with the ledger's rows locked; else they stay locked
#: until the kernel gives the connection up, two hours by default.
IDLE_TIMEOUT_SECONDS = 30

#: The one thing that must hold before the first statement: text passes both drivers as UTF-8. psycopg follows what the
#: session says, ADBC takes whatever bytes come for UTF-8, and the proof would be made from the wrong ones.
ENCODING: Final = {"client_encoding": "UTF8"}

#: A server that is gone is noticed in seconds, also in the middle of an answer. Keepalives say nothing while something
#: that was sent is unanswered, for which the kernel itself waits a quarter of an hour.
PATIENCE: Final = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "application_name": "outbox-pipeline",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_SETTINGS: Final = {
    # PostgreSQL then raises where a policy would hide rows, and hidden rows would be taken for rows that never were.
    "row_security": "off",
    # A commit that a crash takes back would have delivered a batch that no longer exists.
    "synchronous_commit": "on",
    # Our statements name schemas; what does not is PostgreSQL's own, and never a table of the same name.
    "search_path": "pg_catalog, pg_temp",
    # What the drivers can read: they know times, intervals, numbers and bytes in these forms only.
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    # How PostgreSQL reads the texts of our statements and parameters, and writes names.
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    # Statements and pauses have limits of their own, so a long transaction of short ones needs none.
    "transaction_timeout": "0",
    # A cut sorts up to a million positions; compiling its plan takes longer than running it.
    "work_mem": "64MB",
    "jit": "off",
}


def session_settings(
    *,
    lock_timeout_seconds: float,
    idle_seconds: float = IDLE_TIMEOUT_SECONDS,
    statement_timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
    batch_id: UUID | None = None,
) -> str:
    """Return the parameter of `begin_session.sql`: the list as JSON, with this transaction's limits, 0 for none.

    *batch_id*: the batch that `extract_events.sql` reads.
    """
    limits = {
        "lock_timeout": lock_timeout_seconds,
        "idle_in_transaction_session_timeout": idle_seconds,
        "statement_timeout": statement_timeout_seconds,
    }
    own = {"outbox.batch_id": str(batch_id)} if batch_id else {}
    return json.dumps(_SETTINGS | {name: f"{seconds * 1000:.0f}ms" for name, seconds in limits.items()} | own)
