"""What a page says: title, text, links, what it is called and what it asks of robots. Pure; imported only where pages
are read, since the parser is.

Text is what a reader sees, roughly: without scripts, styles, navigation (``nav``) and what is hidden, a line for each
block, blanks as one. Layout is not worked out: what a style sheet hides is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from nodes.crawling.addresses import canonical
from nodes.crawling.encodings import decode

MOST_DEPTH = 2000
"""Elements within each other; the parser takes time by their square, and readers' browsers stop at 512."""
MOST_LINKS = 10_000
"""Of one page; there are pages of nothing else."""
TITLE_LIMIT = 1000
DESCRIPTION_LIMIT = 5000
HTML = frozenset({"text/html", "application/xhtml+xml"})

_NESTING = re.compile(
    r"<(/?)(?:div|ul|ol|dl|section|article|aside|blockquote|main|header|footer|nav|menu|fieldset|figure|details"
    r"|center|form|dir|address|hgroup|dialog|search|table|span|object|button)\b",
    re.IGNORECASE,
)
_UNSEEN = frozenset(
    {"script", "style", "noscript", "template", "head", "nav", "svg", "math", "iframe", "object", "canvas", "select"}
    | {"textarea", "audio", "video", "datalist", "dialog"}
)
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "dialog", "div", "dl", "dt"}
    | {"fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li"}
    | {"main", "ol", "option", "p", "pre", "section", "summary", "table", "tr", "ul", "br", "center", "legend"}
)
_CELLS = frozenset({"td", "th"})
_VALUED = re.compile(r"unavailable_after|max-[a-z-]+|[\w, ]*\d\d", re.IGNORECASE)
"""Directives that have a colon of their own, and the time of day in one."""
_REFRESH = re.compile(r"\s*[\d.]+\s*[;,]\s*(?:url\s*=\s*)?[\"']?\s*([^\"'\s]+)", re.IGNORECASE)


class TooDeep(ValueError):
    """Not a page that anybody reads."""


@dataclass(frozen=True)
class Link:
    """A canonical address, and whether the page vouches for it (no rel=nofollow)."""

    address: str
    follow: bool = True


@dataclass(frozen=True)
class Page:
    """``tree`` and ``base`` are for selectors; ``robots`` are the directives in small letters, sorted."""

    title: str
    description: str
    canonical: str
    language: str
    robots: frozenset[str]
    text: str
    links: list[Link]
    tree: Any
    base: str


def read(
    content: bytes,
    content_type: str,
    address: str,
    *,
    agent: str = "",
    headers: Iterable[str] = (),
    text: bool = True,
    tracking: bool = True,
) -> Page:
    """The page that came from ``address``; ``headers`` are its X-Robots-Tag headers, for the robot called ``agent``.

    Links are in the order of the page, each once. Raises TooDeep.
    """
    html, codec = decode(content, content_type)
    if _depth(html) > MOST_DEPTH:
        raise TooDeep(f"has elements nested more than {MOST_DEPTH} deep")
    tree = LexborHTMLParser(html)
    base = _base(tree, address)
    said = [*(directive for header in headers for directive in _of_header(header, agent)), *_of_meta(tree, agent)]
    return Page(
        title=_title(tree)[:TITLE_LIMIT],
        description=_meta(tree, "description")[:DESCRIPTION_LIMIT],
        canonical=_canonical(tree, base, tracking, codec),
        language=_language(tree),
        robots=_robots(said),
        text=visible(tree.root) if text else "",
        links=_links(tree, base, tracking, codec),
        tree=tree,
        base=base,
    )


def visible(node: Any) -> str:
    """The text below ``node``, a line for each block of it."""
    lines: list[str] = []
    words: list[str] = []

    def end_line() -> None:
        if line := " ".join("".join(words).split()):
            lines.append(line)
        words.clear()

    # By hand and not by recursion: pages may be deep.
    current, leaving = node, False
    while current is not None:
        tag = current.tag
        if not leaving:
            if tag == "-text":
                words.append(current.text_content or "")
            elif tag in _UNSEEN or (current.is_element_node and "hidden" in current.attributes):
                leaving = True
            if tag in _BLOCKS:
                end_line()
            elif tag in _CELLS:
                words.append(" ")
        if not leaving and (below := current.first_child) is not None:
            current = below
            continue
        if tag in _BLOCKS:
            end_line()
        if current.mem_id == node.mem_id:
            break
        after = current.next
        current, leaving = (after, False) if after is not None else (current.parent, True)
    end_line()
    return "\n".join(lines)


