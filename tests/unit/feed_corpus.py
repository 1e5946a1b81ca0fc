"""Feeds whose content, format or whole is odd or broken, each named for its fault, with what has to become of it."""

from __future__ import annotations

from tests.unit.feed_corpus_forms import DATES, ENCODINGS, IDS
from tests.unit.feed_writing import (
    CONTENT,
    ITUNES,
    MEDIA,
    NOON,
    ONE,
    XML,
    atom,
    described,
    entry,
    item,
    jsonfeed,
    read_as,
    refused,
    rss,
)

_HTML = "<description><![CDATA[<p>One</p><p>Two<br/>Three</p><script>x()</script>]]></description>"
_XHTML = '<div xmlns="http://www.w3.org/1999/xhtml"><p>One</p><p>Two</p></div>'
_SHORT = "<description>Short</description>"
_FULL = "<content:encoded>&lt;p&gt;Full text&lt;/p&gt;</content:encoded>"
_PODCAST = (
    '<enclosure url="/e.mp3" type="audio/mpeg" length="1"/><itunes:image href="/i.jpg"/>'
    "<itunes:author>Ann</itunes:author><itunes:summary>About it</itunes:summary>"
)
_PIXEL = '&lt;img src="/p.gif" width="1"&gt;&lt;img src="data:x"&gt;&lt;img src="/real.jpg"&gt;'
_PREFIXED = (
    '<a:feed xmlns:a="http://www.w3.org/2005/Atom"><a:title>F</a:title>'
    "<a:entry><a:id>urn:1</a:id><a:title>One</a:title></a:entry></a:feed>"
)
TEXTS = [
    read_as("relative links", rss(item(link="../1")), {"url": "https://example.org/1"}),
    read_as(
        "relative links under xml:base",
        atom(entry(link="2"), attributes=' xml:base="https://other.example/dir/"'),
        {"url": "https://other.example/dir/2"},
    ),
    read_as(
        "relative xml:base",
        atom(entry(link="2"), attributes=' xml:base="/dir/"'),
        {"url": "https://example.org/dir/2"},
    ),
    read_as("link that is a script", rss(item(link="javascript:alert(1)")), {"url": None, "id": "g1"}),
    read_as("link with line breaks", rss(item(link="\n  https://example.org/1\n ")), ONE),
    read_as(
        "link with a bare ampersand",
        rss(item(link="https://example.org/?a=1&b=2&copy=3")),
        {"url": "https://example.org/?a=1&b=2&copy=3"},
    ),
    read_as("link that is no address", rss(item(link="http://[bad")), {"url": None, "id": "g1"}),
    read_as(
        "html in cdata",
        rss(item("<![CDATA[A &amp; <b>B</b>]]>", more=_HTML)),
        {"title": "A & B", "text": "One\n\nTwo\nThree", "summary": "One\n\nTwo\nThree"},
    ),
    read_as("html escaped twice", rss(described("&amp;lt;p&amp;gt;One&amp;lt;/p&amp;gt;")), {"text": "One"}),
    read_as("title with angle brackets", rss(item("List&lt;String&gt; &amp;amp; 1 &lt; 2")), "List<String> & 1 < 2"),
    read_as("atom title of type text with tags", atom(entry("&lt;b&gt; is a tag")), "<b> is a tag"),
    read_as(
        "atom title of type html",
        atom(entry("&lt;b&gt;X&lt;/b&gt; &amp;amp; Y").replace("<title>", '<title type="html">')),
        "X & Y",
    ),
    read_as(
        "xhtml content",
        atom(entry(more=f'<content type="xhtml">{_XHTML}</content>')),
        {"text": "One\n\nTwo", "summary": None},
    ),
    read_as(
        "content elsewhere",
        atom(entry(more='<content type="video/mp4" src="/v.mp4"/><summary>S</summary>')),
        {"text": "S", "summary": "S"},
    ),
    read_as(
        "base64 content",
        atom(entry(more='<content type="application/octet-stream">AAEC/w==</content>')),
        {"text": None},
    ),
    read_as("no title", rss(described("Only words").replace("<title>One</title>", "")), {"title": None, "id": "g1"}),
    read_as(
        "content before description",
        rss(item(more=_FULL + _SHORT), attributes=CONTENT),
        {"text": "Full text", "summary": "Short"},
    ),
    read_as(
        "description before content",
        rss(item(more=_SHORT + _FULL), attributes=CONTENT),
        {"text": "Full text", "summary": "Short"},
    ),
    read_as(
        "description, and a shorter one of its medium",
        rss(
            item(more="<description>Many words</description><media:description>Few</media:description>"),
            attributes=MEDIA,
        ),
        {"text": "Many words", "summary": "Few"},
    ),
    read_as(
        "link to what is no html",
        atom(entry().replace("<link ", '<link rel="alternate" type="text/plain" ')),
        {"url": "https://example.org/1"},
    ),
    read_as("namespace prefix that is not declared", rss(item(more="<dc:creator>Ann</dc:creator>")), "One"),
    read_as("namespaces with odd prefixes", XML + _PREFIXED, {"title": "One", "id": "urn:1"}),
    read_as("html entities undeclared", rss(item("Caf&eacute;&nbsp;&hellip; &unheard;")), "Café … &unheard;"),
    read_as("html entity in a title of type text", atom(entry("Caf&eacute;")), "Café"),
    read_as("bare ampersand", rss(item("Q & A")), "Q & A"),
    read_as("author as e-mail and name", rss(item(more="<author>ann@example.org (Ann)</author>")), {"author": "Ann"}),
    read_as(
        "several authors",
        atom(entry(more="<author><name>Ann</name></author><author><name>Bob</name></author>")),
        {"author": "Ann, Bob"},
    ),
    read_as("author of the whole feed", atom("<author><name>Ann</name></author>", entry()), {"author": "Ann"}),
    read_as(
        "media images",
        rss(item(more='<media:thumbnail url="/t.jpg"/>'), attributes=MEDIA),
        {"image": "https://example.org/t.jpg"},
    ),
    read_as(
        "image as enclosure",
        rss(item(more='<enclosure url="/e.png" type="image/png" length="1"/>')),
        {"image": "https://example.org/e.png"},
    ),
    read_as(
        "podcast",
        rss(item(more=_PODCAST), attributes=ITUNES),
        {"image": "https://example.org/i.jpg", "author": "Ann", "text": "About it"},
    ),
    read_as("counting pixel as first image", rss(described(_PIXEL)), {"image": "https://example.org/real.jpg"}),
    read_as(
        "atom elements in rss",
        rss(
            "<item><title>One</title><a:id>urn:a</a:id>"
            '<a:link href="/al"/><a:updated>2024-01-31T12:00:00Z</a:updated></item>',
            attributes=' xmlns:a="http://www.w3.org/2005/Atom"',
        ),
        {"id": "urn:a", "url": "https://example.org/al", "published": NOON},
    ),
    read_as(
        "an image of the channel behind its items",
        rss(item(), "<image><title>Logo</title><url>/l.png</url></image>"),
        ONE,
    ),
]

