"""The command line without servers: help, exit codes, and errors in one sentence without secrets."""

import json
import pkgutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import typer
from typer.testing import CliRunner

from outbox_pipeline import cli
from outbox_pipeline.cli import main
from outbox_pipeline.cli.support.failures import complain, show_defect
from outbox_pipeline.cli.support.output import quoted, shown, verdict
from outbox_pipeline.errors import OutboxError, SettingsError
from outbox_pipeline.postgres.dagster_storage import storage_url
from outbox_pipeline.settings import load_settings
from tests.fixtures.commands import run_outbox as outbox

_HEAVY = ("alembic", "chdb", "clickhouse_connect", "dagster", "numpy", "pandas", "pandera", "psycopg", "pyarrow")
_NOBODY = {
    "OUTBOX_POSTGRES_URL": "postgresql+psycopg://user:sekret@127.0.0.1:1/db",
    "OUTBOX_CLICKHOUSE_URL": "http://user:sekret@127.0.0.1:1/db",
    "OUTBOX_DAGSTER_URL": "postgresql+psycopg2://user:sekret@127.0.0.1:1/db",
}


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command sends log lines to the stderr of its process, which here is gone afterwards."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """URLs are set, and nothing listens there."""
    for name, url in _NOBODY.items():
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))


def test_help_loads_nothing_heavy() -> None:
    """Help must answer at once: engines, drivers, Arrow, pandas and Dagster stay unloaded."""
    program = (
        "import sys\nfrom outbox_pipeline.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({_HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"
    assert "publish" in done.stdout


@pytest.mark.parametrize("missing", ["typer", "clickhouse_connect"])
def test_an_install_that_only_publishes_says_what_the_command_needs(missing: str) -> None:
    """It has the command too: one sentence names the extra, instead of a traceback."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["outbox"].partition(":")
    program = f"import sys; sys.modules[{missing!r}] = None; from {module} import {name}; {name}()"
    done = subprocess.run([sys.executable, "-c", program, "status"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"because {missing} is not installed: install outbox-pipeline[pipeline]" in done.stderr
    assert done.stderr.count("\n") == 1


def defining_modules() -> dict[str | None, set[str]]:
    """Return for each command of the application the modules that define it, or the commands of its family."""
    found = {
        command.name: {command.callback.__module__} for command in main.app.registered_commands if command.callback
    }
    for family in main.app.registered_groups:
        members = family.typer_instance.registered_commands if family.typer_instance else []
        found[family.name] = {command.callback.__module__ for command in members if command.callback}
    return found


def test_a_command_stands_in_the_module_of_its_name() -> None:
    """`outbox NAME` stands in `cli/NAME`; a module there that is no command belongs into `support`."""
    modules = {module.name for module in pkgutil.iter_modules(cli.__path__)} - {"main", "support"}
    found = defining_modules()

    assert modules == set(found)
    for name, homes in found.items():
        assert homes
        assert all(f"{home}.".startswith(f"outbox_pipeline.cli.{name}.") for home in homes), (name, homes)


@pytest.mark.parametrize("name", [command.name for command in main.app.registered_commands])
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    """`outbox COMMAND --help` says what it does and shows a line to copy."""
    result = outbox(name, "--help")

    assert result.exit_code == 0
    assert "Example: " in result.stdout


def test_version_is_one_line() -> None:
    """`outbox --version` names the package."""
    result = outbox("--version")

    assert (result.exit_code, result.stdout.split()[0]) == (0, "outbox-pipeline")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["trace", "no-uuid"],
        ["publish"],
        ["publish", "/nowhere/events.jsonl"],
        ["publish", "/"],
        ["resume", "no-uuid"],
        ["reconcile", "--from", "yesterday"],
        ["replay", "--from", "2026-03-02", "--to", "2026-03-01"],
        ["quarantine", "list", "--since", "yesterday"],
        ["quarantine", "requeue"],
        ["sql", "SELECT 1", "--json", "--format", "CSV"],
    ],
)
def test_wrong_use_is_exit_code_two(arguments: list[str]) -> None:
    """Wrong use is told on stderr, with nothing on stdout."""
    result = outbox(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


@pytest.mark.parametrize(
    "arguments", [["init"], ["status"], ["relay"], ["publish", "-"], ["resume"], ["sql", "SELECT 1"]]
)
@pytest.mark.usefixtures("nobody_answers")
def test_unreachable_server_is_one_sentence_without_its_password(arguments: list[str]) -> None:
    """A server that does not answer is named with what to check, on stderr, and its password is not shown."""
    result = outbox(*arguments, given="")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
    assert "sekret" not in result.output


@pytest.mark.parametrize("port", ["-1", "65536", "99999"])
@pytest.mark.parametrize("command", [["up"], ["demo"], ["metrics", "serve"]])
@pytest.mark.usefixtures("nobody_answers")
def test_a_port_that_there_is_not_is_wrong_use(command: list[str], port: str) -> None:
    """It is refused before anything is started."""
    result = outbox(*command, "--port", port)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--port" in result.stderr


@pytest.mark.usefixtures("nobody_answers")
def test_a_command_that_ctrl_c_ends_leaves_ctrl_c_as_it_was() -> None:
    """What goes on in its process afterwards is ended by signals as before."""
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(ending) for ending in endings]

    result = outbox("up", "--port", "0")

    assert result.exit_code == 1
    assert [signal.getsignal(ending) for ending in endings] == before


