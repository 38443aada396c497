"""The rules of the door in front of Dagster's webserver, and that they know all that the webserver answers."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster_webserver
import pytest
from dagster_webserver.webserver import DagsterWebserver
from starlette.routing import Mount, Route, WebSocketRoute

from outbox_pipeline.errors import SettingsError
from outbox_pipeline.orchestration.host.door import DATA_PATHS, Door, Message, Receive, Scope, Send
from outbox_pipeline.orchestration.host.instance import WEBSERVER_MODULE
from outbox_pipeline.orchestration.webserver import guard
from outbox_pipeline.settings import load_settings

Headers = dict[str, str]

OURS = "127.0.0.1:3000"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
CROSS = {"sec-fetch-site": "cross-site"}
SAME_SITE = {"sec-fetch-site": "same-site"}
OWN = {"sec-fetch-site": "same-origin", "origin": f"http://{OURS}"}
TYPED = {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
LINK = {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
FRAME = {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
HTML = {"accept": "text/html,application/xhtml+xml"}


class Inside:
    """The application behind the door: remembers who came in, and answers."""

    def __init__(self) -> None:
        self.came_in: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 with a policy of its own, or accept the socket."""
        self.came_in.append(scope["type"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        headers = [(b"content-security-policy", b"base-uri 'none'")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"inside"})


async def never_asked() -> Message:
    """Fail: the door has no business with a body."""
    raise AssertionError("the door read from the client")


def knock(
    method: str,
    path: str,
    headers: Headers | Iterable[tuple[str, str]],
    *,
    host: str | None = OURS,
    hosts: tuple[str, ...] = (),
    path_prefix: str = "",
) -> tuple[list[Message], bool]:
    """Send the head of a request; return what is sent back, and whether it came in."""
    inside, answers = Inside(), []
    listed = [*(headers.items() if isinstance(headers, dict) else headers)]
    if host is not None:
        listed.insert(0, ("host", host))
    scope: dict[str, Any] = {
        "type": "websocket" if method == "WEBSOCKET" else "http",
        "path": path,
        "query_string": b"query=mutation",
        "headers": [(name.encode(), value.encode()) for name, value in listed],
    }
    if method != "WEBSOCKET":
        scope["method"] = method

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(Door(inside, hosts=hosts, path_prefix=path_prefix)(scope, never_asked, send))
    return answers, bool(inside.came_in)


def status(*request: Any, **named: Any) -> int:
    """Return the status of a request that came in (200), or was refused."""
    answers, came_in = knock(*request, **named)
    assert came_in == (answers[0]["status"] == 200)
    return int(answers[0]["status"])


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/graphql", JSON),
        ("POST", "/graphql", {"content-type": "application/json; charset=utf-8"}),
        ("POST", "/graphql", {**JSON, **OWN}),
        ("POST", "/graphql", {**JSON, "sec-fetch-site": "same-origin"}),
        ("POST", "/report_asset_materialization/x", JSON),
        ("GET", "/graphql", {**HTML, **TYPED}),
        ("GET", "/", {}),
        ("HEAD", "/", {}),
        ("GET", "/runs/1", {**HTML, **TYPED}),
        ("GET", "/runs/1", {**HTML, **LINK}),
        ("GET", "/runs/1", {**HTML, **LINK, **SAME_SITE}),
        ("GET", "/_next/static/a.js", {"sec-fetch-site": "same-origin"}),
        ("GET", "/logs/run/compute/err", {**OWN, **HTML}),
        ("GET", "/download_debug/run", TYPED),
        ("GET", "/download_debug/run", {}),
    ],
)
def test_people_and_programs_get_in(method: str, path: str, headers: Headers) -> None:
    """The UI's own requests, links to its pages, typed addresses, and programs, which send no word of a site."""
    assert status(method, path, headers) == 200


