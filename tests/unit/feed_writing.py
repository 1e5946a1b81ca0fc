"""Feeds to be written for tests: short ways to a document, and to what has to become of it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

URL = "https://example.org/blog/feed.xml"
NOON = dt.datetime(2024, 1, 31, 12)
CHINESE = "这是一个关于中国经济的新闻，我们在北京工作的人们都说今年的发展很好，上个月的生产比去年同期多了不少"
TRADITIONAL = "這是一個關於中國經濟的新聞，我們在台北工作的人們都說今年的發展很好，上個月的生產比去年同期多了不少"
JAPANESE = "これはテストのためのニュースです。わたしたちはとうきょうでしごとをしています"
KOREAN = "이것은 시험을 위한 뉴스입니다 우리는 서울에서 일하고 있는 사람들을 만나고 이야기를 나누었다"
RUSSIAN = "Это новости о развитии экономики, которые мы получили сегодня утром из разных источников"
FRENCH = "Été à la française : où es-tu, garçon ? Ça coûte très cher, dès août"
XML = '<?xml version="1.0" encoding="utf-8"?>'
MEDIA = ' xmlns:media="http://search.yahoo.com/mrss/"'
ITUNES = ' xmlns:itunes="http://www.itunes.com/DTDs/PodCast-1.0.dtd"'
CONTENT = ' xmlns:content="http://purl.org/rss/1.0/modules/content/"'
LATIN = {"content-type": "text/xml; charset=ISO-8859-1"}


@dataclass(frozen=True)
class Case:
    """``error``: part of the message of BadFeed; None: there are ``entries``, each with some fields as they have to be.
    ``note``: part of what is said about the whole."""

    name: str
    content: bytes
    headers: Mapping[str, str]
    entries: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    note: str = ""


def read_as(
    name: str, content: str | bytes, *entries: Any, headers: Mapping[str, str] | None = None, note: str = ""
) -> Case:
    """An article is given by its fields, or by its title alone."""
    wanted = tuple(each if isinstance(each, dict) else {"title": each} for each in entries)
    return Case(name, content.encode() if isinstance(content, str) else content, headers or {}, wanted, note=note)


def refused(name: str, content: str | bytes, error: str) -> Case:
    return Case(name, content.encode() if isinstance(content, str) else content, {}, error=error)


def rss(*items: str, head: str = XML, attributes: str = "") -> str:
    channel = f"<title>The feed</title><link>https://example.org/</link>{''.join(items)}"
    return f'{head}<rss version="2.0"{attributes}><channel>{channel}</channel></rss>'


def item(title: str = "One", guid: str = "g1", more: str = "", link: str = "https://example.org/1") -> str:
    named = f"<title>{title}</title>" if title else ""
    known = f'<guid isPermaLink="false">{guid}</guid>' if guid else ""
    linked = f"<link>{link}</link>" if link else ""
    return f"<item>{named}{known}{linked}{more}</item>"


def described(text: str) -> str:
    return item(more=f"<description>{text}</description>")


def atom(*entries: str, attributes: str = "") -> str:
    inside = f"<title>The feed</title><id>urn:feed</id>{''.join(entries)}"
    return f'{XML}<feed xmlns="http://www.w3.org/2005/Atom"{attributes}>{inside}</feed>'


def entry(title: str = "One", id: str = "urn:1", more: str = "", link: str = "https://example.org/1") -> str:
    return f'<entry><title>{title}</title><id>{id}</id><link href="{link}"/>{more}</entry>'


def jsonfeed(*items: Any, version: str = "https://jsonfeed.org/version/1.1") -> bytes:
    return json.dumps({"version": version, "title": "The feed", "items": items}).encode()


def dated(name: str, text: str, at: dt.datetime | None = NOON) -> Case:
    return read_as(name, rss(item(more=f"<pubDate>{text}</pubDate>")), {"title": "One", "published": at})


def in_charset(text: str, codec: str, declared: str = "") -> bytes:
    said = f' encoding="{declared}"' if declared else ""
    return rss(item(text), head=f'<?xml version="1.0"{said}?>').encode(codec)


ONE = {"title": "One", "id": "g1", "url": "https://example.org/1"}
