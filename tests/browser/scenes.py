"""A parent where every page has something: runs, items, allocations and nodes in each state, under names that hurt.

Written past the verbs, by a process of its own (``python -m tests.browser.scenes``) in the parent's folder.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from dataclasses import dataclass
from typing import Any

from cascade.local import LocalTree
from tests.acceptance.trees import until

SCRIPT = "<img src=x onerror=window.__pwned=1>"
RIGHT_TO_LEFT = "שלום עולם مرحبا"
LONG = "w" * 120
HOSTILE = f"{SCRIPT} 🦊👩‍👩‍👧‍👦 {RIGHT_TO_LEFT} {LONG}"
"""Markup, pictures, text from right to left, a word that no line has room for."""
ENV = {
    "CASCADE_FALLBACK_SECONDS": "0",
    "CASCADE_OFFLINE_SECONDS": "180",
    "CASCADE_SQL_SECONDS": "60",
    "CASCADE_READ_SECONDS": "60",
}


@dataclass(frozen=True)
class Scene:
    """Ids: the run that goes on, one that ended badly, an allocation, a node that is there, a relay that is not."""

    run: int
    ended: int
    allocation: int
    node: int
    relay: int
    task: int


def add(tree: LocalTree) -> Scene:
    """Fills the running parent ``tree``."""
    file = tree.data_dir / "scene.json"
    tree.spawn("scene", [sys.executable, "-m", "tests.browser.scenes", str(file)])
    until(lambda: not tree.alive("scene"))
    assert file.exists(), tree.tail("scene")
    return Scene(**json.loads(file.read_text()))


def addresses(scene: Scene) -> list[str]:
    """Of every page, with something on it."""
    return [
        "/",
        "/runs",
        "/runs?state=completed&q=nothing+like+it",
        f"/runs/{scene.run}",
        f"/runs/{scene.ended}",
        f"/runs/{scene.run}/items",
        f"/runs/{scene.run}/items?index=0",
        f"/allocations/{scene.allocation}",
        f"/nodes/{scene.node}",
        f"/nodes/{scene.relay}",
        f"/nodes/{scene.relay}/below",
        f"/submit?scheduled={scene.task}",
        "/submit?type=data_import",
        f"/submit?again={scene.run}",
        "/what-if",
        f"/what-if?n{scene.node}.capacity=9&run={scene.run}",
        "/tables",
        "/tables/kline?close__gte=20&facet=symbol&limit=10",
        "/tables/kline/chart?symbol=AAPL",
        "/sql?query=SELECT+symbol,+close+FROM+kline+LIMIT+5",
        "/sql?query=SELEC",
        "/articles",
        "/api/docs",
        "/journal",
        "/journal?about=configuration",
        "/no-such-page",
    ]


def _fill() -> Scene:
    from django.utils import timezone

    from dispatch import lifecycle
    from dispatch.items import freeze
    from dispatch.models import SyncLog, Task
    from dispatch.states import AllocationState, RunState, ShardState
    from nodes import messages, registry
    from nodes.fields import parse_quota
    from tests.integration import records

    now = timezone.now()
    later = now + dt.timedelta(days=1)
    nodes = {}
    counts = {"nodes": 2, "leaves": 1, "online": 1, "capacity": 8, "used": 3, "queued": 1, "depth": 1}
    leaf = {"name": f"leaf {LONG}"[:100], "role": "child", "state": "online", "capacity": 4, "used": 3, "queued": 1}
    told = {**counts, "children": [{**leaf, "id": 1, "version": SCRIPT[:40]}], "more": 1}
    relay = {"boot": "b", "role": "relay", "id": "0" * 32, "slots": 8, "types": {}, "branches": [], "subtree": told}
    below = messages.read_beat(relay).subtree
    kinds: dict[str, dict[str, Any]] = {
        "online": {"cpu": 12.0, "memory": 40.0},
        "draining": {"draining": True},
        "offline": {"last_beat_at": now - dt.timedelta(hours=3), "role": "relay", "subtree": below, "subtree_at": now},
        "inactive": {"active": False},
    }
    for word, fields in kinds.items():
        quotas = [parse_quota("echo=2/4"), parse_quota("data_import[AAPL]=1")]
        nodes[word], _ = registry.add_node(word, capacity=8, quotas=quotas)
        # No verb would let in such a name or label.
        hard = {"name": f"{word} 🦊 {RIGHT_TO_LEFT} {SCRIPT}{LONG}"[:100], "labels": {SCRIPT: RIGHT_TO_LEFT, "l": LONG}}
        said = {"last_beat_at": now, "executors": ["echo"], "version": SCRIPT, "description": HOSTILE}
        for field, value in {**hard, **said, **fields}.items():
            setattr(nodes[word], field, value)
        nodes[word].save()

    def run(name: str, **fields: Any) -> Any:
        items = [f"{number} {HOSTILE}" for number in range(12)]
        fields = {"type": "echo", "items": freeze(items), "labels": {"only": SCRIPT}, "submitted_by": SCRIPT, **fields}
        return records.run(len(items), name=name, params={"log": HOSTILE}, max_attempts=3, **fields)

    going = run(HOSTILE[:200])
    error = f"0 {HOSTILE}: ValueError: {HOSTILE}"
    states = [
        (ShardState.SAVED, AllocationState.COMPLETED, "online", {}),
        (ShardState.SPOOLED, AllocationState.COMPLETED, "online", {}),
        (ShardState.EXECUTING, AllocationState.EXECUTING, "online", {}),
        (ShardState.ALLOCATED, AllocationState.PENDING, "draining", {}),
        (ShardState.PENDING, AllocationState.FAILED, "offline", {"attempts": 1, "not_before": later, "error": error}),
        (ShardState.FAILED, AllocationState.FAILED, "offline", {"attempts": 3, "error": error}),
        (ShardState.QUARANTINED, AllocationState.EXPIRED, "inactive", {"deaths": 3, "error": error}),
        (ShardState.CANCELLED, AllocationState.CANCELLED, "inactive", {}),
        (ShardState.SAVED, AllocationState.SUPERSEDED, "draining", {}),
    ]
    made = None
    for at, (state, word, who, fields) in enumerate(states):
        shard = records.cut(going, at, at + 1, state, updated_at=now, **fields)
        began = now - dt.timedelta(seconds=100 - 10 * at)
        ended = None if word in ("executing", "pending") else began + dt.timedelta(seconds=9)
        failed = error if fields.get("error") else ""
        made = records.tried(
            shard, nodes[who], word, deadline=later, delivered=True, granted_at=began, delivered_at=began,
            started_at=began, finished_at=ended, error=failed, log=HOSTILE, reason=f"most free of 4: {SCRIPT}",
        )  # fmt: skip
    going.saved, going.failed, going.quarantined, going.cancelled = 2, 1, 1, 1
    going.save()
    ended = going
    for end in (RunState.CANCELLED, RunState.FAILED, RunState.COMPLETED, RunState.PARTIAL):
        ended = run(f"{end} {HOSTILE}"[:200], state=end, ended_at=now, saved=6, failed=6, cut=12)
        records.cut(ended, 0, 6, ShardState.SAVED)
        records.tried(records.cut(ended, 6, 12, ShardState.FAILED, error=error), nodes["online"], "failed", error=error)
    task = Task.objects.create(
        name=HOSTILE[:200], type="echo", items=[HOSTILE], cron="0 6 * * *", labels={"a": SCRIPT}, next_fire_at=later
    )
    lifecycle.submit(type="echo", items=[HOSTILE], name="waits", labels={"only": "nobody"})
    SyncLog.objects.create(node=nodes["online"], operation="beat", direction="in", count=1, error=HOSTILE)
    assert made is not None
    return Scene(going.pk, ended.pk, made.pk, nodes["online"].pk, nodes["offline"].pk, task.pk)


if __name__ == "__main__":
    import django

    django.setup()
    from dataclasses import asdict
    from pathlib import Path

    Path(sys.argv[1]).write_text(json.dumps(asdict(_fill())))
