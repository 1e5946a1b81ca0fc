"""Report: the child's results against the record. What is accepted here is durable when the child gets its receipt."""

from __future__ import annotations

import datetime as dt
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import F
from django.utils import timezone

from dispatch import events, synclog
from dispatch.attempts import Failure, Limits, backoff
from dispatch.items import item_key
from dispatch.lifecycle import copies, found, memories
from dispatch.lifecycle.ends import finish, give_up, limits_of, twins_of
from dispatch.lifecycle.kept import frozen
from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.plans import pace_key
from dispatch.ranges import covers
from dispatch.results import datasets, spool
from dispatch.states import ALLOCATION, LIVE, SHARD, AllocationState, ShardState, before
from nodes import executors, keys, registry
from nodes.executors.base import Dataset
from nodes.keys import Caller
from nodes.messages import Entry
from nodes.models import Node
from nodes.protocol import CascadeError
from nodes.transactions import moment, retried, update_rows, write

PACE = 0.3
"""Weight of the newest measurement in a node's seconds per item."""
RUNS_MEASURED = 32
"""Of so many runs a node keeps the seconds per item."""


@dataclass(frozen=True, slots=True)
class _Ticket:
    """An allocation as the record has it."""

    pk: int
    run: int
    shard: int
    type: str
    start: int
    stop: int
    state: str
    receipt: int | None


@dataclass(slots=True)
class _Accepted:
    """Entries that go into one receipt: of one type, with their rows in one place."""

    type: str
    segment: str
    entries: list[tuple[Entry, _Ticket]] = field(default_factory=list)


@retried
def report(caller: Caller, entries: Sequence[Entry]) -> dict[str, Any]:
    """Takes the results of finished allocations; answers each with its receipt or with why not.

    Per entry a ``status``: 200 accepted (also for a repetition, with the same receipt), 404 not this node's,
    409 the lease was lost, 412 its segment is not here (upload it, report again), 422 contradicts the record.
    """
    # Before the transaction, because unpacking a segment may take long.
    lengths = _segment_lengths(caller, [entry for entry in entries if entry.segment])
    now = timezone.now()
    results: dict[int, dict[str, Any]] = {}
    with write():
        node = keys.check_live(caller)
        _lock_shards([entry.allocation for entry in entries])
        tickets = _tickets(caller, [entry.allocation for entry in entries], lock=True)
        batches: dict[tuple[str, str], _Accepted] = {}
        for entry in entries:
            ticket = tickets.get(entry.allocation)
            refusal = _refusal(entry, ticket, lengths)
            if ticket is None or refusal is not None:
                results[entry.allocation] = refusal or {}
                continue
            key = (ticket.type, entry.segment)
            batches.setdefault(key, _Accepted(*key)).entries.append((entry, ticket))
            results[entry.allocation] = {"status": 200, "receipt": entry.digest}
        twins = copies.supersede(*_won(batches.values()), now)
        for batch in batches.values():
            _accept(node, batch, now)
        _measure(node, [pair for batch in batches.values() for pair in batch.entries], now)
        # Only what failed can end a run here; what is done ends it when it is saved.
        finish({ticket.run for batch in batches.values() for entry, ticket in batch.entries if entry.unsaved})
    _note(node.pk, entries, results)
    copies.tell_superseded(twins)
    if batches:
        events.changed()
        events.reported()
    return {"results": [{"allocation": entry.allocation, **results[entry.allocation]} for entry in entries]}


def _won(batches: Iterable[_Accepted]) -> tuple[list[int], list[int]]:
    """(shards, allocations) of what brought a result; a failure leaves the shard to its other copy, if it has one."""
    won = [ticket for batch in batches for entry, ticket in batch.entries if not entry.failure]
    return [ticket.shard for ticket in won], [ticket.pk for ticket in won]


def _note(node_id: int, entries: Sequence[Entry], results: Mapping[int, dict[str, Any]]) -> None:
    """Into the sync log: rows that were taken, and how many entries were not, with the first reason."""
    rows = refused = 0
    first = ""
    for entry in entries:
        result = results[entry.allocation]
        if result["status"] != 200:
            refused += 1
            first = first or result["detail"]
        elif "repeated" not in result:
            rows += entry.rows
    if refused:
        synclog.note(node_id, "report", synclog.PUSH, count=refused, error=first)
    if refused < len(entries):
        synclog.note(node_id, "report", synclog.PUSH, count=rows)


