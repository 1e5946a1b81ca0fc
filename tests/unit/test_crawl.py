"""Pages over a real line: what becomes of redirects and of what is no page, robots.txt, how fast hosts are asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nodes import executors, surroundings
from nodes.agent import runner
from nodes.crawling.pacing import Turns
from nodes.executors import crawl
from nodes.executors.base import FOUND_LIMIT, ItemFailed, Outcome, item_key
from nodes.executors.crawl import Crawl
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

HTML = {"Content-Type": "text/html; charset=utf-8"}
Reply = tuple[int, dict[str, str], bytes]
QUICK = {"per_second": 1000.0}


class Host:
    """A server of ``pages`` by path; what is not there is ``made``, or a 404. ``asked``: (time, path, User-Agent)."""

    def __init__(self) -> None:
        self.pages: dict[str, Reply] = {}
        self.made: Callable[[str], Reply] | None = None
        self.asked: list[tuple[float, str, str]] = []
        host = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                host.asked.append((time.monotonic(), self.path, self.headers["User-Agent"]))
                status, headers, content = host.reply(self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def reply(self, path: str) -> Reply:
        if path in self.pages or path == "/robots.txt" or self.made is None:
            return self.pages.get(path, (404, HTML, b"none"))
        return self.made(path)

    def page(self, path: str, html: str, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = (status, {**HTML, **named}, html.encode())

    def robots(self, text: str) -> None:
        self.pages["/robots.txt"] = (200, {"Content-Type": "text/plain"}, text.encode())

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.asked]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    before = surroundings.current()
    surroundings.settle(Surroundings(allowed_networks=("127.0.0.0/8",), folder=str(tmp_path)))
    made = Host()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()
    surroundings.settle(before)


def fetch(url: str, depth: int = 0, **params: Any) -> tuple[dict[str, Any], list[str]]:
    """The row of a page by column, and the addresses found."""
    outcome = Crawl(Crawl.check({**QUICK, **params})).run({"key": url, "url": url, "depth": depth})
    assert isinstance(outcome, Outcome)
    (row,) = outcome.rows
    return dict(zip(Crawl.dataset.names, row, strict=True)), [item_key(item) for item in outcome.found]


def failure(url: str, **params: Any) -> ItemFailed:
    with pytest.raises(ItemFailed) as caught:
        fetch(url, **params)
    assert url in str(caught.value)
    return caught.value


# What comes


def test_a_page_is_a_row(host: Host) -> None:
    host.page("/a", "<html lang=de><title>Grüße</title><p class=x>Text</p><a href=b>b</a>")
    row, found = fetch(f"{host.url}/a", select={"x": ".x", "all": "a@href[]"})
    assert row == {
        "url": f"{host.url}/a",
        "status": 200,
        "target": None,
        "title": "Grüße",
        "description": None,
        "canonical": None,
        "language": "de",
        "robots": None,
        "text": "Text\nb",
        "links": json.dumps([f"{host.url}/b"]),
        "link_count": 1,
        "blocked": 0,
        "selected": json.dumps({"x": "Text", "all": [f"{host.url}/b"]}, separators=(",", ":")),
        "content_type": "text/html",
        "bytes": len(host.pages["/a"][2]),
        "depth": 0,
    }
    assert found == [], "it was not asked to follow"
    assert fetch(f"{host.url}/a", text=False)[0]["text"] is None


def test_links_are_gone_on_to_on_the_same_host_to_a_depth(host: Host) -> None:
    links = ["/b", "/c#x", "/b", "http://other.org/", "?utm_source=x", f"http://127.0.0.2:{host.url[-5:]}/d"]
    host.page("/a", "".join(f'<a href="{link}">x</a>' for link in links) + "<a href=/n rel=nofollow>n</a>")
    row, found = fetch(f"{host.url}/a", follow=True)
    assert found == [f"{host.url}/b", f"{host.url}/c", f"{host.url}/a"]
    assert row["link_count"] == 6
    assert fetch(f"{host.url}/a", follow=True, max_depth=2, depth=1)[1] == found
    assert fetch(f"{host.url}/a", follow=True, max_depth=2, depth=2)[1] == []
    assert "http://other.org/" in fetch(f"{host.url}/a", follow=True, hosts=["127.*", "OTHER.org"])[1]
    assert fetch(f"{host.url}/a", follow=True, include=["/c*"])[1] == [f"{host.url}/c"]
    assert fetch(f"{host.url}/a", follow=True, exclude=["/c*", "/a"])[1] == [f"{host.url}/b"]
    assert fetch(f"{host.url}/a", follow=True, max_links=1)[1] == [f"{host.url}/b"]
    assert f"{host.url}/n" in fetch(f"{host.url}/a", follow=True, respect_robots=False)[1]
    assert f"{host.url}/a?utm_source=x" in fetch(f"{host.url}/a", follow=True, keep_tracking=True)[1]


def test_the_depth_of_what_is_found_is_one_more(host: Host) -> None:
    host.page("/a", "<a href=/b>b</a>")
    outcome = Crawl(Crawl.check({**QUICK, "follow": True})).run({"url": f"{host.url}/a", "depth": 1})
    assert [item["depth"] for item in outcome.found if isinstance(item, dict)] == [2]


def test_a_calendar_without_end_ends_at_the_depth(host: Host) -> None:
    """Every page of it links to a new one; how many there may be at all is for the parent to say (max_pages)."""
    host.made = lambda path: (200, HTML, f"<a href=/{int(path[1:]) + 1}>next</a>".encode())
    executor = Crawl(Crawl.check({**QUICK, "follow": True, "max_depth": 5}))
    waiting, seen = list(Crawl.begin([f"{host.url}/0"], executor.given)), 0
    while waiting:
        seen += 1
        waiting += executor.run(waiting.pop()).found
    assert seen == 6
    assert Crawl.most_items(executor.given) == 1000


def test_more_links_than_an_item_may_find_are_cut(host: Host) -> None:
    host.page("/a", "".join(f"<a href=/{number}>x</a>" for number in range(FOUND_LIMIT + 500)))
    row, found = fetch(f"{host.url}/a", follow=True, max_links=FOUND_LIMIT)
    assert (len(found), len(json.loads(row["links"])), row["link_count"]) == (
        FOUND_LIMIT,
        FOUND_LIMIT,
        FOUND_LIMIT + 500,
    )


def test_long_addresses_have_keys_that_a_parent_takes(host: Host) -> None:
    host.page("/a", f"<a href=/{'x' * 500}>1</a><a href=/{'x' * 500}y>2</a><a href=/{'x' * 3000}>3</a>")
    found = fetch(f"{host.url}/a", follow=True)[1]
    assert len(set(found)) == 2
    assert max(map(len, found)) == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_row_and_its_target_an_item(host: Host, status: int) -> None:
    host.page("/old", "", status, Location="/new?utm_source=a#part")
    row, found = fetch(f"{host.url}/old", depth=1, follow=True)
    assert (row["status"], row["target"], row["title"]) == (status, f"{host.url}/new", None)
    assert found == [f"{host.url}/new"]
    assert host.paths() == ["/robots.txt", "/old"]


def test_what_was_submitted_may_redirect_to_another_host(host: Host) -> None:
    host.page("/old", "", 301, Location="https://www.example.org/")
    assert fetch(f"{host.url}/old")[1] == ["https://www.example.org/"]
    assert fetch(f"{host.url}/old", depth=1, follow=True)[1] == []
    assert fetch(f"{host.url}/old", hosts=["127.0.0.1"])[1] == []


@pytest.mark.parametrize(
    ("location", "words"),
    [("", "nothing"), ("ftp://example.org/", "not an http"), ("http://[x", "redirects to"), ("/old#x", "to itself")],
)
def test_a_redirect_that_leads_nowhere_fails(host: Host, location: str, words: str) -> None:
    host.page("/old", "", 302, Location=location)
    error = failure(f"{host.url}/old")
    assert words in str(error)
    assert not error.retry


def test_redirects_without_end_end(host: Host) -> None:
    host.made = lambda path: (302, {"Location": f"{path}x"}, b"")
    executor = Crawl(Crawl.check(QUICK))
    item = Crawl.begin([f"{host.url}/"], executor.given)[0]
    for _ in range(5):
        (item,) = executor.run(item).found
    with pytest.raises(ItemFailed, match="last of 5 redirects"):
        executor.run(item)


@pytest.mark.parametrize(
    ("status", "retry"), [(404, False), (403, False), (410, False), (429, True), (500, True), (503, True)]
)
def test_an_error_of_the_host_is_one_of_the_item(host: Host, status: int, retry: bool) -> None:
    host.page("/a", "no", status)
    error = failure(f"{host.url}/a")
    assert str(status) in str(error)
    assert error.retry is retry


def test_what_is_not_wanted_is_told_by_its_type(host: Host) -> None:
    host.pages["/a.png"] = (200, {"Content-Type": "image/png"}, b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    error = failure(f"{host.url}/a.png")
    assert "it is image/png, not application/xhtml+xml or text/html or text/plain" in str(error)
    assert not error.retry
    error = failure(f"{host.url}/a.png", content_types=["text/*"])
    assert "is image/png; wanted are text/*" in str(error)
    row, _ = fetch(f"{host.url}/a.png", content_types=["image/*"])
    assert (row["content_type"], row["bytes"], row["text"], row["links"]) == ("image/png", 264, None, None)


def test_text_that_is_no_page_is_kept_as_it_is(host: Host) -> None:
    host.pages["/a.txt"] = (200, {"Content-Type": "text/plain; charset=latin-1"}, "grün <b>".encode("latin-1"))
    assert fetch(f"{host.url}/a.txt")[0]["text"] == "grün <b>"


@pytest.mark.parametrize(("content", "fits"), [(b" <!doctype html><title>x</title>", True), (b"\x00\x01binary", False)])
def test_a_type_that_is_not_told_is_guessed(host: Host, content: bytes, fits: bool) -> None:
    host.pages["/a"] = (200, {}, content)
    if fits:
        assert fetch(f"{host.url}/a")[0]["title"] == "x"
    else:
        assert "application/octet-stream" in str(failure(f"{host.url}/a"))


def test_a_page_that_is_too_large_fails(host: Host) -> None:
    host.page("/a", "<p>" + "x" * 5000)
    error = failure(f"{host.url}/a", max_kb=4)
    assert "more than 4096 bytes" in str(error)
    assert not error.retry


def test_a_page_of_nothing_but_depth_fails(host: Host) -> None:
    host.page("/a", "<div>" * 5000)
    assert "nested more than 2000 deep" in str(failure(f"{host.url}/a"))


def test_a_host_that_does_not_answer_fails_and_may_be_tried_again(host: Host) -> None:
    release = threading.Event()

    def reply(path: str) -> Reply:
        release.wait(5)
        return 404, HTML, b""

    host.made = reply
    error = failure(f"{host.url}/a", timeout_seconds=0.2, respect_robots=False)
    release.set()
    assert "no answer within 0.2 s" in str(error)
    assert error.retry


def test_private_addresses_are_refused_where_they_are_not_allowed(host: Host) -> None:
    surroundings.settle(Surroundings())
    for url in (f"{host.url}/a", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/"):
        for respect in (True, False):
            assert not failure(url, respect_robots=respect).retry
    assert host.asked == []


# Robots


def test_what_robots_txt_forbids_is_not_asked_for(host: Host) -> None:
    host.robots("User-agent: *\nDisallow: /private/\n")
    error = failure(f"{host.url}/private/x")
    assert "robots.txt of its host says Disallow: /private/ for *" in str(error)
    assert not error.retry
    assert host.paths() == ["/robots.txt"]
    host.page("/private/x", "<title>open</title>")
    assert fetch(f"{host.url}/private/x", respect_robots=False)[0]["title"] == "open"
    assert host.paths() == ["/robots.txt", "/private/x"]


def test_links_that_robots_txt_forbids_are_counted_and_not_found(host: Host) -> None:
    host.robots("User-agent: *\nDisallow: /private/\n")
    host.page("/a", "<a href=/private/1>1</a><a href=/private/2>2</a><a href=/b>b</a>")
    row, found = fetch(f"{host.url}/a", follow=True)
    assert (found, row["blocked"], row["link_count"]) == ([f"{host.url}/b"], 2, 3)


def test_rules_for_our_name_hold(host: Host) -> None:
    host.robots("User-agent: ourbot\nDisallow: /\n\nUser-agent: *\nAllow: /\n")
    host.page("/a", "<title>x</title>")
    assert "for ourbot" in str(failure(f"{host.url}/a", user_agent="OurBot/2.0 (+https://example.org/bot)"))
    fetch(f"{host.url}/a", user_agent="other/1")
    assert host.asked[-1][2] == "other/1"


def test_a_robots_txt_that_cannot_be_read_stops_everything_for_now(host: Host) -> None:
    host.page("/robots.txt", "", 503)
    error = failure(f"{host.url}/a")
    assert "its robots.txt cannot be read: answered 503" in str(error)
    assert error.retry
    assert host.paths() == ["/robots.txt"]


def test_robots_txt_may_redirect(host: Host) -> None:
    host.page("/robots.txt", "", 301, Location="/elsewhere")
    host.pages["/elsewhere"] = (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /a")
    failure(f"{host.url}/a")
    assert host.paths() == ["/robots.txt", "/elsewhere"]


@pytest.mark.parametrize("where", ["page", "header"])
def test_what_a_page_asks_is_obeyed(host: Host, where: str) -> None:
    meta = '<meta name=robots content="noindex, nofollow">' if where == "page" else ""
    header = "noindex, nofollow" if where == "header" else ""
    host.page("/a", f"{meta}<title>x</title>text<a href=/b>b</a>", X_Robots_Tag=header)
    row, found = fetch(f"{host.url}/a", follow=True)
    assert (row["title"], row["text"], row["links"], row["robots"]) == (None, None, None, "nofollow, noindex")
    assert found == []
    row, found = fetch(f"{host.url}/a", follow=True, respect_robots=False)
    assert (row["title"], found) == ("x", [f"{host.url}/b"])


# How fast


def span(host: Host, requests: int) -> float:
    """Seconds between the first and the last of the last so many requests. The very first one may be late: for it,
    what fetches is loaded."""
    times = [at for at, _, _ in host.asked][-requests:]
    assert len(times) == requests
    return times[-1] - times[0]


def test_a_shard_leaves_its_lanes_time_between_requests(host: Host) -> None:
    host.page("/a", "x")
    executor = Crawl(Crawl.check({"per_second": 40, "at_once": 2}))
    for _ in range(5):
        executor.run({"url": f"{host.url}/a"})
    # Two lanes share 40 a second: 0.05 s each. Less a little that messages take.
    assert span(host, 5) > 0.18
    assert host.paths()[0] == "/robots.txt"


def test_robots_txt_takes_a_turn_as_pages_do(host: Host) -> None:
    began = time.monotonic()
    host.page("/a", "x")
    Crawl(Crawl.check({"per_second": 10})).run({"url": f"{host.url}/a"})
    assert time.monotonic() - began >= 0.1


def test_a_crawl_delay_slows_all_lanes_together(host: Host) -> None:
    host.robots("User-agent: *\nCrawl-delay: 0.05")
    host.page("/a", "x")
    executor = Crawl(Crawl.check({"per_second": 1000, "at_once": 2}))
    for _ in range(4):
        executor.run({"url": f"{host.url}/a"})
    assert span(host, 4) > 0.27
    # In another shard, the lane may have been used just before by another node.
    began = time.monotonic()
    Crawl(Crawl.check({"per_second": 1000, "at_once": 2})).run({"url": f"{host.url}/a"})
    assert time.monotonic() - began > 0.09


def test_a_pause_that_is_too_long_is_not_waited(host: Host) -> None:
    host.robots("User-agent: *\nCrawl-delay: 3600")
    error = failure(f"{host.url}/a")
    assert "asks for 3600 s between pages, and more than 60 s are not waited" in str(error)
    assert not error.retry


def test_threads_of_one_process_take_turns_at_a_host() -> None:
    turns = Turns(clock=lambda: 100.0)
    assert [turns.take("a", 0.5) for _ in range(3)] == [100.0, 100.5, 101.0]
    assert turns.take("b", 0.5) == 100.0
    assert turns.take("b", 0.5, earliest=105.0) == 105.0
    assert turns.take("b", 0.5) == 105.5


# What can be run


def test_items_are_addresses_each_once_in_canonical_form() -> None:
    given: list[Any] = [
        "HTTP://Example.org:80/a/../b#c",
        "http://example.org/b",
        {"key": "x", "url": "http://a.org?gclid=1"},
    ]
    begun = Crawl.begin(given, Crawl.check({}))
    assert begun == [
        {"key": "http://example.org/b", "url": "http://example.org/b", "depth": 0},
        {"key": "http://a.org/", "url": "http://a.org/", "depth": 0},
    ]
    assert Crawl.begin([Crawl.resolve("docs", "HTTP://docs.org", "Docs")], Crawl.check({}))[0] == {
        "key": "http://docs.org/",
        "url": "http://docs.org/",
        "depth": 0,
    }


@pytest.mark.parametrize("item", [7, {"url": 7}, {"address": "http://a.org/"}, {"url": "ftp://a.org/"}])
def test_what_is_no_item_is_refused(item: Any) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Crawl.check_item(item)


@pytest.mark.parametrize("item", ["docs", "ftp://a.org/", {"url": "http://[x"}])
def test_what_has_no_address_is_refused_with_its_place(item: Any) -> None:
    with pytest.raises(FieldError, match=r"items\[1\]: "):
        Crawl.begin(["http://a.org/", item], Crawl.check({}))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"per_second": 0}, "params.per_second: 0.0 is below the least allowed, 0.01"),
        ({"at_once": 33}, "params.at_once: 33 is above"),
        ({"max_depth": -1}, "params.max_depth"),
        ({"max_pages": 0}, "params.max_pages"),
        ({"max_links": FOUND_LIMIT + 1}, "params.max_links"),
        ({"hosts": ["https://a.org"]}, "params.hosts: 'https://a.org' is not a host like example.org"),
        ({"hosts": [7]}, "params.hosts: 7 is not a text"),
        ({"content_types": []}, "params.content_types: is empty"),
        ({"content_types": ["html"]}, "params.content_types: 'html' is not a type like text/html"),
        ({"user_agent": "böt"}, "params.user_agent: 'böt' is not a name like"),
        ({"user_agent": "bot\nX-Evil: 1"}, "params.user_agent"),
        ({"user_agent": "(nameless)"}, "params.user_agent"),
        ({"select": {"a": "b["}}, r"params.select.a: 'b\[' is not a CSS selector"),
        ({"include": "x", "wrong": 1}, "params.wrong: 'wrong' is not a parameter"),
    ],
)
def test_params_that_mean_nothing_are_refused(params: dict[str, Any], words: str) -> None:
    with pytest.raises(FieldError, match=words):
        Crawl.check(params)
    with pytest.raises(FieldError, match=words):
        Crawl.check_settings(params)


def test_an_item_that_nobody_has_read_yet_is_read_when_it_is_run(host: Host) -> None:
    """As on a node that runs a task without its parent."""
    host.page("/a", "<title>x</title>")
    executor = Crawl(Crawl.check(QUICK))
    assert executor.run(f"{host.url}/./a#b").rows[0][0] == f"{host.url}/a"
    with pytest.raises(ItemFailed, match="'docs' is not an http or https address"):
        executor.run("docs")


def test_a_run_has_a_pace_by_host() -> None:
    pace = Crawl.pace(Crawl.check({"per_second": 4, "at_once": 2}))
    assert pace is not None
    assert (pace.template, pace.per_second, pace.lanes, pace.spacing) == ("host:{host}", 4, 2, 0.5)


def test_a_worker_tells_what_was_found(host: Host, tmp_path: Path) -> None:
    host.page("/a", "<title>x</title><a href=/b>b</a>")
    item = {"key": f"{host.url}/a", "url": f"{host.url}/a", "depth": 0}
    gone = {"key": f"{host.url}/gone", "url": f"{host.url}/gone", "depth": 0}
    shard = {"allocation": 1, "type": "crawl", "params": Crawl.check({**QUICK, "follow": True}), "start": 5}
    (entry,) = runner.run([{**shard, "items": [item, gone]}], str(tmp_path))
    assert entry["ranges"] == [[5, 6, 1]]
    assert [(index, retry) for index, _, retry in entry["errors"]] == [(6, False)]
    assert entry["outcomes"] == [[5, {"found": [{"key": f"{host.url}/b", "url": f"{host.url}/b", "depth": 1}]}]]


def test_it_is_known_by_its_name_and_waits() -> None:
    assert executors.get("crawl") is Crawl
    assert Crawl.waits
    assert Crawl.grows
    assert {301, 308} <= crawl.REDIRECTS
