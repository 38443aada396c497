"""Pages of other sites do not reach Dagster, whatever they make a browser send; its own pages and programs do."""

import http.client
import json
from collections.abc import Iterable
from uuid import uuid4

import pytest

from tests.fixtures.graphql import RUNS, in_address, launching, was_launched
from tests.fixtures.stack import Running

EVIL = "https://evil.example"
JSON = {"Content-Type": "application/json"}
CROSS = {"Sec-Fetch-Site": "cross-site"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "graphql-ws",
}


def send(
    running: Running, method: str, path: str, headers: dict[str, str], body: str = "", *, host: str | None = None
) -> tuple[int, str, dict[str, str]]:
    """Send one request with exactly these headers; return status, body and headers of the answer."""
    port = running.stack.plan.web_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": host or f"127.0.0.1:{port}", **headers}.items():
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() or None)
        answer = connection.getresponse()
        text = "" if answer.status == 101 else answer.read().decode("utf-8", "replace")
        return answer.status, text, _joined(answer.getheaders())
    finally:
        connection.close()


def _joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name.lower()] = f"{joined[name.lower()]}, {value}" if name.lower() in joined else value
    return joined


ATTACKS = {
    "an image": ("GET", {**CROSS, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image", "Accept": "image/*"}),
    "an image in an old browser": ("GET", {"Accept": "*/*"}),
    "a fetch without cors": ("POST", {**CROSS, "Origin": EVIL, "Content-Type": "text/plain"}),
    "a fetch without cors in an old browser": ("POST", {"Origin": EVIL, "Content-Type": "text/plain"}),
    "a form that sends itself": (
        "POST",
        {
            **CROSS,
            "Origin": EVIL,
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "text/html",
        },
    ),
    "a form whose type names JSON": ("POST", {"Origin": EVIL, "Content-Type": "text/plain; a=application/json"}),
    "a page of another port": ("POST", {**JSON, "Origin": "http://127.0.0.1:8888", "Sec-Fetch-Site": "same-site"}),
    "a page without an origin": ("POST", {**JSON, "Origin": "null", **CROSS}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_page_of_another_site_launches_no_run(running: Running, attack: str) -> None:
    """The mutation is in the address and in the body, and the page's browser is told why it is refused."""
    method, headers = ATTACKS[attack]
    tag = uuid4().hex
    request = launching(tag)

    status, said, _ = send(
        running, method, in_address(request), headers, json.dumps(request) if method == "POST" else ""
    )

    assert not was_launched(running, tag)
    assert status == 403
    assert len(said.splitlines()) == 1


def test_a_name_that_was_made_to_point_here_gets_nothing(running: Running) -> None:
    """DNS rebinding: to the browser the page is of our own site, and only the Host tells."""
    host = f"rebound.example:{running.stack.plan.web_port}"
    own = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    tag = uuid4().hex

    launched, said, _ = send(running, "POST", "/graphql", {**JSON, **own}, json.dumps(launching(tag)), host=host)
    page, _, _ = send(running, "GET", "/", {"Accept": "text/html"}, host=host)
    socket, _, _ = send(running, "GET", "/graphql", {**UPGRADE, **own}, host=host)

    assert not was_launched(running, tag)
    assert (launched, page, socket) == (421, 421, 421)
    assert "OUTBOX_UI_HOSTS" in said


def test_the_same_request_of_a_program_or_of_our_page_is_taken(running: Running) -> None:
    """Curl sends no word of a site; the UI's page says that it is of the same origin."""
    url = running.stack.plan.url
    for headers in ({}, {"Origin": url, "Sec-Fetch-Site": "same-origin"}):
        tag = uuid4().hex
        status, _, _ = send(running, "POST", "/graphql", {**JSON, **headers}, json.dumps(launching(tag)))

        assert status == 200
        assert was_launched(running, tag)


def test_a_page_of_another_site_opens_no_socket(running: Running) -> None:
    """A WebSocket is refused at its handshake, with a sentence; our own page and a program get one."""
    url = running.stack.plan.url
    refused, said, _ = send(running, "GET", "/graphql", {**UPGRADE, "Origin": EVIL})
    other_port, _, _ = send(running, "GET", "/graphql", {**UPGRADE, "Origin": "http://127.0.0.1:8888"})
    own, _, _ = send(running, "GET", "/graphql", {**UPGRADE, "Origin": url, "Sec-Fetch-Site": "same-origin"})
    program, _, _ = send(running, "GET", "/graphql", UPGRADE)

    assert (refused, other_port, own, program) == (403, 403, 101, 101)
    assert "another site" in said


@pytest.mark.parametrize("path", ["/", "/runs", "/graphql", "/server_info", "/favicon.png", "/logs/none/err"])
def test_no_answer_can_be_framed_by_another_page(running: Running, path: str) -> None:
    """Every answer forbids it, in both of the ways that browsers know, beside Dagster's own policy."""
    _, _, headers = send(running, "GET", path, {"Accept": "text/html"})

    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert path not in ("/", "/runs") or "script-src" in headers["content-security-policy"]


def test_data_is_not_for_other_pages(running: Running) -> None:
    """Logs and debug files are refused to another page, as what it loads and as where it leads; pages may be led to."""
    tag = uuid4().hex
    send(running, "POST", "/graphql", JSON, json.dumps(launching(tag)))
    (run,) = running.graphql(RUNS, {"filter": {"tags": [{"key": "door", "value": tag}]}})["runsOrError"]["results"]
    link = {**CROSS, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
    debug = f"/download_debug/{run['runId']}"

    assert send(running, "GET", debug, CROSS)[0] == 403
    assert send(running, "GET", debug, link)[0] == 403
    assert send(running, "GET", debug, {"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert send(running, "GET", debug, {})[0] == 200
    assert send(running, "GET", f"/runs/{run['runId']}", link)[0] == 200


def test_a_load_balancer_learns_that_the_ui_is_up(running: Running) -> None:
    """It asks by address, under a name that nobody has listed."""
    status, said, _ = send(running, "GET", "/server_info", {}, host="10.1.2.3:3000")

    assert status == 200
    assert "dagster_version" in said


def test_a_launch_that_asks_for_a_variable_is_refused(running: Running) -> None:
    """Dagster's own check of a run's config refuses `{env: …}`, and the words name no value."""
    tag = uuid4().hex
    asked = {"ops": {"resume_batches": {"config": {"batch_id": {"env": "OUTBOX_POSTGRES_URL"}}}}}
    servers = {"resources": {"pipeline": {"config": {"clickhouse_url": "http://127.0.0.1:9"}}}}

    for config in (asked, servers):
        request = launching(tag, job="resume_parked_batches", config=config)
        answer = running.graphql(request["query"], request["variables"])["launchRun"]

        assert answer["__typename"] == "RunConfigValidationInvalid"
        assert "://" not in json.dumps(answer) or config is servers
    assert not was_launched(running, tag)
