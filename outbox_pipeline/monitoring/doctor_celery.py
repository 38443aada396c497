"""The doctor's part about Celery, where the instance in DAGSTER_HOME starts its runs by it.

Invariant: nothing is changed, and no run is started; workers are asked over the broker as Celery's own tools do it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.monitoring.celery_launcher import (
    CeleryLauncher,
    Worker,
    ask_workers,
    read_launcher,
    require_answers,
    require_celery,
)
from outbox_pipeline.monitoring.check import Check, skipped, told
from outbox_pipeline.monitoring.shared_settings import other_settings
from outbox_pipeline.settings import Settings, shown_url

#: Every check of this part, in the order it is made.
CELERY_CHECKS = ("celery broker", "celery workers", "celery settings")


def examine_celery(settings: Settings, environment: Mapping[str, str]) -> Iterator[Check]:
    """Make every check of this part; none where runs are not Celery's."""
    home = environment.get("DAGSTER_HOME")
    if not home:
        return
    try:
        launcher = read_launcher(Path(home), environment)
        if launcher is None:
            return
        require_celery()
        require_answers(launcher)
        workers = ask_workers(launcher)
    except OutboxError as error:
        yield Check("celery broker", False, told(error))
        yield from skipped(CELERY_CHECKS[1:], "celery broker")
        return
    said = f"Celery's broker at {shown_url(launcher.broker)} and its result backend answer."
    yield Check("celery broker", True, said)
    yield check_workers(launcher, workers)
    yield check_worker_settings(settings, workers)


def check_workers(launcher: CeleryLauncher, workers: Sequence[Worker]) -> Check:
    """Find that no worker answers, or that they have fewer places than runs that may work at once."""
    name, slots = "celery workers", sum(worker.slots for worker in workers)
    if not workers:
        said = "No Celery worker answers, so no run begins: start 'outbox worker', on as many hosts as you like."
        return Check(name, False, said)
    answering = f"{counted(len(workers), 'worker')} with {counted(slots, 'place')} for runs"
    if slots < launcher.max_runs:
        said = (
            f"{answering}, and max_concurrent_runs is {launcher.max_runs}: a run that waits for a place in the broker "
            "counts as starting and is given up after start_timeout_seconds; start more workers, give them a higher "
            "--concurrency, or lower max_concurrent_runs in dagster.yaml."
        )
        return Check(name, False, said)
    verb = "answers" if len(workers) == 1 else "answer"
    return Check(name, True, f"{answering} {verb}; max_concurrent_runs is {launcher.max_runs}.")


def check_worker_settings(settings: Settings, workers: Sequence[Worker]) -> Check:
    """Find workers whose runs go by other settings than this environment's."""
    name = "celery settings"
    found = {worker.name: _difference(settings, worker) for worker in workers}
    wrong = [f"{worker} has {other}" for worker, other in found.items() if other is not None]
    if wrong:
        said = f"{'; '.join(wrong)}: give code location and workers the same environment, and start them again."
        return Check(name, False, said)
    if not workers:
        return skipped([name], "celery workers")[0]
    return Check(name, True, "The workers go by the settings of this environment.")


def _difference(settings: Settings, worker: Worker) -> str | None:
    if worker.settings is None:
        return "settings that cannot be asked for, because it was not started by 'outbox worker'"
    others = other_settings(worker.settings, settings)
    if others is None:
        return "another version of outbox-pipeline"
    return f"another value of {', '.join(others)}" if others else None
