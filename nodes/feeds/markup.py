"""Plain text of HTML, as far as feeds have it, and what can be told of a page that is no feed.

A reader of its own, because what feeds carry is hostile at times: time in proportion to the length, no recursion.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

_NAMES = (
    "a|abbr|acronym|address|article|aside|audio|b|big|blockquote|body|br|button|caption|center|cite|code|col|dd|del|details"
    "|dfn|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins"
    "|kbd|label|li|main|mark|nav|noscript|object|ol|p|param|picture|pre|q|s|samp|script|section|small|source|span|strike"
    "|strong|style|sub|summary|sup|svg|table|tbody|td|tfoot|th|thead|time|tr|tt|u|ul|var|video|wbr"
)
# Possessive repeats: a tag that is never closed is given up in one pass.
_MARKUP = re.compile(
    r"""<(?:(/?)([a-zA-Z][a-zA-Z0-9:-]*+)((?:[^<>"']++|"[^"]*+"|'[^']*+')*+)>|(!--)|(!\[CDATA\[)|[!?][^<>]*+>"""
    r"""|/?[a-zA-Z][a-zA-Z0-9:-]*+[\s"'/][^<>]*+>)"""  # with a quote that has no partner
)
_TAG = re.compile(rf"</?(?:{_NAMES})(?:[\s/][^<>]*+)?>", re.I)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_CLOSED = re.compile(rf"</(?:{_NAMES})\s*+>|/>", re.I)
_LINES = (
    "address article aside body br caption dd details div dl dt fieldset figcaption footer form header hr li main nav"
    " section summary tbody tfoot thead tr"
)
_PARAGRAPHS = "blockquote figure h1 h2 h3 h4 h5 h6 ol p pre table ul"
_BREAKS = {
    **dict.fromkeys(_LINES.split(), "\n"),
    **dict.fromkeys(_PARAGRAPHS.split(), "\n\n"),
    **dict.fromkeys(("td", "th"), " "),
}
"""What an element, begun or ended, is in plain text."""
_HIDDEN = frozenset({"script", "style", "head", "template", "iframe", "noscript", "svg", "textarea", "title"})
"""Elements whose content nobody reads."""
_ATTRIBUTE = re.compile(r"""([a-zA-Z:-]+)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"'>]++))""")
_PAGE = re.compile(r"(?:\s|<!--.{0,2000}?-->|<\?[^>]{0,500}>)*+<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_LINK = re.compile(r"""<link\b((?:[^<>"']++|"[^"]*+"|'[^']*+')*+)>""", re.I)
_FEED_TYPES = frozenset({"application/rss+xml", "application/atom+xml", "application/feed+json", "application/rdf+xml"})


class Plain(NamedTuple):
    """``image``: the address of the first picture, as it stands there."""

    text: str
    image: str = ""


def plain(value: str, kind: str = "") -> Plain:
    """``value`` as text for reading: blocks on lines of their own, paragraphs an empty line apart.

    ``kind``: "html", "text" for what is said to be none, or "" where the feed does not say: then it is HTML if it has
    tags that HTML knows. HTML that was escaped once too often is read all the same.
    """
    if kind == "html" or (kind == "" and (_TAG.search(value) or "-->" in value)):
        read = _read(value)
        return read if "<" in value or not _wrapped(read.text) else _read(read.text)
    text = html.unescape(value) if kind == "" and _ENTITY.search(value) else value
    return _read(text) if _wrapped(text) else Plain(_tidy(text))


def line(value: str, kind: str = "") -> str:
    """``value`` as one line of text."""
    return " ".join(plain(value, kind).text.split())


def is_page(text: str) -> bool:
    """Whether it is an HTML page."""
    return bool(_PAGE.match(text[:20_000]))


def alternates(text: str, url: str) -> list[str]:
    """Absolute addresses of the feeds that an HTML page names in its head."""
    from nodes.feeds import link

    found = []
    for each in _LINK.finditer(text[:500_000]):
        attributes = _attributes(each[1])
        if "alternate" in attributes.get("rel", "").lower() and attributes.get("type", "").lower() in _FEED_TYPES:
            found.append(link(url, attributes.get("href")))
    return [address for address in found if address]


def _wrapped(value: str) -> bool:
    """Whether it begins with a tag and has a closing one: nobody writes so for readers."""
    return bool(_TAG.match(value.lstrip()) and _CLOSED.search(value))


def _tidy(value: str) -> str:
    lines = [" ".join(each.split()) for each in value.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(text):
        found.setdefault(name.lower(), html.unescape(double or single or bare))
    return found


def _read(value: str) -> Plain:
    """The text between the tags, with the breaks that these stand for."""
    parts: list[str] = []
    image = ""
    at = kept = preformatted = 0
    while found := _MARKUP.search(value, at):
        parts.append(_words(value[kept : found.start()], preformatted > 0))
        at = found.end()
        name = (found[2] or "").lower()
        if found[4]:
            end = value.find("-->", at)
            at = len(value) if end < 0 else end + 3
        elif name in _HIDDEN and not found[1] and not found[3].endswith("/"):
            at = _behind(value, name, at)
        elif name in _BREAKS:
            parts.append(_BREAKS[name])
            if name == "pre":
                preformatted = max(preformatted + (-1 if found[1] else 1), 0)
        elif name == "img" and not image:
            image = _picture(found[3])
        kept = at
    parts.append(_words(value[kept:], preformatted > 0))
    return Plain(_tidy("".join(parts)), image)


def _words(text: str, preformatted: bool) -> str:
    found = html.unescape(text.replace("]]>", "")) if text else ""
    # Elsewhere a line break in the source is a space.
    return found if preformatted else re.sub(r"\s+", " ", found)


def _behind(value: str, name: str, at: int) -> int:
    end = re.compile(rf"</{name}\s*+>", re.I).search(value, at)
    return end.end() if end else len(value)


def _picture(attributes: str) -> str:
    found = _attributes(attributes)
    if found.get("width") in ("0", "1") or found.get("height") in ("0", "1"):
        return ""  # counts readers
    source = found.get("src", "")
    return "" if source.startswith("data:") else source