def _lock_shards(ids: Sequence[int]) -> None:
    """Two copies of a shard may be reported at once: one waits here for the other. (SQLite has one writer anyway.)"""
    if connection.features.has_select_for_update:
        shards = Shard.objects.filter(allocations__in=list(ids)).order_by("pk")
        list(shards.select_for_update(of=("self",)).values_list("pk", flat=True))


def _tickets(caller: Caller, ids: Sequence[int], *, lock: bool = False) -> dict[int, _Ticket]:
    mine = Allocation.objects.filter(pk__in=list(ids), node_id=caller.node_id)
    if lock:
        mine = mine.select_for_update()
    columns = mine.values_list("pk", "run_id", "shard_id", "type", "start", "stop", "state", "receipt_id")
    return {row[0]: _Ticket(*row) for row in columns}


def _no(status: int, detail: str) -> dict[str, Any]:
    return {"status": status, "detail": detail}


Lengths = dict[tuple[str, str], int | dict[str, Any]]
"""(segment, task type) -> its number of rows, or the refusal of whoever names it."""


def _segment_lengths(caller: Caller, entries: Sequence[Entry]) -> Lengths:
    if not entries:
        return {}
    tickets = _tickets(caller, [entry.allocation for entry in entries])
    lengths: Lengths = {}
    for entry in entries:
        ticket = tickets.get(entry.allocation)
        if ticket is not None and ticket.state in LIVE and (key := (entry.segment, ticket.type)) not in lengths:
            lengths[key] = _segment_rows(entry.segment, executors.get(ticket.type).dataset)
    return lengths


def _segment_rows(sha256: str, dataset: Dataset) -> int | dict[str, Any]:
    """The length of a segment in the spool, or the refusal of whoever names it."""
    path = spool.path(settings.CASCADE.spool, sha256)
    if not path.exists():
        return _no(412, f"segment {sha256} is not here; upload it, then report again")
    try:
        return int(datasets.decode(path, dataset).num_rows)
    except CascadeError as error:
        return _no(422, str(error))


def _refusal(entry: Entry, ticket: _Ticket | None, lengths: Lengths) -> dict[str, Any] | None:
    """Why this entry is not accepted now, or None. A repetition is answered with the receipt it had."""
    if ticket is None:
        return _no(404, f"this node has no allocation {entry.allocation}")
    if ticket.state in LIVE:
        return None if entry.failure else _contradiction(entry, ticket, lengths)
    if ticket.receipt is not None:
        manifest = Receipt.objects.values_list("manifest", flat=True).get(pk=ticket.receipt)
        earlier = next((each["digest"] for each in manifest if each["allocation"] == entry.allocation), "")
        if earlier == entry.digest:
            return {"status": 200, "receipt": earlier, "repeated": True}
        return _no(422, f"allocation {entry.allocation} was reported before with another content")
    return _no(
        409, f"allocation {entry.allocation} is {ticket.state}: its lease was lost, and its items are somebody else's"
    )


def _contradiction(entry: Entry, ticket: _Ticket, lengths: Lengths) -> dict[str, Any] | None:
    """What in the report of a live allocation cannot be."""
    done = [(first, last) for first, last, _ in entry.ranges]
    stop = ticket.stop if entry.stopped is None else entry.stopped
    if entry.stopped is not None and not ticket.start < stop < ticket.stop:
        return _no(422, f"stopped, {stop}, is not inside of [{ticket.start}, {ticket.stop})")
    if not covers(ticket.start, stop, done, [error.index for error in entry.errors]):
        return _no(422, f"ranges and errors must name each item of [{ticket.start}, {stop}) exactly once, in order")
    if entry.inline:
        try:
            datasets.check_rows(executors.get(ticket.type).dataset, entry.inline)
        except CascadeError as error:
            return _no(422, str(error))
    if entry.outcomes:
        try:
            found.check(ticket.type, entry)
        except CascadeError as error:
            return _no(422, str(error))
    if entry.segment:
        length = lengths.get((entry.segment, ticket.type))
        if length is None:
            return _no(409, f"allocation {entry.allocation} changed while its segment was read; report again")
        if isinstance(length, dict):
            return length
        if entry.offset + entry.rows > length:
            last = entry.offset + entry.rows
            return _no(422, f"rows {entry.offset} to {last} are not in the segment, which has {length}")
    return None


