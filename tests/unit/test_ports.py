"""Where the UI listens: the port that was asked for where it can be had, on an address of this machine."""

import socket
from pathlib import Path

import pytest

from outbox_pipeline.cli.up import _door_names
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.orchestration.host.stack import StackPlan, free_port
from outbox_pipeline.settings import Settings


def closed_port() -> int:
    """Return a port that a server has just left, with a connection of it in TIME_WAIT."""
    with socket.socket() as server:
        # As the webserver's.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = int(server.getsockname()[1])
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        # The side that closes first is the one that waits.
        accepted.close()
        client.recv(1)
        client.close()
    return port


def test_the_port_of_a_server_that_has_just_ended_is_free() -> None:
    """Closed connections of it, of a browser's tab for example, do not send the UI to another port."""
    port = closed_port()

    assert free_port(port) == port


def test_a_port_that_is_listened_on_is_not_free() -> None:
    """Another one is taken."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = int(server.getsockname()[1])

        assert free_port(port) not in (0, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such name", "a..b"])
def test_an_address_that_is_not_of_this_machine_is_refused(host: str) -> None:
    """In a sentence that names it, before anything is started."""
    with pytest.raises(ConfigurationError, match="The UI cannot listen on"):
        free_port(0, host)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:3000"),
        ("0.0.0.0", "http://127.0.0.1:3000"),
        ("::", "http://[::1]:3000"),
        ("10.0.0.5", "http://10.0.0.5:3000"),
        ("fe80::1", "http://[fe80::1]:3000"),
    ],
)
def test_only_the_ui_listens_on_another_address(host: str, url: str) -> None:
    """The code server keeps its socket, and the UI's address is one that this machine can open."""
    plan = StackPlan(Path("home"), 3000, Path("code.sock"), web_host=host)

    assert plan.url == url
    assert ("-h", host) in zip(plan.command("webserver"), plan.command("webserver")[1:], strict=False)
    assert host not in plan.command("code") + plan.command("daemon")


@pytest.mark.parametrize(
    ("host", "ui_hosts", "names"),
    [
        ("127.0.0.1", None, None),
        ("localhost", ("a.example",), None),
        ("0.0.0.0", None, None),
        ("0.0.0.0", ("a.example:3000",), "a.example:3000"),
        ("10.0.0.5", ("a.example",), "a.example,10.0.0.5"),
        ("fe80::1", None, "[fe80::1]"),
    ],
)
def test_the_door_opens_for_the_address_that_was_given(
    host: str, ui_hosts: tuple[str, ...] | None, names: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside OUTBOX_UI_HOSTS; whoever opens the UI to other machines reads what that means."""
    found = _door_names(Settings(ui_hosts=ui_hosts), host)

    assert found == ({} if names is None else {"OUTBOX_UI_HOSTS": names})
    assert Settings(ui_hosts=names or None)
    assert ("has no login" in capsys.readouterr().err) == (host not in ("127.0.0.1", "localhost"))
