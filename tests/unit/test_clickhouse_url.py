"""OUTBOX_CLICKHOUSE_URL: each part is decoded once, and what is not understood is refused by its name."""

from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from outbox_pipeline.clickhouse.address import Address, read_url
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.errors import ConfigurationError, SettingsError
from outbox_pipeline.settings import Settings, load_settings, shown_url

#: Users, passwords and databases as people and companies name them.
NAMES = ("team@corp", "p@ss/w%rd#1", "my db", "a+b", "a%40b", "a?b", "é日", "a&b=c", "a\\b", " lead", "[a]")


@pytest.mark.parametrize("name", NAMES)
def test_names_and_passwords_are_decoded_once(name: str) -> None:
    """What is percent-encoded arrives as it was before, a literal %40 included."""
    written = quote(name, safe="")

    address = read_url(f"https://{written}:{written}@clickhouse.example.org/{written}")

    assert (address.username, address.password, address.database) == (name, name, name)
    assert "password" not in repr(address)


@pytest.mark.parametrize(
    ("url", "interface", "host", "port"),
    [
        ("http://h", "http", "h", 8123),
        ("https://h", "https", "h", 8443),
        ("https://h:443/", "https", "h", 443),
        ("http://[::1]:9000/default", "http", "::1", 9000),
    ],
)
def test_what_is_left_out_is_clickhouses_default(url: str, interface: str, host: str, port: int) -> None:
    """Port, user and database need not be written."""
    assert read_url(url) == Address(interface, host, port, "", "default", "", "default")


@pytest.mark.parametrize(
    ("written", "path", "database"),
    [
        ("/events", "", "events"),
        ("/events/", "", "events"),
        ("/ch/events", "/ch", "events"),
        ("/a/b%20c/my%20db", "/a/b%20c", "my db"),
        ("/a%2Fb", "", "a/b"),
        ("/ch//events", "/ch/", "events"),
        ("/", "", "default"),
    ],
)
def test_the_last_part_of_the_path_is_the_database(written: str, path: str, database: str) -> None:
    """What stands before it is for a proxy, and is sent as it stands."""
    address = read_url(f"http://user@proxy{written}")

    assert (address.path, address.database) == (path, database)


@pytest.mark.parametrize(("value", "is_checked"), [("true", True), ("false", False), ("False", False)])
def test_verify_is_understood(value: str, *, is_checked: bool) -> None:
    """A certificate is checked unless the URL says not to."""
    assert read_url(f"https://h/db?verify={value}").verify is is_checked
    assert read_url("https://h/db").verify


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h/?database=events", r"names database, no parameter of it: write the database as the last part"),
        ("https://h/db?user=u&password=sekret", r"names user, no parameter of it: write user and password before"),
        ("https://h/db?secure=1", r"names secure, .* begin the URL with https://"),
        ("https://h/db?ca_certs=/x", r"names ca_certs, .*: ca_cert=/path/to/ca.pem names"),
        ("https://h/db?client_certs=/x", r"names client_certs, .*: did you mean client_cert"),
        ("https://h/db?max_threads=1", r"names max_threads, .*: take it out; the parameters are ca_cert,"),
        ("https://h/db?ca_cert", r"names ca_cert without a whole path"),
        ("https://h/db?ca_cert=ca.pem", r"names ca_cert without a whole path: write ca_cert=/path/to/file.pem"),
        ("https://h/db?verify=0", r"names verify, and neither as true nor as false"),
        ("https://h/db?verify=true&verify=false", r"names verify 2 times: once is enough"),
        ("http://h/db?verify=false", r"names verify, which is for TLS, and begins with http://"),
        ("https://h/db?client_cert_key=/key.pem", r"names client_cert_key without client_cert"),
        ("https://h/db?ca_cert=/ca.pem&verify=false", r"names ca_cert, and verify=false"),
        ("https://h/db?ca_cert=/no/such/ca.pem", r"names ca_cert, which cannot be used \(No such file or directory\)"),
        ("https://h/db?client_cert=/no/such/file", r"names client_cert, which cannot be used \(No such file"),
        ("https://u:se%FFkret@h/db", r"write a % of a user, password or database as %25"),
        ("https://u%3Ax:sekret@h/db", r"user with a colon"),
        ("https://h/db?verify=%FF", r"correct its % signs"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(url: str, said: str) -> None:
    """Before anything is sent, in one sentence that says what to write, and without a value."""
    with pytest.raises(ConfigurationError, match=said) as refused:
        open_client(Settings(clickhouse_url=SecretStr(url)))

    assert str(refused.value).startswith("OUTBOX_CLICKHOUSE_URL ")
    assert "kret" not in str(refused.value)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    """Also one that is there."""
    (tmp_path / "ca.pem").write_text("no certificate")

    with pytest.raises(ConfigurationError, match="names ca_cert, which cannot be used: name a file in PEM form"):
        read_url(f"https://h/db?ca_cert={tmp_path}/ca.pem")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("u:se#kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:12#kret@h:8123/db", "write them as %40, %2F, %3F and %23"),
        ("u:se?kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:12?a/kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:12?kret=x@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:se/kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:12/kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:se@kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("team@kret:x@h/db", "write them as %40, %2F, %3F and %23"),
        ("h:8123/db#kret", "write them as %40, %2F, %3F and %23"),
        ("u:se[kret@h/db", r"write \[ and \] of a password as %5B and %5D"),
        ("u:se\N{ACCOUNT OF}kret@h/db", "what is no ASCII encoded too"),
        ("u:sekret@h:99999/db", "port that is no number up to 65535."),
    ],
)
def test_a_password_that_is_not_encoded_is_named(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the URL is said as it is, without a part of it."""
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", f"https://{address}")

    with pytest.raises(SettingsError, match=said) as refused:
        load_settings()

    assert "kret" not in str(refused.value)


def test_parameters_are_shown_and_the_password_is_not() -> None:
    """The files of certificates say what is tried; what is named like a secret is starred there too."""
    url = "https://team%40corp:p%40ss@h:8443/my%20db?ca_cert=/etc/ca.pem&client_cert_key=/etc/key.pem&password=p%40ss"

    assert shown_url(url) == (
        "https://team%40corp:***@h:8443/my%20db?ca_cert=/etc/ca.pem&client_cert_key=/etc/key.pem&password=***"
    )
