"""What can be known of a pooler between this process and PostgreSQL, such as pgbouncer. Imports no driver.

Transactions may pass through one: nothing of ours outlives a transaction in a session. Without transactions there is no
ledger, and an event would not share its business data's.
"""

#: pgbouncer's words with `pool_mode = statement`, where it refuses every BEGIN. Their SQLSTATE, 08P01, says less.
_NO_TRANSACTIONS = "transaction blocks not allowed in statement pooling mode"

#: What to do about it, for a sentence or beside a driver's own error.
ADVICE = (
    "the pooler in front of PostgreSQL has pool_mode = statement, so there are no transactions and nothing was "
    "written: use pool_mode = transaction or session for this database"
)


def is_without_transactions(said: str) -> bool:
    """Tell whether what a server *said* comes from a pooler that lets no transaction through."""
    return _NO_TRANSACTIONS in said


def explain(error: Exception) -> None:
    """Write beside a library's own *error* what to do, where it is such a pooler's."""
    if is_without_transactions(str(error)):
        error.add_note(f"outbox: {ADVICE}.")
