"""The doctor's part about Dagster: its home, its storage, its daemon, its sensors and its queue of runs.

Dagster's UI shows all this as long as it runs; these checks are for when it does not. They ask its tables and files and
never import it. Invariant: nothing is changed, and a storage that Dagster has not used yet is no fault; what tells it
from one whose tables were dropped is the ledger, which knows of runs.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sqlalchemy import URL, make_url

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError, without_secrets
from outbox_pipeline.monitoring.check import Check, duration, skipped
from outbox_pipeline.postgres.dagster_storage import DagsterState, read_dagster_state, read_storage_settings
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.overview import has_run
from outbox_pipeline.postgres.quoting import reset_statements
from outbox_pipeline.settings import Settings, shown_url

#: Every check of this part, in the order it is made.
DAGSTER_CHECKS = ("dagster home", "dagster storage", "dagster daemon", "dagster sensors", "dagster queue")

#: Daemons without which nothing is delivered: one evaluates sensors, the other starts queued runs.
_NEEDED = {"SENSOR": "evaluates sensors", "QUEUED_RUN_COORDINATOR": "starts queued runs"}
#: The daemon writes a heartbeat every half minute.
_SILENT_SECONDS = 180
#: outbox_sensor ticks every few seconds; a tick may last a minute.
_TICKLESS_SECONDS = 300
#: A run starts within seconds, and a backlog within minutes.
_QUEUED_SECONDS = 600

_NAMES_STORAGE = re.compile(r"^\s*env:\s*[\"']?OUTBOX_DAGSTER_URL\b", re.MULTILINE)
#: Variables that Dagster reads there; those of our own settings may lie in files and have checks of their own.
_NAMES_VARIABLE = re.compile(r"^\s*(?:-\s+)?env:\s*[\"']?(?!OUTBOX_)(\w+)", re.MULTILINE)


def examine_dagster(settings: Settings, environment: Mapping[str, str], *, has_ledger: bool = True) -> Iterator[Check]:
    """Make every check of this part; *has_ledger* says whether the ledger can be asked too."""
    # 'outbox up' sets its own for its processes.
    if home := environment.get("DAGSTER_HOME"):
        yield check_home(home, environment)
    if settings.dagster_url is None:
        said = "Not set: 'outbox up' needs OUTBOX_DAGSTER_URL, 'outbox relay' does not."
        unused = [Check(name, None, "Not looked at: OUTBOX_DAGSTER_URL is not set.") for name in DAGSTER_CHECKS[2:]]
        yield from [Check("dagster storage", None, said), *unused]
        return
    storage_url = settings.dagster_url.get_secret_value()
    try:
        unlike = read_storage_settings(storage_url)
        state = read_dagster_state(storage_url)
    except OutboxError as error:
        yield Check("dagster storage", False, without_secrets(str(error)))
        yield from skipped(DAGSTER_CHECKS[2:], "dagster storage")
        return
    storage = check_storage(make_url(storage_url), unlike)
    if state is None and has_ledger and _has_run(settings):
        yield _without_tables(storage_url)
        yield from skipped(DAGSTER_CHECKS[2:], "dagster storage")
        return
    yield storage
    if state is None:
        said = "Dagster has not run on this storage yet: 'outbox up' starts it."
        yield from (Check(name, None, said) for name in DAGSTER_CHECKS[2:])
        return
    yield from [check_daemon(state), check_sensors(state), check_queue(state)]


def _has_run(settings: Settings) -> bool:
    # A ledger that cannot be asked is the finding of another check.
    try:
        with ledger_transaction(create_outbox_engine(settings, pooled=False)) as connection:
            return has_run(connection)
    except OutboxError:
        return False


def _without_tables(url: str) -> Check:
    said = (
        f"Dagster's storage at {shown_url(url)} has no tables, though Dagster's runs have delivered from this outbox: "
        "they were dropped, or OUTBOX_DAGSTER_URL leads to another database; correct it, or start 'outbox up' or "
        "'dagster-daemon run', which make them anew. No event is lost; sensors that were switched off are on again."
    )
    return Check("dagster storage", False, said)


def check_storage(url: URL, unlike: Mapping[str, str]) -> Check:
    """Find what a role or a database sets for Dagster's sessions and a pooler keeps them from setting otherwise."""
    shown = shown_url(url.render_as_string(hide_password=False))
    if not unlike:
        return Check("dagster storage", True, f"Dagster's storage at {shown} answers.")
    told = ", ".join(f"{name} = {value}" for name, value in unlike.items())
    said = (
        f"Dagster's storage at {shown} answers, but its sessions begin with {told}, and a pooler passes on nothing to "
        f"set it otherwise: {reset_statements(url, unlike)}; the server's own TimeZone must be UTC."
    )
    return Check("dagster storage", False, said)