_RSS_091 = (
    '<?xml version="1.0"?><!DOCTYPE rss PUBLIC "-//Netscape Communications//DTD RSS 0.91//EN"'
    ' "http://my.netscape.com/publish/formats/rss-0.91.dtd"><rss version="0.91"><channel><title>F</title>'
    "<item><title>One</title><link>https://example.org/1</link></item></channel></rss>"
)
_RDF = (
    '<?xml version="1.0"?><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    ' xmlns="http://purl.org/rss/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/">'
    '<channel rdf:about="x"><title>F</title></channel><item rdf:about="https://example.org/about"><title>One</title>'
    "<link>https://example.org/1</link><dc:date>2024-01-31T12:00:00Z</dc:date><dc:creator>Ann</dc:creator></item>"
    "</rdf:RDF>"
)
_ATOM_03 = (
    '<?xml version="1.0"?><feed version="0.3" xmlns="http://purl.org/atom/ns#"><title>F</title><entry>'
    '<title>One</title><id>urn:1</id><link rel="alternate" type="text/html" href="https://example.org/1"/>'
    '<issued>2024-01-31T12:00:00Z</issued><content type="text/html" mode="escaped">&lt;p&gt;Hi&lt;/p&gt;</content>'
    "</entry></feed>"
)
_JSON = {
    "id": "g1",
    "url": "/1",
    "title": "One",
    "content_html": "<p>A</p>",
    "summary": "S",
    "authors": [{"name": "Ann"}],
    "date_published": "2024-01-31T12:00:00Z",
    "image": "/i.png",
}
_WRONG_KINDS = {
    "id": ["x"],
    "title": 5,
    "url": {},
    "authors": "Ann",
    "attachments": 3,
    "date_published": [],
    "content_html": None,
    "external_url": "https://example.org/e",
}
_VERSION = b'"version": "https://jsonfeed.org/version/1.1"'
FORMATS = [
    read_as("rss 0.91 with its doctype", _RSS_091, {"title": "One", "id": "https://example.org/1"}),
    read_as(
        "rss 1.0 (rdf)",
        _RDF,
        {"id": "https://example.org/about", "url": "https://example.org/1", "published": NOON, "author": "Ann"},
    ),
    read_as("atom 0.3", _ATOM_03, {"id": "urn:1", "published": NOON, "text": "Hi"}),
    read_as("empty channel", rss()),
    read_as("empty atom feed", atom()),
    read_as("white space before the declaration", "\n\n  " + rss(item()), ONE),
    read_as("declaration with a wrong version", rss(item(), head='<?xml version="1.1" standalone="maybe"?>'), ONE),
    read_as("rubbish behind the end", rss(item()) + "<script>track()</script>", ONE),
    read_as("nul bytes", rss(item("O\x00ne")) + "\x00\x00", ONE),
    read_as("control characters", rss(item("O\x01\x0bn\x1fe")), ONE),
    read_as("references to control characters", rss(item("O&#1;&#x0;n&#xFFFF;&#xD800;e&#9999999;")), ONE),
    read_as(
        "json feed 1.1",
        jsonfeed(_JSON),
        {**ONE, "text": "A", "summary": "S", "author": "Ann", "published": NOON, "image": "https://example.org/i.png"},
    ),
    read_as(
        "json feed 1.0 with a number as id",
        jsonfeed(
            {"id": 7, "content_text": "1 < 2", "author": {"name": "Ann"}}, version="https://jsonfeed.org/version/1"
        ),
        {"id": "7", "text": "1 < 2", "author": "Ann"},
    ),
    read_as(
        "json feed with milliseconds since 1970",
        jsonfeed({"id": "g1", "date_published": 1706702400000}),
        {"published": NOON},
    ),
    read_as(
        "json feed with times of changes only",
        jsonfeed({"id": "g1", "date_modified": "2024-01-31T12:00:00Z"}),
        {"published": NOON},
    ),
    read_as("json feed with a byte-order mark", b"\xef\xbb\xbf" + jsonfeed({"id": "g1", "title": "One"}), "One"),
    read_as("json feed of wrong kinds", jsonfeed(_WRONG_KINDS), {"id": "https://example.org/e", "title": None}),
    read_as("json feed with items that are none", jsonfeed(1, None, "x", {"id": "g1"}), {"id": "g1"}, note="3 items"),
    read_as(
        "json feed with half a surrogate pair",
        b"{" + _VERSION + b', "items": [{"id": "g1", "title": "\\ud83d \\u0000", "url": "/\\ud83d"}]}',
        {"id": "g1", "url": None},
    ),
]

