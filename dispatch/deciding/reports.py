"""Reports: whether one is taken, and what follows from those that are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from dispatch.attempts import Failure, Limits, backoff
from dispatch.deciding.effects import (
    Accept,
    Advanced,
    Closed,
    CountItems,
    Effect,
    EndAllocations,
    EndRuns,
    Line,
    MoveShards,
    Piece,
    Remember,
    TakeApart,
)
from dispatch.deciding.endings import given_up
from dispatch.deciding.records import DIGEST, Held, Shard
from dispatch.ranges import covers
from dispatch.states import SHARD, AllocationState, ShardState, before
from nodes.messages import Entry

SUPERSEDED = "another node was first with this shard"


class Answer(NamedTuple):
    """To one entry: ``status`` as of HTTP, with the ``detail`` of a refusal or the ``receipt`` of what is accepted."""

    status: int
    detail: str = ""
    receipt: str = ""
    repeated: bool = False

    def as_sent(self) -> dict[str, Any]:
        if self.status != 200:
            return {"status": self.status, "detail": self.detail}
        return {"status": 200, "receipt": self.receipt, **({"repeated": True} if self.repeated else {})}


def judge(
    entry: Entry, held: Held | None, earlier: str, problem: Answer | None, open_: Sequence[Shard] | None = None
) -> Answer:
    """Whether ``entry`` is accepted now. A repetition is answered with the receipt it had.

    ``held`` is the allocation, None where the node has no such one; ``earlier`` the digest it was reported with before;
    ``problem`` what is wrong with the rows, as far as that was looked at. ``open_``: the shards, ascending, that are
    left of an allocation of which parts were accepted, or are to be.
    """
    if held is None:
        return Answer(404, f"this node has no allocation {entry.allocation}")
    if entry.part and entry.part <= held.parts:
        if held.digest_of(entry.part) == entry.digest[:DIGEST]:
            return Answer(200, receipt=entry.digest, repeated=True)
        return Answer(422, f"part {entry.part} of allocation {held.id} was reported before with another content")
    if held.live:
        contradiction = _contradiction(entry, held) if open_ is None else _contradicts(entry, held, open_)
        return (None if entry.failure else contradiction or problem) or Answer(200, receipt=entry.digest)
    if held.receipt is None:
        return Answer(
            409,
            f"allocation {entry.allocation} is {held.state}: its lease was lost, and its items are somebody else's",
        )
    if earlier == entry.digest:
        return Answer(200, receipt=earlier, repeated=True)
    return Answer(422, f"allocation {entry.allocation} was reported before with another content")


def _contradiction(entry: Entry, held: Held) -> Answer | None:
    """Where the report of a live allocation does not say what becomes of each of its items."""
    stop = held.stop if entry.stopped is None else entry.stopped
    if entry.stopped is not None and not held.start < stop < held.stop:
        return Answer(422, f"stopped, {stop}, is not inside of [{held.start}, {held.stop})")
    done = [(first, last) for first, last, _ in entry.ranges]
    if not covers(held.start, stop, done, [error.index for error in entry.errors]):
        return Answer(422, f"ranges and errors must name each item of [{held.start}, {stop}) exactly once, in order")
    return None


def _contradicts(entry: Entry, held: Held, left: Sequence[Shard]) -> Answer | None:
    """The same for an allocation in parts, of which ``left`` is left."""
    if entry.part and entry.part != held.parts + 1:
        return Answer(422, f"part {entry.part} of allocation {held.id} comes before part {held.parts + 1}")
    if entry.stopped is not None and not held.start < entry.stopped < held.stop:
        return Answer(422, f"stopped, {entry.stopped}, is not inside of [{held.start}, {held.stop})")
    at = 0
    for shard in left:
        stop = shard.stop if entry.stopped is None else min(shard.stop, entry.stopped)
        done = [each[:2] for each in entry.ranges if shard.start <= each[0] < shard.stop]
        failed = [error.index for error in entry.errors if shard.start <= error.index < shard.stop]
        at += len(done) + len(failed)
        if entry.part:
            ordered = all(before[1] <= after[0] for before, after in pairwise(done))
            inside = ordered and (not done or done[-1][1] <= stop)
        else:
            inside = (not done and not failed) if stop <= shard.start else covers(shard.start, stop, done, failed)
        if not inside:
            each, often = f"each item of [{shard.start}, {stop})", "at most" if entry.part else "exactly"
            return Answer(422, f"ranges and errors must name {each} {often} once, in order")
    if at < len(entry.ranges) + len(entry.errors):
        return Answer(422, f"names items of allocation {held.id} that are not left to it")
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """Accepted entries that go into one receipt: of one type, with their rows in one place."""

    type: str
    segment: str
    entries: list[tuple[Entry, Held]]
    origin: int | None = None
    """The run, where it came from a node above, which gets these rows."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is there beside the allocations.

    ``shards``: those not done as a whole. ``twins``: shard -> other live allocations of it. ``key_of`` names an item.
    """

    shards: Mapping[int, Shard]
    twins: Mapping[int, Sequence[int]]
    limits: Mapping[int, Limits]
    key_of: Callable[[int, int], str]
    left: Mapping[int, Sequence[Shard]] = field(default_factory=dict)
    """Of allocations in parts: their shards that are left, ascending."""


def accepted(batches: Iterable[Batch], known: Known, now: datetime) -> Iterator[Effect]:
    """What follows from entries that are accepted."""
    batches = list(batches)
    # A failure leaves the shard to its other copy, if it has one.
    won = {held.shard for batch in batches for entry, held in batch.entries if not entry.failure}
    if beaten := tuple(pk for shard in sorted(won) for pk in known.twins.get(shard, ())):
        yield EndAllocations(beaten, AllocationState.SUPERSEDED, SUPERSEDED)
    for batch in batches:
        yield from _receipt(batch, known, now)
    # Only what failed can end a run here; what is done ends it when it is saved.
    if ended := {held.run for batch in batches for entry, held in batch.entries if entry.unsaved}:
        yield EndRuns(frozenset(ended))


def _receipt(batch: Batch, known: Known, now: datetime) -> Iterator[Effect]:
    """One receipt, and the states that follow from it."""
    inline: list[list[Any]] = []
    lines: list[Line] = []
    whole: list[int] = []
    notes: dict[int, str] = {}
    apart: list[TakeApart] = []
    for entry, held in batch.entries:
        offset = entry.offset if entry.segment else len(inline)
        inline += entry.inline or []
        left = known.left.get(held.id)
        among = tuple((shard.start, shard.id) for shard in left) if left else ()
        line = Line(held.id, held.run, held.start, held.shard, entry.digest, offset, entry.ranges, among)
        line = line._replace(nodes=entry.nodes, by=entry.by)
        if batch.origin is not None:
            hopeless = tuple(error.index for error in entry.errors if not error.retry)
            line = line._replace(outcomes=entry.outcomes, hopeless=hopeless)
        lines.append(line)
        if left is not None and not entry.failure:
            for taken in _of_parts(entry, held, left, known, now):
                apart.append(taken)
                if gone := sum(each.stop - each.start for each in taken.pieces if each.state is ShardState.FAILED):
                    yield CountItems(held.run, failed=gone)
            notes[held.id] = _first_error(entry, held)
        elif left is not None:
            notes[held.id] = entry.message or entry.failure
            for shard in left:
                yield given_up(shard, Failure(entry.failure), notes[held.id], known.limits[held.run], now)
        elif not entry.unsaved:
            whole.append(held.shard)
        elif entry.failure:
            notes[held.id] = entry.message or entry.failure
            if held.shard not in known.twins:
                failure = Failure(entry.failure)
                yield given_up(known.shards[held.shard], failure, notes[held.id], known.limits[held.run], now)
        else:
            notes[held.id] = _first_error(entry, held)
            pieces = _pieces(known.shards[held.shard], entry, known, now)
            apart.append(TakeApart(held.shard, held.run, pieces))
            if failed := sum(piece.stop - piece.start for piece in pieces if piece.state is ShardState.FAILED):
                yield CountItems(held.run, failed=failed)
    if whole:
        yield MoveShards(tuple(whole), ShardState.SPOOLED, before(SHARD, ShardState.SPOOLED), {"error": ""})
    closed = tuple(
        Closed(
            held.id,
            AllocationState.COMPLETED if entry.ranges or held.parts else AllocationState.FAILED,
            entry.rows,
            entry.seconds,
            notes.get(held.id, ""),
            entry.log,
            (held.stop if entry.stopped is None else entry.stopped) - held.start,
        )
        for entry, held in batch.entries
        if not entry.part
    )
    advanced = tuple(
        Advanced(held.id, entry.part, entry.rows, sum(stop - start for start, stop, _ in entry.ranges), entry.digest)
        for entry, held in batch.entries
        if entry.part
    )
    yield Accept(batch.type, batch.segment, inline, tuple(lines), closed, tuple(apart), advanced, batch.origin)
    if batch.origin is not None:
        return  # what items found and remember is kept by the node above
    yield Remember(batch.type, tuple((entry, held.run, held.start, held.stop) for entry, held in batch.entries))


def _first_error(entry: Entry, held: Held) -> str:
    if not entry.errors:
        return ""
    return f"{len(entry.errors)} of {held.stop - held.start} items failed; the first: {entry.errors[0].message}"


def _of_parts(entry: Entry, held: Held, left: Sequence[Shard], known: Known, now: datetime) -> Iterator[TakeApart]:
    """What the shards that are left of an allocation in parts fall into."""
    for shard in left:
        mine = replace(
            entry,
            ranges=tuple(each for each in entry.ranges if shard.start <= each[0] < shard.stop),
            errors=tuple(each for each in entry.errors if shard.start <= each.index < shard.stop),
            stopped=None if entry.stopped is None or entry.stopped >= shard.stop else max(entry.stopped, shard.start),
        )
        if entry.part:
            if mine.ranges:
                yield TakeApart(shard.id, held.run, _gaps_kept(shard, mine))
        else:
            yield TakeApart(shard.id, held.run, _pieces(shard, mine, known, now))


def _gaps_kept(shard: Shard, entry: Entry) -> tuple[Piece, ...]:
    """The done ranges, and between them what the allocation still has."""
    state, at = ShardState(shard.state), shard.start
    pieces = []
    for first, last, _ in entry.ranges:
        if at < first:
            pieces.append(Piece(at, first, state, shard.attempts, shard.deaths, shard.losses))
        pieces.append(Piece(first, last, ShardState.SPOOLED))
        at = last
    if at < shard.stop:
        pieces.append(Piece(at, shard.stop, state, shard.attempts, shard.deaths, shard.losses))
    return tuple(pieces)


def _pieces(shard: Shard, entry: Entry, known: Known, now: datetime) -> tuple[Piece, ...]:
    """What such a shard falls into: done ranges, items that failed for good, items to be tried again, and the rest."""
    limits = known.limits[shard.run]
    attempts = shard.attempts + 1
    pieces = [Piece(first, last, ShardState.SPOOLED) for first, last, _ in entry.ranges]
    for error in entry.errors:
        key = known.key_of(shard.run, error.index)
        message = error.message if key in error.message else f"{key}: {error.message}"
        again = error.retry and attempts < limits.max_attempts
        pieces.append(
            Piece(
                error.index,
                error.index + 1,
                ShardState.PENDING if again else ShardState.FAILED,
                attempts,
                error=message,
                not_before=now + timedelta(seconds=backoff(limits, attempts)) if again else None,
            )
        )
    if entry.stopped is not None:
        # Not tried yet, so it goes on with what the whole shard has gone through.
        pieces.append(Piece(entry.stopped, shard.stop, ShardState.PENDING, shard.attempts, shard.deaths, shard.losses))
    return _joined(sorted(pieces))


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbours that are tried again stay one shard; what failed for good stays apart, each with its reason."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        alike = last and last.state == piece.state == ShardState.PENDING and last.attempts == piece.attempts
        if last and alike:
            joined[-1] = last._replace(stop=piece.stop)
        else:
            joined.append(piece)
    return tuple(joined)


PACE = 0.3
"""Weight of the newest measurement in a node's seconds per item."""
RUNS_MEASURED = 32
"""Of so many runs a node keeps the seconds per item."""


def measured(
    speeds: Mapping[str, float], pairs: Iterable[tuple[Entry, Held]], of_run: Callable[[str, int], str]
) -> dict[str, float]:
    """A node's seconds per item after these entries, by its own clock: by type and by run (key: ``of_run``)."""
    sums: dict[str, tuple[float, int]] = {}
    for entry, held in pairs:
        if not entry.failure:
            for key in (held.type, of_run(held.type, held.run)):
                seconds, items = sums.get(key, (0.0, 0))
                stop = held.stop if entry.stopped is None else entry.stopped
                some = entry.part or held.parts
                count = sum(last - first for first, last, _ in entry.ranges) if some else stop - held.start
                if count:
                    sums[key] = seconds + entry.seconds, items + count
    changed = dict(speeds)
    for key, (seconds, items) in sums.items():
        latest = max(seconds / items, 1e-7)
        earlier = changed.get(key)
        changed[key] = latest if earlier is None else earlier + PACE * (latest - earlier)
    of_runs = sorted((key for key in changed if "@" in key), key=lambda key: int(key.rpartition("@")[2]))
    for key in of_runs[:-RUNS_MEASURED]:
        del changed[key]
    return changed
