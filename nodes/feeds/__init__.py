"""Feeds read: the bytes and headers of an answer become articles, for RSS, Atom and JSON Feed. Nothing here fetches,
stores or knows of tasks.

``read`` is the door. ``charset`` makes text of bytes, ``syndication`` reads XML and ``jsonfeed`` JSON, ``markup`` makes
plain text of HTML, ``dates`` reads times, ``identity`` gives articles their ids, ``memory`` keeps what was seen before.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

SUMMARY_LIMIT = 2_000
"""Characters of a summary; some feeds have whole articles there."""
LINE_LIMIT = 1_000
"""Characters of a title or an author."""
URL_LIMIT = 4_000
_SCHEMES = frozenset({"http", "https", "ftp", "magnet", "gemini"})
"""What a link of an article may begin with; ``javascript:`` and ``data:`` may not."""


class BadFeed(Exception):
    """The document is no feed, or is beyond reading. ``retry``: it may have been cut off on its way."""

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


@dataclass(frozen=True)
class Entry:
    """One article. Texts are plain, links absolute, times naive UTC; what is missing or unreadable is None.

    ``guid`` is the id that the feed gives, as it stands there; ``id`` the one that ``identity`` made of it.
    """

    guid: str | None = None
    title: str | None = None
    url: str | None = None
    author: str | None = None
    published: dt.datetime | None = None
    updated: dt.datetime | None = None
    summary: str | None = None
    text: str | None = None
    image: str | None = None
    id: str = ""


@dataclass(frozen=True)
class Feed:
    """``format``: rss20, rss10, atom10, atom03, json11, … ``notes``: what was wrong with it and was got over."""

    title: str | None
    entries: tuple[Entry, ...]
    format: str
    notes: tuple[str, ...] = ()


def read(content: bytes, headers: Mapping[str, str], url: str) -> Feed:
    """The feed in an answer of ``url``; ``headers`` have lower-case names. Each entry has an ``id`` of its own.

    Raises BadFeed and nothing else, whatever the bytes are.
    """
    from nodes.feeds import charset, identity, jsonfeed, markup, syndication

    if not content.strip(b"\x00 \t\r\n"):
        raise BadFeed("the answer is empty", retry=True)
    kind = headers.get("content-type", "")
    text, note = charset.decode(content, _charset(kind))
    text = text.lstrip("\ufeff\x00 \t\r\n")
    try:
        if text[:1] in "{[":
            feed = jsonfeed.parse(text, url, kind)
        elif markup.is_page(text):
            raise BadFeed(_page(markup.alternates(text, url)))
        else:
            feed = syndication.parse(text, url)
        entries = identity.identified(feed.entries)
    except BadFeed:
        raise
    except Exception as error:  # a surprise in a parser, on a document nobody has thought of
        raise BadFeed(f"cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    return replace(feed, entries=entries, notes=((note,) if note else ()) + feed.notes)


def link(base: str, value: object) -> str | None:
    """``value`` as an absolute link; None for what is none, or has a scheme that no article has."""
    if not isinstance(value, str) or not (found := "".join(value.split())) or not found.isprintable():
        return None
    try:
        found = urljoin(base, found)
        parts = urlsplit(found)
    except ValueError:
        return None
    if parts.scheme not in _SCHEMES or not (parts.netloc or parts.scheme == "magnet") or len(found) > URL_LIMIT:
        return None
    return found


def cut(text: str | None, limit: int) -> str | None:
    """At most ``limit`` characters, with an ellipsis where something was left out; None for nothing."""
    if not text:
        return None
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _charset(content_type: str) -> str:
    found = re.search(r"charset\s*=\s*[\"']?([^\s;\"']{1,40})", content_type, re.IGNORECASE)
    return found[1] if found else ""


def _page(links: list[str]) -> str:
    if not links:
        return "is an HTML page, not a feed, and names no feed"
    return f"is an HTML page, not a feed; the feed it names is {', '.join(links[:3])}"