def _accept(node: Node, batch: _Accepted, now: dt.datetime) -> None:
    """One receipt for ``batch``, and the states that follow from it."""
    manifest: list[dict[str, Any]] = []
    inline: list[list[Any]] = []
    partial: list[tuple[Entry, _Ticket]] = []
    whole: list[int] = []
    for entry, ticket in batch.entries:
        offset = entry.offset if entry.segment else len(inline)
        inline += entry.inline or []
        manifest.append(
            {
                "allocation": ticket.pk,
                "run": ticket.run,
                "start": ticket.start,
                "node": node.name,
                "offset": offset,
                "digest": entry.digest,
                # The shard is filled in below where a partly failed one is taken apart.
                "ranges": [[first, last, rows, ticket.shard] for first, last, rows in entry.ranges],
            }
        )
        if entry.unsaved:
            partial.append((entry, ticket))
        else:
            whole.append(ticket.shard)
    Shard.objects.filter(pk__in=whole, state__in=before(SHARD, ShardState.SPOOLED)).update(
        state=ShardState.SPOOLED, error="", updated_at=now
    )
    notes = _take_apart(partial, {each["allocation"]: each for each in manifest}, now)
    rows = sum(entry.rows for entry, _ in batch.entries)
    receipt = Receipt.objects.create(
        node=node,
        type=batch.type,
        created_at=now,
        manifest=manifest,
        payload=zlib.compress(json.dumps(inline, separators=(",", ":")).encode(), 1) if inline else None,
        segment=batch.segment,
        rows=rows,
        saved_at=None if any(entry.ranges for entry, _ in batch.entries) else now,
        purged_at=None if any(entry.ranges for entry, _ in batch.entries) else now,
    )
    _close(batch, receipt.pk, notes, now)
    _beside_rows(batch, now)


def _beside_rows(batch: _Accepted, now: dt.datetime) -> None:
    """What items found and what they remember counts with the rows that they brought."""
    executor = executors.get(batch.type)
    if executor.remembers:
        reported = (memories.Reported(entry, each.run, each.start, each.stop) for entry, each in batch.entries)
        memories.keep(batch.type, reported, now)
    if executor.grows:
        for run in {ticket.run for _, ticket in batch.entries}:
            found.take(batch.type, run, [entry for entry, ticket in batch.entries if ticket.run == run])


def _close(batch: _Accepted, receipt: int, notes: Mapping[int, str], now: dt.datetime) -> None:
    """Allocations end with their own numbers."""
    at = moment(now)
    update_rows(
        Allocation,
        ("state", "receipt_id", "rows", "seconds", "finished_at", "error", "log", "progress"),
        [
            (
                str(AllocationState.COMPLETED if entry.ranges else AllocationState.FAILED),
                receipt,
                entry.rows,
                entry.seconds,
                at,
                notes.get(ticket.pk, ""),
                entry.log,
                (ticket.stop if entry.stopped is None else entry.stopped) - ticket.start,
                ticket.pk,
            )
            for entry, ticket in batch.entries
        ],
        [str(state) for state in before(ALLOCATION, AllocationState.COMPLETED)],
    )


