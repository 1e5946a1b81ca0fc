"""The allocator's world in plain dictionaries: who has which slots, and where each item of each run is.

``held`` is the whole truth: item -> the node that has it, WAITING, or DONE. Everything else is counted from it and from
``pieces``, so that a slot or an item cannot be counted twice here.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

from dispatch.allocator import Demand, Grant, Lookahead, Offer, Phase, Piece, Plan, QuotaRule, Terms
from dispatch.rates import Bucket, Rate

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
RATE = Rate(per_second=4.0, burst=3)
LOOKAHEAD = Lookahead(seconds=0.5, limit=3)
WAITING, DONE = "waiting", "done"

Node = dict[str, Any]
Run = dict[str, Any]
Key = tuple[int, int]
"""(run, index of an item), or (run, first item of a piece)."""


class World:
    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        """number -> capacity, types, labels, quotas {(type, item): (slots, limit)}, online, draining, seconds"""
        self.runs: dict[int, Run] = {}
        """number -> type, items (names), priority, age, labels, size, rate, cut"""
        self.held: dict[Key, int | str] = {}
        self.pieces: dict[Key, Piece] = {}
        """Cut pieces that wait or are held."""
        self.tokens = float(RATE.burst)
        self.counter = 0

    def number(self) -> int:
        self.counter += 1
        return self.counter

    # What is counted

    def in_use(self, node: int) -> Counter[tuple[str, str]]:
        """(type, item that a quota named) -> slots in use."""
        mine = [key for key in self.pieces if self.held[key] == node]
        return Counter((self.runs[run]["type"], self.pieces[run, start].item) for run, start in mine)

    def used(self, node: int) -> int:
        return sum(self.in_use(node).values())

    def of_type(self, node: int, task_type: str) -> int:
        return sum(count for (kind, _), count in self.in_use(node).items() if kind == task_type)

    def served(self, run: int) -> int:
        return sum(1 for key in self.pieces if key[0] == run and self.held[key] != WAITING)

    def returned(self, run: int) -> list[Piece]:
        """Its cut pieces that wait, the oldest first."""
        mine = [piece for (of, start), piece in self.pieces.items() if of == run and self.held[of, start] == WAITING]
        return sorted(mine, key=lambda piece: piece.shard or 0)

    def named(self, run: int) -> set[str]:
        """Items that some node's quota names, for runs of this one's type."""
        kind = self.runs[run]["type"]
        return {
            item for node in self.nodes.values() for task_type, item in node["quotas"] if item and task_type == kind
        }

    def plain(self, run: int) -> bool:
        """None of its items is named by a quota: then its pieces are all alike."""
        return not self.named(run) & set(self.runs[run]["items"])

    def waits(self, run: int) -> bool:
        return any(where == WAITING for (of, _), where in self.held.items() if of == run)

    # What the allocator is asked

    def offer(self, number: int) -> Offer:
        node = self.nodes[number]
        return Offer(
            node=number,
            name=f"n{number}",
            capacity=node["capacity"],
            types=frozenset(node["types"]),
            in_use=dict(self.in_use(number)),
            quotas={key: QuotaRule(*rule) for key, rule in node["quotas"].items()},
            labels=node["labels"],
            online=node["online"],
            draining=node["draining"],
            speeds={task_type: node["seconds"] for task_type in node["types"] if node["seconds"]},
        )

    def demand(self, number: int) -> Demand:
        run = self.runs[number]
        named, items, cut = self.named(number), run["items"], run["cut"]
        pieces = []
        for piece in self.returned(number):
            item = items[piece.start] if piece.stop - piece.start == 1 and items[piece.start] in named else ""
            pieces.append(Piece(piece.start, piece.stop, piece.shard, piece.attempt, item, run["rate"]))
        return Demand(
            run=number,
            type=run["type"],
            cut=cut,
            count=len(items),
            priority=run["priority"],
            served=self.served(number),
            age=run["age"],
            shard_size=run["size"],
            labels=run["labels"],
            returned=pieces,
            marked=[(at, item) for at, item in enumerate(items) if at >= cut and item in named],
            rate=run["rate"],
        )

    def terms(self) -> Terms:
        return Terms(lookahead=LOOKAHEAD, buckets={"r": Bucket(RATE, self.tokens, NOW)})

    # What a node may have

    def eligible(self, number: int, run: int, item: str = "") -> bool:
        """It may take this now, whatever its free slots."""
        node, kind = self.nodes[number], self.runs[run]["type"]
        if not node["online"] or node["draining"] or kind not in node["types"]:
            return False
        if any(node["labels"].get(label) != value for label, value in self.runs[run]["labels"].items()):
            return False
        _, limit = node["quotas"].get((kind, ""), (0, None))
        if limit is not None and self.of_type(number, kind) >= limit:
            return False
        _, limit = node["quotas"].get((kind, item), (0, None)) if item else (0, None)
        return limit is None or self.in_use(number)[kind, item] < limit

    def has_slot(self, number: int) -> bool:
        return self.used(number) < self.nodes[number]["capacity"]

    def below_quota(self, number: int, run: int, item: str = "") -> bool:
        quotas, kind = self.nodes[number]["quotas"], self.runs[run]["type"]
        if item and self.in_use(number)[kind, item] < quotas.get((kind, item), (0, None))[0]:
            return True
        return self.of_type(number, kind) < quotas.get((kind, ""), (0, None))[0]

    def takers(self, run: int, item: str = "", *, quota: bool = False) -> list[int]:
        """Nodes with a slot for this; with ``quota`` those that are to be given it first."""
        if self.runs[run]["rate"] and self.tokens < 1:
            return []
        return [
            number
            for number in self.nodes
            if self.has_slot(number)
            and self.eligible(number, run, item)
            and (not quota or self.below_quota(number, run, item))
        ]

    # What a plan does

    def apply(self, made: Grant) -> None:
        piece = made.piece
        kept = self.pieces[made.run, piece.start]
        assert piece.start < piece.stop <= kept.stop
        for index in range(piece.start, piece.stop):
            assert self.held[made.run, index] == WAITING, f"item {index} of run {made.run} is given out twice"
            self.held[made.run, index] = made.node
        self.pieces[made.run, piece.start] = Piece(
            piece.start, piece.stop, kept.shard, kept.attempt, piece.item, piece.rate
        )
        if piece.stop < kept.stop:
            # Its rate let through only the first part; the rest waits as a piece of its own.
            self.pieces[made.run, piece.stop] = Piece(piece.stop, kept.stop, self.number(), kept.attempt)
        if piece.rate:
            self.tokens -= piece.stop - piece.start

    def cut(self, number: int, piece: Piece) -> None:
        assert piece.start == self.runs[number]["cut"], "what is cut begins where the last cut ended"
        self.runs[number]["cut"] = piece.stop
        self.pieces[number, piece.start] = Piece(piece.start, piece.stop, self.number(), 1)

    def end(self, key: Key, where: str) -> None:
        """A held piece is done, or comes back."""
        piece = self.pieces[key]
        for index in range(piece.start, piece.stop):
            self.held[key[0], index] = where
        if where == DONE:
            del self.pieces[key]
        else:
            self.pieces[key] = Piece(piece.start, piece.stop, piece.shard, piece.attempt + 1)


def check(world: World, made: Grant) -> None:
    """That ``made`` may be granted as the world is now, and that nobody comes before it."""
    node, run, piece = world.nodes[made.node], world.runs[made.run], made.piece
    kind, used = run["type"], world.used(made.node)
    assert world.eligible(made.node, made.run, piece.item), "a limit, a label, a type or a state forbids it"
    if made.phase is Phase.LOOKAHEAD:
        assert node["capacity"] <= used < node["capacity"] + LOOKAHEAD.limit
        assert node["quotas"].get((kind, ""), (0, None))[1] is None, "what is queued would count against the limit"
        assert not piece.rate
    else:
        assert used < node["capacity"], f"node {made.node} has no slot for it"
    if piece.rate:
        assert piece.stop - piece.start <= world.tokens, "more than its rate lets through"
    assert made.reason.startswith(reason(world, made)), made.reason
    for other in world.runs:
        if world.plain(other) and world.waits(other):
            _check_turn(world, made, other)


def reason(world: World, made: Grant) -> str:
    """How its reason must begin, counted here."""
    node, kind, item = world.nodes[made.node], world.runs[made.run]["type"], made.piece.item
    if made.phase is Phase.QUOTA:
        own = node["quotas"].get((kind, item), (0, None))[0] if item else 0
        mine = world.in_use(made.node)[kind, item]
        if mine < own:
            return f"quota {mine + 1} of {own} for {kind}[{item}]"
        return f"quota {world.of_type(made.node, kind) + 1} of {node['quotas'][kind, ''][0]} for {kind}"
    if made.phase is Phase.FREE:
        free = node["capacity"] - world.used(made.node)
        return f"free capacity: {free} of {node['capacity']} slots free"
    ahead = world.used(made.node) - node["capacity"] + 1
    return f"look-ahead: {ahead} queued beyond capacity {node['capacity']}"


def _check_turn(world: World, made: Grant, other: int) -> None:
    """Nothing of run ``other`` should have been granted before ``made``."""
    if made.phase is not Phase.QUOTA:
        assert not world.takers(other, quota=True), f"a quota calls for run {other} first"
    if made.phase is Phase.LOOKAHEAD:
        assert not world.takers(other), f"run {other} waits, and there is a slot for it"
    if other != made.run and turn(world, other) < turn(world, made.run) and made.phase is not Phase.LOOKAHEAD:
        takers = world.takers(other, quota=made.phase is Phase.QUOTA)
        assert not takers, f"run {other} comes before run {made.run}, and nodes {takers} could take it"


def turn(world: World, run: int) -> tuple[int, int, float, int]:
    """Runs are served by priority, then least served first, then the oldest."""
    return -world.runs[run]["priority"], world.served(run), world.runs[run]["age"], run


def check_nothing_left(world: World, plan: Plan) -> None:
    """After ``plan`` was applied: whatever still waits could go nowhere."""
    for run in world.runs:
        named, items = world.named(run), world.runs[run]["items"]
        for piece in world.returned(run):
            item = items[piece.start] if piece.stop - piece.start == 1 and items[piece.start] in named else ""
            assert not world.takers(run, item), f"[{piece.start}, {piece.stop}) of run {run} could have been granted"
        if (at := world.runs[run]["cut"]) < len(items):
            item = items[at] if items[at] in named else ""
            assert not world.takers(run, item), f"item {at} of run {run} could have been granted"
    told = {(refusal.run, refusal.node) for refusal in plan.refusals}
    waiting = {run for run in world.runs if world.waits(run)}
    assert {run for run, _ in told} == (waiting if world.nodes else set()), "who waits is told why, by each node"
    assert all(refusal.code and refusal.reason for refusal in plan.refusals)
