"""A secret comes from its variable or from the file that `…_FILE` names, and nothing of it is shown."""

from pathlib import Path

import pytest

from outbox_pipeline.cli.up import dagster_environment
from outbox_pipeline.errors import SettingsError
from outbox_pipeline.settings import Settings, load_settings, misspelt_settings, secret_files
from tests.fixtures.commands import run_outbox

POSTGRES = "postgresql+psycopg://outbox:hush-hush@db/shop"
URLS = {
    "postgres_url": POSTGRES,
    "clickhouse_url": "https://outbox:hush-hush@log/events",
    "dagster_url": "postgresql+psycopg2://dagster:hush-hush@db/dagster",
    "alert_webhook_url": "https://hooks.example.org/hush-hush",
}


@pytest.fixture(autouse=True)
def _no_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in URLS:
        monkeypatch.delenv(f"OUTBOX_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that OUTBOX_POSTGRES_URL_FILE names."""
    path = tmp_path / "url"
    path.write_text(f"{POSTGRES}\n", encoding="utf-8")
    monkeypatch.setenv("OUTBOX_POSTGRES_URL_FILE", str(path))
    return path


def refusal() -> str:
    """Return the sentence with which the settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


@pytest.mark.parametrize("field", URLS)
@pytest.mark.parametrize(
    ("start", "end"), [("", ""), ("", "\n"), ("", "\r\n"), ("", " \n\n"), (" ", "\n"), ("\ufeff", "\r\n")]
)
def test_a_secret_is_what_its_file_holds(
    field: str, start: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what editors and `echo` leave around it, Windows' too; an empty variable beside it is none."""
    path = tmp_path / "secret"
    path.write_bytes(f"{start}{URLS[field]}{end}".encode())
    monkeypatch.setenv(f"OUTBOX_{field.upper()}_FILE", str(path))
    monkeypatch.setenv(f"OUTBOX_{field.upper()}", "")

    assert getattr(load_settings(), field).get_secret_value() == URLS[field]


def test_every_secret_may_lie_in_a_file() -> None:
    """The settings that are stars in every message are those that have a variable for a file."""
    stars = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]

    assert secret_files() == [f"OUTBOX_{name.upper()}_FILE" for name in stars]
    assert set(URLS) <= set(stars)


def test_a_setting_that_is_no_secret_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its value is for every message, so it stands in the environment."""
    monkeypatch.setenv("OUTBOX_LEASE_SECONDS_FILE", str(tmp_path / "nowhere"))

    assert load_settings().lease_seconds == Settings.model_fields["lease_seconds"].default


def test_two_sources_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is the one that is meant."""
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", POSTGRES)

    assert refusal() == (
        "Wrong settings: OUTBOX_POSTGRES_URL and OUTBOX_POSTGRES_URL_FILE are both set: unset one of them."
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no file, or not there"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"hush\xff-hush", "is not text in UTF-8"),
        (b"https://hush-hush\nhttps://hush-hush\n", "has more than one line"),
        (b"https://hush-hush\rhttps://hush-hush\r", "has more than one line"),
    ],
)
def test_a_file_without_a_secret_is_named(file: Path, content: bytes | None, said: str) -> None:
    """One sentence has the variable and the file, and nothing that is in it."""
    file.unlink() if content is None else file.write_bytes(content)

    assert refusal() == f"Wrong settings: OUTBOX_POSTGRES_URL_FILE names {file}, which {said}."


@pytest.mark.parametrize("field", URLS)
def test_a_secret_in_place_of_its_file_is_not_shown(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes the URL where the path belongs is told so, without any of it."""
    monkeypatch.setenv(f"OUTBOX_{field.upper()}_FILE", URLS[field])

    assert refusal() == (
        f"Wrong settings: OUTBOX_{field.upper()}_FILE is a URL itself: "
        "write it into a file, and the path of the file here."
    )


def test_a_file_that_may_not_be_read_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; this account may read everything, so the system's answer is made here."""

    def refuse(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)

    assert refusal() == (
        f"Wrong settings: OUTBOX_POSTGRES_URL_FILE names {file}, which cannot be read (Permission denied)."
    )


def test_every_wrong_file_is_told_at_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person corrects all of them before the next start; a folder is no file."""
    file.unlink()
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL_FILE", str(tmp_path))

    said = refusal()

    assert "OUTBOX_POSTGRES_URL_FILE names" in said
    assert f"OUTBOX_CLICKHOUSE_URL_FILE names {tmp_path}, which is no file" in said


def test_what_is_wrong_in_a_file_is_told_as_of_its_setting(file: Path) -> None:
    """The rules for a URL count wherever it comes from, and the sentence has no part of it."""
    file.write_text("mysql://hush-hush", encoding="utf-8")

    said = refusal()

    assert "OUTBOX_POSTGRES_URL must start with postgresql://" in said
    assert "hush" not in said


def test_a_variable_for_a_file_is_no_misspelt_setting() -> None:
    """Only one that is nearly such a variable is named, with it."""
    assert misspelt_settings(dict.fromkeys(secret_files(), "")) == {}
    assert misspelt_settings({"OUTBOX_POSTGRES_URL_FIL": ""}) == {"OUTBOX_POSTGRES_URL_FIL": "OUTBOX_POSTGRES_URL_FILE"}


def test_a_command_is_refused_with_that_sentence(file: Path) -> None:
    """No page of traceback."""
    file.unlink()

    told = run_outbox("status")

    assert told.exit_code == 2
    assert told.stderr.splitlines() == [
        f"Wrong settings: OUTBOX_POSTGRES_URL_FILE names {file}, which is no file, or not there."
    ]


def test_dagsters_processes_read_the_files_themselves(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the secret stands in no environment, and none of them meets both variables."""
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", URLS["clickhouse_url"])
    monkeypatch.setenv("OUTBOX_DAGSTER_URL", URLS["dagster_url"])

    told = dagster_environment(load_settings())

    assert set(told) == {"OUTBOX_CLICKHOUSE_URL", "OUTBOX_DAGSTER_URL", "OUTBOX_HOME"}


def test_a_shell_that_takes_the_urls_over_has_one_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`outbox env` prints URLs for every program, so what names their files goes."""
    file.write_text("postgresql+psycopg://outbox:hush-hush@127.0.0.1:9/shop", encoding="utf-8")
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", URLS["clickhouse_url"])
    monkeypatch.setenv("OUTBOX_DAGSTER_URL", URLS["dagster_url"])
    monkeypatch.setenv("OUTBOX_HOME", str(file.parent / "home"))

    lines = run_outbox("env").stdout.splitlines()

    assert lines[0] == "unset OUTBOX_POSTGRES_URL_FILE"
    assert lines[1].startswith("export OUTBOX_POSTGRES_URL=")
