"""The tags by which Dagster ends and orders runs; what the queue does with them stands in `dagster.yaml`."""

#: The attempt on its batch that a run was asked for.
ATTEMPT_TAG = "outbox/attempt"

#: On a run that ended well and failed for what its check says: the check is the incident, the run none.
TOLD_BY_CHECK_TAG = "outbox/told_by_check"

#: Dagster's own tag: seconds after which a run that is at work counts as failed.
MAX_RUNTIME_TAG = "dagster/max_runtime"


def max_runtime(seconds: float) -> dict[str, str]:
    """Return the tag that ends a run after *seconds*, whole ones; `run_limits` says how many."""
    return {MAX_RUNTIME_TAG: str(int(seconds))}


def in_background(kind: str, *, priority: int) -> dict[str, str]:
    """Return the tags of a run that waits behind deliveries, which have priority 0 or more.

    Of all runs with the tag `outbox/background`, whatever its value, one works at a time.
    """
    return {"dagster/priority": str(priority), "outbox/background": kind}
