"""Pages as they are found: what is read from odd and broken HTML, in which encoding, and what selectors find."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.crawling import pages, selecting
from nodes.crawling.encodings import codec_of, decode
from nodes.protocol import FieldError

HERE = "https://example.org/a/b"
LATE = "unavailable_after: 25 jun 2030 15:00:00 pst"
HTML = "text/html; charset=utf-8"


def read(html: str | bytes, content_type: str = HTML, **more: Any) -> pages.Page:
    return pages.read(html.encode() if isinstance(html, str) else html, content_type, HERE, **more)


def links(html: str, **more: Any) -> list[str]:
    return [link.address for link in read(html, **more).links]


# Text and what a page is called


def test_a_page_is_read() -> None:
    page = read(
        """<!doctype html><html lang="en-GB"><head><title> A
        title </title><meta name="Description" content="What it is"><link rel="canonical" href="/c?x=1#y"></head>
        <body><nav>Menu</nav><h1>Head<b>line</b></h1><p>One <i>two</i>&nbsp;three<br>four &amp; five</p>
        <ul><li>x<li>y</ul><script>var hidden = "<p>no</p>"</script><style>p {}</style><noscript>no</noscript>
        <div hidden>no</div><table><tr><td>a</td><td>b</td></tr><tr><td>c</table>end</body></html>"""
    )
    assert page.title == "A title"
    assert page.description == "What it is"
    assert page.canonical == "https://example.org/c?x=1"
    assert page.language == "en-GB"
    assert page.robots == frozenset()
    assert page.text == "Headline\nOne two three\nfour & five\nx\ny\na b\nc\nend"


@pytest.mark.parametrize(
    ("html", "title"),
    [
        ("<title>a</title><title>b</title>", "a"),
        ("<title> </title><h1>From <b>here</b></h1>", "From here"),
        ("<body><svg><title>Picture</title></svg><h1>Page</h1>", "Page"),
        ('<meta property="og:title" content="Open"><h1>Page</h1>', "Open"),
        ("<title>&lt;b&gt; &amp; c", "<b> & c"),
        ("no title", ""),
        ("", ""),
    ],
)
def test_titles(html: str, title: str) -> None:
    assert read(html).title == title


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>un<p>closed<div>b<span>c", "un\nclosed\nbc"),
        ("<b>bold<i>both</b>italic</i>", "boldbothitalic"),
        ("a<!-- <p>no</p> -->b<!-- never ends", "ab"),
        ("a < b > c & d &unknown; &#x41;&#0;", "a < b > c & d &unknown; A\ufffd"),
        ("<table><tr><td>in</td>out</table>", "out\nin"),
        ("<textarea>no</textarea><select><option>no</select>yes", "yes"),
        ("<template><p>no</p></template>yes", "yes"),
        ("<plaintext><p>all", "<p>all"),
        ("</p></div></body></html>after", "after"),
        ("nul\x00 here", "nul here"),
        ("<p>one</p>\n\n\n   <p>  two   three </p>", "one\ntwo three"),
    ],
)
def test_text_of_broken_html(html: str, text: str) -> None:
    assert read(html).text == text


def test_a_page_of_frames_has_no_text_and_no_fault() -> None:
    page = read("<frameset><frame src=a><frame src=b></frameset>")
    assert (page.text, page.links) == ("", [])


def test_a_page_nested_beyond_reason_is_told_before_it_is_parsed() -> None:
    """The parser takes time by the square of the depth: minutes for this one."""
    began = time.monotonic()
    with pytest.raises(pages.TooDeep, match="nested more than 2000 deep"):
        read("<div>" * 300_000)
    assert time.monotonic() - began < 2
    assert read("<div>" * 1500 + "deep").text == "deep"
    assert read("<p>x" * 50_000).text.startswith("x\nx")


# Links


def test_links_once_each_in_order_and_canonical() -> None:
    html = """<a href="c#x">1</a><a href="/B">2</a><a href="c">again</a><a href=" https://Other.org:443 ">3</a>
    <map><area href="?q=1"></map><a>none</a><a href="">self</a><a href="mailto:x@example.org">mail</a>
    <a href="javascript:void(0)">script</a><a href="http://[bad">bad</a><a href="ftp://example.org/">ftp</a>"""
    assert links(html) == [
        "https://example.org/a/c",
        "https://example.org/B",
        "https://other.org/",
        "https://example.org/a/b?q=1",
        "https://example.org/a/b",
    ]


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("/other/", "https://example.org/other/x"),
        ("https://elsewhere.org/d/e", "https://elsewhere.org/d/x"),
        ("javascript:x", "https://example.org/a/x"),
        ("", "https://example.org/a/x"),
    ],
)
def test_links_are_relative_to_the_base(base: str, found: str) -> None:
    assert links(f'<base href="{base}"><base href="/second/"><a href=x>x</a>') == [found]


def test_nofollow_holds_unless_the_page_links_there_otherwise_too() -> None:
    page = read('<a rel="noopener NoFollow" href=no>1</a><a rel=nofollow href=yes>2</a><a href=yes>3</a>')
    assert {link.address.rpartition("/")[2]: link.follow for link in page.links} == {"no": False, "yes": True}


def test_a_refresh_is_a_link() -> None:
    assert links('<meta http-equiv="Refresh" content="3; URL=\'next\'">') == ["https://example.org/a/next"]
    assert links('<meta http-equiv="refresh" content="30">') == []


def test_tracking_is_dropped_from_links_where_wished() -> None:
    assert links('<a href="x?utm_source=a&amp;b=1">x</a>', tracking=False) == ["https://example.org/a/x?b=1"]


def test_a_page_of_nothing_but_links_is_read_in_part() -> None:
    assert (
        len(links("".join(f"<a href=/{number}>x</a>" for number in range(pages.MOST_LINKS + 50)))) == pages.MOST_LINKS
    )


# Robots


@pytest.mark.parametrize(
    ("html", "headers", "said"),
    [
        ('<meta name="ROBOTS" content="NoIndex, follow">', [], {"noindex", "follow"}),
        ('<meta name="robots" content="none">', [], {"none", "noindex", "nofollow"}),
        ('<meta name="ourbot" content="nofollow"><meta name="otherbot" content="noindex">', [], {"nofollow"}),
        ("", ["noindex, nofollow"], {"noindex", "nofollow"}),
        ("", ["otherbot: noindex, nofollow"], set()),
        ("", ["nosnippet, OurBot: noindex, otherbot: nofollow"], {"nosnippet", "noindex"}),
        (
            "",
            [f"{LATE}, noindex"],
            {"unavailable_after: 25 jun 2030 15:00:00 pst", "noindex"},
        ),
    ],
)
def test_what_a_page_asks_of_robots(html: str, headers: list[str], said: set[str]) -> None:
    assert read(html, headers=headers, agent="OurBot").robots == said


# Encodings


@pytest.mark.parametrize(
    ("content", "content_type", "text"),
    [
        ("grün".encode(), "text/html; charset=utf-8", "grün"),
        ("grün".encode("latin-1"), "text/html; charset=iso-8859-1", "grün"),
        ("“x”".encode("cp1252"), "text/html; charset=ISO-8859-1", "“x”"),
        ("中文".encode("gbk"), "text/html;charset=GB2312", "中文"),
        ("日本".encode("shift_jis"), 'text/html; charset="Shift_JIS"', "日本"),
        ("Привет".encode("koi8-r"), "text/html; Charset=KOI8-R; x=y", "Привет"),
        ('<meta charset="windows-1251">Привет'.encode("cp1251"), "text/html", "Привет"),
        (
            '<meta http-equiv="Content-Type" content="text/html; charset=euc-kr">한글'.encode("euc_kr"),
            "text/html",
            "한글",
        ),
        ('<!-- <meta charset="utf-16"> --><meta charset=latin1>ü'.encode("latin-1"), "text/html", "ü"),
        ('<?xml version="1.0" encoding="iso-8859-2"?><p>ł'.encode("iso-8859-2"), "application/xhtml+xml", "ł"),
        (b"\xef\xbb\xbf" + "grün".encode(), "text/html; charset=latin-1", "grün"),
        ("\ufeffgrün".encode("utf-16-le"), "text/html; charset=utf-8", "grün"),
        ("\ufeffgrün".encode("utf-16-be"), "", "grün"),
        ('<meta charset="utf-16">grün'.encode(), "text/html", "grün"),
        ("grün".encode(), "text/html", "grün"),
        ("grün".encode("cp1252"), "text/html", "grün"),
        ("grün".encode(), "text/html; charset=klingon", "grün"),
        ("grün".encode(), "text/html; charset=rot13", "grün"),
        (b"+ADw-b+AD4-", "text/html; charset=utf-7", "+ADw-b+AD4-"),
        ("ü".encode() + b"\xff\xfe", "text/html; charset=utf-8", "ü\ufffd\ufffd"),
        ("grün".encode()[:3], "", "gr\ufffd"),
    ],
)
def test_encodings(content: bytes, content_type: str, text: str) -> None:
    assert read(content, content_type).text == text


def test_names_of_encodings_are_those_of_browsers() -> None:
    assert [codec_of(name) for name in ("latin1", "us-ascii", "gbk", "UTF8", "zlib", "unicode_escape", "x" * 999)] == [
        "cp1252",
        "cp1252",
        "gb18030",
        "utf-8",
        None,
        None,
        None,
    ]


def test_any_bytes_are_some_text() -> None:
    for content in (bytes(range(256)) * 4, b"\x00" * 100, b"\x89PNG\r\n\x1a\n" + bytes(range(256))):
        text, _ = decode(content, "text/html")
        assert "\x00" not in text
        assert isinstance(read(content).text, str)


MARKUP = [
    "<p>",
    "</p>",
    "<a href='",
    "'>",
    "<base href=x>",
    "<title>",
    "<table><td>",
    "<svg>",
    "<!--",
    "<meta name=robots",
]
MARKUP += [
    "<script>",
    "<template>",
    " content=none>",
    "&#xD800;",
    "&amp",
    "ü",
    "\x00",
    "]]>",
    "<select><option hidden>",
]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(MARKUP) | st.text(max_size=5), max_size=40),
    st.sampled_from([HTML, "", "text/html;charset=gbk"]),
)
def test_whatever_comes_is_read(parts: list[str], content_type: str) -> None:
    content = "".join(parts).encode(errors="surrogatepass")
    page = pages.read(content, content_type, HERE, headers=["x: y, "], agent="ourbot")
    selected = [each.values(page.tree, page.base) for each in selecting.read({"a": "p", "b": "a@href[]"})]
    # Half a surrogate pair or NUL would be refused by the parent, with the whole report.
    for text in (page.title, page.text, page.language, *page.robots, json.dumps(selected, ensure_ascii=False)):
        assert b"\x00" not in text.encode()
    assert all(link.address.isascii() for link in page.links)


# Selectors


def selected(html: str, **given: Any) -> dict[str, Any]:
    page = read(html)
    return {each.name: each.values(page.tree, page.base) for each in selecting.read(given)}


def test_selectors_take_text_attributes_first_or_all() -> None:
    html = """<base href="/d/"><div class=offer><b>Price</b> <span>9.90</span></div><img src="i.png" alt="I">
    <a class=tag href=x>x</a><a class=tag href=y data-at="@1[]">y</a><a class=tag>z</a>"""
    assert selected(
        html,
        price=".offer",
        image="img@src",
        alt="img@ALT",
        tags="a.tag[]",
        targets="a.tag@href[]",
        odd='a[data-at="@1[]"]',
        having="div:has(> span) b",
        none=".missing",
        nothing=".missing@href[]",
    ) == {
        "price": "Price 9.90",
        "image": "https://example.org/d/i.png",
        "alt": "I",
        "tags": ["x", "y", "z"],
        "targets": ["https://example.org/d/x", "https://example.org/d/y"],
        "odd": "y",
        "having": "Price",
        "none": None,
        "nothing": [],
    }


def test_what_selectors_find_is_bounded() -> None:
    found = selected("<p>" + "x" * 20_000 + "</p>" + "<i>y</i>" * 1000, long="p", many="i[]")
    assert (len(found["long"]), len(found["many"])) == (selecting.VALUE_LIMIT, selecting.MOST_VALUES)


@pytest.mark.parametrize("text", ["", "a[", "p >", "@href", "[]", "::x", "a,,b", 7, None, ["a"]])
def test_a_selector_that_is_none_is_named(text: Any) -> None:
    with pytest.raises(FieldError, match=r"params\.select\.price: .*is not a CSS selector"):
        selecting.read({"title": "h1", "price": text})


def test_names_and_numbers_of_selectors_are_bounded() -> None:
    with pytest.raises(FieldError, match="is not a name"):
        selecting.read({"a" * 61: "p"})
    with pytest.raises(FieldError, match="at most 50"):
        selecting.read({f"n{number}": "p" for number in range(51)})
