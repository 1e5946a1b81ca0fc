"""A parent of dictionaries: loads the records that decisions are made from, and writes their effects down.

It has no more sense of its own than a database has: whatever is right about what comes of it, ``dispatch.deciding``
has decided.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from dispatch.attempts import Failure, Limits
from dispatch.deciding import effects as e
from dispatch.deciding import endings, leases, reports
from dispatch.deciding.records import Held, Lease, Patience, Shard
from dispatch.states import ALLOCATION, LIVE, SHARD, AllocationState, RunState, ShardState, before, run_end
from nodes.messages import Entry

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LIMITS = Limits(max_attempts=3, backoff=0.0, worker_deaths=3)
PATIENCE = Patience(lease=30.0, patient=180.0)
COUNTS = ("saved", "failed", "quarantined", "cancelled", "rows")


@dataclass
class Parent:
    """One run over ``items`` items. Every change goes through ``write``."""

    items: int
    now: dt.datetime = START
    run: dict[str, Any] = field(default_factory=dict)
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    allocations: dict[int, dict[str, Any]] = field(default_factory=dict)
    receipts: dict[int, dict[str, Any]] = field(default_factory=dict)
    store: list[tuple[int, int]] = field(default_factory=list)
    """What is in the result store: (item, allocation)."""

    def __post_init__(self) -> None:
        self._ids = count(1)
        self.run = {"state": RunState.RUNNING, "count": self.items, "cut": 0, **dict.fromkeys(COUNTS, 0)}

    # Records

    def held(self, ids: Iterable[int]) -> list[Held]:
        found = [(pk, each) for pk in ids if (each := self.allocations.get(pk))]
        names = ("start", "stop", "state", "receipt")
        return [Held(pk, 1, each["shard"], each["node"], "echo", *(each[name] for name in names)) for pk, each in found]

    def shard(self, pk: int) -> Shard:
        each = self.shards[pk]
        return Shard(pk, 1, *(each[name] for name in ("start", "stop", "state", "attempts", "deaths", "losses")))

    def live(self) -> list[int]:
        return [pk for pk, each in self.allocations.items() if each["state"] in LIVE]

    def twins(self, shards: Iterable[int], but: Iterable[int]) -> dict[int, list[int]]:
        others = [(self.allocations[pk]["shard"], pk) for pk in self.live() if pk not in set(but)]
        return {shard: mine for shard in shards if (mine := [pk for of, pk in others if of == shard])}

    # Events

    def grant(self, shard: int | None, size: int, node: int) -> int:
        """To ``node``: a shard that came back, or the next ``size`` items; or a second copy of one that is out."""
        if shard is None:
            start, stop = self.run["cut"], min(self.run["cut"] + size, self.items)
            self.run["cut"] = stop
            shard = next(self._ids)
            self.shards[shard] = self._shard(e.Piece(start, stop, ShardState.ALLOCATED))
        elif self.shards[shard]["state"] == ShardState.PENDING:
            self.shards[shard]["state"] = ShardState.ALLOCATED
        mine = self.shards[shard]
        pk = next(self._ids)
        self.allocations[pk] = {
            "shard": shard,
            "node": node,
            "start": mine["start"],
            "stop": mine["stop"],
            "state": AllocationState.PENDING,
            "receipt": None,
            "delivered": False,
            "deadline": self.now + dt.timedelta(seconds=15),
        }
        return pk

    def deliver(self, ids: Sequence[int]) -> None:
        self.write(leases.lent(PATIENCE, [Lease(pk) for pk in ids], self.now, begin=True))
        node = self.allocations[ids[0]]["node"]
        self.write([e.Begin(node, tuple(ids))])

    def beat(self, ids: Sequence[int]) -> None:
        self.write(leases.lent(PATIENCE, [Lease(pk) for pk in ids], self.now))

    def report(self, node: int, entry: Entry) -> reports.Answer:
        """As the verb does it: judge, and write down what follows."""
        mine = next((each for each in self.held([entry.allocation]) if each.node == node), None)
        earlier = "" if mine is None or mine.receipt is None else self._digest(mine)
        answer = reports.judge(entry, mine, earlier, None)
        if answer.status == 200 and not answer.repeated:
            assert mine is not None
            twins = self.twins([mine.shard], but=[mine.id])
            known = reports.Known(
                {mine.shard: self.shard(mine.shard)}, twins, {1: LIMITS}, lambda run, at: f"item-{at}"
            )
            self.write(reports.accepted([reports.Batch("echo", "", [(entry, mine)])], known, self.now))
        return answer

    def end(self, ids: Sequence[int], state: AllocationState, failure: Failure) -> None:
        attempts = [(held, self.shard(held.shard)) for held in self.held(ids)]
        twins = self.twins([shard.id for _, shard in attempts], but=ids)
        self.write(endings.unsuccessful(attempts, state, failure, "", twins=twins, limits={1: LIMITS}, now=self.now))

    def expire(self) -> None:
        over = [pk for pk in self.live() if self.allocations[pk]["deadline"] < self.now]
        found = leases.overdue((Lease(pk, self.allocations[pk]["delivered"]), PATIENCE) for pk in over)
        self.end(found.lost, AllocationState.EXPIRED, Failure.LOST)
        self.end(found.offers, AllocationState.EXPIRED, Failure.RETURNED)

    def cancel(self) -> None:
        open_shards = [
            (pk, each["start"], each["stop"]) for pk, each in self.shards.items() if each["state"] in e.cancellable()
        ]
        self.write(endings.cancelled(1, self.run["cut"], self.run["count"], self.live(), open_shards))

    def save(self, crash: bool = False) -> None:
        """The saver's round; with ``crash`` the parent dies between the store's commit and its own."""
        waiting = {pk: each for pk, each in self.receipts.items() if not each["settled"]}
        for each in waiting.values():
            for line in each["manifest"]:
                for first, last, _, _ in line["ranges"]:
                    # The ledger: what is there is not written again.
                    if not any(item == first for item, _ in self.store):
                        self.store += [(item, line["allocation"]) for item in range(first, last)]
        if not crash:
            self.write(endings.saved({pk: each["manifest"] for pk, each in waiting.items()}))

    def damage(self, receipt: int) -> None:
        self.write(endings.damaged(receipt, self.receipts[receipt]["manifest"], "torn"))

    # Writing

    def write(self, effects: Iterable[e.Effect]) -> None:
        for effect in effects:
            self._write(effect)

    def _write(self, effect: e.Effect) -> None:
        match effect:
            case e.EndAllocations():
                self._to(effect.ids, effect.state)
            case e.MoveShards():
                moved = [pk for pk in effect.ids if self.shards[pk]["state"] in effect.among]
                for pk in moved:
                    assert effect.state in SHARD[self.shards[pk]["state"]], "no such transition"
                    self.shards[pk] |= {"state": effect.state, **effect.columns}
                if moved:
                    self.write(effect.then)
            case e.AddShards():
                self.shards.update((next(self._ids), self._shard(piece)) for piece in effect.pieces)
            case e.Accept():
                self._accept(effect)
            case e.CountItems():
                for name in COUNTS:
                    self.run[name] += getattr(effect, name)
            case e.CutWhole():
                self.run["cut"] = self.run["count"]
            case e.EndRuns():
                end = run_end(self.run["count"], *(self.run[name] for name in COUNTS[:4]))
                self.run["state"] = end or self.run["state"]
            case e.Settle():
                for pk in effect.receipts:
                    self.receipts[pk]["settled"] = True
            case e.Lend():
                for pk in effect.ids:
                    if self.allocations[pk]["state"] in LIVE:
                        self.allocations[pk] |= {"deadline": effect.until, "delivered": True}
            case e.Begin():
                self._begin(effect)
            case e.Remember():
                pass
            case _:
                raise AssertionError(f"{effect} comes as part of another one")

    def _to(self, ids: Iterable[int], state: AllocationState) -> None:
        for pk in ids:
            if self.allocations[pk]["state"] in before(ALLOCATION, state):
                self.allocations[pk]["state"] = state

    def _begin(self, effect: e.Begin) -> None:
        self._to([pk for pk in effect.ids if self.allocations[pk]["delivered"]], AllocationState.EXECUTING)
        for pk in effect.ids:
            shard = self.shards[self.allocations[pk]["shard"]]
            if shard["state"] in before(SHARD, ShardState.EXECUTING):
                shard["state"] = ShardState.EXECUTING

    def _accept(self, effect: e.Accept) -> None:
        pieces: dict[tuple[int, int], int] = {}
        for each in effect.apart:
            head, *rest = each.pieces
            self.shards[each.shard] = self._shard(head)
            pieces[each.shard, head.start] = each.shard
            for piece in rest:
                pk = pieces[each.shard, piece.start] = next(self._ids)
                self.shards[pk] = self._shard(piece)
        manifest = [
            {
                "run": line.run,
                "allocation": line.allocation,
                "digest": line.digest,
                "ranges": [[*each, pieces.get((line.shard, each[0]), line.shard)] for each in line.ranges],
            }
            for line in effect.lines
        ]
        receipt = next(self._ids)
        self.receipts[receipt] = {"manifest": manifest, "settled": not any(line.ranges for line in effect.lines)}
        for closed in effect.closed:
            self.allocations[closed.id] |= {"state": closed.state, "receipt": receipt}

    def _digest(self, held: Held) -> str:
        manifest = self.receipts[held.receipt or 0]["manifest"]
        return next(line["digest"] for line in manifest if line["allocation"] == held.id)

    def _shard(self, piece: e.Piece) -> dict[str, Any]:
        return {**piece._asdict()}
