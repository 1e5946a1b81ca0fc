"""Two dispatchers that both lead, and a fleet that keeps them busy: ``python -m tests.scale.forced WHAT``, one process
each.

``prepare RATE BURST`` makes nodes with quotas and limits, and two runs, one of them with a rate limit.
``dispatch FILE`` makes one pass after the other and asks nobody whether it leads, as with a lock that does not hold; it
prints in how many passes it granted. ``fleet FILE`` is all nodes: each takes what was granted to it and gives it back
at once, so that there is always something to grant. Both end when there is such a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
django.setup()

from dispatch import buckets, queue  # noqa: E402
from nodes import keys  # noqa: E402
from nodes.models import Node  # noqa: E402
from tests.integration.factory import Child, child, submit  # noqa: E402


def prepare(rate: str, burst: str) -> None:
    child("a", 4, "echo=2/3")
    child("b", 3, "echo=1")
    child("c", 5, "echo[i1]=1/1")
    buckets.set_limit("slow", float(rate), int(burst))
    submit(300)
    submit(300, rate_key="slow", priority=9)


def dispatch(ends: str) -> None:
    granted = 0
    while not Path(ends).exists():
        granted += bool(queue.allocate_now().nodes)
    print(granted)


def fleet(ends: str) -> None:
    nodes = [Child(node.pk, keys.inside(node.pk)) for node in Node.objects.all()]
    while not Path(ends).exists():
        for each in nodes:
            each.beat()
            if taken := each.claim():
                each.release(*(work.allocation for work in taken))


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    parts: dict[str, Callable[..., None]] = {"prepare": prepare, "dispatch": dispatch, "fleet": fleet}
    parts[what](*given)