def check_home(home: str, environment: Mapping[str, str]) -> Check:
    """Find a DAGSTER_HOME with which Dagster would work on another instance than the pipeline's, or start no run."""
    name = "dagster home"
    folder = Path(home)
    if not folder.is_absolute() or not folder.is_dir():
        return Check(name, False, f"DAGSTER_HOME is {home}, which is no absolute path of a folder: correct it.")
    file = folder / "dagster.yaml"
    if not file.is_file():
        said = (
            f"DAGSTER_HOME {home} has no dagster.yaml, so Dagster keeps runs and cursors in SQLite files there: copy "
            'this package\'s dagster.yaml into it, or eval "$(outbox env)".'
        )
        return Check(name, False, said)
    text = file.read_text(encoding="utf-8", errors="replace")
    if not _NAMES_STORAGE.search(text):
        said = (
            f"{file} does not take its storage from OUTBOX_DAGSTER_URL, so what is said here of daemon, sensors and "
            "queue is about another instance: let postgres_url under storage be env: OUTBOX_DAGSTER_URL."
        )
        return Check(name, False, said)
    unset = [variable for variable in _NAMES_VARIABLE.findall(text) if variable not in environment]
    if unset:
        said = (
            f"{file} reads variables that are not set here: {', '.join(unset)}. Without them the daemon starts no run; "
            "set them for it and for the UI."
        )
        return Check(name, False, said)
    return Check(name, True, f"DAGSTER_HOME {home} takes its storage from OUTBOX_DAGSTER_URL.")


def check_daemon(state: DagsterState) -> Check:
    """Find daemons that are silent: without them sensors do not tick and queued runs do not start."""
    silent = {
        kind: state.heartbeat_ages.get(kind)
        for kind in _NEEDED
        if state.heartbeat_ages.get(kind, _SILENT_SECONDS + 1) > _SILENT_SECONDS
    }
    if not silent:
        return Check("dagster daemon", True, "Dagster's daemon runs.")
    told = [
        f"{kind} ({_NEEDED[kind]}) {'has never run' if age is None else f'is silent for {duration(age)}'}"
        for kind, age in silent.items()
    ]
    said = f"Dagster's daemon does not run: {', '.join(told)}. Start 'outbox up', or 'dagster-daemon run'."
    return Check("dagster daemon", False, said)


def check_sensors(state: DagsterState) -> Check:
    """Find sensors and schedules that were stopped, and an outbox_sensor that no longer ticks or fails."""
    name = "dagster sensors"
    stopped = sorted(sensor for sensor, status in state.sensors.items() if status == "STOPPED")
    if stopped:
        said = f"Switched off: {', '.join(stopped)}. Switch them on under Automation in the UI."
        return Check(name, False, f"{said} Nothing is delivered meanwhile." if "outbox_sensor" in stopped else said)
    failing = sorted(sensor for sensor, status in state.last_ticks.items() if status == "FAILURE")
    if failing:
        said = f"The latest tick failed: {', '.join(failing)}. Its page under Automation shows the error."
        return Check(name, False, said)
    if state.outbox_tick_age is None or state.outbox_tick_age > _TICKLESS_SECONDS:
        age = state.outbox_tick_age
        ticked = "never ticked" if age is None else f"not ticked for {duration(age)}"
        said = f"outbox_sensor has {ticked}: look whether the daemon runs and Deployment shows the code location."
        return Check(name, False, said)
    return Check(name, True, "outbox_sensor ticks, and nothing is switched off.")


def check_queue(state: DagsterState) -> Check:
    """Find runs that wait in the queue for minutes, and what keeps them there."""
    if not state.queued_count or state.queued_seconds <= _QUEUED_SECONDS:
        return Check(
            "dagster queue", True, f"{counted(state.queued_count, 'run')} queued, {state.working_count} at work."
        )
    waiting = f"{counted(state.queued_count, 'run')} queued, the oldest for {duration(state.queued_seconds)}"
    if not state.working_count:
        said = (
            f"{waiting}, and none is at work: look whether the daemon runs; the page of a queued run says which limit "
            "holds it."
        )
    else:
        said = (
            f"{waiting}, while {state.working_count} are at work, the oldest, {state.oldest_run_id}, for "
            f"{duration(state.oldest_run_seconds)}: terminate it on the Runs page if it hangs, or raise "
            "max_concurrent_runs in dagster.yaml."
        )
    return Check("dagster queue", False, said)
