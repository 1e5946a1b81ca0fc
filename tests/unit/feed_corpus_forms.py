"""Feeds whose encoding, ids or dates are odd or wrong, each named for its fault, with what has to become of it."""

from __future__ import annotations

from tests.unit.feed_writing import (
    CHINESE,
    FRENCH,
    JAPANESE,
    KOREAN,
    LATIN,
    NOON,
    ONE,
    RUSSIAN,
    TRADITIONAL,
    atom,
    dated,
    entry,
    in_charset,
    item,
    read_as,
    refused,
    rss,
)

_NOISE = rss(item("XX")).encode().replace(b"XX", bytes(range(0x80, 0xFF)) * 3)
_DAMAGED = in_charset(RUSSIAN, "utf-8", "utf-8").replace("новости".encode(), "новос".encode() + b"\xff")

ENCODINGS = [
    read_as("utf-8 with a byte-order mark", b"\xef\xbb\xbf" + in_charset("Größe", "utf-8"), "Größe"),
    read_as("utf-16 with a byte-order mark", in_charset("Größe", "utf-16"), "Größe"),
    read_as("utf-16 without a byte-order mark", in_charset("Größe", "utf-16-be", "utf-16"), "Größe"),
    read_as("utf-16 without mark or declaration", in_charset(CHINESE, "utf-16-le"), CHINESE),
    read_as("utf-32 with a byte-order mark", in_charset("Größe", "utf-32"), "Größe"),
    read_as("utf-16 declared, utf-8 in fact", in_charset("Größe", "utf-8", "utf-16"), "Größe"),
    read_as("utf-16 cut off within a character", in_charset("One", "utf-16")[:-1], ONE),
    read_as("gb18030 declared as utf-8", in_charset(CHINESE, "gb18030", "utf-8"), CHINESE, note="gb18030"),
    read_as("gbk declared as gb2312", in_charset("朱镕基说" + CHINESE, "gbk", "gb2312"), "朱镕基说" + CHINESE),
    read_as("big5 undeclared", in_charset(TRADITIONAL, "big5"), TRADITIONAL),
    read_as("shift-jis undeclared", in_charset(JAPANESE, "cp932"), JAPANESE),
    read_as("euc-jp declared as utf-8", in_charset(JAPANESE, "euc_jp", "utf-8"), JAPANESE, note="euc_jp"),
    read_as("euc-kr declared as utf-8", in_charset(KOREAN, "euc_kr", "utf-8"), KOREAN, note="cp949"),
    read_as("windows-1251 undeclared", in_charset(RUSSIAN, "cp1251"), RUSSIAN),
    read_as("koi8-r declared as utf-8", in_charset(RUSSIAN, "koi8-r", "utf-8"), RUSSIAN, note="koi8-r"),
    read_as("latin-1 undeclared", in_charset(FRENCH, "latin-1"), FRENCH),
    read_as("windows-1252 declared as utf-8", in_charset("“Ça va”", "cp1252", "utf-8"), "“Ça va”", note="cp1252"),
    read_as("ascii declared, utf-8 in fact", in_charset("Größe", "utf-8", "us-ascii"), "Größe"),
    read_as("latin-1 in the header, utf-8 in fact", in_charset("Größe", "utf-8", "utf-8"), "Größe", headers=LATIN),
    read_as(
        "latin-1 in the header, windows-1251 in the document",
        in_charset(RUSSIAN, "cp1251", "windows-1251"),
        RUSSIAN,
        headers=LATIN,
    ),
    read_as(
        "latin-1 in the header, gb18030 in fact", in_charset(CHINESE, "gb18030"), CHINESE, headers=LATIN, note="gb18030"
    ),
    read_as(
        "charset in the header only",
        in_charset(CHINESE, "gb18030"),
        CHINESE,
        headers={"content-type": "application/rss+xml; charset=GB2312"},
    ),
    read_as(
        "little text in the charset of the header",
        in_charset("模式", "gb18030"),  # valid as UTF-8, too
        "模式",
        headers={"content-type": "application/rss+xml; charset=GB2312"},
    ),
    read_as(
        "gb2312 in the header, utf-8 in fact",
        in_charset("中文" * 10, "utf-8"),  # valid as gb18030, too
        "中文" * 10,
        headers={"content-type": "application/rss+xml; charset=GB2312"},
    ),
    read_as(
        "latin-1 in the header, Greek in the document",
        in_charset("Τα νέα της ημέρας", "iso8859-7", "iso-8859-7"),
        "Τα νέα της ημέρας",
        headers=LATIN,
    ),
    read_as("iso-2022-jp", in_charset(JAPANESE, "iso2022_jp", "iso-2022-jp"), JAPANESE),
    read_as("charset that nobody knows", in_charset("Größe", "utf-8", "x-unknown-9"), "Größe"),
    read_as("charset that is a codec for no text", in_charset("One", "utf-8", "rot13"), ONE),
    read_as("one bad byte in much utf-8", _DAMAGED, RUSSIAN.replace("новости", "новос\ufffd")),
    refused("wrong charset that cannot be told", _NOISE, "declared is utf-8, but the bytes"),
    read_as("utf-8 encoded twice", in_charset("Größe".encode().decode("latin-1"), "utf-8", "utf-8"), "Größe"),
]

