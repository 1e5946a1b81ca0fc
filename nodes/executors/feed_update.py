"""New and changed articles of feeds: RSS, Atom and JSON Feed, fetched with one conditional request each.

What a document says is read by ``nodes.feeds``; here are the request, what was seen before, and the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nodes.executors.base import Column, Dataset, Executor, Item, ItemFailed, Outcome, Param, item_key, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    from nodes.feeds import Entry, Feed
    from nodes.fetching import Answer, Fetcher

ADDRESS_LIMIT = 2_000
MOST_ARTICLES = 2_000
"""As many as can be remembered, with room for those that have left the feed lately (``nodes.feeds.memory``)."""
ACCEPT = (
    "application/atom+xml, application/rss+xml, application/rdf+xml, application/feed+json, application/xml;q=0.9,"
    " text/xml;q=0.9, */*;q=0.5"
)
_READING = 1
"""Raised with a change of what is read from the same bytes: all feeds are fetched whole then."""
_VALIDATOR_LIMIT = 500


class FeedUpdate(Executor):
    """Items are addresses of feeds, objects ``{"key", "url", "name"}``, or keys of sources of kind feed; rows are the
    articles that are new or changed since the feed was fetched last.

    The memory of a feed: ``url``, ``etag``, ``modified`` and ``body`` (a hash) of its last answer, ``shape`` (what rows
    were made of), ``present`` (how many articles it had) and ``articles`` (``nodes.feeds.memory``).
    """

    type = "feed_update"
    title = "New and changed articles of feeds: RSS, Atom, JSON Feed"
    item_form = 'The address of a feed, or {"key": "news", "url": "https://example.org/feed.xml", "name": "News"}.'
    params = (
        Param("text", "boolean", True, "Whether the whole text is kept, not only title and summary."),
        Param("max_text", "integer", 100_000, "Most characters of a text.", minimum=100, maximum=1_000_000),
        Param(
            "max_articles",
            "integer",
            1_000,
            "Most articles of one feed; of more, the newest are taken.",
            minimum=1,
            maximum=MOST_ARTICLES,
        ),
        Param("max_mb", "number", 8.0, "Most megabytes of one feed, unpacked.", minimum=0.01, maximum=64),
        Param("timeout_seconds", "number", 30.0, "For one feed, redirects included.", minimum=0.1, maximum=600),
        Param("user_agent", "string", "cascade", "What the feeds' servers are told who asks."),
        Param("message_type", "integer", 0, "For clients: what they do with the articles, in their own numbers."),
        Param("message_template", "string", "", "For clients: text of their message."),
        Param("web_hook_url", "string", "", "For clients: where they send their message."),
        Param("headers", "string", "", "For clients: HTTP headers they use, in their own notation."),
        Param("cookies", "string", "", "For clients: cookies they use, in their own notation."),
    )
    dataset = Dataset(
        table="articles",
        columns=(
            Column("id", "string"),
            Column("feed", "string"),
            Column("title", "string"),
            Column("url", "string"),
            Column("author", "string"),
            Column("published", "timestamp"),
            Column("summary", "string"),
            Column("text", "string"),
            Column("image", "string"),
        ),
        key=("feed", "id"),
    )
    waits = True
    remembers = True
    source_kind = "feed"

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        given = {param.name: params.get(param.name, param.default) for param in self.params}
        self.text: bool = given["text"]
        self.max_text: int = given["max_text"]
        self.max_articles: int = given["max_articles"]
        self.max_bytes = int(given["max_mb"] * 1024 * 1024)
        self.seconds: float = given["timeout_seconds"]
        self.user_agent: str = given["user_agent"]
        self.shape = f"{_READING} {self.max_articles} {self.max_text if self.text else 0}"
        self._fetcher: Fetcher | None = None

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        return _with_sound_name(super().check(params))

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return _with_sound_name(super().check_settings(settings))

    @classmethod
    def check_item(cls, item: Item) -> None:
        if isinstance(item, dict):
            if not item_key(item):
                raise ValueError(f'{shown(item)}: a feed is {{"key": ..., "url": ...}}; its key is missing')
            url = item.get("url")
            if url is not None and not isinstance(url, str):
                raise ValueError(f"{shown(item)}: url is not a text")
            if url:
                _check_address(url)
        elif not str(item).strip():
            raise ValueError(f"{shown(item)} is no feed: give its address, or the key of a source")
        elif isinstance(item, str) and "://" in item:
            _check_address(item)

    @classmethod
    def resolve(cls, item: Item, address: str, name: str) -> Item:
        if not address:
            return item
        return {**(item if isinstance(item, dict) else {}), "key": item_key(item), "url": address, "name": name}

    @classmethod
    def outside(cls, items: Sequence[Item], params: Mapping[str, Any]) -> bool:
        return any(not _address(item) for item in items)

    def run(self, item: Item) -> Outcome:
        from nodes.addresses import named
        from nodes.feeds import BadFeed, read
        from nodes.feeds.memory import Seen

        key, url = item_key(item), _address(item)
        if not url:
            raise ItemFailed(f"{key} has no address: only clients with code of their own can fetch it")
        memory = self.memory.get(key) or {}
        same = memory.get("url") == _known_as(url) and memory.get("shape") == self.shape
        answer = self._fetched(key, url, memory if same else {})
        moved = f"moved to {answer.moved}" if answer.moved else ""
        body = hashlib.sha256(answer.content).hexdigest()[:32]
        if same and (answer.status == 304 or memory.get("body") == body):
            return _unchanged(moved, memory)
        try:
            feed = read(answer.content, answer.headers, answer.url)
        except BadFeed as error:
            raise ItemFailed(f"{key}: {named(answer.url)} {error}", retry=error.retry) from None
        return self._compared(key, feed, Seen(memory.get("articles")), moved, _validators(url, answer, body))

    def _fetched(self, key: str, url: str, memory: Mapping[str, Any]) -> Answer:
        """The answer, 304 only where ``memory`` has what that is about. Raises ItemFailed."""
        from nodes.fetching import Fetcher, FetchFailed, Limits

        if self._fetcher is None:
            limits = Limits(max_bytes=self.max_bytes, seconds=self.seconds, connect_seconds=min(self.seconds, 10.0))
            self._fetcher = Fetcher(limits, user_agent=self.user_agent)
        headers = {"accept": ACCEPT}
        if memory.get("etag"):
            headers["if-none-match"] = memory["etag"]
        if memory.get("modified"):
            headers["if-modified-since"] = memory["modified"]
        asked = len(headers) > 1
        try:
            return self._fetcher.get(url, headers, accept=frozenset({304} if asked else ()))
        except FetchFailed as error:
            gone = "; the feed is gone" if error.status == 410 else ""
            raise ItemFailed(f"{key}: {error.reason}{gone}", retry=error.retry) from None

    def _compared(self, key: str, feed: Feed, seen: Any, moved: str, validators: dict[str, Any]) -> Outcome:
        """The rows of what ``seen`` does not have like this, and the memory of all."""
        counts = {"new": 0, "changed": 0, "unchanged": 0, "articles": 0}
        entries, left_out = _newest(feed.entries, self.max_articles)
        rows: list[tuple[Any, ...]] = []
        digests: dict[str, str] = {}
        for entry in entries:
            row = self._row(key, entry)
            digests[entry.id] = _digest(row)
            verdict = seen.compare(entry.id, digests[entry.id])
            counts[verdict] += 1
            if verdict != "unchanged":
                rows.append(row)
        counts["articles"] = len(entries)
        notes = list(feed.notes)
        if left_out:
            notes.append(f"{left_out} more articles are left out")
        for note in notes:
            print(f"{key}: {note}")
        memory = {**validators, "shape": self.shape, "present": len(entries), "articles": seen.pack(digests)}
        status = moved or ("ok" if rows or not entries else "unchanged")
        return Outcome(rows or None, memory=memory, status="; ".join((status, *notes)), counts=counts)

    def _row(self, key: str, entry: Entry) -> tuple[Any, ...]:
        from nodes.feeds import cut

        text = cut(entry.text, self.max_text) if self.text else None
        return (
            entry.id, key, entry.title, entry.url, entry.author, entry.published, entry.summary, text, entry.image,
        )  # fmt: skip


def _digest(row: Sequence[Any]) -> str:
    """Of everything but the image: some servers give that another address each time."""
    from nodes.feeds.identity import digest

    return digest(None if cell is None else str(cell) for cell in row[2:-1])


def _newest(entries: Sequence[Entry], most: int) -> tuple[Sequence[Entry], int]:
    """At most ``most`` of ``entries``, and how many are left out: the oldest, or the last where some have no time."""
    if len(entries) <= most:
        return entries, 0
    times = sorted((entry.published for entry in entries if entry.published), reverse=True)
    if len(times) < len(entries):
        return entries[:most], len(entries) - most
    kept = [entry for entry in entries if entry.published and entry.published >= times[most - 1]][:most]
    return kept, len(entries) - len(kept)


def _unchanged(moved: str, memory: Mapping[str, Any]) -> Outcome:
    count = memory.get("present", 0)
    counts = {"new": 0, "changed": 0, "unchanged": count, "articles": count}
    return Outcome(status=moved or "unchanged", counts=counts)


def _validators(url: str, answer: Answer, body: str) -> dict[str, Any]:
    kept = {"url": _known_as(url), "body": body}
    for name, header in (("etag", "etag"), ("modified", "last-modified")):
        value = answer.headers.get(header, "")
        if value and len(value) <= _VALIDATOR_LIMIT and value.isascii() and value.isprintable():
            kept[name] = value
    return kept


def _known_as(url: str) -> str:
    """``url`` as the memory has it, where room is short."""
    return url if len(url) <= 300 and url.isascii() else hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()


def _address(item: Item) -> str:
    """The address of a feed in ``item``; "" where it has none."""
    url = item.get("url") if isinstance(item, dict) else item
    if not isinstance(url, str) or (not isinstance(item, dict) and "://" not in url):
        return ""
    return url.strip()


def _check_address(url: str) -> None:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url.strip())
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and url.strip().isprintable()
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{shown(url)} is not the address of a feed, like https://example.org/feed.xml")
    if len(url) > ADDRESS_LIMIT:
        raise ValueError(f"{shown(url)} has {len(url)} characters; at most {ADDRESS_LIMIT} are allowed")


def _with_sound_name(checked: dict[str, Any]) -> dict[str, Any]:
    name = checked.get("user_agent", "")
    if not (name.isascii() and name.isprintable() and len(name) <= 200):
        raise FieldError("params.user_agent", f"{shown(name)} is not 1 to 200 printable ASCII characters")
    return checked
