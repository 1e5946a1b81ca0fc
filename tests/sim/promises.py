"""What must hold, looked at after every commit of the control database, and of everything in the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from django.conf import settings

from dispatch import states
from dispatch.items import item_key
from dispatch.lifecycle import kept
from dispatch.states import LIVE, RUN_ENDED, AllocationState, RunState, ShardState, run_end
from tests.sim.clock import Thread
from tests.sim.work import found_by

if TYPE_CHECKING:
    from tests.sim.parent import Parent
    from tests.sim.world import World

ON_IT = (ShardState.ALLOCATED, ShardState.EXECUTING)
COUNTED = (ShardState.SAVED, ShardState.FAILED, ShardState.QUARANTINED, ShardState.CANCELLED)
_RUNS = (
    "SELECT id, state, count, cut, saved, failed, quarantined, cancelled, type, ended_at IS NOT NULL FROM dispatch_run"
)
_SHARDS = "SELECT id, run_id, start, stop, state FROM dispatch_shard ORDER BY run_id, start"
_ALLOCATIONS = (
    "SELECT id, run_id, shard_id, node_id, type, item, start, stop, state, slots, parts FROM dispatch_allocation"
)
_RECEIPTS = "SELECT id, node_id, manifest FROM dispatch_receipt WHERE id > ? ORDER BY id"


class Broken(Exception):
    """A promise, and how it was broken."""


class Promises:
    """Those of one server. Keeps what its database said after the last commit."""

    def __init__(self, world: World, server: Parent) -> None:
        self._world = world
        self._server = server
        self._read = server.machine.database.execute
        self._changes = -1
        self._runs: dict[int, tuple[Any, ...]] = {}
        self._shards: dict[int, tuple[Any, ...]] = {}
        self._allocations: dict[int, tuple[Any, ...]] = {}
        self._draining: set[int] = set()
        self._receipt = 0
        self.accepted: dict[int, set[int]] = {}
        """Allocation -> its items that receipts have, with rows or without."""
        self.acknowledged: dict[int, list[list[int]]] = {}
        """Allocation whose child has heard a yes -> the ranges of its report."""
        self.damaged = False
        """Spooled bytes were spoiled: what was acknowledged may be run again, and fail then."""
        self.commits = 0
        self._passed_on: set[int] = set()
        """Runs of a relay whose rows are kept above."""

    def heard(self, verb: str, body: dict[str, Any], reply: dict[str, Any]) -> None:
        """A child has its answer. A receipt is a promise."""
        if verb != "report":
            return
        ranges = {(each["allocation"], each.get("part", 0)): each.get("ranges", []) for each in body["reports"]}
        for result in reply.get("results", []):
            if result["status"] == 200:
                key = result["allocation"], result.get("part", 0)
                self.acknowledged.setdefault(result["allocation"], []).extend(ranges[key])

    # After each commit

    def look(self) -> None:
        """Raises Broken."""
        self.commits += 1
        self._of_whom()
        runs = {row[0]: row for row in self._read(_RUNS)}
        shards = {row[0]: row for row in self._read(_SHARDS)}
        allocations = {row[0]: row for row in self._read(_ALLOCATIONS)}
        self._moved(runs, shards, allocations)
        self._covered(runs, shards)
        self._at_work(shards, allocations)
        self._granted(allocations)
        self._received(allocations)
        self._runs, self._shards, self._allocations = runs, shards, allocations

    def _of_whom(self) -> None:
        acting = getattr(Thread.current, "acting", None)
        if acting is None:
            return
        caller, verb, body = acting
        revoked = self._read("SELECT revoked_at FROM nodes_accesskey WHERE id = ?", [caller.key_id]).fetchone()[0]
        if revoked is not None:
            raise Broken(f"5: a {verb} of node {caller.node_id} was committed, whose key was revoked before")
        if verb == "beat" and body.get("hello"):
            held = self._read(
                "SELECT id FROM dispatch_allocation WHERE node_id = ? AND delivered AND state IN (?, ?)",
                [caller.node_id, *map(str, LIVE)],
            )
            if lost := [pk for (pk,) in held if pk not in body["held"]]:
                raise Broken(f"4: node {caller.node_id} began a session without {lost}, which still hold its slots")

    def _moved(self, runs: Any, shards: Any, allocations: Any) -> None:
        """States move along the tables only, and nothing that counts goes back."""
        for what, before, now, at, table, enum in (
            ("run", self._runs, runs, 1, states.RUN, RunState),
            ("shard", self._shards, shards, 4, states.SHARD, ShardState),
            ("allocation", self._allocations, allocations, 8, states.ALLOCATION, AllocationState),
        ):
            for pk, old in before.items():
                if pk not in now:
                    raise Broken(f"2: {what} {pk} is gone")
                was, became = old[at], now[pk][at]
                if was != became and enum(became) not in table[enum(was)]:  # type: ignore[index]
                    raise Broken(f"states: {what} {pk} went from {was} to {became}")

    def _covered(self, runs: Any, shards: Any) -> None:
        """Shards and the uncut rest partition [0, N), and the run's numbers are theirs."""
        at: dict[int, int] = dict.fromkeys(runs, 0)
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for pk, run, start, stop, state in shards.values():
            if start != at[run] or stop <= start:
                raise Broken(f"2: run {run}: shard {pk} is [{start}, {stop}), and the one before it ends at {at[run]}")
            at[run] = stop
            counts[run][state] += stop - start
        for run, state, count, cut, *told, _, ended in runs.values():
            if at[run] != cut or cut > count:
                raise Broken(f"2: run {run}: shards end at {at[run]}, its cut is {cut}, its items are {count}")
            if told != (found := [counts[run][each] for each in COUNTED]):
                raise Broken(
                    f"2: run {run} counts {told} of saved, failed, quarantined, cancelled; shards have {found}"
                )
            ends = run_end(count, *told)
            growing = ends is not None and state == RunState.RUNNING and self._is_growing(run)
            if (ends or RunState.RUNNING) != state and not growing:
                raise Broken(f"2: run {run} is {state}; by its items it is {ends or 'running'}")
            if ended != (state in RUN_ENDED):
                raise Broken(f"2: run {run} is {state}; ended_at says otherwise")

    def _is_growing(self, run: int) -> bool:
        return bool(self._read("SELECT growing FROM dispatch_run WHERE id = ?", [run]).fetchone()[0])

    def _at_work(self, shards: Any, allocations: Any) -> None:
        """A shard under way has one live allocation, or a second copy beside it, of the same items; others none. Of an
        allocation in parts what is under way in its range is left."""
        held: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        parted: list[tuple[Any, ...]] = []
        for row in allocations.values():
            if row[8] in LIVE and row[10]:
                parted.append(row)
            elif row[8] in LIVE:
                held[row[2]].append(row)
        for pk, run, start, stop, state in shards.values():
            mine = held.pop(pk, [])
            if state in ON_IT and (of := [row for row in parted if row[1] == run and row[6] <= start < row[7]]):
                if len(of) + len(mine) > 1:
                    raise Broken(f"2: shard {pk} of run {run} is with {len(of) + len(mine)}, one of them in parts")
                if stop > of[0][7]:
                    raise Broken(f"3: shard {pk} is [{start}, {stop}), longer than its allocation {of[0][0]} in parts")
                continue
            if state in ON_IT:
                if not 1 <= len(mine) <= 2:
                    raise Broken(f"2: shard {pk} of run {run} is {state} with {len(mine)} live allocations")
                if len({row[3] for row in mine}) < len(mine):
                    raise Broken(f"4: shard {pk} of run {run} is twice with node {mine[0][3]}")
                if any(row[6:8] != (start, stop) for row in mine):
                    raise Broken(f"3: shard {pk} is [{start}, {stop}); allocations are {[row[6:8] for row in mine]}")
            elif mine:
                raise Broken(f"3: shard {pk} of run {run} is {state}, and allocation {mine[0][0]} of it is live")

    def _granted(self, allocations: Any) -> None:
        """Limits hold for each node that was given something, or began something, in this commit."""
        before = self._allocations
        fresh = [row for pk, row in allocations.items() if pk not in before]
        begun = {row[3] for pk, row in allocations.items() if row[8] == "executing" and _state(before, pk) != row[8]}
        nodes = {
            row[0]: row[1:] for row in self._read("SELECT id, capacity, draining, active FROM nodes_node").fetchall()
        }
        draining, self._draining = self._draining, {pk for pk, row in nodes.items() if row[1] or not row[2]}
        if not fresh and not begun:
            return
        live = [row for row in allocations.values() if row[8] in LIVE]
        on: Counter[int] = Counter()
        wide: set[int] = set()
        for row in live:
            on[row[3]] += row[9]
            if row[9] > 1:
                wide.add(row[3])
        executing = Counter(row[3] for row in live if row[8] == "executing")
        for node in {row[3] for row in fresh}:
            # What is queued ahead for a relay may be as wide as that is.
            most = nodes[node][0] * (2 if node in wide else 1) + settings.CASCADE.lookahead_limit
            if on[node] > most:
                raise Broken(f"4: node {node} has {on[node]} slots of live allocations; its window is {most}")
            if node in draining:
                raise Broken(f"4: node {node} got work while it drains")
        for node in begun:
            if executing[node] > nodes[node][0]:
                raise Broken(f"4: node {node} executes {executing[node]} with a capacity of {nodes[node][0]}")
        limits = self._read('SELECT node_id, task_type, item, "limit" FROM nodes_quota WHERE "limit" IS NOT NULL')
        for node, task_type, item, limit in limits.fetchall():
            of = [row for row in live if row[3] == node and row[4] == task_type and (not item or row[5] == item)]
            slots = sum(row[9] for row in of)
            if slots > limit and any(row[0] not in before for row in of):
                raise Broken(f"4: node {node} was given {slots} of {task_type}[{item}]; its limit is {limit}")

    def _received(self, allocations: Any) -> None:
        """What is accepted is a live allocation's, of this node, once, and about its items."""
        for pk, node, manifest in self._read(_RECEIPTS, [self._receipt]).fetchall():
            self._receipt = pk
            for entry in json.loads(manifest):
                allocation = entry["allocation"]
                was = self._allocations.get(allocation)
                if was is None or was[8] not in LIVE:
                    raise Broken(f"3: a report of allocation {allocation} is accepted, which is {was and was[8]}")
                if was[3] != node:
                    raise Broken(f"3: a report of allocation {allocation} of node {was[3]} is accepted from {node}")
                if allocation in self.accepted and not allocations[allocation][10]:
                    raise Broken(f"1: allocation {allocation} has a second receipt, {pk}")
                items = self.accepted.setdefault(allocation, set())
                for first, last, _, shard in entry["ranges"]:
                    if not was[6] <= first < last <= was[7]:
                        raise Broken(f"1: allocation {allocation} reports [{first}, {last}) of [{was[6]}, {was[7]})")
                    if twice := items.intersection(range(first, last)):
                        raise Broken(f"1: allocation {allocation} has brought {sorted(twice)} twice; receipt {pk}")
                    items.update(range(first, last))
                    if (
                        shard not in self._shards
                        and not self._read("SELECT 1 FROM dispatch_shard WHERE id = ?", [shard]).fetchone()
                    ):
                        raise Broken(f"1: receipt {pk} names shard {shard}, which is not there")

    def _items_of(self, run: int) -> list[str]:
        frozen = kept.frozen(run)
        count = self._read("SELECT count FROM dispatch_run WHERE id = ?", [run]).fetchone()[0]
        return [item_key(item) for item in frozen.slice(0, count)]

    # Whether it has come to rest

    def keyed(self) -> set[str]:
        """Nodes with a key that counts."""
        found = self._read(
            "SELECT DISTINCT name FROM nodes_node JOIN nodes_accesskey ON node_id = nodes_node.id "
            "WHERE revoked_at IS NULL"
        )
        return {name for (name,) in found.fetchall()}

    def unfinished(self) -> str:
        """What goes on here, in words."""
        runs = self._read("SELECT id, state, count, saved FROM dispatch_run WHERE state = 'running'").fetchall()
        receipts = self._read("SELECT id FROM dispatch_receipt WHERE saved_at IS NULL").fetchall()
        if not runs and not receipts:
            return ""
        shards = self._read(
            "SELECT run_id, start, stop, state, attempts, deaths, losses FROM dispatch_shard "
            "WHERE state IN ('pending', 'allocated', 'executing', 'spooled')"
        ).fetchall()
        return f"runs {runs} have not ended; open shards are {shards}; receipts {receipts} are not saved"

    # In the end

    def settle(self) -> None:
        """Everything has come to rest. Raises Broken."""
        stored = self._server.store.stored()
        self._saved_once(stored.rows, stored.ledger)
        self._grown()
        for table in ("dispatch_run WHERE task_id IS NOT NULL AND fire_time IS NOT NULL",):
            for task, fire, count in self._read(
                f"SELECT task_id, fire_time, count(*) FROM {table} GROUP BY task_id, fire_time"
            ):
                if count > 1:
                    raise Broken(f"8: task {task} has {count} runs for {fire}")

    def _saved_once(self, rows: Any, ledger: Any) -> None:
        items_of = self._items_of
        by_ledger: dict[tuple[int, int], int] = {}
        for run, start, stop, allocation in ledger:
            for index in range(start, stop):
                if (run, index) in by_ledger:
                    raise Broken(f"1: item {index} of run {run} is in the ledger twice")
                by_ledger[run, index] = allocation
        saved = {
            (run, index)
            for _, run, start, stop, state in self._shards.values()
            if state == ShardState.SAVED and run not in self._passed_on
            for index in range(start, stop)
        }
        if lost := saved - by_ledger.keys():
            raise Broken(f"1: items {sorted(lost)[:5]} are saved by their shards, and not in the ledger")
        if more := by_ledger.keys() - saved:
            raise Broken(f"1: items {sorted(more)[:5]} are in the ledger, and not saved by their shards")
        expected: dict[str, int] = {}
        for run, index in by_ledger:
            key = items_of(run)[index]
            for number in range(self._world.rows):
                expected[f"{run}/{key}/{number}"] = by_ledger[run, index]
        # Relays number runs by themselves.
        found = Counter(f"{run}/{uid.partition('/')[2]}" for uid, _, _, run, _, _ in rows)
        for uid, count in found.items():
            if count > 1:
                raise Broken(f"1: row {uid} is saved {count} times")
        if found.keys() != expected.keys():
            raise Broken(
                f"1: rows lost: {sorted(expected.keys() - found.keys())[:5]}; "
                f"rows that should not be there: {sorted(found.keys() - expected.keys())[:5]}"
            )
        for uid, maker, way, run, lineage, node in rows:
            ledger_says = expected[f"{run}/{uid.partition('/')[2]}"]
            here = "/" not in node
            if lineage != ledger_says or (here and (maker != lineage or not uid.startswith(f"{run}/"))):
                raise Broken(f"1: row {uid} is of allocation {maker}; lineage says {lineage}, the ledger {ledger_says}")
            if not self._came(way, node):
                raise Broken(f"1: row {uid} of allocation {lineage} came by {way}; its lineage says {node}")
        if self.damaged:
            return
        for allocation, ranges in self.acknowledged.items():
            run = self._allocations[allocation][1]
            if run in self._passed_on:
                continue
            for first, last, *_ in ranges:
                for index in range(first, last):
                    if by_ledger.get((run, index)) != allocation:
                        raise Broken(f"1: item {index} of run {run} was acknowledged to {allocation}, and is not saved")

    def _came(self, way: str, node: str) -> bool:
        """Whether a row that came by ``way``, seen from the root, may say that it is of ``node``."""
        return way == node

    def _grown(self) -> None:
        """Runs that grow have each item once, and all that saved items have found."""
        for run, row in self._runs.items():
            if run in self._passed_on:
                continue
            items = self._items_of(run)
            if len(items) != len(set(items)):
                raise Broken(f"2: run {run} has an item twice")
            if row[8] != "sim_finds" or row[1] == RunState.CANCELLED:
                continue
            done = [
                items[index]
                for _, of, start, stop, state in self._shards.values()
                if of == run and state == ShardState.SAVED
                for index in range(start, stop)
            ]
            if lost := {key for item in done for key in found_by(item)} - set(items):
                raise Broken(f"2: run {run} does not have {sorted(lost)[:5]}, which was found")


def _state(rows: dict[int, tuple[Any, ...]], pk: int) -> str | None:
    return rows[pk][8] if pk in rows else None