@pytest.mark.parametrize("site", [CROSS, SAME_SITE, {"origin": "null"}, {"origin": "http://127.0.0.1:8888"}])
@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/graphql", JSON),
        ("POST", "/report_asset_check/x", JSON),
        ("OPTIONS", "/graphql", {"access-control-request-method": "POST"}),
        ("GET", "/logs/run/compute/err", {}),
        ("GET", "/download_debug/run", {}),
        ("GET", "/favicon.png", {}),
        ("GET", "/", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}),
        ("GET", "/", {"sec-fetch-mode": "cors", "sec-fetch-dest": "document"}),
    ],
)
def test_what_another_page_asks_for_is_refused(site: Headers, method: str, path: str, headers: Headers) -> None:
    """A page of another site, or of another port of this machine, gets nothing, whatever it asks for."""
    assert status(method, path, {**headers, **site}) == 403


@pytest.mark.parametrize("path", [path if path.endswith("/") else f"{path}/x" for path in DATA_PATHS])
@pytest.mark.parametrize("headers", [LINK, {**LINK, **SAME_SITE}])
def test_a_link_of_another_site_leads_to_a_page_only(path: str, headers: Headers) -> None:
    """What is no page is not opened from another site, in a tab of its own either."""
    assert status("GET", path, {**HTML, **headers}) == 403


def test_no_page_is_opened_in_a_frame_of_another() -> None:
    """A frame is refused when it is asked for, not only by the answer's headers."""
    assert status("GET", "/", {**HTML, **FRAME}) == 403


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/graphql", {}),
        ("GET", "/graphql", {"accept": "*/*", **TYPED}),
        ("GET", "/graphql", {"accept": "*/*", **OWN}),
        ("GET", "/graphql", {"accept": "TEXT/HTML"}),
        ("GET", "/graphql", [("accept", "*/*"), ("accept", "text/html")]),
        ("HEAD", "/graphql", {}),
        ("POST", "/graphql", {}),
        ("POST", "/graphql", FORM),
        ("POST", "/graphql", {**FORM, **OWN}),
        ("POST", "/graphql", {"content-type": "text/plain"}),
        ("POST", "/graphql", {"content-type": "text/plain; a=application/json"}),
        ("POST", "/graphql", {"content-type": "application/graphql"}),
        ("POST", "/graphql", {"content-type": "Application/JSON"}),
        ("POST", "/graphql", {"content-type": "multipart/form-data; boundary=application/json"}),
        ("POST", "/graphql", [("content-type", "text/plain"), ("content-type", "application/json")]),
        ("POST", "/report_asset_materialization/x", {}),
        ("PUT", "/graphql", JSON),
        ("DELETE", "/", JSON),
    ],
)
def test_only_a_post_with_a_json_body_changes_something(method: str, path: str, headers: Any) -> None:
    """No other type of body, and no query in an address, comes in; a browser sends JSON elsewhere only with leave."""
    assert status(method, path, headers) == 403


@pytest.mark.parametrize("headers", [TYPED, {"sec-fetch-site": ""}, {"sec-fetch-site": "unheard-of"}])
def test_a_post_is_no_address_that_somebody_typed(headers: Headers) -> None:
    """A browser that sends a POST says that it comes from the UI's own page, or it is refused."""
    assert status("POST", "/graphql", {**JSON, **headers}) == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:3000", "localhost:80", "LOCALHOST", "[::1]:3000", "[::1]"])
def test_loopback_names_are_ours(host: str) -> None:
    """With and without a port."""
    assert status("GET", "/", {}, host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("rebound.example", "rebound.example:3000", "localhost.example", "127.0.0.1.example", "0.0.0.0", "10.0.0.5"),
        *("127.0.0.1:3000@rebound.example", "rebound.example/127.0.0.1", "127.0.0.1 rebound.example", "", None),
    ],
)
def test_an_unknown_host_is_refused(host: str | None) -> None:
    """A name that was made to point here gets nothing, and the sentence says where names are given."""
    answers, came_in = knock("POST", "/graphql", {**JSON, "x-forwarded-host": "localhost"}, host=host)

    assert not came_in
    assert answers[0]["status"] == 421
    assert b"OUTBOX_UI_HOSTS" in answers[1]["body"]
    assert host is None or host == "" or host.encode() not in answers[1]["body"]


