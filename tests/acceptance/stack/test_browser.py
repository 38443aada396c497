"""Dagster's UI in a real browser, through the door: its pages work, and the pages of other sites launch nothing."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("playwright", reason="'make browser' installs what drives a browser")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from outbox_pipeline.settings import today
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.graphql import checks, in_address, launching, was_launched
from tests.fixtures.stack import PATIENCE_SECONDS, Running

#: The machine's own; Playwright brings none.
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
_MISSING = "There is no Chromium: apt-get install chromium."

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(_CHROMIUM is None and not os.environ.get("CI"), reason=_MISSING),
]

#: A browser beside a busy Dagster takes its time.
_PATIENCE_MS = PATIENCE_SECONDS * 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window, to which `rebound.example` is this machine."""
    assert _CHROMIUM is not None, _MISSING
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    rebound = "--host-resolver-rules=MAP rebound.example 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=[*arguments, rebound])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a profile of its own."""
    with browser.new_context(viewport={"width": 1400, "height": 1000}) as context:
        context.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        yield context.new_page()


def test_a_run_is_launched_and_its_log_followed(running: Running, page: Page) -> None:
    """The launchpad starts a run, and its log comes line by line over the WebSocket until the run has ended."""
    refused: list[str] = []
    frames: list[str] = []
    page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))

    page.goto(f"{running.stack.plan.url}/locations/outbox_pipeline/jobs/recheck_batches/playground")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("RUN_SUCCESS").first).to_be_visible()

    assert any("RUN_SUCCESS" in frame or "RunSuccessEvent" in frame for frame in frames)
    assert refused == []


def test_a_day_is_backfilled(running: Running, page: Page) -> None:
    """Materializing a day on the page of the asset proves it, and repairs what differs."""
    publish(running.stores.engine, 20)
    running.wait_for_delivery()
    running.stores.client.run(
        "DELETE FROM {table:Identifier} WHERE position = (SELECT max(position) FROM {table:Identifier})",
        settings={"mutations_sync": 2},
    )
    before = len(checks(running, today()))

    page.goto(f"{running.stack.plan.url}/assets/event_log")
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_placeholder("No matching partitions").fill(str(today()))
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Launch 1 run").click()

    running.wait(lambda: len(checks(running, today())) > before, "the run to check today")
    running.wait_for_delivery()
    assert_each_exactly_once(running.stores.engine, running.stores.client)


class _Pages(BaseHTTPRequestHandler):
    """Serves the pages of another site, and keeps what they report."""

    pages: dict[str, str]
    reports: "Queue[str]"

    def do_GET(self) -> None:
        """Answer with a page; `/report/…` is what its script has to say."""
        if self.path.startswith("/report/"):
            self.reports.put(self.path.removeprefix("/report/"))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.pages.get(self.path.lstrip("/"), "").encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def another_site(pages: dict[str, str]) -> Iterator[tuple[int, "Queue[str]"]]:
    """Serve these pages on a port of their own; yield it, and what the pages report."""
    reports: Queue[str] = Queue()
    handler = type("Handler", (_Pages,), {"pages": pages, "reports": reports})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, reports
        finally:
            server.shutdown()
            thread.join()


REPORT = "<script>function report(word) { new Image().src = '/report/' + word }</script>"


def attacks(url: str, tag: str) -> dict[str, str]:
    """Return pages that make a browser launch a run with this tag; all but the form report when they have tried."""
    request = launching(tag)
    address = json.dumps(f"{url}{in_address(request)}")
    options = json.dumps(
        {
            "method": "POST",
            "mode": "no-cors",
            "headers": {"Content-Type": "text/plain; a=application/json"},
            "body": json.dumps(request),
        }
    )
    endpoint, socket = json.dumps(f"{url}/graphql"), json.dumps(f"{url.replace('http', 'ws', 1)}/graphql")
    tried = "() => report('tried')"
    return {
        "form": f"<form id=f method=POST></form><script>f.action = {address}; f.submit()</script>",
        "image": f"{REPORT}<img id=i><script>i.onload = i.onerror = {tried}; i.src = {address}</script>",
        "fetch": f"{REPORT}<script>fetch({endpoint}, {options}).then({tried}, {tried})</script>",
        "socket": f"{REPORT}<script>s = new WebSocket({socket}, 'graphql-ws');"
        f"s.onopen = () => report('open'); s.onerror = {tried}</script>",
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("attack", ["form", "image", "fetch", "socket"])
def test_pages_of_other_sites_launch_no_run(running: Running, page: Page, attack: str, host: str) -> None:
    """No page of another port of this machine launches a run or opens a WebSocket, and none of another site."""
    tag = uuid4().hex
    with another_site(attacks(running.stack.plan.url, tag)) as (port, reports):
        page.goto(f"http://{host}:{port}/{attack}")
        if attack == "form":
            page.wait_for_url(f"{running.stack.plan.url}/**")
        else:
            assert reports.get(timeout=PATIENCE_SECONDS) == "tried"

    assert not was_launched(running, tag)


def test_a_name_that_was_made_to_point_here_shows_no_ui(running: Running, page: Page) -> None:
    """To the browser the whole UI is that name's own site; it is told what to do if the name is ours."""
    page.goto(f"http://rebound.example:{running.stack.plan.web_port}/runs")

    expect(page.get_by_text("OUTBOX_UI_HOSTS").first).to_be_visible()


def test_the_ui_is_in_no_frame_of_another_page(running: Running, page: Page) -> None:
    """Framed by another site the UI shows nothing that could be clicked; a link of that site leads to it."""
    url = f"{running.stack.plan.url}/runs"
    around = f"<a href={url}>link</a><iframe src={url} width=900 height=700></iframe>"
    with another_site({"frame": around}) as (port, _):
        page.goto(f"http://localhost:{port}/frame")
        framed = page.frames[1]
        framed.wait_for_load_state("networkidle")
        shown = framed.content()
        page.get_by_text("link").click()
        expect(page.get_by_text("Deployment")).to_be_visible()

    assert "dagster" not in shown.lower()
