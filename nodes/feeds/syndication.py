"""RSS, RDF and Atom, by feedparser, from text that was made good for it first.

feedparser reads strictly with expat and, where that fails, loosely. Here goes before it what would make it fail
without need (control characters, undeclared entities, bare ampersands) or do harm (documents that declare entities).
The library is loaded with this module, which ``nodes.feeds.read`` imports when there is work.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import unescape
from html.entities import html5
from typing import Any

import feedparser

from nodes.feeds import LINE_LIMIT, SUMMARY_LIMIT, BadFeed, Entry, Feed, cut, dates, link
from nodes.feeds.markup import Plain, line, plain

ENTITIES_LIMIT = 100_000
"""Characters that a document's own entities may add to it."""
LOOSE_LIMIT = 2_000_000
"""Characters of a document that is not well-formed: to guess what it means takes seconds for each million."""
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_DECLARATION = re.compile(r"\s*<\?xml\s[^>]{0,500}\?>\s*")
_REFERENCE = re.compile(r"&(?:#(x[0-9a-fA-F]{1,8}|\d{1,9})|([A-Za-z][\w.-]{0,60}));|&")
_OWN = frozenset({"amp", "lt", "gt", "quot", "apos"})
_ENTITY = re.compile(r"""<!ENTITY\s+(%\s+)?([\w.-]{1,100})\s+(?:"([^"]*)"|'([^']*)'|[^>]*)>""")
_PROLOG = re.compile(r"(?:\s++|<!--(?:(?!-->).)*+-->|<\?(?:(?!\?>).)*+\?>)*+", re.S)
_DOCTYPE = re.compile(
    r"""<!DOCTYPE(?:[^\[\]<>"']++|"[^"]*+"|'[^']*+')*+"""
    r"""(?:\[(?:<!--(?:(?!-->).)*+-->|"[^"]*+"|'[^']*+'|[^\]"'])*+\]\s*+)?>""",
    re.S | re.I,
)
_ROOT = re.compile(r"<([A-Za-z_][\w.:-]*)")
_ENDS = (("item", "</rss"), ("item", "</rdf:rdf"), ("entry", "</feed"))
_IMAGE = re.compile(r"\.(?:jpe?g|png|gif|webp|avif|svg)(?:[?#]|$)", re.I)

# The first parse fills a table of namespaces that all have in common, and others see it half full: threads wait here
# for each other, since only one of them imports.
feedparser.parse(io.BytesIO(b"<rss/>"))


def parse(text: str, url: str) -> Feed:
    """The feed in ``text``, an XML document of ``url``. Raises BadFeed."""
    text, shortened = _bounded(_prepared(text))
    found = feedparser.parse(
        io.BytesIO(text.encode()),
        response_headers={"content-type": "application/xml; charset=utf-8"},
        sanitize_html=False,
        resolve_relative_uris=False,
    )
    problem = _problem(found.get("bozo_exception")) if found.get("bozo") else ""
    version = str(found.get("version") or "")
    entries = list(found.entries)
    if not version and not any("title" in each or "link" in each or "id" in each for each in entries):
        raise BadFeed(_strange(text, problem))
    notes = [shortened] if shortened else []
    if problem and _unfinished(text):
        entries = entries[:-1]
        notes.append("cut off: its last article is left out")
    if problem:
        if not entries:
            raise BadFeed(f"is damaged, and no article could be read: {problem}", retry=True)
        notes.append(f"damaged: {problem}")
    writer = _author(found.feed) if version.startswith("atom") else None
    return Feed(
        title=_line(found.feed, "title"),
        entries=tuple(_entry(each, url, version, writer) for each in entries),
        format=version or "unknown",
        notes=tuple(notes),
    )


# Before feedparser


