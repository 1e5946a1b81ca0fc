"""The lifecycle in plain dictionaries: where each item of each run is, and what each allocation is worth.

An item is in one dictionary once, so it cannot be lost or counted twice here; the database is compared with that after
every step. Time is seconds on the parent's clock. Grants are not foretold: what the allocator chose is checked to be
allowed (``granted``), and is the model's truth from then on.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

LEASE, OFFER, BEAT, OFFLINE = 30.0, 15.0, 5.0, 45.0
"""Seconds, as the settings' defaults."""
WORKER_DEATHS, LOSSES = 2, 6
"""Workers that a shard may kill, and leases that may be lost with it, before it is cut in half."""
LIVE = ("pending", "executing")
ENDED = ("saved", "failed", "quarantined", "cancelled")

Key = tuple[int, int]
"""(run, index of an item)."""


class Refused(Exception):
    """The verb must say no, and nothing changes."""


class Model:
    def __init__(self) -> None:
        self.now = 0.0
        self.nodes: dict[int, dict[str, Any]] = {}
        """id -> capacity, limit (of echo; None for none), beat_at, draining, keys {id: is it live}"""
        self.runs: dict[int, dict[str, Any]] = {}
        """id -> count, max_attempts, backoff, size"""
        self.items: dict[Key, dict[str, Any]] = {}
        """state, attempts, deaths, losses, not_before"""
        self.allocations: dict[int, dict[str, Any]] = {}
        """id -> run, start, stop, node, state, delivered, deadline, digest (of what was accepted)"""
        self.waiting: list[dict[str, Any]] = []
        """Accepted and not saved: allocation, run, done (indexes), rows (texts), segment"""
        self.rows: Counter[tuple[int, str, int]] = Counter()
        """(run, text of a row, allocation) -> how often it is saved."""

    # What is asked

    def live(self, node: int) -> list[int]:
        return [pk for pk, each in self.allocations.items() if each["node"] == node and each["state"] in LIVE]

    def executing(self, node: int) -> list[int]:
        return [pk for pk in self.live(node) if self.allocations[pk]["state"] == "executing"]

    def undelivered(self, node: int) -> list[int]:
        return [pk for pk in sorted(self.live(node)) if not self.allocations[pk]["delivered"]]

    def keys(self, pk: int) -> list[Key]:
        """The items of an allocation."""
        each = self.allocations[pk]
        return [(each["run"], index) for index in range(each["start"], each["stop"])]

    def twins(self, pk: int) -> list[int]:
        """Other live allocations of the same items."""
        mine = self.allocations[pk]
        return [
            other
            for other, each in self.allocations.items()
            if other != pk and each["state"] in LIVE and (each["run"], each["start"]) == (mine["run"], mine["start"])
        ]

    def counts(self, run: int) -> Counter[str]:
        return Counter(item["state"] for (of, _), item in self.items.items() if of == run)

    def state(self, run: int) -> str:
        """Of a run, from its items alone."""
        counts = self.counts(run)
        if sum(counts[state] for state in ENDED) < self.runs[run]["count"]:
            return "running"
        if counts["cancelled"]:
            return "cancelled"
        if counts["saved"] == self.runs[run]["count"]:
            return "completed"
        return "partial" if counts["saved"] else "failed"

    def online(self, node: int) -> bool:
        return self.now - self.nodes[node]["beat_at"] <= OFFLINE

    def takes(self, node: int) -> bool:
        """It has a slot, and may have one more of echo."""
        about = self.nodes[node]
        fresh = self.now - about["beat_at"] <= min(LEASE, OFFLINE) and not self.cooling(node)
        most = about["capacity"] if about["limit"] is None else min(about["capacity"], about["limit"])
        return fresh and not about["draining"] and len(self.live(node)) < most

    def cooling(self, node: int) -> bool:
        """It lost its work twice in a row or more: it waits for a sixth of a lease, then twice as long, and so on."""
        times, last = self.nodes[node].get("lost", (0, 0.0))
        return times >= 2 and self.now < last + min(LEASE / 6 * 2.0 ** (times - 2), 10 * LEASE)

    def lost(self, ids: list[int]) -> None:
        """The nodes of these allocations have just lost their work; ten leases' time without that clears a node."""
        for node in {self.allocations[pk]["node"] for pk in ids}:
            times, last = self.nodes[node].get("lost", (0, 0.0))
            self.nodes[node]["lost"] = (times + 1 if times and self.now - last < 10 * LEASE else 1, self.now)

    def grantable(self) -> list[Key]:
        return [
            key
            for key, item in self.items.items()
            if item["state"] == "pending" and item["not_before"] <= self.now and self.state(key[0]) == "running"
        ]

    def check_key(self, node: int, key: int) -> None:
        if not self.nodes[node]["keys"][key]:
            raise Refused("its key was revoked")

    # Granted, delivered, taken back

    def submitted(self, run: int, count: int, **about: Any) -> None:
        self.runs[run] = {"count": count, **about}
        for index in range(count):
            self.items[run, index] = _fresh()

    def granted(self, pk: int, run: int, start: int, stop: int, node: int) -> None:
        """The allocator gave this to ``node``: it may have it, and nobody else has it."""
        about, waiting = self.nodes[node], self.grantable()
        assert not about["draining"], f"node {node} gets nothing new"
        assert self.now - about["beat_at"] <= LEASE, f"node {node} is not there"
        assert len(self.live(node)) < about["capacity"], f"node {node} has no slot"
        assert about["limit"] is None or len(self.live(node)) < about["limit"], f"node {node} is at its limit"
        assert start < stop <= start + self.runs[run]["size"]
        for index in range(start, stop):
            assert (run, index) in waiting, f"item {index} of run {run} is not there to be given out"
            self.items[run, index].update(state="held", not_before=0.0)
        self._allocate(pk, run, start, stop, node)

    def copied(self, pk: int, of: int, node: int) -> None:
        first = self.allocations[of]
        assert first["state"] in LIVE
        assert not self.twins(of)
        assert first["node"] != node
        self._allocate(pk, first["run"], first["start"], first["stop"], node)

    def _allocate(self, pk: int, run: int, start: int, stop: int, node: int) -> None:
        about = {"run": run, "start": start, "stop": stop, "node": node, "state": "pending", "delivered": False}
        self.allocations[pk] = {**about, "deadline": self.now + OFFER, "digest": None}

    def deliver(self, node: int, ids: list[int]) -> None:
        """Their leases begin; as many as the node has slots are executing."""
        for pk in ids:
            if pk in self.undelivered(node):
                self.allocations[pk].update(delivered=True, deadline=self.now + LEASE)
        self.start(node, ids)

    def start(self, node: int, ids: list[int]) -> None:
        executing = self.executing(node)
        fresh = [pk for pk in ids if pk not in executing][: max(self.nodes[node]["capacity"] - len(executing), 0)]
        for pk in fresh:
            if pk in self.live(node) and self.allocations[pk]["delivered"]:
                self.allocations[pk]["state"] = "executing"

    def beat(self, node: int, held: list[int], running: list[int], *, hello: bool) -> list[int]:
        """What it must drop."""
        self.nodes[node]["beat_at"] = self.now
        if hello:
            lost = [pk for pk in self.live(node) if self.allocations[pk]["delivered"] and pk not in held]
            self.unsuccessful(lost, "expired", "lost")
            self.lost(lost)
        for pk in held:
            if pk in self.live(node):
                self.allocations[pk].update(delivered=True, deadline=self.now + LEASE)
        self.start(node, running)
        return [pk for pk in held if pk not in self.live(node)]

    def disconnected(self, node: int) -> None:
        about = self.nodes[node]
        about["beat_at"] = min(about["beat_at"], self.now - (min(LEASE, OFFLINE) - 2 * BEAT))
        for pk in self.undelivered(node):
            self.allocations[pk]["deadline"] = min(self.allocations[pk]["deadline"], self.now + 2 * BEAT)

    def forgive(self) -> None:
        for each in self.allocations.values():
            if each["state"] in LIVE:
                each["deadline"] = self.now + (LEASE if each["delivered"] else OFFER)

    def suspects_itself(self) -> bool:
        """Two nodes or more, all silent for a lease's time and lost within one: it is the parent for a while."""
        heard = [node["beat_at"] for node in self.nodes.values() if self.now - node["beat_at"] < 3 * LEASE]
        together = len(heard) >= 2 and max(heard) - min(heard) <= LEASE
        return together and LEASE <= self.now - max(heard) < 2 * LEASE

    def expire(self) -> int:
        if self.suspects_itself():
            return 0
        live = [pk for pk, each in self.allocations.items() if each["state"] in LIVE]
        overdue = [pk for pk in live if self.allocations[pk]["deadline"] < self.now]
        leases = [pk for pk in overdue if self.allocations[pk]["delivered"]]
        self.unsuccessful(leases, "expired", "lost")
        self.lost(leases)
        self.unsuccessful([pk for pk in overdue if pk not in leases], "expired", "returned")
        return len(overdue)

    # Attempts that came to nothing

    def unsuccessful(self, ids: list[int], state: str, why: str) -> None:
        for pk in ids:
            self.allocations[pk]["state"] = state
        for first in {(self.allocations[pk]["run"], self.allocations[pk]["start"]): pk for pk in ids}.values():
            if not self.twins(first):
                self.give_up(first, why)

    def give_up(self, pk: int, why: str) -> None:
        """One attempt at these items came to nothing: once more, in halves with a last chance, or never."""
        items = [self.items[key] for key in self.keys(pk)]
        run, one = self.runs[self.allocations[pk]["run"]], dict(items[0])
        state, wait = "pending", 0.0
        if why in ("error", "timeout"):
            one["attempts"] += 1
            if one["attempts"] < run["max_attempts"]:
                wait = run["backoff"] * 2.0 ** (one["attempts"] - 1)
            elif why == "timeout" and len(items) > 1:
                one["attempts"] = run["max_attempts"] - 1
            else:
                state = "failed"
        elif why in ("crash", "lost"):
            what, most = ("deaths", WORKER_DEATHS) if why == "crash" else ("losses", LOSSES)
            one[what] += 1
            if one[what] >= most and len(items) > 1:
                one[what] = most - 1
            elif one[what] >= most:
                state = "quarantined"
        for item in items:
            item.update(one, state=state, not_before=self.now + wait if wait else 0.0)

    def released(self, node: int, ids: list[int], *, unfetched: bool = False) -> list[int]:
        """Handed back by the node, or, ``unfetched``, taken back from it."""
        mine = self.undelivered(node) if unfetched else [pk for pk in ids if pk in self.live(node)]
        self.unsuccessful(mine, "cancelled", "returned")
        return mine

    # Reports

    def judge(self, node: int, pk: int, digest: str) -> tuple[int, bool]:
        """Status of a report that is well-formed, and whether it repeats an earlier one."""
        mine = self.allocations.get(pk)
        if mine is None or mine["node"] != node:
            return 404, False
        if mine["state"] in LIVE:
            return 200, False
        if mine["digest"] is None:
            return 409, False
        return (200, True) if mine["digest"] == digest else (422, False)

    def reported(
        self, pk: int, digest: str, done: list[int], failed: list[int], rest: list[int], rows: list[str], **how: Any
    ) -> None:
        """Accepted: items ``done`` with their ``rows``, ``failed`` (``how``: retry), and ``rest``, not begun."""
        mine = self.allocations[pk]
        mine.update(state="completed" if done else "failed", digest=digest)
        for twin in self.twins(pk):
            self.allocations[twin]["state"] = "superseded"
        run = self.runs[mine["run"]]
        for index in done:
            whole = not failed and not rest
            item = self.items[mine["run"], index]
            item.update({} if whole else _fresh(), state="spooled")
        for index in failed:
            item = self.items[mine["run"], index]
            attempts = item["attempts"] + 1
            again = how["retry"] and attempts < run["max_attempts"]
            wait = run["backoff"] * 2.0 ** (attempts - 1)
            item.update(_fresh(), attempts=attempts, state="pending" if again else "failed")
            item["not_before"] = self.now + wait if again and wait else 0.0
        for index in rest:
            self.items[mine["run"], index]["state"] = "pending"
        if done:
            self.waiting.append(
                {"allocation": pk, "run": mine["run"], "done": done, "rows": rows, "segment": how["segment"]}
            )

    def failed(self, pk: int, digest: str, kind: str) -> None:
        self.allocations[pk].update(state="failed", digest=digest)
        if not self.twins(pk):
            self.give_up(pk, kind)

    # Saving, cancel, retry

    def saved(self) -> None:
        """Everything that waits is in the result store, once."""
        for entry in self.waiting:
            self.rows.update((entry["run"], text, entry["allocation"]) for text in entry["rows"])
            for index in entry["done"]:
                self.items[entry["run"], index]["state"] = "saved"
        self.waiting = []

    def damaged(self, segment: str) -> None:
        """It cannot be read: what was in it is done again."""
        for entry in [entry for entry in self.waiting if entry["segment"] == segment]:
            for index in entry["done"]:
                self.items[entry["run"], index]["state"] = "pending"
            self.waiting.remove(entry)

    def cancel(self, run: int) -> None:
        if self.state(run) != "running":
            raise Refused("it has ended")
        for each in self.allocations.values():
            if each["run"] == run and each["state"] in LIVE:
                each["state"] = "cancelled"
        for (of, _), item in self.items.items():
            if of == run and item["state"] in ("pending", "held"):
                item["state"] = "cancelled"

    def retry(self, run: int) -> int:
        lost = [
            item for (of, _), item in self.items.items() if of == run and item["state"] in ("failed", "quarantined")
        ]
        if self.state(run) not in ("partial", "failed") or not lost:
            raise Refused("nothing to be retried")
        for item in lost:
            item.update(_fresh())
        return len(lost)


def _fresh() -> dict[str, Any]:
    return {"state": "pending", "attempts": 0, "deaths": 0, "losses": 0, "not_before": 0.0}
