"""How feeds fare: their articles in the result store, and the last allocation that went through each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from api.dialects.cascade_shapes import TYPE, feed_ids, moment, word_of
from dispatch.models import Allocation, Source
from dispatch.results import catalogue, saver
from nodes import executors

LOOKED_AT = 2000
"""Newest allocations in which the last one of a feed is looked for."""


def status_of(feeds: Sequence[Source]) -> list[dict[str, Any]]:
    keys = [feed.key for feed in feeds]
    articles = _articles(keys)
    last = _last(set(keys))
    found = []
    for feed in feeds:
        count, latest = articles.get(feed.key, (0, None))
        task = last.get(feed.key)
        found.append(
            {
                "id": feed.key,
                "name": feed.name or feed.key,
                "article_count": count,
                "latest_article_time": moment(latest),
                "last_task_status": word_of(task) if task else None,
                "last_task_time": moment(task.finished_at or task.granted_at) if task else None,
                "last_task_node": task.node.name if task and task.node else None,
            }
        )
    return found


def _articles(keys: Sequence[str]) -> dict[str, tuple[int, dt.datetime | None]]:
    """Feed -> its number of articles, and when the newest was published. Raises Conflict where there is no store."""
    if not keys:
        return {}
    store = saver.results()
    dataset = executors.get(TYPE).dataset
    marks = ", ".join("?" * len(keys))
    sql = f"SELECT feed, count(*), max(published) FROM {dataset.table} WHERE feed IN ({marks}) GROUP BY feed"
    with store.reader() as connection:
        if dataset.table not in [name for name, *_ in catalogue.known(connection)]:
            return {}
        return {feed: (count, latest) for feed, count, latest in connection.execute(sql, list(keys)).fetchall()}


def _last(wanted: set[str]) -> dict[str, Allocation]:
    """The newest allocation of each feed that has one among the LOOKED_AT newest."""
    found: dict[str, Allocation] = {}
    newest = Allocation.objects.filter(type=TYPE).select_related("node").defer("log").order_by("-pk")[:LOOKED_AT]
    for each in newest.iterator(chunk_size=200):
        for key in wanted.intersection(feed_ids(each)):
            found.setdefault(key, each)
        if len(found) == len(wanted):
            break
    return found