def _depth(html: str) -> int:
    """At least so many elements are within each other; what is not closed counts as open."""
    most = depth = 0
    if html.count("<") <= MOST_DEPTH:
        return 0
    for found in _NESTING.finditer(html):
        depth = max(depth - 1, 0) if found[1] else depth + 1
        most = max(most, depth)
    return most


def _base(tree: Any, address: str) -> str:
    for node in tree.css("base[href]"):
        try:
            return canonical(node.attributes.get("href") or "", address)
        except ValueError:
            break  # the first one counts, even if it is none
    return address


def _title(tree: Any) -> str:
    for node in tree.css("title"):
        # Pictures within the page have titles of their own.
        if node.parent is not None and node.parent.tag == "head" and (found := _words(node.text())):
            return found
    for node in tree.css('meta[property="og:title"], h1'):
        if found := _words(node.attributes.get("content") or node.text(separator=" ")):
            return found
    return ""


def _meta(tree: Any, name: str) -> str:
    for node in tree.css(f'meta[name="{name}" i], meta[property="og:{name}"]'):
        if found := _words(node.attributes.get("content") or ""):
            return found
    return ""


def _canonical(tree: Any, base: str, tracking: bool, codec: str) -> str:
    for node in tree.css('link[rel~="canonical" i][href]'):
        try:
            return canonical(node.attributes.get("href") or "", base, tracking=tracking, encoding=codec)
        except ValueError:
            continue
    return ""


def _language(tree: Any) -> str:
    root = tree.css_first("html")
    attributes = root.attributes if root is not None else {}
    said = attributes.get("lang") or attributes.get("xml:lang") or ""
    if not said:
        node = tree.css_first('meta[http-equiv="content-language" i]')
        said = (node.attributes.get("content") or "") if node is not None else ""
    return said.strip().replace("_", "-")[:35]


def _links(tree: Any, base: str, tracking: bool, codec: str) -> list[Link]:
    found: dict[str, bool] = {}

    def keep(address: str, follow: bool) -> None:
        try:
            known = canonical(address, base, tracking=tracking, encoding=codec)
        except ValueError:
            return  # mail addresses, scripts, and what is no address at all
        # Linked to twice, it is vouched for if it is once.
        found[known] = found.get(known, False) or follow

    for node in tree.css("a[href], area[href]"):
        if len(found) == MOST_LINKS:
            break
        rel = (node.attributes.get("rel") or "").lower().split()
        keep(node.attributes.get("href") or "", "nofollow" not in rel)
    for node in tree.css('meta[http-equiv="refresh" i][content]'):
        if to := _REFRESH.match(node.attributes.get("content") or ""):
            keep(to[1], True)
    return [Link(address, follow) for address, follow in found.items()]


def _of_meta(tree: Any, agent: str) -> list[str]:
    names = {"robots", agent.lower()}
    return [
        directive
        for node in tree.css("meta[name][content]")
        if (node.attributes.get("name") or "").strip().lower() in names
        for directive in (node.attributes.get("content") or "").split(",")
    ]


def _of_header(header: str, agent: str) -> list[str]:
    """``noindex, nofollow``, or from a robot's name on only for that one: ``somebot: noindex``."""
    found, mine = [], True
    for part in header.split(","):
        name, colon, rest = part.partition(":")
        if colon and not _VALUED.fullmatch(name.strip()):
            mine, part = name.strip().lower() == agent.lower(), rest
        if mine:
            found.append(part)
    return found


def _robots(said: Iterable[str]) -> frozenset[str]:
    found = {each.strip().lower()[:60] for each in said} - {""}
    if "none" in found:
        found |= {"noindex", "nofollow"}
    return frozenset(found)


def _words(text: str) -> str:
    return " ".join(text.split())
