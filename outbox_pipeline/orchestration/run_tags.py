"""The tags by which Dagster ends and orders runs; what the queue does with them stands in `dagster.yaml`."""

#: The attempt on its batch that a run was asked for.
ATTEMPT_TAG = "outbox/attempt"

#: On a run that ended well and failed for what its check says: the check is the incident, the run none.
TOLD_BY_CHECK_TAG = "outbox/told_by_check"

#: On a run that a Celery worker does: the worker's name.
WORKER_TAG = "outbox/worker"

#: Dagster's own tag: seconds after which a run that is at work counts as failed.
MAX_RUNTIME_TAG = "dagster/max_runtime"

#: The tags of all runs of this process.
_of_this_process: dict[str, str] = {}


def name_worker(name: str) -> None:
    """Let the runs of this process, and of what it forks, be those of the worker *name*."""
    _of_this_process[WORKER_TAG] = name


def tags_of_this_process() -> dict[str, str]:
    """Return what each run that is done here is tagged with, which is nothing outside of a worker."""
    return dict(_of_this_process)


def max_runtime(seconds: float) -> dict[str, str]:
    """Return the tag that ends a run after *seconds*, whole ones; `run_limits` says how many."""
    return {MAX_RUNTIME_TAG: str(int(seconds))}


def in_background(kind: str, *, priority: int) -> dict[str, str]:
    """Return the tags of a run that waits behind deliveries, which have priority 0 or more.

    Of all runs with the tag `outbox/background`, whatever its value, one works at a time.
    """
    return {"dagster/priority": str(priority), "outbox/background": kind}
