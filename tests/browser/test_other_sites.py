"""A page of somebody else, on another port of the same host: cookies reach us from there, but it may do nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.hostile.victim import Victim

_SOCKET = """url => new Promise(done => {
    const socket = new WebSocket(url);
    socket.onmessage = message => done("heard " + message.data.slice(0, 50));
    socket.onclose = () => done("closed");
})"""
_FORM = """({url, fields, coding}) => {
    const form = Object.assign(document.createElement("form"), {action: url, method: "post", enctype: coding});
    for (const [name, value] of Object.entries(fields))
        form.append(Object.assign(document.createElement("input"), {name, value}));
    document.body.append(form);
    form.submit();
}"""
_FETCH = """({url, method}) => fetch(url, {
    method, credentials: "include", headers: {"Content-Type": "text/plain"}, body: method == "GET" ? undefined : "{}",
}).then(answer => answer.text()).catch(error => "refused: " + error.message)"""


class _Evil(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title><body>evil")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def evil() -> Iterator[str]:
    """The address of another server on this host."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Evil) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def page(operator: BrowserContext, evil: str) -> Iterator[Page]:
    """The evil page, in a window in which the operator is signed in here."""
    made = operator.new_page()
    made.goto(evil)
    yield made
    made.close()


def test_it_cannot_open_the_live_socket_with_the_operators_cookie(parent: Victim, page: Page) -> None:
    url = parent.tree.url.replace("http", "ws") + "/ws/live"
    assert page.evaluate(_SOCKET, url) == "closed"
    page.goto(parent.tree.url)
    assert page.evaluate(_SOCKET, url).startswith('heard {"seq":1')


@pytest.mark.parametrize("path", ["/admin/auth/user/add/", "/admin/dispatch/task/add/", "/admin/logout/"])
def test_its_forms_do_nothing_in_the_admin(parent: Victim, page: Page, path: str) -> None:
    with page.expect_navigation() as navigated:
        page.evaluate(
            _FORM,
            {
                "url": parent.tree.url + path,
                "fields": {"username": "evil", "password1": "a long pass phrase", "password2": "a long pass phrase"},
                "coding": "application/x-www-form-urlencoded",
            },
        )
    answer = navigated.value
    assert answer is not None
    assert answer.status == 403
    page.goto(parent.tree.url)
    assert "/admin/login" not in page.url  # the operator is still signed in


@pytest.mark.parametrize("coding", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_its_forms_do_nothing_in_the_api(parent: Victim, page: Page, coding: str) -> None:
    runs = parent.tree.json("GET", "/api/v1/runs")["count"]
    with page.expect_navigation() as navigated:
        fields = {'{"type":"echo","items":["evil"],"name":"': '"}'}
        page.evaluate(_FORM, {"url": f"{parent.tree.url}/api/v1/runs", "fields": fields, "coding": coding})
    assert navigated.value is not None
    assert navigated.value.status in (401, 403, 415)
    assert parent.tree.json("GET", "/api/v1/runs")["count"] == runs


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_its_scripts_read_nothing_and_change_nothing(parent: Victim, page: Page, method: str) -> None:
    url = f"{parent.tree.url}/api/v1/nodes"
    assert page.evaluate(_FETCH, {"url": url, "method": method}).startswith("refused")


@pytest.mark.parametrize("path", ["/", "/admin/", "/api/docs", "/admin/login/"])
def test_no_page_of_ours_is_shown_in_its_frames(parent: Victim, page: Page, path: str) -> None:
    page.evaluate(
        """url => new Promise(done => {
            const frame = Object.assign(document.createElement("iframe"), {src: url, onload: done});
            document.body.append(frame);
        })""",
        parent.tree.url + path,
    )
    frame = page.frames[1]
    assert frame.url.startswith("chrome-error:") or "Cascade" not in frame.content()
