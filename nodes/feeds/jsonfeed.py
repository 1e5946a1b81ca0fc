"""JSON Feed 1.0 and 1.1 (https://www.jsonfeed.org/version/1.1/), read as leniently as people write it."""

from __future__ import annotations

import json
import re
from typing import Any

from nodes.feeds import LINE_LIMIT, SUMMARY_LIMIT, BadFeed, Entry, Feed, cut, dates, link
from nodes.feeds.markup import Plain, line, plain

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def parse(text: str, url: str, content_type: str = "") -> Feed:
    """The feed in ``text``, a JSON document of ``url``. Raises BadFeed."""
    try:
        document = json.loads(text, strict=False)
    except RecursionError:
        raise BadFeed("is JSON nested beyond any use") from None
    except ValueError as error:
        at = error.lineno if isinstance(error, json.JSONDecodeError) else 0
        raise BadFeed(f"is JSON that is damaged or cut off in line {at}: {error.args[0][:100]}", retry=True) from None
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not ("jsonfeed" in str(version)[:100] or "feed+json" in content_type.lower()):
        raise BadFeed("is JSON, but no JSON Feed: its version is not https://jsonfeed.org/version/1.1 or 1")
    items = document.get("items")
    if not isinstance(items, list):
        raise BadFeed("is a JSON Feed without a list of items")
    whole = [each for each in items if isinstance(each, dict)]
    writer = _authors(document)
    return Feed(
        title=_line(document.get("title")),
        entries=tuple(_entry(each, url, writer) for each in whole),
        format="json11" if "1.1" in str(version) else "json10",
        notes=() if len(whole) == len(items) else (f"damaged: {len(items) - len(whole)} items are no objects",),
    )


def _entry(item: dict[str, Any], url: str, writer: str | None) -> Entry:
    body = _body(item)
    summary = plain(_text(item.get("summary")), "text").text
    address = link(url, item.get("url")) or link(url, item.get("external_url"))
    published, updated = dates.moment(item.get("date_published")), dates.moment(item.get("date_modified"))
    images = [item.get("image"), item.get("banner_image"), *_attached(item), body.image]
    return Entry(
        guid=_id(item.get("id")),
        title=_line(item.get("title")),
        url=address,
        author=_authors(item) or writer,
        published=published or updated,
        updated=updated,
        summary=cut(summary, SUMMARY_LIMIT),
        text=body.text or summary or None,
        image=next((found for each in images if (found := link(url, each))), None),
    )


def _body(item: dict[str, Any]) -> Plain:
    if marked := _text(item.get("content_html")):
        return plain(marked, "html")
    return plain(_text(item.get("content_text")), "text")


def _id(value: Any) -> str | None:
    """The specification wants a text, and a number read as one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return " ".join(_text(value).split()) or None


def _text(value: Any) -> str:
    return _UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else ""


def _line(value: Any) -> str | None:
    return cut(line(_text(value), "text"), LINE_LIMIT)


def _authors(item: dict[str, Any]) -> str | None:
    """``authors`` of 1.1, or ``author`` of 1.0."""
    listed = item.get("authors")
    each = [*(listed if isinstance(listed, list) else []), item.get("author")]
    names = [_line(one.get("name") if isinstance(one, dict) else one) for one in each]
    return cut(", ".join(dict.fromkeys(name for name in names if name)), LINE_LIMIT)


def _attached(item: dict[str, Any]) -> list[Any]:
    listed = item.get("attachments")
    found = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [each.get("url") for each in found if str(each.get("mime_type")).startswith("image/")]