def test_two_hosts_are_none() -> None:
    """A second Host header does not bring the first one in."""
    assert status("GET", "/", [("host", "127.0.0.1")], host="rebound.example") == 421


PUBLIC = ("dagster.example.org", "10.0.0.5:3000", "data.example.org:8443")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("dagster.example.org", "https://dagster.example.org"),
        ("dagster.example.org:443", "https://dagster.example.org"),
        ("dagster.example.org:8080", "http://dagster.example.org:8080"),
        ("10.0.0.5:3000", "http://10.0.0.5:3000"),
        # The proxy left the port out, or put its own name for the server in.
        ("data.example.org", "https://data.example.org:8443"),
        ("127.0.0.1:3000", "https://dagster.example.org"),
    ],
)
def test_the_names_of_the_setting_are_ours(host: str, origin: str) -> None:
    """Behind a proxy the Host is the public name; an origin is ours when it is the Host, or listed as it is."""
    assert status("POST", "/graphql", {**JSON, "origin": origin}, host=host, hosts=PUBLIC) == 200


@pytest.mark.parametrize(
    "origin", ["https://dagster.example.org:8443", "https://example.org", "ftp://dagster.example.org", "file://", ""]
)
def test_another_port_of_a_listed_name_is_another_site(origin: str) -> None:
    """What else runs under the public name gets in no more than the rest of the world."""
    asked = {**JSON, "origin": origin}

    assert status("POST", "/graphql", asked, host="dagster.example.org", hosts=PUBLIC) == 403


@pytest.mark.parametrize("path_prefix", ["", "/dagster"])
@pytest.mark.parametrize("host", ["10.1.2.3:3000", "web", None])
def test_a_load_balancer_asks_for_health_under_any_name(path_prefix: str, host: str | None) -> None:
    """`/server_info` answers whoever asks, with the version and nothing else; nothing beside it does."""
    named: dict[str, Any] = {"host": host, "path_prefix": path_prefix}

    assert status("GET", f"{path_prefix}/server_info", {}, **named) == 200
    assert status("POST", f"{path_prefix}/server_info", JSON, **named) == 421
    assert status("GET", f"{path_prefix}/logs/server_info", {}, **named) == 421


def test_below_a_prefix_the_rules_are_the_same() -> None:
    """Data is data under `--path-prefix` too."""
    assert status("GET", "/dagster/graphql", {}, path_prefix="/dagster") == 403
    assert status("GET", "/dagster/logs/a/err", {**HTML, **LINK}, path_prefix="/dagster") == 403
    assert status("GET", "/dagster/runs/1", {**HTML, **LINK}, path_prefix="/dagster") == 200