def _prepared(text: str) -> str:
    text = _CONTROLS.sub("", text)
    declaration = _DECLARATION.match(text)
    text = text[declaration.end() :] if declaration else text
    text, entities = _without_doctype(text)
    pieces = []
    at = 0
    while at < len(text):
        start, end = _cdata(text, at)
        pieces += [_REFERENCE.sub(lambda found: _reference(found, entities), text[at:start]), text[start:end]]
        # One that never ends goes with all behind it: the search for its end would begin at each new one.
        at = end if end > start else len(text)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + "".join(pieces)


def _cdata(text: str, at: int) -> tuple[int, int]:
    """Where the next section begins and ends, behind ``at``: what it holds is left alone."""
    start = text.find("<![CDATA[", at)
    if start < 0:
        return len(text), len(text)
    end = text.find("]]>", start)
    return start, end + 3 if end >= 0 else start


def _without_doctype(text: str) -> tuple[str, dict[str, str]]:
    """``text`` without its DOCTYPE, and the entities declared there that are plain text.

    Raises BadFeed for entities that are made of others, or would add more than ENTITIES_LIMIT: a few lines of those
    fill any memory.
    """
    prolog = _PROLOG.match(text)
    start = prolog.end() if prolog else 0
    if text[start : start + 9].upper() != "<!DOCTYPE":
        return text, {}
    whole, root = _DOCTYPE.match(text, start), _ROOT.search(text, start)
    end = whole.end() if whole else root.start() if root else len(text)
    entities: dict[str, str] = {}
    for parameter, name, double, single in _ENTITY.findall(text[start:end]):
        value = double or single
        if re.search(r"&(?!#)|%", value) and not parameter:
            raise BadFeed(f"declares entity {name!r} by way of others; such documents are not read")
        entities[name] = unescape(value)
    grown = sum(len(value) * text.count(f"&{name};", end) for name, value in entities.items())
    if grown > ENTITIES_LIMIT:
        raise BadFeed(f"its own entities would add {grown} characters; at most {ENTITIES_LIMIT} are read")
    return text[:start] + text[end:], entities


def _reference(found: re.Match[str], entities: Mapping[str, str]) -> str:
    number, name = found.groups()
    if number:
        code = int(number[1:], 16) if number[0] == "x" else int(number)
        if code > 0x10FFFF or _CONTROLS.fullmatch(chr(code)):
            return ""
        return found[0]
    if name in _OWN:
        return found[0]
    if name in entities:
        return entities[name].replace("&", "&amp;").replace("<", "&lt;")
    if name and (character := html5.get(f"{name};")):
        return character
    return f"&amp;{found[0][1:]}"


def _bounded(text: str) -> tuple[str, str]:
    """``text``, or what of it is read if it is long and broken, and a note of that."""
    from xml.parsers import expat

    if len(text) <= LOOSE_LIMIT:
        return text, ""
    try:
        expat.ParserCreate(namespace_separator=" ").Parse(text.encode(), True)
    except expat.ExpatError:
        end = max(text.rfind(f"</{name}>", 0, LOOSE_LIMIT) for name in ("item", "entry"))
        kept = text[: text.find(">", end) + 1 if end > 0 else LOOSE_LIMIT]
        return kept, f"damaged: only its first {LOOSE_LIMIT:,} characters are read"
    return text, ""


# Behind it


def _problem(error: object) -> str:
    """What the parser did not like, with the line."""
    said = getattr(error, "getMessage", None)
    number = getattr(error, "getLineNumber", None)
    if callable(said) and callable(number):
        # One line was put before the document.
        return f"{said()} in line {max((number() or 1) - 1, 1)}"
    return str(error)[:120]


def _unfinished(text: str) -> bool:
    """Whether the document stops within an article."""
    lower = text.lower()
    for element, end in _ENDS:
        begun = lower.rfind(f"<{element}")
        if begun >= 0 and end not in lower[-200_000:]:
            return lower.find(f"</{element}", begun) < 0
    return False


def _strange(text: str, problem: str) -> str:
    root = _ROOT.search(text)
    if root is None:
        return "is no feed: it has no XML in it"
    return f"is no feed but <{root[1][:40]}>" + (f" ({problem})" if problem else "")


