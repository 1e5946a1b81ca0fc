"""What the database and the result store say, in the words of ``model``."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

from django.db import connection

from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.results.saver import Saver
from nodes import executors
from nodes.models import AccessKey
from tests.stateful.model import Model

BASE = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
COUNTS = ("saved", "failed", "quarantined", "cancelled")
_STATES = {"allocated": "held", "executing": "held"}


def seconds(at: dt.datetime | None) -> float:
    return 0.0 if at is None else (at - BASE).total_seconds()


def items() -> dict[tuple[int, int], dict[str, Any]]:
    """Every item of every run. One that is in two shards, or in none and behind the cut, is an error."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    fresh = {"state": "pending", "attempts": 0, "deaths": 0, "losses": 0, "not_before": 0.0}
    for shard in Shard.objects.order_by("run", "start"):
        about: dict[str, Any] = {name: getattr(shard, name) for name in ("attempts", "deaths", "losses")}
        about |= {"state": _STATES.get(shard.state, shard.state), "not_before": seconds(shard.not_before)}
        for index in range(shard.start, shard.stop):
            assert (shard.run_id, index) not in found, f"item {index} of run {shard.run_id} is in two shards"
            found[shard.run_id, index] = about
    for run, cut, count in Run.objects.values_list("pk", "cut", "count"):
        inside = {index for of, index in found if of == run}
        assert inside == set(range(cut)), f"shards of run {run} do not cover [0, {cut})"
        found.update({(run, index): fresh for index in range(cut, count)})
    return found


def allocations() -> dict[int, dict[str, Any]]:
    names = ("run", "start", "stop", "node", "state", "delivered", "deadline")
    columns = ("run_id", "start", "stop", "node_id", "state", "delivered", "deadline")
    found = {pk: dict(zip(names, row, strict=True)) for pk, *row in Allocation.objects.values_list("pk", *columns)}
    return {pk: {**each, "deadline": seconds(each["deadline"])} for pk, each in found.items()}


def compare(model: Model) -> None:
    """The model and the database say the same."""
    there = items()
    assert there.keys() == model.items.keys(), "promise 2: no item is lost, none is there twice"
    for key, item in model.items.items():
        assert _settled(there[key], model.now) == _settled(item, model.now), key
    for run, state, *counts in Run.objects.values_list("pk", "state", *COUNTS):
        assert state == model.state(run), run
        assert counts == [model.counts(run)[name] for name in COUNTS], run
    held = {pk: {name: each[name] for name in each if name != "digest"} for pk, each in model.allocations.items()}
    assert allocations() == held
    unsaved = Receipt.objects.filter(saved_at=None).values_list("manifest", flat=True)
    waiting = sorted(entry["allocation"] for manifest in unsaved for entry in manifest if entry["ranges"])
    assert waiting == sorted(entry["allocation"] for entry in model.waiting)


def _settled(item: dict[str, Any], now: float) -> dict[str, Any]:
    """What still matters of an item: of one that has ended its end alone, and no time that has passed."""
    if item["state"] not in ("pending", "held"):
        return {"state": item["state"]}
    return {**item, "not_before": item["not_before"] if item["not_before"] > now else 0.0}


def rows(saver: Saver, runs: list[int]) -> Counter[tuple[int, str, int]]:
    """(run, text, allocation) -> how often such a row is in the result store."""
    saver.store.ensure(executors.get("echo").dataset)
    with saver.store.reader() as reading:
        found = reading.execute("SELECT _run, value, _allocation FROM echo_rows").fetchall()
        ledger = reading.execute("SELECT run, start, stop, rows FROM ledger").fetchall()
    mine = Counter((run, text, allocation) for run, text, allocation in found if run in runs)
    assert sum(mine.values()) == sum(count for run, _, _, count in ledger if run in runs), "rows and ledger agree"
    return mine


def forget() -> None:
    """All rows of runs and nodes. Ids are not given out again, so that the result store need not forget its own."""
    tables = ["dispatch_stagedrow", "dispatch_allocation", "dispatch_receipt", "dispatch_shard", "dispatch_synclog"]
    tables += ["dispatch_ratebucket", "dispatch_ratelimit", "dispatch_delivery", "dispatch_run", "nodes_heartbeat"]
    tables += ["nodes_quota", "nodes_accesskey", "nodes_node", "nodes_journalentry"]
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"DELETE FROM {table}")


def keys_of(node: int) -> list[int]:
    return list(AccessKey.objects.filter(node=node).values_list("pk", flat=True))


def access_key(pk: int) -> str:
    return AccessKey.objects.values_list("access_key", flat=True).get(pk=pk)
