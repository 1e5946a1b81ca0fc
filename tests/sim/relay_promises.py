"""What must hold at a relay: it never takes more slots than it was granted, and what it was told is passed on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dispatch.relay import place
from dispatch.states import LIVE, AllocationState, ShardState
from tests.sim.promises import Broken, Promises

if TYPE_CHECKING:
    from tests.sim.trees import Tree

_ORIGINS = "SELECT run_id, parent, allocation, start, slots, closed_at IS NULL FROM dispatch_origin"
LOST = (AllocationState.EXPIRED, AllocationState.CANCELLED, AllocationState.SUPERSEDED)


class RelayPromises(Promises):
    """As ``Promises``, and those to the server above."""

    _world: Tree
    _server: Any

    def look(self) -> None:
        shards, allocations = self._shards, self._allocations
        origins = {row[0]: row for row in self._read(_ORIGINS)}
        self._passed_on = set(origins)
        super().look()
        self._within(origins, allocations)
        for pk, (_, run, start, stop, state) in self._shards.items():
            was = shards.get(pk)
            if state == ShardState.SAVED and run in origins and (was is None or was[4] != state):
                self._is_above(origins[run], start, stop)

    def _within(self, origins: dict[int, Any], before: dict[int, Any]) -> None:
        """What is granted here takes no more slots than were granted above, nor what has begun."""
        mine = [row for row in self._allocations.values() if row[8] in LIVE and row[1] in origins]
        fresh = {row[1] for row in mine if row[0] not in before}
        begun = {
            row[1] for row in mine if row[8] == "executing" and (row[0] not in before or before[row[0]][8] != row[8])
        }
        if not fresh and not begun:
            return
        executing: Counter[int] = Counter()
        held: Counter[tuple[int, int]] = Counter()
        for row in mine:
            held[row[1], row[3]] += row[9]
            executing[row[1]] += row[9] if row[8] == "executing" else 0
        for run in begun:
            if executing[run] > origins[run][4]:
                raise Broken(f"4: {executing[run]} slots execute run {run}; {origins[run][4]} were granted above")
        if not fresh:
            return
        capacity = self._slots()
        running: Counter[int] = Counter()
        for (run, node), slots in held.items():
            running[run] += min(slots, capacity[node])
        for run in fresh:
            if running[run] > origins[run][4]:
                raise Broken(f"4: {running[run]} slots are taken by run {run}; {origins[run][4]} were granted above")
        if place.here.capacity is not None and running.total() > place.here.capacity:
            raise Broken(
                f"4: {running.total()} slots are taken for the server above, which allows {place.here.capacity}"
            )
        for kind, most in place.here.limits.items():
            of = sum(slots for run, slots in running.items() if self._runs[run][8] == kind)
            if of > most and any(self._runs[run][8] == kind for run in fresh):
                raise Broken(f"4: {of} slots are taken by {kind} for the server above, which allows {most}")

    def _slots(self) -> dict[int, int]:
        """Node -> its slots: of a relay so many as it has told of."""
        told = "min(capacity, coalesce(json_extract(facts, '$.slots'), 0))"
        return dict(self._read(f"SELECT id, iif(role = 'relay', {told}, capacity) FROM nodes_node").fetchall())

    def _is_above(self, origin: Any, start: int, stop: int) -> None:
        """What is done with here has been accepted there."""
        run, parent, allocation, first, *_ = origin
        there = self._world.by_id[parent].promises.accepted.get(allocation, set())
        if lost := set(range(first + start, first + stop)) - there:
            raise Broken(
                f"1: items {sorted(lost)} of allocation {allocation} are passed on by run {run}, and not above"
            )

    # In the end

    def unfinished(self) -> str:
        if told := super().unfinished():
            return told
        open_ = self._read("SELECT run_id, allocation FROM dispatch_origin WHERE closed_at IS NULL").fetchall()
        return f"{open_} are not settled above" if open_ else ""

    def settle(self) -> None:
        if self._server in list(self._world._connected()):
            super().settle()
            self._kept()

    def _came(self, way: str, node: str) -> bool:
        return f"/{way}".endswith(f"/{self._server.name}/{node}")

    def _kept(self) -> None:
        """What a node below was told to be durable has gone up, or was not wanted any more there."""
        if self.damaged:
            return
        origins = {row[0]: row for row in self._read(_ORIGINS)}
        saved: dict[int, set[int]] = {run: set() for run in origins}
        for _, run, start, stop, state in self._shards.values():
            if run in origins and state == ShardState.SAVED:
                saved[run].update(range(start, stop))
        for allocation, ranges in self.acknowledged.items():
            run = self._allocations[allocation][1]
            if run not in origins:
                continue
            _, parent, above, start, *_ = origins[run]
            there = self._server.above.promises
            if self._world.by_id[parent] is not self._server.above:
                continue
            # It may be there although the answer that says so never came.
            taken = {index - start for index in there.accepted.get(above, ())}
            told = {index for first, last, *_ in ranges for index in range(first, last)}
            if not (lost := told - saved[run] - taken):
                continue
            row = there._allocations[above]
            if row[8] not in LOST:
                raise Broken(
                    f"1: items {sorted(lost)} of run {run} were acknowledged to allocation {allocation}; "
                    f"above, allocation {above} is {row[8]}, without them"
                )
