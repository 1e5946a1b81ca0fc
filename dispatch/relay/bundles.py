"""Configuration on its way down: a relay gives its nodes what its parent gave it, with its own beside, as one bundle;
and it tells which versions are below it.

The parent's bundle is kept in a file, as an agent keeps it (``nodes.agent.configuration``).
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from typing import Any

from django.conf import settings
from django.utils import timezone

from dispatch.models import ConfigVersion
from nodes import registry
from nodes.agent.configuration import Damaged, Store, Version
from nodes.messages import CONFIGS_LIMIT
from nodes.models import Node

Content = dict[str, Any]

_lock = threading.Lock()
_read: tuple[Any, Version, Content] | None = None


def store() -> Store:
    """Where this relay keeps its parent's bundle."""
    return Store(settings.CASCADE.data_dir)


def signature() -> Any:
    """Changes with every bundle that the parent gives, and costs next to nothing; None where there is none."""
    if settings.CASCADE.role != "relay":
        return None
    try:
        about = os.stat(store().file)
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def above() -> tuple[int, Content] | None:
    """The number of the parent's version that is here, and its content; None while nothing of it is here."""
    global _read
    with _lock:
        found = signature()
        if found is None:
            return None
        if _read is None or _read[0] != found:
            try:
                _read = (found, *store().read())
            except Damaged:
                return None
        return _read[1].number, _read[2]


def size(content: Content) -> int:
    """Characters of it as JSON."""
    return len(json.dumps(content, separators=(",", ":")))


def joined(theirs: Content, number: int, own: Content, name: str) -> Content:
    """``theirs``, version ``number`` of the parent, with ``own`` of the relay ``name`` beside. Pure.

    What comes from above stays as it is. What is the relay's own is marked with ``of`` and the relay's name: its tasks
    go through its own sources with its own settings, theirs through theirs, and a name that is taken gets the relay's
    in front: ``eu/nightly``. ``levels`` has the versions that it is made of, the root's first.
    """
    settings_of = dict(theirs.get("settings_of") or {})
    levels = [*(theirs.get("levels") or ()), number]
    if name in settings_of:
        name = f"{name}-{len(levels) + 1}"
    taken = {task["name"] for task in theirs["tasks"]}
    tasks = [
        {**task, "name": f"{name}/{task['name']}" if task["name"] in taken else task["name"], "of": name}
        for task in own["tasks"]
    ]
    return {
        "tasks": [*theirs["tasks"], *tasks],
        "sources": [*theirs["sources"], *({**source, "of": name} for source in own["sources"])],
        "settings": theirs["settings"],
        "settings_of": {**settings_of, name: own["settings"]},
        "left_out": {
            "tasks": [*theirs["left_out"]["tasks"], *own["left_out"]["tasks"]][:1000],
            "sources": theirs["left_out"]["sources"] + own["left_out"]["sources"],
        },
        "levels": levels,
    }


def counts() -> dict[int, int]:
    """Version of the parent's -> nodes below that have it, at any depth; 0 for all that have another one, or none."""
    numbers = dict(ConfigVersion.objects.values_list("pk", "above"))
    found: Counter[int] = Counter()
    for node in Node.objects.filter(registry.online_filter(timezone.now())):
        if not node.embedded:
            found[numbers.get(node.config_version or 0) or 0] += 1
            for told, count in (node.facts.get("configs") or {}).items():
                found[numbers.get(int(told)) or 0] += count
    return bounded(found)


def bounded(found: Counter[int]) -> dict[int, int]:
    """The most frequent ones; the others together are 0."""
    known = Counter({number: count for number, count in found.items() if number})
    told = dict(known.most_common(CONFIGS_LIMIT - 1))
    others = sum(found.values()) - sum(told.values())
    return {**told, 0: others} if others else told