def _entry(found: Mapping[str, Any], url: str, version: str, writer: str | None) -> Entry:
    atom = version.startswith("atom")
    text, summary = _bodies(found, atom)
    address = link(url, _get(found, "link")) or _alternate(found, url)
    times = [dates.moment(_get(found, name)) for name in ("published", "created", "updated")]
    return Entry(
        guid=" ".join((_get(found, "id") or "").split()) or None,
        title=_line(found, "title", "" if not atom else None),
        url=address,
        author=_author(found) or writer,
        published=next((each for each in times if each), None),
        updated=times[2],
        summary=cut(summary.text if summary else None, SUMMARY_LIMIT),
        text=(text or summary or Plain("")).text or None,
        image=_image(found, url, text, summary),
    )


def _get(found: Mapping[str, Any], name: str) -> str | None:
    """Not by feedparser's own ``get``, which answers with other fields where one is missing."""
    value = dict.get(found, name) if isinstance(found, dict) else None
    return value if isinstance(value, str) and value.strip() else None


def _dict(found: Any, name: str) -> dict[str, Any]:
    value = dict.get(found, name) if isinstance(found, dict) else None
    return value if isinstance(value, dict) else {}


def _list(found: Any, name: str) -> list[dict[str, Any]]:
    value = dict.get(found, name) if isinstance(found, dict) else None
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _line(found: Mapping[str, Any], name: str, kind: str | None = None) -> str | None:
    """``kind``: as ``markup.plain`` has it; None: as the element says itself."""
    value = _get(found, name)
    if value is None:
        return None
    return cut(line(value, _kind(_dict(found, f"{name}_detail")) if kind is None else kind), LINE_LIMIT)


def _kind(detail: Mapping[str, Any]) -> str:
    return "text" if str(detail.get("type") or "") == "text/plain" else "html"


def _bodies(found: Mapping[str, Any], atom: bool) -> tuple[Plain | None, Plain | None]:
    """The longest content, and the summary where that is something else."""
    contents = [
        each
        for each in _list(found, "content")
        if str(each.get("type") or "text/").startswith(("text/", "application/xhtml")) and each.get("value")
    ]
    longest = max(contents, key=lambda each: len(str(each["value"])), default=None)
    summary = _get(found, "summary")
    if summary is not None and any(str(each["value"]).strip() == summary.strip() for each in contents):
        summary = None  # feedparser copies the content there
    kind = _kind(_dict(found, "summary_detail")) if atom else ""
    first = plain(str(longest["value"]), _kind(longest) if atom else "") if longest else None
    second = plain(summary, kind) if summary is not None else None
    if first and second and len(second.text) > len(first.text) and not atom:
        first, second = second, first  # media:description came after the description
    return first, second


def _author(found: Mapping[str, Any]) -> str | None:
    names = [_get(each, "name") or _get(each, "email") or "" for each in _list(found, "authors")]
    told = ", ".join(dict.fromkeys(" ".join(name.split()) for name in names if name)) or _get(found, "author")
    return cut(line(told), LINE_LIMIT) if told else None


def _alternate(found: Mapping[str, Any], url: str) -> str | None:
    for each in _list(found, "links"):
        if each.get("rel") == "alternate" and (address := link(url, each.get("href"))):
            return address
    return None


def _image(found: Mapping[str, Any], url: str, *bodies: Plain | None) -> str | None:
    candidates: list[Any] = [each.get("url") for each in _list(found, "media_thumbnail")]
    for each in _list(found, "media_content") + [
        {**each, "url": each.get("href")} for each in _list(found, "links") if each.get("rel") == "enclosure"
    ]:
        address = str(each.get("url") or "")
        kind = str(each.get("type") or "")
        if each.get("medium") == "image" or kind.startswith("image/") or (not kind and _IMAGE.search(address)):
            candidates.append(address)
    candidates.append(_get(_dict(found, "image"), "href"))
    candidates += [body.image for body in bodies if body and body.image]
    return next((at for each in candidates if (at := link(url, each))), None)