_JANUARY_30 = "<published>2024-01-30T12:00:00Z</published>"
IDS = [
    read_as(
        "missing guid",
        rss(item(guid="", link="http://Example.org:80/1?utm_source=x#y")),
        {"id": "https://example.org/1", "url": "http://Example.org:80/1?utm_source=x#y"},
    ),
    read_as("neither guid nor link", rss(item(guid="", link="")), {"title": "One", "url": None}),
    read_as("nothing at all in an item", rss("<item></item>", item()), ONE),
    read_as(
        "duplicate guids of different articles",
        rss(item("A", "x", link="/a"), item("B", "x", link="/b")),
        {"title": "A", "id": "https://example.org/a"},
        {"title": "B", "id": "https://example.org/b"},
    ),
    read_as(
        "duplicate guids of one article",
        rss(item(more="<pubDate>2024-01-30 12:00</pubDate>"), item(more="<pubDate>2024-01-31 12:00</pubDate>")),
        {"id": "g1", "published": NOON},
    ),
    read_as("one guid and one link for everything", rss(*(item(f"T{n}", "x") for n in range(3))), "T0", "T1", "T2"),
    read_as("no guid and one link for everything", rss(*(item(f"T{n}", "") for n in range(3))), "T0", "T1", "T2"),
    read_as("guid that is no permalink", rss(item(guid="tag:x,2024:1")), {"id": "tag:x,2024:1"}),
    read_as(
        "guid that is the permalink",
        rss("<item><title>One</title><guid>https://example.org/p</guid></item>"),
        {"id": "https://example.org/p", "url": "https://example.org/p"},
    ),
    read_as(
        "number as permalink guid",
        rss("<item><title>One</title><guid>123</guid><link>/1</link></item>"),
        {"id": "123", "url": "https://example.org/1"},
    ),
    read_as("guid of 5,000 characters", rss(item(guid="g" * 5000)), "One"),
    read_as("guid with line breaks", rss(item(guid="\n a\n b ")), {"id": "a b"}),
    read_as(
        "atom versions of one entry",
        atom(
            entry(more=f"{_JANUARY_30}<updated>2024-01-30T12:00:00Z</updated>"),
            entry("One, corrected", more=f"{_JANUARY_30}<updated>2024-01-31T12:00:00Z</updated>"),
        ),
        {"title": "One, corrected", "id": "urn:1"},
    ),
]

DATES = [
    dated("date in German", "Mi, 31. Januar 2024 13:00 MEZ"),
    dated("date in French", "mer. 31 janv. 2024 12:00"),
    dated("date in Chinese", "2024年1月31日 下午8:00 +0800"),
    dated("date in Russian", "31 января 2024 г. 15:00 MSK"),
    dated("date with the wrong weekday", "Mon, 31 Jan 2024 12:00:00 GMT"),
    dated("date without a zone", "2024-01-31 12:00"),
    dated("date in the future", "Tue, 31 Jan 2124 12:00:00 GMT", NOON.replace(year=2124)),
    dated("year 0", "0000-00-00 00:00:00", None),
    dated("year 1", "0001-01-01T00:00:00Z", None),
    dated("year 99999", "99999-01-01T00:00:00Z", None),
    dated("30 February", "30 Feb 2024 12:00:00 GMT", None),
    dated("date that means two days", "03/04/2024", None),
    dated("date in words", "about noon", None),
    dated("empty date", "", None),
    dated("seconds since 1970", "1706702400"),
    read_as("only updated", atom(entry(more="<updated>2024-01-31T13:00:00+01:00</updated>")), {"published": NOON}),
]
