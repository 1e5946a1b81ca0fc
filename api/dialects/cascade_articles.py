"""Articles and results as children of the ``cascade`` dialect send them, read into rows and into what failed."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dispatch.lifecycle.staged import Row
from nodes.executors.base import shown
from nodes.protocol import FieldError

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MILLISECONDS = 100_000_000_000
"""A number above it counts milliseconds: as seconds it would be the year 5138."""
SUCCESS = ("success", "completed", "ok")
FAILED = ("failed", "error", "timeout")
KEY_LIMIT = 200


def read_articles(sent: Sequence[Any], feeds: Sequence[str]) -> list[Row]:
    """Rows of the table articles. An article without mp_id belongs to the package's only feed, if it has one.

    Raises FieldError on ``articles[<number>].<key>``.
    """
    return [_article(each, f"articles[{at}]", feeds) for at, each in enumerate(sent)]


def _article(sent: Any, path: str, feeds: Sequence[str]) -> Row:
    if not isinstance(sent, dict):
        raise FieldError(path, f"{shown(sent)} is not an object")
    feed = sent.get("mp_id")
    if feed in (None, "") and len(feeds) == 1:
        feed = feeds[0]
    feed = identity(feed, f"{path}.mp_id")
    key = identity(sent.get("id"), f"{path}.id", 300)

    def text(name: str) -> str | None:
        return _text(sent.get(name), f"{path}.{name}")

    published = _time(sent.get("publish_time"), f"{path}.publish_time")
    cells = [
        key, feed, text("title"), text("url"), text("author"), published,
        text("description"), text("content"), text("pic_url"),
    ]  # fmt: skip
    return Row(feed, key, cells)


def identity(value: Any, path: str, most: int = KEY_LIMIT) -> str:
    """An id as text, sent as text or number. Raises FieldError."""
    if value in (None, ""):
        raise FieldError(path, "is required")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FieldError(path, f"{shown(value)} is not an id: a text or a whole number")
    found = str(value)
    if len(found) > most:
        raise FieldError(path, f"has {len(found)} characters; at most {most} are allowed")
    if _UNSTORABLE.search(found):
        raise FieldError(path, f"{shown(found)} has characters that cannot be stored (NUL or half a surrogate pair)")
    return found


def _text(value: Any, path: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FieldError(path, f"{shown(value)} is not a text")
    # What stands on some page must not cost the article.
    return _UNSTORABLE.sub("\ufffd", str(value))


def _time(value: Any, path: str) -> str | None:
    """Seconds (or milliseconds) since 1970, or ISO 8601, as ISO 8601 in UTC."""
    if value in (None, "", 0):
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return _utc(dt.datetime.fromisoformat(value.strip()))
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError
        seconds = value / 1000 if abs(value) > _MILLISECONDS else value
        return _utc(dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds))
    except (ValueError, OverflowError):
        raise FieldError(
            path, f"{shown(value)} is not a time: seconds since 1970, or a text like 2026-01-31T09:30:00Z"
        ) from None


def _utc(at: dt.datetime) -> str:
    return (at.astimezone(dt.UTC).replace(tzinfo=None) if at.tzinfo else at).isoformat()


def read_results(sent: Any) -> dict[str, str]:
    """Keys of feeds that failed -> why, from either shape: {mp_id, status, error} or {feed_id, success}.

    A feed that is not named, or without a word about it, is done. Raises FieldError on ``results[<number>].<key>``.
    """
    if sent is None:
        return {}
    if not isinstance(sent, list):
        raise FieldError("results", f"{shown(sent)} is not a list")
    failed: dict[str, str] = {}
    for at, each in enumerate(sent):
        path = f"results[{at}]"
        if not isinstance(each, dict):
            raise FieldError(path, f"{shown(each)} is not an object")
        name = "mp_id" if each.get("mp_id") not in (None, "") else "feed_id"
        key = identity(each.get(name), f"{path}.mp_id")
        if not _succeeded(each, path):
            why = each.get("error") or each.get("error_message") or "the node reported it as failed"
            failed[key] = _UNSTORABLE.sub("\ufffd", why if isinstance(why, str) else shown(why))
    return failed


def named(sent: Any) -> set[str]:
    """The feeds that results, read before, say something about."""
    return {str(each.get("mp_id") or each.get("feed_id")) for each in sent or () if isinstance(each, dict)}


def _succeeded(each: Mapping[str, Any], path: str) -> bool:
    status = each.get("status")
    if status is None:
        success = each.get("success", True)
        if success is not None and not isinstance(success, bool):
            raise FieldError(f"{path}.success", f"{shown(success)} is not true or false")
        return success is not False
    if status in SUCCESS:
        return True
    if status in FAILED:
        return False
    raise FieldError(f"{path}.status", f"{shown(status)} is not one of: {', '.join((*SUCCESS, *FAILED))}")
