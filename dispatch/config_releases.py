"""The door to which nodes have which version of the configuration: a canary first, then all, or back.

Without a release, all have the newest. With one (``ConfigRelease``) nodes have the version that is released, whatever
changes, and the canary's the newest. A relay passes on what it was given: a canary is the whole branch below a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.utils import timezone

from dispatch import configuration, events
from dispatch.models import ConfigRelease, ConfigVersion
from nodes import journal, registry
from nodes.executors.base import shown
from nodes.models import Node
from nodes.protocol import Conflict, FieldError, NotFound
from nodes.transactions import retried, write

CANARY_LIMIT = 1000


@retried
def canary(names: Sequence[str]) -> dict[str, Any]:
    """From now on the nodes ``names`` alone, and what is below them, have the newest version; all others keep the one
    they have. Called again it names others instead.

    Raises FieldError and NotFound on ``nodes``, Conflict where there is no configuration yet.
    """
    if not names or len(names) > CANARY_LIMIT:
        raise FieldError("nodes", f"has {len(names)} names; 1 to {CANARY_LIMIT} are allowed")
    with write():
        found = {node.name: node for node in Node.objects.filter(name__in=list(names))}
        for name in names:
            if name not in found:
                raise NotFound(f"nodes: there is no node {shown(name)}")
            if found[name].embedded or found[name].dialect != Node.Dialect.NATIVE:
                raise FieldError("nodes", f"{name} fetches no configuration of its own")
        latest = _newest()
        release = _release()
        if release is None:
            release = ConfigRelease(released=latest)
        release.canary = sorted(node.pk for node in found.values())
        release.save()
        _record("canary", f"version {latest.pk}: {', '.join(sorted(found))}")
    return _changed()


@retried
def promote() -> dict[str, Any]:
    """All have the newest version again, now and from now on. Raises Conflict where they do already."""
    with write():
        if not ConfigRelease.objects.all().delete()[0]:
            raise Conflict("every node has the newest version already: there is no canary, and nothing was rolled back")
        _record("released", "")
    return _changed()


@retried
def rollback(to: int | None = None) -> dict[str, Any]:
    """All nodes, those of a canary too, have version ``to`` from now on, until ``promote``; without it the released one
    where there is a canary, else the one before.

    Raises NotFound for a version that is not kept, Conflict where there is none before, or nothing to be changed.
    """
    with write():
        release = _release()
        now = release.released if release else _newest()
        if to is not None:
            target = ConfigVersion.objects.filter(pk=to).first()
            if target is None:
                known = ", ".join(map(str, ConfigVersion.objects.values_list("pk", flat=True)[: configuration.KEPT]))
                raise NotFound(f"to: version {to} is not kept; there are: {known or 'none yet'}")
        elif release and release.canary:
            target = now
        else:
            target = ConfigVersion.objects.filter(pk__lt=now.pk).order_by("-pk").first()
            if target is None:
                raise Conflict(f"there is no version before {now.pk} any more")
        if release and not release.canary and release.released_id == target.pk:
            raise Conflict(f"all nodes have version {target.pk} already")
        release = release or ConfigRelease()
        release.released, release.canary = target, []
        release.save()
        _record("rolled back", f"version {target.pk}")
    return _changed()


def state() -> dict[str, Any]:
    """What is released to whom, which versions are kept, and how many nodes below have which."""
    release = _release()
    ids = release.canary if release else []
    numbers = list(ConfigVersion.objects.order_by("-pk").values_list("pk", "digest", "created_at", "above"))
    has = _counts()
    return {
        "newest": numbers[0][0] if numbers else None,
        "released": release.released_id if release else (numbers[0][0] if numbers else None),
        "following": release is None,
        "canary": list(Node.objects.filter(pk__in=ids).order_by("name").values_list("name", flat=True)),
        "nodes": sum(has.values()),
        "versions": [
            {
                "version": pk,
                "mark": digest[: configuration.MARK_LENGTH],
                "above": above,
                "created_at": created_at,
                "nodes": has.get(pk, 0),
            }
            for pk, digest, created_at, above in numbers
        ],
    }


def _counts() -> Counter[int]:
    """Version -> nodes that are here and have it, at any depth."""
    found: Counter[int] = Counter()
    for node in Node.objects.filter(registry.online_filter(timezone.now())):
        if not node.embedded:
            found[node.config_version or 0] += 1
            found.update({int(number): count for number, count in (node.facts.get("configs") or {}).items()})
    return found


def _release() -> ConfigRelease | None:
    return ConfigRelease.objects.select_related("released").order_by("pk").first()


def _newest() -> ConfigVersion:
    latest = ConfigVersion.objects.order_by("-pk").first()
    if latest is None:
        raise Conflict("there is no configuration yet; it is made within a second of the server's start")
    return latest


def _record(word: str, text: str) -> None:
    journal.record(journal.About.CONFIGURATION, word, text=text)


def _changed() -> dict[str, Any]:
    configuration.look_again()
    events.changed(allocate=False)
    return state()
