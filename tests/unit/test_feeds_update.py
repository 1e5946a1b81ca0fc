"""``feed_update`` against a real server: what is asked, what comes as rows, what is remembered, and what goes wrong."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nodes import surroundings
from nodes.executors.base import MEMORY_LIMIT, ItemFailed, Outcome
from nodes.executors.feed_update import FeedUpdate
from nodes.executors.rows import to_table
from nodes.surroundings import Surroundings
from tests.feed_server import LAST_MODIFIED, FeedServer, serving
from tests.unit.feed_writing import CHINESE, atom, entry, in_charset, item, jsonfeed, rss

TWO = rss(item("One", "g1"), item("Two", "g2", link="/2"))
EDITED = rss(item("One", "g1"), item("Two, corrected", "g2", link="/2"))


@pytest.fixture(scope="module", autouse=True)
def _loopback() -> Iterator[None]:
    before = surroundings.current()
    surroundings.settle(Surroundings(allowed_networks=("127.0.0.0/8",)))
    yield
    surroundings.settle(before)


@pytest.fixture(scope="module")
def started() -> Iterator[FeedServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(started: FeedServer) -> FeedServer:
    started.documents.clear()
    started.taken()
    return started


class Reader:
    """Runs a feed again and again, with its memory as the parent carries it."""

    def __init__(self, **params: Any) -> None:
        self.params = FeedUpdate.check(params)
        self.memory: dict[str, Any] = {}

    def run(self, item: Any, **params: Any) -> Outcome:
        executor = FeedUpdate({**self.params, **params})
        key = item["key"] if isinstance(item, dict) else item
        executor.memory = {key: self.memory} if self.memory else {}
        outcome = executor.run(item)
        if outcome.memory is not None:
            text = json.dumps(outcome.memory)
            assert len(text) <= MEMORY_LIMIT
            self.memory = json.loads(text)
        to_table(FeedUpdate.dataset, outcome.rows)
        return outcome


def titles(outcome: Outcome) -> list[str]:
    return [row[2] for row in outcome.rows or ()]


# What is fetched and what comes of it


def test_the_first_run_brings_every_article_in_the_datasets_columns(server: FeedServer) -> None:
    more = "<pubDate>Wed, 31 Jan 2024 12:00:00 GMT</pubDate><author>Ann</author><description>Words</description>"
    url = server.put("/feed.xml", rss(item("One", "g1", more + '<enclosure url="/i.png" type="image/png"/>')))
    outcome = Reader().run({"key": "mine", "url": url, "name": "Mine"})
    (row,) = to_table(FeedUpdate.dataset, outcome.rows).to_pylist()
    assert str(row.pop("published")) == "2024-01-31 12:00:00"
    assert row == {
        "id": "g1",
        "feed": "mine",
        "title": "One",
        "url": "https://example.org/1",
        "author": "Ann",
        "summary": "Words",
        "text": "Words",
        "image": f"{server.url}/i.png",
    }
    assert (outcome.status, outcome.counts) == ("ok", {"new": 1, "changed": 0, "unchanged": 0, "articles": 1})
    (asked,) = server.taken()
    assert (asked.etag, asked.modified, asked.agent) == (None, None, "cascade")


@pytest.mark.parametrize("validators", [("etag",), ("modified",), ("etag", "modified")])
def test_an_unchanged_feed_costs_one_conditional_request_and_no_row(server: FeedServer, validators: Any) -> None:
    url = server.put("/feed.xml", TWO, validators=validators)
    reader = Reader()
    assert titles(reader.run(url)) == ["One", "Two"]
    server.taken()
    for _ in range(2):
        outcome = reader.run(url)
        assert outcome.rows is None
        assert outcome.status == "unchanged"
        assert outcome.counts == {"new": 0, "changed": 0, "unchanged": 2, "articles": 2}
        (asked,) = server.taken()
        assert asked.status == 304
        assert asked.etag == (server.documents["/feed.xml"].etag if "etag" in validators else None)
        assert asked.modified == (LAST_MODIFIED if "modified" in validators else None)


def test_a_server_without_validators_costs_a_whole_answer_but_no_row(server: FeedServer, monkeypatch: Any) -> None:
    url = server.put("/feed.xml", TWO, validators=())
    reader = Reader()
    reader.run(url)
    monkeypatch.setattr("nodes.feeds.read", None)  # the same bytes are not even read
    outcome = reader.run(url)
    assert (outcome.rows, outcome.status) == (None, "unchanged")
    assert [asked.status for asked in server.taken()] == [200, 200]


def test_other_bytes_with_the_same_articles_are_unchanged(server: FeedServer) -> None:
    url = server.put("/feed.xml", TWO)
    reader = Reader()
    reader.run(url)
    server.put("/feed.xml", TWO.replace("</title>", "</title><!-- built again -->", 1))
    outcome = reader.run(url)
    assert (outcome.rows, outcome.status, outcome.counts["unchanged"]) == (None, "unchanged", 2)
    # The new validator is remembered all the same.
    assert reader.run(url).memory is None
    assert [asked.status for asked in server.taken()] == [200, 200, 304]


def test_an_article_edited_upstream_is_one_changed_row_with_its_old_id(server: FeedServer) -> None:
    url = server.put("/feed.xml", TWO)
    reader = Reader()
    before = {row[0] for row in reader.run(url).rows}
    server.put("/feed.xml", EDITED)
    outcome = reader.run(url)
    (row,) = outcome.rows
    assert (row[0], row[2]) == ("g2", "Two, corrected")
    assert row[0] in before
    assert outcome.counts == {"new": 0, "changed": 1, "unchanged": 1, "articles": 2}


@pytest.mark.parametrize(
    "change",
    [
        ("<title>A</title>", "<title>B</title>"),
        ('href="https://example.org/1"', 'href="https://example.org/2"'),
        ("<name>Ann</name>", "<name>Bob</name>"),
        ("2024-01-31", "2024-01-30"),
        ("<summary>S</summary>", "<summary>T</summary>"),
        (">words<", ">more words<"),
    ],
)
def test_every_field_counts_as_a_change(server: FeedServer, change: tuple[str, str]) -> None:
    more = "<author><name>Ann</name></author><published>2024-01-31T12:00:00Z</published><summary>S</summary>"
    text = atom(entry("A", more=f"{more}<content>words</content>"))
    assert change[0] in text
    reader = Reader()
    reader.run(server.put("/feed.xml", text))
    outcome = reader.run(server.put("/feed.xml", text.replace(*change)))
    assert outcome.counts == {"new": 0, "changed": 1, "unchanged": 0, "articles": 1}


def test_another_address_of_an_image_is_no_change(server: FeedServer) -> None:
    text = rss(item(more='<enclosure url="/i.png?t=1" type="image/png"/>'))
    reader = Reader()
    reader.run(server.put("/feed.xml", text))
    assert reader.run(server.put("/feed.xml", text.replace("t=1", "t=2"))).rows is None


def test_an_article_that_leaves_the_feed_and_comes_back_is_not_new(server: FeedServer) -> None:
    reader = Reader()
    every = [item(f"T{n}", f"g{n}", link=f"/{n}") for n in range(6)]
    for shown in (every[:3], every[3:], every[:3]):
        outcome = reader.run(server.put("/feed.xml", rss(*shown)))
    assert (outcome.rows, outcome.counts["unchanged"]) == (None, 3)


def test_what_rotates_for_long_stays_within_what_can_be_remembered(server: FeedServer) -> None:
    reader = Reader(max_articles=2000)
    for at in range(0, 6000, 2000):
        outcome = reader.run(server.put("/feed.xml", rss(*(item(f"T{n}", f"g{n}") for n in range(at, at + 2000)))))
        assert outcome.counts["new"] == 2000
    assert 27_000 < len(json.dumps(reader.memory)) <= MEMORY_LIMIT


def test_what_servers_say_at_length_is_not_remembered(server: FeedServer) -> None:
    long = "/" + "x" * 1500
    say = {"ETag": f'"{"e" * 6000}"', "Last_Modified": "m" * 6000}
    server.put(long, b"", answers=lambda request: request.say(200, TWO.encode(), **say))
    reader = Reader()
    item = {"key": "k", "url": server.url + long}
    reader.run(item)
    assert len(json.dumps(reader.memory)) < 500
    assert reader.run(item).rows is None


def test_of_too_many_articles_the_newest_are_taken_and_the_rest_is_told(server: FeedServer) -> None:
    many = [item(f"T{n}", f"g{n}", f"<pubDate>2024-01-{n + 1:02} 12:00</pubDate>") for n in range(20)]
    reader = Reader(max_articles=5)
    outcome = reader.run(server.put("/feed.xml", rss(*many)))
    assert titles(outcome) == ["T15", "T16", "T17", "T18", "T19"]
    assert outcome.status == "ok; 15 more articles are left out"
    undated = reader.run(server.put("/other.xml", rss(*(item(f"T{n}", f"g{n}") for n in range(20)))))
    assert titles(undated) == ["T0", "T1", "T2", "T3", "T4"]


def test_five_thousand_entries_are_read(server: FeedServer) -> None:
    outcome = Reader().run(server.put("/feed.xml", rss(*(item(f"T{n}", f"g{n}") for n in range(5000)))))
    assert len(outcome.rows) == 1000
    assert "4000 more articles" in outcome.status


def test_another_address_is_asked_without_condition_but_known_articles_stay_known(server: FeedServer) -> None:
    old, new = server.put("/old.xml", TWO), server.put("/new.xml", EDITED)
    server.documents["/new.xml"] = replace(server.documents["/new.xml"], validators=("modified",))
    reader = Reader()
    reader.run({"key": "k", "url": old})
    outcome = reader.run({"key": "k", "url": new})
    assert server.taken()[-1].etag is None
    assert titles(outcome) == ["Two, corrected"]
    assert outcome.counts == {"new": 0, "changed": 1, "unchanged": 1, "articles": 2}


def test_other_parameters_of_the_text_fetch_the_feed_whole(server: FeedServer) -> None:
    url = server.put("/feed.xml", rss(item(more="<description>Some words</description>")))
    reader = Reader(text=False)
    assert reader.run(url).rows[0][7] is None
    outcome = reader.run(url, text=True)
    assert outcome.rows[0][7] == "Some words"
    assert outcome.counts["changed"] == 1
    assert [asked.etag for asked in server.taken()] == [None, None]


def test_a_text_is_cut_at_its_limit(server: FeedServer) -> None:
    url = server.put("/feed.xml", rss(item(more=f"<description>{'x' * 5000}</description>")))
    row = Reader(max_text=100).run(url).rows[0]
    assert (len(row[7]), row[7][-1]) == (100, "…")
    assert len(row[6]) == 2000


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_feed_that_has_moved_is_read_where_it_is_and_says_so(server: FeedServer, status: int) -> None:
    new = server.put("/new/feed.xml", rss(item(link="here")))
    server.put("/old.xml", b"", answers=lambda request: request.say(status, b"", Location="/new/feed.xml"))
    reader = Reader()
    outcome = reader.run(server.url + "/old.xml")
    assert outcome.rows[0][3] == f"{server.url}/new/here"
    assert outcome.status == (f"moved to {new}" if status in (301, 308) else "ok")
    again = reader.run(server.url + "/old.xml")
    assert again.rows is None
    assert again.status == (f"moved to {new}" if status in (301, 308) else "unchanged")
    assert server.taken()[-1].status == 304


def test_json_feeds_and_compressed_answers_are_read(server: FeedServer) -> None:
    content = gzip.compress(jsonfeed({"id": "1", "title": "One"}))
    server.put("/f", b"", answers=lambda request: request.say(200, content, Content_Encoding="gzip"))
    assert titles(Reader().run(server.url + "/f")) == ["One"]


def test_a_server_can_be_told_who_asks(server: FeedServer) -> None:
    Reader(user_agent="news of Example (mail@example.org)").run(server.put("/f", TWO))
    assert server.taken()[0].agent == "news of Example (mail@example.org)"


def test_memory_of_nonsense_is_no_memory(server: FeedServer) -> None:
    url = server.put("/feed.xml", TWO)
    shape = FeedUpdate({}).shape
    for articles in ("x", "AAAA", 5, None, ["x"], "é" * 12):
        reader = Reader()
        reader.memory = {"url": url, "etag": '"other"', "shape": shape, "articles": articles}
        assert reader.run(url).counts["new"] == 2


# What goes wrong


def failure(server_url: str, **params: Any) -> ItemFailed:
    with pytest.raises(ItemFailed) as failed:
        Reader(**params).run({"key": "mine", "url": server_url})
    assert str(failed.value).startswith("mine: ")
    assert len(str(failed.value)) < 1000
    return failed.value


@pytest.mark.parametrize(
    ("status", "words", "retry"),
    [(404, "answered 404", False), (410, "the feed is gone", False), (503, "answered 503", True), (403, "403", False)],
)
def test_refusals_are_told(server: FeedServer, status: int, words: str, retry: bool) -> None:
    server.put("/f", b"", answers=lambda request: request.say(status, b"no"))
    error = failure(server.url + "/f")
    assert words in str(error)
    assert error.retry is retry


def test_an_answer_of_304_that_nobody_asked_for_is_refused(server: FeedServer) -> None:
    server.put("/f", b"", answers=lambda request: request.say(304, b""))
    assert "304" in str(failure(server.url + "/f"))


def test_an_html_page_is_told_with_the_feed_it_names(server: FeedServer) -> None:
    page = '<!doctype html><html><head><link rel=alternate type="application/atom+xml" href="atom.xml"></head></html>'
    error = failure(server.put("/blog/", page, kind="text/html"))
    assert f"is an HTML page, not a feed; the feed it names is {server.url}/blog/atom.xml" in str(error)
    assert not error.retry


def test_a_key_in_an_address_is_in_no_message(server: FeedServer) -> None:
    error = failure(server.put("/page?key=secret", "<html><head></head></html>"))
    assert f"{server.url}/page is an HTML page" in str(error)
    assert "secret" not in str(error)


def test_an_empty_answer_is_told_and_tried_again(server: FeedServer) -> None:
    error = failure(server.put("/f", b""))
    assert "is empty" in str(error)
    assert error.retry


def test_a_cut_off_feed_keeps_its_whole_articles_and_the_rest_comes_later(server: FeedServer) -> None:
    reader = Reader()
    url = server.put("/f", TWO[:-40])
    outcome = reader.run(url)
    assert titles(outcome) == ["One"]
    assert outcome.status.startswith("ok; cut off")
    assert titles(reader.run(server.put("/f", TWO))) == ["Two"]


def test_a_feed_of_100_mb_ends_at_its_limit(server: FeedServer) -> None:
    sent = 0

    def much(request: Any) -> None:
        nonlocal sent
        request.say(200, TWO[:-20].encode(), content_length=str(100 * 1024 * 1024))
        while sent < 100:
            request.wfile.write(b"x" * 1024 * 1024)
            sent += 1

    server.put("/f", b"", answers=much)
    assert f"more than {2 * 1024 * 1024} bytes" in str(failure(server.url + "/f", max_mb=2))
    assert sent < 50


def test_a_gzip_bomb_ends_at_the_limit_of_what_it_unpacks_to(server: FeedServer) -> None:
    bomb = gzip.compress(rss(item("x")).encode() + b" " * 50_000_000)
    assert len(bomb) < 100_000
    server.put("/f", b"", answers=lambda request: request.say(200, bomb, Content_Encoding="gzip"))
    assert "unpacks to more" in str(failure(server.url + "/f", max_mb=1))


def test_a_circle_of_redirects_is_told(server: FeedServer) -> None:
    for here, there in (("/a", "/b"), ("/b", "/a")):
        server.put(here, b"", answers=lambda request, to=there: request.say(302, b"", Location=to))
    assert "redirects in a circle" in str(failure(server.url + "/a"))
    server.put("/c", b"", answers=lambda request: request.say(302, b"", Location=request.path + "x"))
    for depth in range(1, 9):
        server.put("/c" + "x" * depth, b"", answers=server.documents["/c"].answers)
    assert "too many redirects" in str(failure(server.url + "/c"))


def test_a_slow_drip_ends_with_its_time(server: FeedServer) -> None:
    def drip(request: Any) -> None:
        request.say(200, b"<rss>", content_length="100000")
        while server.gate.is_set():
            request.wfile.write(b" ")
            time.sleep(0.02)

    server.put("/f", b"", answers=drip)
    began = time.monotonic()
    error = failure(server.url + "/f", timeout_seconds=0.3)
    assert time.monotonic() - began < 5
    assert "within 0.3 s" in str(error)
    assert error.retry


def test_a_wrong_charset_gives_the_right_text_or_an_error(server: FeedServer) -> None:
    url = server.put("/f", in_charset(CHINESE, "gb18030", "utf-8"), kind="text/xml; charset=utf-8")
    outcome = Reader().run(url)
    assert titles(outcome) == [CHINESE]
    assert outcome.status == "ok; declared as utf-8, but is gb18030"
    noise = rss(item("XX")).encode().replace(b"XX", bytes(range(0x80, 0xFF)) * 3)
    assert "neither that nor UTF-8" in str(failure(server.put("/f", noise)))


def test_nobody_there_is_told_and_tried_again() -> None:
    with serving() as gone:
        url = gone.url
    assert failure(url + "/f", timeout_seconds=2).retry


def test_networks_that_are_not_public_are_not_fetched_from(server: FeedServer) -> None:
    surroundings.settle(Surroundings())
    try:
        assert "127.0.0.1" in str(failure(server.put("/f", TWO)))
    finally:
        surroundings.settle(Surroundings(allowed_networks=("127.0.0.0/8",)))
    assert server.taken() == []


def test_a_surprise_in_a_parser_costs_its_feed_only(server: FeedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("nodes.feeds.syndication.parse", broken)
    assert "cannot be read: RecursionError" in str(failure(server.put("/f", TWO)))