@pytest.mark.parametrize("word", ["sekret", ""])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["reconcile", "--repair"], "--from"),
        (["reconcile"], "--to"),
        (["replay", "--reload"], "--from"),
        (["replay"], "--to"),
        (["delivered"], "--from"),
        (["delivered"], "--to"),
        (["quarantine", "list"], "--since"),
        (["quarantine", "requeue"], "--until"),
        (["quarantine", "discard", "--note", "why"], "--batch"),
    ],
)
@pytest.mark.usefixtures("nobody_answers")
def test_a_wrong_word_is_named_by_its_option_and_not_quoted(command: list[str], option: str, word: str) -> None:
    """An empty word, as of a shell variable that is not set, is wrong too: it means neither all nor none."""
    result = outbox(*command, option, word)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"What is given as {option} is no ")
    assert "sekret" not in result.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["replay", "--from", "2026-03-01"], "--type"),
        (["quarantine", "requeue", "--reason", "context_too_large"], "--type"),
        (["quarantine", "discard", "--note", "why", "--type", "smoke_test"], "--reason"),
        (["metrics", "serve"], "--host"),
    ],
)
@pytest.mark.usefixtures("nobody_answers")
def test_an_empty_word_chooses_no_more_than_was_meant(command: list[str], option: str) -> None:
    """Taken for an option that was left out, it would mean events of every type, or every network."""
    result = outbox(*command, option, "")

    assert (result.exit_code, result.stdout) == (2, "")
    assert f"What is given as {option} is no " in result.stderr


def test_the_note_of_a_discard_is_shown_as_required() -> None:
    """It has no default that would do; the help says so before the command does."""
    result = outbox("quarantine", "discard", "--help")

    assert "Required" in result.stdout


@pytest.mark.parametrize(
    ("ids", "name"), [(["sekret"], "ID"), (["1", "sekret"], "ID number 2"), ([""], "ID"), (["9" * 5000], "ID")]
)
@pytest.mark.usefixtures("nobody_answers")
def test_a_wrong_id_is_named_by_its_place(ids: list[str], name: str) -> None:
    """Of several ids the sentence says which."""
    result = outbox("quarantine", "requeue", *ids)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"What is given as {name} is no ")
    assert "sekret" not in result.stderr


@pytest.mark.parametrize("arguments", [["status"], ["init"], ["env"], ["relay"], ["publish", "-"]])
def test_wrong_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """A wrong setting is named, and its value is not shown."""
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", "mysql://user:sekret@host/db")

    result = outbox(*arguments, given="")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "OUTBOX_POSTGRES_URL" in result.stderr
    assert "sekret" not in result.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OUTBOX_LEASE_SECONDS", "1e300"),
        ("OUTBOX_RECHECK_SECONDS", "1e15"),
        ("OUTBOX_LOCK_TIMEOUT_SECONDS", "1e9"),
        ("OUTBOX_ALERT_LAG_SECONDS", "inf"),
        ("OUTBOX_RECONCILE_DAYS", "99999999999"),
        ("OUTBOX_FRESHNESS_HOURS", "inf"),
        ("OUTBOX_CLICKHOUSE_URL", "http://"),
    ],
)
def test_a_setting_that_nothing_can_work_with_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Times without an interval in Python or PostgreSQL, and addresses without a host, are told at the start."""
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_env_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without URLs and without running engines `outbox env` fails, says what to do, and leaves no trace."""
    home = tmp_path / "home"
    monkeypatch.setenv("OUTBOX_HOME", str(home))

    result = outbox("env")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "outbox up" in result.stderr
    assert not home.exists()


@pytest.mark.usefixtures("nobody_answers")
def test_doctor_finds_every_unreachable_server_at_once() -> None:
    """One failing check does not hide another, dependent ones are skipped, and passwords are not shown."""
    result = outbox("doctor", "--json")
    found = {check["name"]: check["ok"] for check in json.loads(result.stdout)}

    assert result.exit_code == 1
    assert {name for name, ok in found.items() if ok is False} == {"postgres", "clickhouse", "dagster storage"}
    assert found["schema"] is found["ledger"] is found["clickhouse table"] is found["clocks"] is None
    assert "sekret" not in result.output


