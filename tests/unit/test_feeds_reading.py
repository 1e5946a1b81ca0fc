"""What feeds are read with: dates, plain text, ids, what is remembered; and no document whatever is a crash."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
import sys
import time
from contextlib import suppress
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nodes.executors.feed_update import FeedUpdate
from nodes.executors.rows import to_table
from nodes.feeds import BadFeed, Entry, dates, identity, link, markup, read
from nodes.feeds.memory import CAPACITY, Seen
from tests.unit.feed_corpus import CASES
from tests.unit.feed_writing import URL, atom, entry, item, jsonfeed, rss

NOON = dt.datetime(2024, 1, 31, 12)


@pytest.mark.parametrize(
    "text",
    [
        "Wed, 31 Jan 2024 12:00:00 GMT",
        "Wed, 31 Jan 2024 13:00:00 +0100",
        "31 Jan 24 07:00 EST",
        "Wed Jan 31 12:00:00 2024",
        "Wed Jan 31 12:00:00 +0000 2024",
        "2024-01-31T12:00:00Z",
        "2024-01-31T14:00:00.000+02:00",
        "2024-01-31 12:00:00",
        "2024/01/31 12:00",
        "20240131T120000Z",
        "2024年1月31日 12:00",
        "2024年01月31日 12时00分",
        "2024年1月31日 下午8时00分 +0800",
        "2024년 1월 31일 오후 9:00 KST",
        "31. Januar 2024 13:00 MEZ",
        "31 de enero de 2024, 12:00",
        "mer. 31 janv. 2024 à 12h00",
        "31 января 2024 г., 15:00 MSK",
        "January 31st, 2024 12:00 PM",
        "Wednesday, January 31, 2024 - 12:00",
        "31/01/2024 12:00",
        "01/31/2024 12:00 PM",
        "31.01.2024 12:00",
        "31-Jan-2024 12:00",
        "Wed, 31 Jan 2024 20:00 GMT+8",
        "Τετ, 31 Ιαν 2024 12:00:00 GMT",
        "٢٠٢٤-٠١-٣١ ١٢:٠٠",
        "1706702400",
        "1706702400000",
    ],
)
def test_dates_in_their_usual_forms(text: str) -> None:
    assert dates.moment(text) == NOON


@pytest.mark.parametrize(
    "text",
    ["2024-13-01", "31 Foo 2024", "12:00", "03/04/2024", "soon", "", "2024-01-31T12:99:00Z", "0", "-", "Jan", "31"],
)
def test_what_cannot_be_read_with_certainty_is_no_date(text: str) -> None:
    assert dates.moment(text) is None


@given(
    st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2200, 1, 1)),
    st.integers(-12 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))),
)
def test_any_time_with_a_zone_is_read_back(at: dt.datetime, zone: dt.timezone) -> None:
    aware = at.replace(tzinfo=dt.UTC).astimezone(zone)
    assert dates.moment(aware.isoformat()) == at
    assert dates.moment(format_datetime(aware)) == at.replace(microsecond=0)


@given(st.text(max_size=60) | st.from_regex(r"[0-9A-Za-z:+/ .,-]{0,40}") | st.integers() | st.floats() | st.none())
@example(float("nan"))
@example("99999999999999999999")
def test_any_value_is_a_date_or_none(value: object) -> None:
    found = dates.moment(value)
    assert found is None or (found.tzinfo is None and found.year >= 1000)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ("<p>a</p><p>b</p>c<br>d", "", "a\n\nb\n\nc\nd"),
        ("<ul><li>x<li>y</ul>", "", "x\ny"),
        ("AT&T", "", "AT&T"),
        ("AT&amp;T", "", "AT&T"),
        ("AT&amp;T", "text", "AT&amp;T"),
        ("1 < 2 and List<String>", "", "1 < 2 and List<String>"),
        ("&lt;p&gt;Hello &lt;b&gt;x&lt;/b&gt;&lt;/p&gt;", "", "Hello x"),
        ("&lt;p&gt;x&lt;/p&gt;", "html", "x"),
        ("<p>how to use &lt;b&gt; and &lt;/b&gt;</p>", "", "how to use <b> and </b>"),
        ("<script>alert(1)</script>ok", "", "ok"),
        ("<style>p {}", "", ""),
        ("x<!-- <p> -->y", "", "xy"),
        ("<a href='x>y'>l</a> z", "", "l z"),
        ('<a href=http://e.org/">l</a> z', "", "l z"),
        ("<pre>a\n  b</pre>", "", "a\nb"),
        ("<p>a\nb</p>", "", "a b"),
        ("a\n\n\n\nb", "", "a\n\nb"),
        ("<table><tr><td>1</td><td>2</td></tr></table>", "", "1 2"),
    ],
)
def test_plain_text_of_html(value: str, kind: str, text: str) -> None:
    assert markup.plain(value, kind).text == text


@pytest.mark.parametrize(
    "evil", ["<", "<a ", '<a "', "<!--", "<a '>", "<script>", "&", "<div>", "</a ", "<a b=\"'", "<![CDATA["]
)
def test_hostile_html_takes_time_in_proportion_to_its_length(evil: str) -> None:
    began = time.monotonic()
    for kind in ("", "html", "text"):
        markup.plain(evil * 50_000, kind)
    assert time.monotonic() - began < 10


@given(st.text(alphabet="<>/!-&;\"'= abpdiv[]CDAT\n", max_size=200))
def test_any_text_is_plain_text(value: str) -> None:
    for kind in ("", "html", "text"):
        assert "\r" not in markup.plain(value, kind).text


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("/a", "https://example.org/a"),
        ("?b=1", "https://example.org/blog/feed.xml?b=1"),
        ("//cdn.example/x", "https://cdn.example/x"),
        (" https://e.org/\n a ", "https://e.org/a"),
        ("javascript:alert(1)", None),
        ("javascript://e.org/%0aalert(1)", None),
        ("file://e.org/etc/passwd", None),
        ("data:text/html,x", None),
        ("mailto:a@b.c", None),
        ("http://[bad", None),
        ("", None),
        (5, None),
        ("https://e.org/" + "x" * 5000, None),
    ],
)
def test_links_are_absolute_or_none(value: object, found: str | None) -> None:
    assert link(URL, value) == found


def test_one_page_has_one_id_however_it_is_linked() -> None:
    ways = [
        "http://example.org/a?x=1",
        "https://EXAMPLE.org:443/a?x=1#top",
        "https://example.org/a?utm_source=rss&x=1&utm_medium=feed",
    ]
    assert {identity.normalised(way) for way in ways} == {"https://example.org/a?x=1"}


_ENTRIES = st.builds(
    Entry,
    guid=st.sampled_from([None, "a", "b"]),
    url=st.sampled_from([None, "https://e.org/1", "https://e.org/2"]),
    title=st.sampled_from([None, "x", "y"]),
    published=st.sampled_from([None, NOON]),
)


@given(st.lists(_ENTRIES, max_size=6), st.randoms())
def test_ids_are_given_once_and_whatever_the_order(entries: list[Entry], chance: random.Random) -> None:
    found = identity.identified(entries)
    ids = [entry.id for entry in found]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    shuffled = list(entries)
    chance.shuffle(shuffled)
    assert {entry.id for entry in identity.identified(shuffled)} == set(ids)


def test_what_was_seen_is_known_again_and_the_newest_is_kept_longest() -> None:
    seen = Seen(Seen().pack({"a": "1", "b": "2"}))
    assert [seen.compare("a", "1"), seen.compare("b", "x"), seen.compare("c", "1")] == ["unchanged", "changed", "new"]
    packed = ""
    for at in range(0, 2 * CAPACITY, 100):
        packed = Seen(packed).pack({str(number): "1" for number in range(at, at + 100)})
    seen = Seen(packed)
    assert len(seen) == CAPACITY
    assert len(packed) == 12 * CAPACITY
    assert seen.compare(str(2 * CAPACITY - 1), "1") == seen.compare(str(CAPACITY), "1") == "unchanged"
    assert seen.compare(str(CAPACITY - 101), "1") == "new"


_SMALL = [case for case in CASES if 0 < len(case.content) < 5000]


@hypothesis_settings(max_examples=150)
@given(
    st.sampled_from(_SMALL),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 30)), max_size=4),
)
def test_no_document_whatever_is_a_crash(case, damage) -> None:
    """Documents of the corpus with bytes put in, taken out and overwritten anywhere."""
    content = bytearray(case.content)
    for at, put, gone in damage:
        at %= len(content) + 1
        content[at : at + gone] = put
    with suppress(BadFeed):
        rows = [FeedUpdate({})._row("feed", entry) for entry in read(bytes(content), case.headers, URL).entries]
        assert to_table(FeedUpdate.dataset, rows).num_rows == len(rows)


def test_threads_that_begin_at_once_find_the_parser_ready() -> None:
    """What it fills at its first parse is full when its module has been imported."""
    code = """
import nodes.feeds.syndication
from feedparser.mixin import _FeedParserMixin as parser
print(len(parser._matchnamespaces) == len({name.lower() for name in parser.namespaces}) > 40)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (rss(item()), "rss20"),
        (atom(entry()), "atom10"),
        (jsonfeed({"id": "1"}).decode(), "json11"),
        (jsonfeed(version="https://jsonfeed.org/version/1").decode(), "json10"),
    ],
)
def test_a_feed_says_its_title_and_form(content: str, form: str) -> None:
    feed = read(content.encode(), {}, URL)
    assert (feed.title, feed.format) == ("The feed", form)
