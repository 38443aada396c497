"""The command `up`, and the running stack that `demo` shares with it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import StrEnum
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.support.engines import engine_keeper, given_urls, ledger_engine, ready_settings
from outbox_pipeline.cli.support.output import quoted
from outbox_pipeline.cli.support.starting import Tell, starting
from outbox_pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from outbox_pipeline.orchestration.host.stack import CeleryPlan, DagsterStack
    from outbox_pipeline.settings import Settings

    #: What is done with the settings around Dagster's life.
    Beforehand = Callable[[Settings], AbstractContextManager[None]]

#: Where the UI is unless something else listens there.
DEFAULT_PORT = 3000
LOOPBACK = "127.0.0.1"
#: What is started, in the order in which it is up.
PARTS = ("PostgreSQL", "ClickHouse", "schema", "code server", "daemon", "UI")

Port = Annotated[
    int, typer.Option(help="Port of the Dagster UI; another one is taken when it is in use.", min=0, max=65535)
]


Host = Annotated[
    str,
    typer.Option(
        help="Address that the Dagster UI listens on, such as 0.0.0.0 for all of this machine. The UI has no login: "
        "who reaches it can start, stop and delete. Names that it is called by are in OUTBOX_UI_HOSTS."
    ),
]


class RunsOn(StrEnum):
    """What does the runs."""

    CODE = "code"
    CELERY = "celery"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("up")(up)


def up(
    port: Port = DEFAULT_PORT,
    host: Host = LOOPBACK,
    engines_only: Annotated[
        bool,
        typer.Option(
            "--engines-only", help="Start the embedded engines without Dagster, for `outbox relay` or `dagster dev`."
        ),
    ] = False,
    runs: Annotated[
        RunsOn,
        typer.Option(
            help="Who does the runs: processes of the code server, or Celery workers, to try these on one machine. "
            "Celery takes OUTBOX_CELERY_BROKER and OUTBOX_CELERY_BACKEND, or a Redis of its own (program redis-server)."
        ),
    ] = RunsOn.CODE,
    workers: Annotated[int, typer.Option(help="Celery workers, with --runs celery.", min=1, max=16)] = 2,
) -> None:
    """Run everything: embedded engines where no URL is set, and Dagster's webserver, daemon and code location.

    What ends by itself or is killed is started again, and a line says so. Ctrl-C ends all of it. On a home where it
    runs already it says so and starts nothing.

    Example: outbox up --port 3000
    """
    if engines_only:
        with interruptible(), ready_settings() as settings:
            _require_embedded_url()
            typer.echo(_engines_are_up(settings), err=True)
            watch(revival(None))
        return
    on_celery = workers if runs is RunsOn.CELERY else None
    with interruptible(), whole_stack(port=port, host=host, celery_workers=on_celery) as (settings, url, stack):
        typer.echo(f"Dagster UI: {url}")
        if stack is None:
            typer.echo("It runs already, started by another 'outbox up' on this home.", err=True)
            return
        typer.echo(f"It runs on {settings.home}. Ctrl-C ends it. Logs are in {settings.home / 'logs'}.", err=True)
        watch(revival(stack))


@contextmanager
def whole_stack(
    *,
    port: int,
    host: str = LOOPBACK,
    celery_workers: int | None = None,
    beforehand: "Beforehand | None" = None,
) -> Iterator[tuple["Settings", str, "DagsterStack | None"]]:
    """Run engines and Dagster during the block, and yield the settings, the UI's URL and Dagster's stack.

    The stack is None when another process runs it. Dagster's processes import what they need while the engines start.
    Runs are the code server's, or those of *celery_workers*.
    *beforehand* is entered when both stores answer, before Dagster is started, and left after it has ended.
    """
    from outbox_pipeline.operations.first_day import VARIABLE, find_first_day
    from outbox_pipeline.orchestration.host.launch import preloading
    from outbox_pipeline.orchestration.host.stack import dagster_stack, running_stack
    from outbox_pipeline.settings import load_settings

    with ExitStack() as until_ended:
        shown = until_ended.enter_context(ExitStack())
        home, launcher = load_settings().home, None
        tell: Tell = _untold
        celery = None if celery_workers is None else _celery_plan(celery_workers)
        if running_stack(home) is None:
            parts = PARTS if celery is None or not celery.has_broker else [*PARTS[:3], "broker", *PARTS[3:]]
            tell = shown.enter_context(starting(parts))
            launcher = until_ended.enter_context(preloading(home, {}))
        settings = until_ended.enter_context(ready_settings(on_up=tell))
        url, stack = running_stack(home), None
        if url is None:
            environment = {**dagster_environment(settings), **_door_names(settings, host)}
            _require_servers(settings)
            environment[VARIABLE] = find_first_day(settings).isoformat()
        if beforehand is not None:
            until_ended.enter_context(beforehand(settings))
        if url is None:
            stack = until_ended.enter_context(
                dagster_stack(home, environment, port=port, host=host, celery=celery, launcher=launcher, on_up=tell)
            )
            url = stack.plan.url
        shown.close()
        if stack is not None and port not in (0, stack.plan.web_port):
            typer.echo(f"Port {port} is taken.", err=True)
        yield settings, url, stack


def _celery_plan(workers: int) -> "CeleryPlan":
    """Return who does the runs, with a place for each that `dagster.yaml` lets work at once.

    Raises ConfigurationError when Celery, or a broker, is missing.
    """
    from outbox_pipeline.monitoring.celery_launcher import CeleryLauncher, max_runs, require_answers, require_celery
    from outbox_pipeline.orchestration.host.broker import require_program
    from outbox_pipeline.orchestration.host.instance import instance_text
    from outbox_pipeline.orchestration.host.stack import CeleryPlan, own_broker
    from outbox_pipeline.settings import load_settings

    require_celery()
    settings = load_settings()
    broker, backend = settings.celery_broker, settings.celery_backend
    if broker is not None and broker.get_secret_value() == own_broker(settings.home)["OUTBOX_CELERY_BROKER"]:
        # From `outbox env`: the one that is to be started.
        broker = backend = None
    if (broker is None) != (backend is None):
        raise ConfigurationError("Of OUTBOX_CELERY_BROKER and OUTBOX_CELERY_BACKEND one is not set: set both or none.")
    if broker is None or backend is None:
        require_program()
    else:
        require_answers(CeleryLauncher(broker.get_secret_value(), backend.get_secret_value()))
    return CeleryPlan(
        workers, concurrency=-(-max_runs(instance_text(on_celery=True)) // workers), has_broker=broker is None
    )


def _untold(_name: str) -> None:
    """Say nothing: it ran before."""


def dagster_environment(settings: "Settings") -> dict[str, str]:
    """Return the variables Dagster's processes need beside those of this process.

    A URL that lies in a file they read there. Raises ConfigurationError when a URL is missing.
    """
    from outbox_pipeline.secret_files import is_in_file

    values, missing = given_urls(settings)
    if missing:
        raise ConfigurationError(
            f"{' and '.join(missing)} not set: Dagster needs its own database, "
            "for example postgresql+psycopg2://user@host/dagster?sslmode=verify-full."
        )
    told = {name: url for name, url in values.items() if not is_in_file(name)}
    return {**told, "OUTBOX_HOME": str(settings.home)}


def _door_names(settings: "Settings", host: str) -> dict[str, str]:
    """Warn of a UI that other machines reach, and return the variable with the names that its door opens for."""
    from outbox_pipeline.loopback import is_loopback

    if is_loopback(host):
        return {}
    names = list(settings.ui_hosts or ())
    if host not in ("0.0.0.0", "::"):
        names.append(f"[{host}]" if ":" in host else host.lower())
    typer.secho(
        f"Who reaches {host} can start, stop and delete in the Dagster UI, which has no login: keep the port closed to "
        "others, or put a proxy with a login in front.",
        fg="yellow",
        err=True,
    )
    told = ", ".join(names) if names else "none but this machine's own; set OUTBOX_UI_HOSTS to the names browsers use"
    typer.echo(f"Names that the UI answers under: {told}.", err=True)
    return {"OUTBOX_UI_HOSTS": ",".join(names)} if names else {}


def _engines_are_up(settings: "Settings") -> str:
    # In another folder a command would find another home, and make a new, empty outbox there.
    return (
        f"Engines are up on {settings.home}. In another terminal, in any folder: "
        f"export OUTBOX_HOME={quoted(str(settings.home))}; "
        'eval "$(outbox env)"; then your code, outbox and psql use them. Ctrl-C ends them.'
    )


def _require_embedded_url() -> None:
    from outbox_pipeline.settings import load_settings

    if not given_urls(load_settings())[1]:
        raise ConfigurationError("There is no engine to start: all three URLs are set.")


def _require_servers(settings: "Settings") -> None:
    # Dagster's own processes would answer a server that is away with pages of traceback.
    from outbox_pipeline.clickhouse.client import ask, require_answer
    from outbox_pipeline.postgres.dagster_storage import require_storage
    from outbox_pipeline.postgres.engine import ledger_transaction
    from outbox_pipeline.postgres.schema import check_version
    from outbox_pipeline.relay.lost_log import require_log_version
    from outbox_pipeline.relay.owner import claim_table
    from outbox_pipeline.stores import open_stores

    engine = ledger_engine(settings)
    with ledger_transaction(engine) as connection:
        check_version(connection)
    require_answer(settings)
    ask(settings, lambda client: require_log_version(engine, client))
    with open_stores(settings) as stores:
        claim_table(stores)
    if settings.dagster_url is not None:
        require_storage(settings.dagster_url.get_secret_value())


def revival(stack: "DagsterStack | None") -> Callable[[], list[str]]:
    """Return what starts again what has ended, of the engines and of *stack*, with a sentence for each."""
    keeper = engine_keeper()

    def revive() -> list[str]:
        told = [] if keeper is None else keeper.revive()
        names = [] if stack is None else stack.revive()
        return [*told, *(f"Dagster's {name} process had ended and was started again." for name in names)]

    return revive


def watch(revive: Callable[[], list[str]]) -> None:
    """Start again what ends, until interrupted."""
    pause = threading.Event()
    while not pause.wait(1):
        for told in revive():
            typer.echo(told, err=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, once: what it still holds is cleaned up undisturbed."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for ending in before:
            signal.signal(ending, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {ending: signal.signal(ending, interrupt) for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler or signal.SIG_DFL)