@pytest.mark.parametrize(
    ("headers", "comes_in"),
    [
        ({}, True),
        (OWN, True),
        ({"origin": f"http://{OURS}"}, True),
        ({"origin": "http://127.0.0.1:8888"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": f"http://{OURS}", **SAME_SITE}, False),
        (TYPED, False),
    ],
)
def test_a_websocket_is_for_our_own_pages(headers: Headers, comes_in: bool) -> None:
    """A browser opens a WebSocket to anywhere, without asking first: the handshake is looked at."""
    answers, came_in = knock("WEBSOCKET", "/graphql", headers)

    assert came_in == comes_in
    assert answers[0]["type"] == ("websocket.accept" if comes_in else "websocket.close")


def test_a_websocket_under_an_unknown_host_is_refused() -> None:
    """Rebinding a name does not open a WebSocket either."""
    assert not knock("WEBSOCKET", "/graphql", {"origin": "http://rebound.example"}, host="rebound.example")[1]


def sent(answers: list[Message], name: str) -> list[str]:
    """Return the values of a header of an answer."""
    return [value.decode() for key, value in answers[0]["headers"] if key == name.encode()]


def test_no_answer_can_be_framed() -> None:
    """Dagster's own policy stays, and a browser keeps to both; refusals have it too."""
    inside, _ = knock("GET", "/", {})
    refused, _ = knock("POST", "/graphql", CROSS)

    assert sent(inside, "content-security-policy") == ["base-uri 'none'", "frame-ancestors 'none'"]
    assert sent(inside, "x-frame-options") == sent(refused, "x-frame-options") == ["DENY"]
    assert "frame-ancestors 'none'" in sent(refused, "content-security-policy")[0]


def test_a_notebook_is_framed_by_the_ui_itself() -> None:
    """Dagster shows notebooks in a frame of its own page, and no other page does."""
    answers, _ = knock("GET", "/notebook", OWN)

    assert sent(answers, "content-security-policy")[-1] == "frame-ancestors 'self'"
    assert sent(answers, "x-frame-options") == ["SAMEORIGIN"]


def test_the_door_knows_everything_that_dagster_answers() -> None:
    """Each route of the installed webserver is the UI's pages, a file of its build, its version, or data."""
    build = Path(dagster_webserver.__file__).parent / "webapp" / "build"
    files = {f"/{entry.name}" for entry in build.iterdir()}
    pages = {"/", "/{path:path}", "/server_info", "/dagit_info"}
    routes = DagsterWebserver(None).build_routes()

    unknown = [
        route.path
        for route in routes
        if isinstance(route, Route | WebSocketRoute | Mount)
        and route.path not in files | pages
        and not route.path.startswith(DATA_PATHS)
    ]
    assert len(routes) > 15
    assert unknown == []


def test_names_of_the_ui_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separated by commas, with or without a port, in any case."""
    monkeypatch.setenv("OUTBOX_UI_HOSTS", "Dagster.example.org, 10.0.0.5:3000,[fd00::5],")

    assert load_settings().ui_hosts == ("dagster.example.org", "10.0.0.5:3000", "[fd00::5]")


@pytest.mark.parametrize("given", ["https://dagster.example.org", "*", "*.example.org", "fd00::5", "a b", "host:port"])
def test_what_is_no_name_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address or a pattern would match nothing or everything; the sentence names the setting and not the value."""
    monkeypatch.setenv("OUTBOX_UI_HOSTS", given)

    with pytest.raises(SettingsError, match="OUTBOX_UI_HOSTS must be host names") as refused:
        load_settings()
    assert given not in str(refused.value)


def test_the_webserver_says_in_a_sentence_what_is_wrong_with_a_setting() -> None:
    """It does not start with names that it cannot read."""
    done = subprocess.run(
        [sys.executable, "-m", WEBSERVER_MODULE, "--version"],
        env={**os.environ, "OUTBOX_UI_HOSTS": "*"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.startswith("Wrong settings: OUTBOX_UI_HOSTS must be host names")


def test_without_a_place_for_the_door_nothing_is_served() -> None:
    """Should a later Dagster make its application elsewhere, its command is not run without the door."""
    with pytest.raises(AttributeError):
        guard(SimpleNamespace(main=print), hosts=())


@pytest.mark.parametrize(
    "origins", [(f"http://{OURS}", "http://evil.example"), ("http://evil.example", f"http://{OURS}")]
)
def test_every_origin_that_is_sent_must_be_ours(origins: tuple[str, str]) -> None:
    """A second one does not hide behind the first."""
    headers = [*JSON.items(), *(("origin", origin) for origin in origins)]

    assert status("POST", "/graphql", headers) == 403


@pytest.mark.parametrize("name", ["host", "content-type", "sec-fetch-site"])
def test_a_header_that_is_there_twice_lets_nothing_in(name: str) -> None:
    """Which of the two counts is not for the door to guess: what is behind it may read the other one."""
    once = [*JSON.items(), ("sec-fetch-site", "same-origin"), ("host", OURS)]
    _, came_in = knock("POST", "/graphql", once, host=None)
    _, came_in_again = knock("POST", "/graphql", [*once, (name, "cross-site")], host=None)

    assert (came_in, came_in_again) == (True, False)
