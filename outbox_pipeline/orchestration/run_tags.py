"""The tags by which Dagster ends and orders runs; what the queue does with them stands in `dagster.yaml`."""

#: The attempt on its batch that a run was asked for.
ATTEMPT_TAG = "outbox/attempt"


def max_runtime(seconds: int = 3600) -> dict[str, str]:
    """Return the tag that ends a run after *seconds*.

    A run whose code server was killed would otherwise count as started for ever.
    """
    return {"dagster/max_runtime": str(seconds)}


def in_background(kind: str, *, priority: int) -> dict[str, str]:
    """Return the tags of a run that waits behind deliveries, which have priority 0 or more.

    Of all runs with the tag `outbox/background`, whatever its value, one works at a time.
    """
    return {"dagster/priority": str(priority), "outbox/background": kind}