def test_doctor_finds_wrong_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With settings that cannot be read, that is the finding and everything else is skipped."""
    monkeypatch.setenv("OUTBOX_MAX_ATTEMPTS", "0")

    result = outbox("doctor", "--json")
    first, *others = json.loads(result.stdout)

    assert result.exit_code == 1
    assert "OUTBOX_MAX_ATTEMPTS" in first["message"]
    assert {check["name"] for check in others} >= {"postgres", "schema", "ledger", "clickhouse", "clickhouse table"}
    assert all(check["ok"] is None for check in others)


def test_control_characters_are_shown_as_escapes() -> None:
    """What an event carries cannot move the cursor of whoever looks at it."""
    assert shown("a\x1b[2Jb\nc é") == "a\\x1b[2Jb\\nc é"


def test_defect_keeps_its_traceback_without_passwords() -> None:
    """An error that nobody expected shows where it came from, and no password."""
    program = (
        "from outbox_pipeline.cli import main\n"
        "@main.app.command('break')\n"
        "def break_() -> None:\n    raise KeyError('postgresql://user:sekret@host/db')\n"
        "main.app(['break'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'postgresql://user:***@host/db'" in done.stderr
    assert "sekret" not in done.stderr


def test_error_of_ours_is_one_sentence_without_passwords() -> None:
    """An OutboxError is told as it is, without the password it may carry."""
    app = typer.Typer(cls=type(typer.main.get_command(main.app)))

    @app.command("fail")
    def fail() -> None:
        raise OutboxError("Nothing answers at http://user:sekret@host/.")

    @app.command("other")
    def other() -> None:
        """Make it a group."""

    result = CliRunner().invoke(app, ["fail"])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Nothing answers at http://user:***@host/.\n"


def test_exported_values_survive_the_shell() -> None:
    """A value with quotes, spaces and dollars comes back from `export` as it was."""
    value = 'http://u:it\'s $HOME "x"@h/'
    done = subprocess.run(
        ["sh", "-c", f'export X={quoted(value)}; printf %s "$X"'], capture_output=True, text=True, check=True
    )

    assert done.stdout == value


def test_what_went_wrong_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence on stderr, and the traceback of a defect, may quote what producers wrote; lines stay lines."""
    complain("refused: \x1b]0;OWNED\x07\u202e\nask psql")
    defect = KeyError("\x1b[31mRED")
    defect.__cause__ = ValueError("\x9b31m")
    show_defect(KeyError, defect, None)

    said = capsys.readouterr().err
    assert "refused: \\x1b]0;OWNED\\x07\\u202e\nask psql" in said
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(said)


def test_help_shows_each_command_in_a_panel() -> None:
    """Twenty commands in one list are read by nobody: each is in one of a few panels, in the order of the work."""
    shown = outbox("--help").stdout

    assert {command.__name__.rpartition(".")[2] for command in main.COMMANDS} == set(defining_modules())
    places = [shown.index(f" {panel} ─") for panel in main.PANELS]
    assert places == sorted(places)
    assert " Commands ─" not in shown


@pytest.mark.parametrize("command", ["status", "quarantine"])
def test_a_misspelt_setting_is_told_by_every_command(
    nobody_answers: None, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One line on stderr names it and the setting that was meant; what is a setting, or of another program, is not."""
    monkeypatch.setenv("OUTBOX_BATCH_MAX_EVENT", "5")
    monkeypatch.setenv("OUTBOX_XYZ", "5")

    told = outbox(command)
    doctor = outbox("doctor")

    first, *_ = told.stderr.splitlines()
    assert first == (
        "Ignored, because it is no setting: OUTBOX_BATCH_MAX_EVENT (did you mean OUTBOX_BATCH_MAX_EVENTS?)"
    )
    assert "OUTBOX_XYZ" not in told.stderr
    assert "did you mean" not in doctor.stderr


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_url_as_hosts_hand_it_out_names_its_driver_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    """Only one driver can be meant, and `outbox env` prints it: Dagster reads the variables by itself."""
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path))
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", "http://127.0.0.1:1/db")
    for name in ("POSTGRES", "DAGSTER"):
        monkeypatch.setenv(f"OUTBOX_{name}_URL", f"{scheme}://u:p@h/{name.lower()}")

    printed = outbox("env").stdout

    assert "export OUTBOX_POSTGRES_URL='postgresql+psycopg://u:p@h/postgres'" in printed
    assert "export OUTBOX_DAGSTER_URL='postgresql+psycopg2://u:p@h/dagster'" in printed
    assert storage_url(f"{scheme}://u:p@h/dagster").startswith("postgresql+psycopg2://u:p@h/dagster?")


def test_another_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is named and is not ours is a mistake, and told as one."""
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", "postgresql+asyncpg://u@h/db")

    with pytest.raises(
        SettingsError, match=r"OUTBOX_POSTGRES_URL must start with postgresql:// or postgresql\+psycopg://"
    ):
        load_settings()


def test_verdicts_have_colours_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words that judge are red, yellow or green there; not in a pipe, and not with NO_COLOR."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert verdict("WRONG") == "WRONG"

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert verdict("WRONG") == "\x1b[31mWRONG\x1b[0m"
    assert verdict("WARN ").startswith("\x1b[33m")
    assert verdict("other") == "other"
    monkeypatch.setenv("NO_COLOR", "1")
    assert verdict("WRONG") == "WRONG"
