"""Web pages: what they say, and on to what they link to. See docs/crawl.md; the parts are in ``nodes.crawling``."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nodes import surroundings
from nodes.crawling import selecting
from nodes.crawling.addresses import canonical, host_of, origin_of
from nodes.crawling.declared import PAGES, PARAMS, TOKEN, checked, fits
from nodes.crawling.pacing import Turns
from nodes.crawling.robots import FETCH_BYTES, NO_RULES, Book, Rules
from nodes.crawling.scope import Scope, item_of
from nodes.executors.base import Executor, Item, ItemFailed, Outcome, Pace, check_params, shown
from nodes.fetching import Answer, Fetcher, FetchFailed, Limits
from nodes.protocol import FieldError

if TYPE_CHECKING:
    from nodes.crawling.pages import Page

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_HOPS = 5
MOST_DELAY = 60.0
"""Seconds; a host that wants longer pauses between two pages is left alone."""
TEXT_TYPES = ("text/*", "application/json", "application/*+json", "application/xml", "application/*+xml")
_PATTERN = re.compile(r"[*?\[]")

Row = tuple[Any, ...]

_turns = Turns()
_mine = threading.local()
_books: dict[str, Book] = {}


class Crawl(Executor):
    """Items are addresses of pages, or keys of sources of kind url; rows are pages, each once per run."""

    type = "crawl"
    title = "Web pages: title, text, links and what selectors find, politely, and on to the pages linked to"
    item_form = 'An address such as https://example.org/, or {"key": "a", "url": "https://example.org/"}.'
    waits = True
    grows = True
    source_kind = "url"
    params = PARAMS
    dataset = PAGES

    # What can be run

    @classmethod
    def check(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        return checked(super().check(params))

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        return checked(check_params(cls.params, settings, partial=True))

    @classmethod
    def check_item(cls, item: Item) -> None:
        # Light: parents ask for everything that is found. ``begin`` reads the addresses of what is submitted.
        url = item.get("url") if isinstance(item, dict) else item
        if not isinstance(url, str) or (isinstance(item, dict) and not url.lower().startswith("http")):
            raise ValueError(
                f"{shown(item)} is not an address, an object such as {{'key': 'a', 'url': 'https://example.org/'}} "
                "or the key of a source of kind url"
            )

    @classmethod
    def resolve(cls, item: Item, address: str, name: str) -> Item:
        return {"url": address}

    @classmethod
    def begin(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[Item]:
        """Each address once, in the form in which it will be found again."""
        found: dict[str, Item] = {}
        for at, item in enumerate(items):
            try:
                made = item_of(canonical(_address(item), tracking=params["keep_tracking"]))
            except ValueError as error:
                source = "" if isinstance(item, dict) else "; nor is it the key of an active source of kind url"
                raise FieldError(f"items[{at}]", f"{error}{source}") from None
            found.setdefault(made["key"], made)
        return list(found.values())

    @classmethod
    def most_items(cls, params: Mapping[str, Any]) -> int | None:
        return int(params["max_pages"])

    @classmethod
    def pace(cls, params: Mapping[str, Any]) -> Pace | None:
        return Pace("host:{host}", params["per_second"], params["at_once"])

    # One page

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(check_params(self.params, params))
        self.scope = Scope.of(self.given)
        self.selectors = selecting.read(self.given.get("select") or {})
        self.agent: str = self.given["user_agent"]
        kinds = [kind.lower() for kind in self.given["content_types"]]
        # Of these alone the body is read at all. What may fit a pattern is read first.
        self.types = frozenset() if any(_PATTERN.search(kind) for kind in kinds) else frozenset(kinds)
        self._asked: dict[str, float] = {}
        """Host -> when this shard asked it last."""

    def run(self, item: Item) -> Outcome:
        if not isinstance(item, dict) or "url" not in item:
            try:
                item = item_of(canonical(_address(item), tracking=self.given["keep_tracking"]))
            except ValueError as error:
                raise ItemFailed(str(error)) from None
        url, depth = str(item["url"]), int(item.get("depth", 0))
        rules = self._rules(url) if self.given["respect_robots"] else NO_RULES
        self._wait(url, rules.delay(self.agent))
        fetcher = _fetcher(Limits(self.given["max_kb"] * 1024, self.given["timeout_seconds"]), self.agent)
        headers = {"accept": ", ".join([*self.given["content_types"], "*/*;q=0.1"])}
        try:
            answer = fetcher.get(url, headers, accept=REDIRECTS, types=self.types)
        except FetchFailed as error:
            raise ItemFailed(str(error), retry=error.retry) from None
        if answer.status in REDIRECTS:
            return self._moved(answer, url, depth, int(item.get("hops", 0)))
        return self._page(answer, url, depth, rules)

    def _rules(self, url: str) -> Rules:
        """Of the host of ``url``, which let it be fetched. Raises ItemFailed."""
        fetcher = _fetcher(Limits(FETCH_BYTES, self.given["timeout_seconds"]), self.agent, "robots")
        rules = _book().rules(url, fetcher, before=lambda: self._wait(url, 0.0))
        if rules.why_not:
            raise ItemFailed(f"{url} is not fetched: {rules.why_not}", retry=rules.retry)
        if rule := rules.refusal(url, self.agent):
            raise ItemFailed(f"{url} is not fetched: robots.txt of its host says {rule}")
        if (delay := rules.delay(self.agent)) > MOST_DELAY:
            raise ItemFailed(
                f"{url} is not fetched: robots.txt of its host asks for {delay:g} s between pages, "
                f"and more than {MOST_DELAY:g} s are not waited"
            )
        return rules

    def _wait(self, url: str, delay: float) -> None:
        """Until the host may be asked again.

        Before a shard's first request the parent has waited (``pace``), though not for what robots.txt wants.
        """
        host, pace = host_of(url), self.pace(self.given)
        assert pace is not None
        last = self._asked.get(host, time.monotonic() - pace.spacing)
        at = _turns.take(host, max(1 / pace.per_second, delay), last + max(pace.spacing, delay * pace.lanes))
        time.sleep(max(at - time.monotonic(), 0.0))
        # It may have slept longer.
        self._asked[host] = time.monotonic()

    def _moved(self, answer: Answer, url: str, depth: int, hops: int) -> Outcome:
        location = _text_of(answer.headers.get("location", ""))
        try:
            if not location:
                raise ValueError("nothing")
            target = canonical(location, url, tracking=self.given["keep_tracking"])
        except ValueError as error:
            raise ItemFailed(f"{url} answered {answer.status} and redirects to {error}") from None
        if target == url:
            raise ItemFailed(f"{url} redirects to itself")
        if hops >= MOST_HOPS:
            raise ItemFailed(f"{url} is the last of {MOST_HOPS} redirects, and redirects to {target}")
        # Who submits http://example.org means what it leads to, be it https://www.example.org.
        wanted = (depth == 0 and not self.scope.hosts) or self.scope.holds(target, url)
        found = [item_of(target, depth, hops + 1)] if wanted else []
        return Outcome(rows=[_row(url=url, status=answer.status, target=target, depth=depth)], found=found)

    def _page(self, answer: Answer, url: str, depth: int, rules: Rules) -> Outcome:
        from nodes.crawling import pages

        header = answer.headers.get("content-type", "")
        kind = header.partition(";")[0].strip().lower() or _guessed(answer.content)
        if not fits(kind, self.given["content_types"]):
            raise ItemFailed(f"{url} is {kind}; wanted are {', '.join(self.given['content_types'])}")
        row = {"url": url, "status": answer.status, "content_type": kind, "bytes": len(answer.content), "depth": depth}
        if kind not in pages.HTML:
            return Outcome(rows=[_row(**row, text=self._plain(answer.content, kind, header))])
        token = TOKEN.match(self.agent)
        try:
            page = pages.read(
                answer.content,
                header,
                url,
                agent=token[0] if token else "",
                headers=[answer.headers.get("x-robots-tag", "")],
                text=self.given["text"],
                tracking=self.given["keep_tracking"],
            )
        except pages.TooDeep as error:
            raise ItemFailed(f"{url} {error}") from None
        return self._read(page, row, rules)

    def _read(self, page: Page, row: dict[str, Any], rules: Rules) -> Outcome:
        obeys, most = self.given["respect_robots"], self.given["max_links"]
        obeyed = page.robots if obeys else frozenset()
        row |= {"robots": ", ".join(sorted(page.robots))[:1000] or None, "canonical": page.canonical or None}
        if "noindex" not in obeyed:
            row |= {
                "title": page.title,
                "description": page.description or None,
                "language": page.language or None,
                "text": page.text if self.given["text"] else None,
                "links": _json([link.address for link in page.links[:most]]),
                "link_count": len(page.links),
                "selected": _json({each.name: each.values(page.tree, page.base) for each in self.selectors})
                if self.selectors
                else None,
            }
        links = [link.address for link in page.links if link.follow or not obeys]
        found = [] if "nofollow" in obeyed else self.scope.found(links, row["url"], row["depth"], most)
        # What is known to be forbidden would be a failed item each.
        free = [item for item in found if not self._forbidden(item["url"], row["url"], rules)]
        return Outcome(rows=[_row(**row, blocked=len(found) - len(free))], found=free)

    def _forbidden(self, address: str, page: str, rules: Rules) -> bool:
        return origin_of(address) == origin_of(page) and bool(rules.refusal(address, self.agent))

    def _plain(self, content: bytes, kind: str, header: str) -> str | None:
        from nodes.crawling.encodings import decode

        return decode(content, header)[0] if self.given["text"] and fits(kind, TEXT_TYPES) else None


def _row(**values: Any) -> Row:
    return tuple(values.get(name) for name in Crawl.dataset.names)


def _address(item: Item) -> str:
    return str(item.get("url", "")) if isinstance(item, dict) else str(item)


def _guessed(content: bytes) -> str:
    """The type of an answer that does not say its own."""
    return "text/html" if content.lstrip()[:1] == b"<" else "application/octet-stream"


def _text_of(header: str) -> str:
    """A header is read as Latin-1, and servers write UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _fetcher(limits: Limits, agent: str, purpose: str = "pages") -> Fetcher:
    """This thread's, with the connections that it has kept; shards of one run follow each other in a thread."""
    kept: dict[str, tuple[tuple[Limits, str], Fetcher]] = _mine.__dict__.setdefault("fetchers", {})
    known = kept.get(purpose)
    if known is None or known[0] != (limits, agent):
        if known is not None:
            known[1].close()
        known = kept[purpose] = (limits, agent), Fetcher(limits, user_agent=agent)
    return known[1]


def _book() -> Book:
    """The rules that this node knows."""
    folder = surroundings.current().cache
    return _books.setdefault(str(folder), Book(folder))
