"""What a run of type ``crawl`` may say, and the table that its pages go to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from nodes.crawling import selecting
from nodes.executors.base import Column, Dataset, Param, shown
from nodes.protocol import FieldError

MOST_LINKS = 2000
TOKEN = re.compile(r"[A-Za-z_-]+")
"""A robot's name at the beginning of what it tells hosts (RFC 9309, 2.2.1: product token)."""

_HOST = re.compile(r"[a-z0-9*?\[\]_.:-]{1,253}", re.IGNORECASE)

PARAMS = (
    Param("follow", "boolean", False, "Go on to the pages that pages link to."),
    Param("max_depth", "integer", 3, "Links on the way from a submitted page at most.", minimum=0, maximum=1000),
    Param("max_pages", "integer", 1000, "Pages of the run at most.", minimum=1, maximum=1_000_000),
    Param(
        "hosts",
        "list",
        None,
        "Hosts to go on to: example.org, *.example.org. None: the page's.",
        of="string",
    ),
    Param("include", "list", None, "Only to paths like these, with their query: /docs/*.", of="string"),
    Param("exclude", "list", None, "Not to paths like these, with their query: *sort=*.", of="string"),
    Param("max_links", "integer", 500, "Links kept of a page, and gone on to.", minimum=0, maximum=MOST_LINKS),
    Param("keep_tracking", "boolean", False, "Leave parameters like utm_source in addresses."),
    Param("per_second", "number", 1.0, "Pages of one host, by all nodes together.", minimum=0.01, maximum=1000),
    Param("at_once", "integer", 1, "Pages of one host at the same time, by all nodes.", minimum=1, maximum=32),
    Param("respect_robots", "boolean", True, "Obey robots.txt, and what pages and headers ask of robots."),
    Param("user_agent", "string", "cascade-crawl", "What hosts are told; robots.txt is read for its name."),
    Param("timeout_seconds", "number", 20.0, "For one page.", minimum=0.1, maximum=300),
    Param("max_kb", "integer", 2048, "Largest page, unpacked.", minimum=1, maximum=16_384),
    Param("content_types", "list", ["text/html", "application/xhtml+xml", "text/plain"], "Wanted.", of="string"),
    Param("text", "boolean", True, "Keep the text."),
    Param("select", "object", None, "Name to CSS selector; with @name an attribute, with [] all that fit."),
)

PAGES = Dataset(
    table="pages",
    columns=(
        Column("url", "string"),
        Column("status", "int64"),
        Column("target", "string"),
        Column("title", "string"),
        Column("description", "string"),
        Column("canonical", "string"),
        Column("language", "string"),
        Column("robots", "string"),
        Column("text", "string"),
        Column("links", "json"),
        Column("link_count", "int64"),
        Column("blocked", "int64"),
        Column("selected", "json"),
        Column("content_type", "string"),
        Column("bytes", "int64"),
        Column("depth", "int64"),
    ),
    key=("url",),
    views=(
        (
            "pages_links",
            "SELECT url, unnest(from_json(links, '[\"VARCHAR\"]')) AS link FROM {table} WHERE links IS NOT NULL",
        ),
    ),
)


def checked(params: dict[str, Any]) -> dict[str, Any]:
    """``params``, of which each was checked for itself. Raises FieldError."""
    selecting.read(params.get("select") or {})
    for host in params.get("hosts") or ():
        if not _HOST.fullmatch(host):
            raise FieldError("params.hosts", f"{shown(host)} is not a host like example.org or *.example.org")
    for kind in params.get("content_types") or ():
        if kind.count("/") != 1 or not kind.isascii() or not kind.isprintable() or kind.startswith("/"):
            raise FieldError("params.content_types", f"{shown(kind)} is not a type like text/html or text/*")
    if "content_types" in params and not params["content_types"]:
        raise FieldError("params.content_types", "is empty; at least one is needed, such as text/html")
    agent = params.get("user_agent", "cascade")
    if not (agent.isascii() and agent.isprintable() and len(agent) <= 200 and TOKEN.match(agent)):
        raise FieldError(
            "params.user_agent", f"{shown(agent)} is not a name like mybot/1.0 (+https://example.org/bot) in ASCII"
        )
    return params


def fits(kind: str, patterns: Sequence[str]) -> bool:
    """Whether the content type ``kind`` is one of ``patterns``."""
    return any(fnmatchcase(kind, pattern.lower()) for pattern in patterns)
