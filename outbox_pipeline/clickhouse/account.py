"""What the account of our user in ClickHouse does to our statements: settings that are held, rows that are hidden.

Nothing here changes anything. What the account may not do at all, such as to insert, is a matter of grants.
"""

from typing import Any, Final

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.statement_settings import BATCH_INSERT, STATEMENT
from outbox_pipeline.errors import ConfigurationError

_SETTINGS = """
SELECT name, value, readonly, min, max, currentUser() AS user FROM system.settings WHERE name IN {names:Array(String)}
"""

_USER = "SELECT currentUser() AS user"

#: What only a profile can change, and the value with which all that the pipeline does is allowed.
_RIGHTS: Final = {"readonly": "0", "allow_ddl": "1", "force_data_skipping_indices": ""}
#: Each insert of a batch has its own value of these.
_OWN_VALUES: Final = ("insert_deduplication_token", "log_comment")

#: What every version's plan of a read without a condition says only where a policy has added one.
_FILTERED = "filter column"
_PLAN = "EXPLAIN actions = 1 SELECT source FROM {asked:Identifier}"
#: A policy on a whole database names no table.
_POLICIES = """
SELECT DISTINCT table FROM system.row_policies
WHERE database = currentDatabase() AND table IN {names:Array(String)}
    AND (apply_to_all OR hasAny(apply_to_list, arrayConcat([currentUser()], enabledRoles())))
    AND NOT hasAny(apply_to_except, arrayConcat([currentUser()], enabledRoles()))
"""
#: The tables whose rows decide what is sent, and what counts as delivered.
_READ: Final = ("table", "fence", "sources", "ledger", "completeness")


def profile_problem(client: EventLogClient) -> str | None:
    """Return in one sentence every setting that the user's profile keeps from what our statements need; None for none.

    Of a *client* that sends our settings only those can be found that just the insert of a batch adds: with a profile
    that forbids another one no such client is opened, so give one that was opened under the profile.
    """
    wanted = {**STATEMENT, **{name: str(value) for name, value in client.known(BATCH_INSERT).items()}, **_RIGHTS}
    rows = client.rows(_SETTINGS, {"names": [*wanted, *_OWN_VALUES]})
    held = [said for row in rows if row["name"] in _RIGHTS and (said := _held(row, wanted[row["name"]]))]
    # Where nothing may be changed the single settings say nothing.
    held = held or [said for row in rows if (said := _held(row, wanted.get(row["name"])))]
    if not held:
        return None
    return (
        f"The profile of user {rows[0]['user']} in ClickHouse forbids what our statements need: {', '.join(held)}. "
        "As an administrator of ClickHouse give the user these values, or take the constraints on them out of its "
        "profile."
    )


def _held(row: dict[str, Any], wanted: str | None) -> str | None:
    name, value = row["name"], row["value"]
    if wanted is None:
        return f"{name} must be free" if row["readonly"] else None
    if value == wanted or not (row["readonly"] or name in _RIGHTS or _is_out_of_range(wanted, row["min"], row["max"])):
        return None
    return f"{name} must be {wanted or 'empty'} (is {value or 'empty'})"


def _is_out_of_range(wanted: str, lowest: str | None, highest: str | None) -> bool:
    number, low, high = _number(wanted), _number(lowest), _number(highest)
    if number is None:
        return False
    return (low is not None and number < low) or (high is not None and number > high)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def hidden_rows_problem(client: EventLogClient) -> str | None:
    """Return which tables of the log a row policy hides rows of from the user, in one sentence; None when of none.

    Of a table with rows ClickHouse's plan of a read says so, which takes no right; of an empty one only the policies
    themselves, where the user may see them.
    """
    names = [client.names[role] for role in _READ]
    listed = _listed(client, names)
    hidden = [name for name in names if name in listed or "" in listed or _is_filtered(client, name)]
    if not hidden:
        return None
    (row,) = client.rows(_USER)
    return (
        f"A row policy hides rows of {' and '.join(hidden)} from user {row['user']}, so what is there is taken for "
        f"missing: leave the user out of it (ALTER ROW POLICY … TO ALL EXCEPT {row['user']}); SHOW ROW POLICIES names "
        "the policies."
    )


def _listed(client: EventLogClient, names: list[str]) -> set[str]:
    try:
        return {str(row["table"]) for row in client.rows(_POLICIES, {"names": [*names, ""]})}
    except ConfigurationError:
        return set()


def _is_filtered(client: EventLogClient, table: str) -> bool:
    plan = client.rows(_PLAN, {"asked": table})
    return any(_FILTERED in str(line["explain"]).lower() for line in plan)