def _take_apart(
    partial: Sequence[tuple[Entry, _Ticket]], manifest: Mapping[int, dict[str, Any]], now: dt.datetime
) -> dict[int, str]:
    """Shards that failed, in part or all of them, or ended early. Returns notes on failures; fills in the manifest."""
    if not partial:
        return {}
    notes: dict[int, str] = {}
    shards = Shard.objects.select_for_update().in_bulk([ticket.shard for _, ticket in partial])
    twins = twins_of([ticket.shard for _, ticket in partial], but=[ticket.pk for _, ticket in partial])
    limits = limits_of({ticket.run for _, ticket in partial})
    for entry, ticket in partial:
        shard = shards[ticket.shard]
        if entry.failure:
            notes[ticket.pk] = entry.message or entry.failure
            if ticket.shard not in twins:
                give_up(shard, Failure(entry.failure), notes[ticket.pk], limits[ticket.run])
            continue
        if entry.errors:
            first = entry.errors[0].message
            of = ticket.stop - ticket.start
            notes[ticket.pk] = f"{len(entry.errors)} of {of} items failed; the first: {first}"
        pieces = _pieces(shard, entry, limits[ticket.run], now)
        # The row that was the whole shard becomes its first piece, so that [0, count) stays covered throughout.
        head, *rest = pieces
        Shard.objects.filter(pk=shard.pk).update(
            start=head.start, stop=head.stop, state=head.state, attempts=head.attempts, not_before=head.not_before,
            error=head.error, updated_at=now,
        )  # fmt: skip
        head.pk = shard.pk
        Shard.objects.bulk_create(rest)
        by_start = {piece.start: piece.pk for piece in pieces}
        for each in manifest[ticket.pk]["ranges"]:
            each[3] = by_start[each[0]]
        failed = sum(piece.stop - piece.start for piece in pieces if piece.state == ShardState.FAILED)
        Run.objects.filter(pk=ticket.run).update(failed=F("failed") + failed)
    return notes


def _pieces(shard: Shard, entry: Entry, limits: Limits, now: dt.datetime) -> list[Shard]:
    """What such a shard falls into: done ranges, items that failed for good, items to be tried again, and the rest."""
    attempts = shard.attempts + 1
    again = attempts < limits.max_attempts
    pieces = [
        Shard(run_id=shard.run_id, start=first, stop=last, state=ShardState.SPOOLED, updated_at=now)
        for first, last, _ in entry.ranges
    ]
    keys = frozen(shard.run_id)
    for error in entry.errors:
        key = item_key(keys.slice(error.index, error.index + 1)[0])
        message = error.message if key in error.message else f"{key}: {error.message}"
        piece = Shard(
            run_id=shard.run_id,
            start=error.index,
            stop=error.index + 1,
            attempts=attempts,
            error=message,
            updated_at=now,
        )
        if error.retry and again:
            piece.state = ShardState.PENDING
            piece.not_before = now + dt.timedelta(seconds=backoff(limits, attempts))
        else:
            piece.state = ShardState.FAILED
        pieces.append(piece)
    if entry.stopped is not None:
        # Not tried yet, so it goes on with what the whole shard has gone through.
        rest = Shard(run_id=shard.run_id, start=entry.stopped, stop=shard.stop, updated_at=now)
        rest.attempts, rest.deaths, rest.losses = shard.attempts, shard.deaths, shard.losses
        pieces.append(rest)
    pieces.sort(key=lambda piece: piece.start)
    return _joined(pieces)


def _joined(pieces: Sequence[Shard]) -> list[Shard]:
    """Neighbours that are tried again stay one shard; what failed for good stays apart, each with its reason."""
    joined: list[Shard] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        alike = last and last.state == piece.state == ShardState.PENDING and last.attempts == piece.attempts
        if last and alike and last.stop == piece.start:
            last.stop = piece.stop
        else:
            joined.append(piece)
    return joined


def _measure(node: Node, pairs: Sequence[tuple[Entry, _Ticket]], now: dt.datetime) -> None:
    """The node's seconds per item of each type and run, by its own clock; also counts as a sign of life."""
    sums: dict[str, tuple[float, int]] = {}
    for entry, ticket in pairs:
        if not entry.failure:
            for key in (ticket.type, pace_key(ticket.type, ticket.run)):
                seconds, items = sums.get(key, (0.0, 0))
                stop = ticket.stop if entry.stopped is None else entry.stopped
                sums[key] = seconds + entry.seconds, items + stop - ticket.start
    speeds = dict(node.speeds)
    for key, (seconds, items) in sums.items():
        measured = max(seconds / items, 1e-7)
        earlier = speeds.get(key)
        speeds[key] = measured if earlier is None else earlier + PACE * (measured - earlier)
    of_runs = sorted((key for key in speeds if "@" in key), key=lambda key: int(key.rpartition("@")[2]))
    for key in of_runs[:-RUNS_MEASURED]:
        del speeds[key]
    alive = {"last_beat_at": now} if registry.is_online(node, now) else {}  # one that has said good-bye stays offline
    Node.objects.filter(pk=node.pk).update(speeds=speeds, **alive)
