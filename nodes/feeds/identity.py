"""The id of an article: the same one at each fetch, another one for another article.

The feed's own id where it has one, else the link, else title and time. Feeds that give one id to all they have are
common enough: entries that share it and point to different pages are different articles.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from nodes.feeds import Entry

ID_LIMIT = 200


def identified(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """``entries`` with ids, each of them once and in their order.

    Several versions of one article become its newest. Entries without id, link and words are left out.
    """
    ids = _ids(entries)
    newest: dict[str, Entry] = {}
    for number, entry in enumerate(entries):
        name = _short(ids[number])
        known = newest.get(name)
        if name and (known is None or _age(entry) > _age(known)):
            newest[name] = replace(entry, id=name)
    return tuple(newest.values())


def normalised(url: str) -> str:
    """``url`` without what does not make it another page: http or https, default port, fragment, campaign."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port not in (None, 80, 443) else "")
    except ValueError:
        return url
    scheme = "https" if parts.scheme == "http" else parts.scheme
    query = parts.query
    if "utm_" in query:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, value) for name, value in pairs if not name.startswith("utm_")])
    return urlunsplit((scheme, host, parts.path or "/", query, ""))


def _ids(entries: Sequence[Entry]) -> list[str]:
    ids = [entry.guid or _linked(entry) or _described(entry) for entry in entries]
    for group in _sharing(ids):
        if len({_linked(entries[number]) for number in group}) > 1:
            for number in group:
                ids[number] = _linked(entries[number]) or ids[number]
    for group in _sharing(ids):
        if _different([entries[number] for number in group]):
            for number in group:
                ids[number] = _described(entries[number])
    return ids


def _sharing(ids: Sequence[str]) -> list[list[int]]:
    """The numbers of those that have one id together."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(ids):
        groups[name].append(number)
    return [group for name, group in groups.items() if name and len(group) > 1]


def _different(group: Sequence[Entry]) -> bool:
    """Whether they are articles of their own, not versions of one: each with another title and at another time."""
    titles = {entry.title for entry in group}
    times = {entry.published for entry in group}
    return len(titles) == len(group) and (len(times) == len(group) or times == {None})


def _linked(entry: Entry) -> str:
    return normalised(entry.url) if entry.url else ""


def _described(entry: Entry) -> str:
    if not (entry.title or entry.text or entry.summary):
        return ""
    told = (entry.title or entry.text or entry.summary or "", str(entry.published or ""))
    return digest(told)


def digest(parts: Iterable[str | None]) -> str:
    """A short name of ``parts``; None and "" differ."""
    whole = hashlib.sha256()
    for part in parts:
        content = b"" if part is None else part.encode("utf-8", "replace")
        whole.update(b"-" if part is None else b"%d:" % len(content))
        whole.update(content)
    return whole.hexdigest()[:40]


def _short(name: str) -> str:
    return name if len(name) <= ID_LIMIT else digest((name,))


def _age(entry: Entry) -> str:
    at = entry.updated or entry.published
    return at.isoformat() if at else ""