_LINES = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
_LONG = f'<!ENTITY a "{"x" * 5000}">'
_NAMES_A_FEED = '<html><head><link rel="alternate" type="application/rss+xml" href="/feed.xml"></head></html>'
_XHTML_PAGE = (
    '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x"><html xmlns="http://www.w3.org/1999/xhtml"/>'
)


def _declaring(entities: str, title: str) -> str:
    return rss(item(title), head=f'<?xml version="1.0"?><!DOCTYPE rss [{entities}]>')


DAMAGED = [
    read_as(
        "cut off between items",
        rss(item(), item("Two", "g2"))[: -len("</channel></rss>")],
        ONE,
        {"id": "g2"},
        note="damaged",
    ),
    read_as(
        "cut off within an item",
        rss(item(), item("Two", "g2", more="<description>long words</description>"))[:-45],
        ONE,
        note="cut off",
    ),
    read_as("cut off within a tag", rss(item(), item("Two", "g2"))[:-20], ONE, note="cut off"),
    refused("cut off before the first item", XML + '<rss version="2.0"><channel><title>Th', "no article could be read"),
    read_as(
        "tags that do not match",
        rss(described("<b>x</i>"), item("Two", "g2")),
        {"id": "g1"},
        {"id": "g2"},
        note="mismatched tag",
    ),
    read_as(
        "attribute without quotes",
        rss(item(more="<enclosure url=/x.png type=image/png>")),
        {"id": "g1"},
        note="damaged",
    ),
    refused("html page", "<!DOCTYPE html><html><body>Hello</body></html>", "is an HTML page, not a feed, and names no"),
    refused("html page that names a feed", _NAMES_A_FEED, "the feed it names is https://example.org/feed.xml"),
    refused("xhtml page", XML + _XHTML_PAGE, "is an HTML page"),
    refused("json that is no feed", '{"items": [{"id": 1}]}', "is JSON, but no JSON Feed"),
    refused("json list", "[1, 2]", "is JSON, but no JSON Feed"),
    refused("json cut off", jsonfeed({"id": "g1"})[:-10], "is JSON that is damaged"),
    refused("json nested beyond use", b"{" + _VERSION + b', "items": ' + b"[" * 200_000, "nested beyond any use"),
    refused("json feed without items", b"{" + _VERSION + b"}", "without a list of items"),
    refused("xml that is no feed", XML + "<urlset><url><loc>x</loc></url></urlset>", "is no feed but <urlset>"),
    refused("plain text", "Service temporarily unavailable", "is no feed: it has no XML in it"),
    refused("image", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, ""),
    refused("empty", "", "is empty"),
    refused("only white space", " \r\n\x00 ", "is empty"),
    refused("entity bomb", _declaring(f'<!ENTITY l0 "ha">{_LINES}', "&l9;"), "by way of others"),
    refused(
        "entity bomb behind a comment and an instruction",
        _declaring(f'<!ENTITY l0 "ha">{_LINES}', "&l9;").replace("<!DOCTYPE", "<!-- <a> --><?x <b> ?><!DOCTYPE"),
        "by way of others",
    ),
    refused("one long entity, many times", _declaring(_LONG, "&a;" * 5000), "entities would add"),
    read_as("harmless entity of its own", _declaring('<!ENTITY co "A &#38; B">', "&co;"), "A & B"),
    read_as("entity with a tag in it", _declaring('<!ENTITY t "<b>A</b> ]">', "x &t; y"), "x A ] y"),
    read_as("doctype in a comment", rss(item(), head="<!-- <!DOCTYPE rss [ -->"), ONE),
    read_as("entity from a file", _declaring('<!ENTITY f SYSTEM "file:///etc/passwd">', "x&f;y"), "xy"),
    read_as("nested 30,000 deep", rss(item(more="<a>" * 30_000 + "</a>" * 30_000)), "One"),
    read_as("html nested 30,000 deep", rss(described("&lt;div&gt;" * 30_000 + "deep")), {"text": "deep"}),
    read_as("300,000 angle brackets", rss(described("&lt;" * 300_000)), {"id": "g1"}),
    read_as("a huge article", rss(described("word " * 600_000)), {"id": "g1"}),
    read_as(
        "two million characters that are not well-formed",
        rss(*(described(f"{at} " + "word " * 80_000) for at in range(6)), "</broken>"),
        {"id": "g1"},
        note="only its first 2,000,000 characters are read",
    ),
    refused("full of open tags", "<rss><channel><item><title>One</title>" + "<a b='" * 20_000, "no article"),
    refused("full of open sections", "<rss><channel><item><title>One</title>" + "<![CDATA[" * 200_000, "no article"),
]

CASES = [*ENCODINGS, *IDS, *DATES, *TEXTS, *FORMATS, *DAMAGED]
