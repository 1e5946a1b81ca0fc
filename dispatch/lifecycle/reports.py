"""Report: the child's results against the record. What is accepted here is durable when the child gets its receipt."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import TextField
from django.utils import timezone

from dispatch import events, logs, metrics, synclog
from dispatch.deciding import reports
from dispatch.deciding.records import Held
from dispatch.deciding.records import Shard as ShardRecord
from dispatch.deciding.reports import Answer, Batch, Known
from dispatch.items import item_key
from dispatch.lifecycle import copies, found, loading
from dispatch.lifecycle.kept import frozen
from dispatch.lifecycle.writing import write_down
from dispatch.models import Allocation, Origin, Receipt, Shard
from dispatch.plans import pace_key
from dispatch.results import datasets, decoding, spool
from dispatch.states import LIVE
from nodes import executors, failpoints, journal, keys, registry
from nodes.executors.base import Dataset
from nodes.keys import Caller
from nodes.messages import Entry
from nodes.models import Node
from nodes.prepared import Change, Given, Prepared
from nodes.protocol import CascadeError, FieldError, TooLarge, Unprocessable
from nodes.transactions import retried, write


def report(caller: Caller, entries: Sequence[Entry]) -> dict[str, Any]:
    """Takes the results of finished allocations; answers each with its receipt or with why not.

    Per entry a ``status``: 200 accepted (also for a repetition, with the same receipt), 404 not this node's,
    409 the lease was lost, 412 its segment is not here (upload it, report again), 422 contradicts the record.
    """
    results: list[dict[str, Any]] = []
    for some in _one_of_each(entries):
        results += _report(caller, some)
    return {"results": results}


def _one_of_each(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Parts of one allocation one after the other; all the rest together."""
    left = list(entries)
    yield_once = not left  # even of an empty report it is asked whether the key is live
    while left or yield_once:
        yield_once = False
        some = {entry.allocation: entry for entry in reversed(left)}
        yield [entry for entry in left if some[entry.allocation] is entry]
        left = [entry for entry in left if some[entry.allocation] is not entry]


@retried
def _report(caller: Caller, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    # Before the transaction, because unpacking a segment may take long.
    lengths = _segment_lengths(caller, [entry for entry in entries if entry.segment])
    now = timezone.now()
    with write():
        node = keys.check_live(caller)
        _lock_shards([entry.allocation for entry in entries])
        held = loading.held_by(caller.node_id, [entry.allocation for entry in entries])
        parted = {entry.allocation for entry in entries if entry.part}
        left = loading.left_of(each for each in held.values() if each.live and (each.parts or each.id in parted))
        answers = _judged(entries, held, lengths, left)
        above = _from_above(held.values())
        batches = _batches(entries, held, answers, above)
        pairs = [pair for batch in batches for pair in batch.entries]
        twins = loading.twins_of([each.shard for _, each in pairs], but=[each.id for _, each in pairs])
        write_down(reports.accepted(batches, _known(pairs, twins, left), now), now, node)
        _measure(node, pairs, above, now)
        logged = logs.reported(pairs, now)
    failpoints.reach("report.committed")
    results = {pk: answer.as_sent() for pk, answer in answers.items()}
    _note(node.pk, entries, results)
    beaten = _beaten(pairs, twins)
    for node_id, copies_of in beaten.items():
        journal.note(journal.About.WORK, "superseded", node=node_id, count=len(copies_of))
    copies.tell_superseded(beaten)
    if logged:
        events.logged(logged)
    if batches:
        events.reported()
        events.changed()
    return [
        {"allocation": entry.allocation, **results[entry.allocation], **({"part": entry.part} if entry.part else {})}
        for entry in entries
    ]


def _lock_shards(ids: Sequence[int]) -> None:
    """Two copies of a shard may be reported at once: one waits here for the other. (SQLite has one writer anyway.)"""
    if connection.features.has_select_for_update:
        shards = Shard.objects.filter(allocations__in=list(ids)).order_by("pk")
        list(shards.select_for_update(of=("self",)).values_list("pk", flat=True))


def _judged(
    entries: Sequence[Entry], held: Mapping[int, Held], lengths: Lengths, left: Mapping[int, Sequence[ShardRecord]]
) -> dict[int, Answer]:
    earlier = _digests([each.receipt for each in held.values() if each.receipt is not None])
    answers: dict[int, Answer] = {}
    for entry in entries:
        mine = held.get(entry.allocation)
        problem = _problem(entry, mine, lengths) if mine is not None and mine.live and not entry.failure else None
        answers[entry.allocation] = reports.judge(
            entry, mine, earlier.get(entry.allocation, ""), problem, left.get(entry.allocation)
        )
    return answers


def _digests(receipts: Sequence[int]) -> dict[int, str]:
    """Of allocations that were reported before: what their receipts say."""
    if not receipts:
        return {}
    manifests = Receipt.objects.filter(pk__in=set(receipts)).values_list("manifest", flat=True)
    return {each["allocation"]: each["digest"] for manifest in manifests for each in manifest}


_ABOVE = Prepared(lambda: Origin.objects.filter(run__among=Given("runs")).values_list("run", "above"))
_ALIVE = Change(
    lambda: Node.objects.filter(pk=Given("node")), speeds=Given("speeds", TextField()), last_beat_at=Given("now")
)


def _from_above(held: Iterable[Held]) -> dict[int, int]:
    """The runs that came from a node above, and which of its runs they are pieces of."""
    if settings.CASCADE.role != "relay":
        return {}
    return dict(_ABOVE.rows(runs={each.run for each in held}))


def _batches(
    entries: Sequence[Entry], held: Mapping[int, Held], answers: Mapping[int, Answer], above: Container[int]
) -> list[Batch]:
    """What is accepted, by what goes into one receipt."""
    batches: dict[tuple[str, str, int | None], Batch] = {}
    for entry in entries:
        answer = answers[entry.allocation]
        if answer.status == 200 and not answer.repeated:
            mine = held[entry.allocation]
            origin = mine.run if mine.run in above else None
            batch = batches.setdefault((mine.type, entry.segment, origin), Batch(mine.type, entry.segment, [], origin))
            batch.entries.append((entry, mine))
    return list(batches.values())


def _known(
    pairs: Sequence[tuple[Entry, Held]],
    twins: Mapping[int, Sequence[tuple[int, int | None]]],
    left: Mapping[int, Sequence[ShardRecord]],
) -> Known:
    partial = [held for entry, held in pairs if entry.unsaved]
    return Known(
        shards=loading.shards([held.shard for held in partial if held.id not in left]) if partial else {},
        twins={shard: [pk for pk, _ in others] for shard, others in twins.items()},
        limits=loading.limits_of({held.run for _, held in pairs}) if partial or left else {},
        left=left,
        key_of=_key_of,
    )


def _key_of(run: int, index: int) -> str:
    return item_key(frozen(run).slice(index, index + 1)[0])


def _beaten(
    pairs: Sequence[tuple[Entry, Held]], twins: Mapping[int, Sequence[tuple[int, int | None]]]
) -> dict[int, list[int]]:
    """Node -> its copies that were superseded."""
    by_node: dict[int, list[int]] = {}
    for shard in {held.shard for entry, held in pairs if not entry.failure}:
        for pk, node_id in twins.get(shard, ()):
            if node_id is not None:
                by_node.setdefault(node_id, []).append(pk)
    return by_node


def _note(node_id: int, entries: Sequence[Entry], results: Mapping[int, dict[str, Any]]) -> None:
    """Into the sync log: rows that were taken, and how many entries were not, with the first reason."""
    rows = refused = 0
    first = ""
    for entry in entries:
        result = results[entry.allocation]
        if result["status"] != 200:
            refused += 1
            metrics.refused.add(of=str(result["status"]))
            first = first or result["detail"]
        elif "repeated" not in result:
            rows += entry.rows
        else:
            metrics.repeated.add()
    if refused:
        synclog.note(node_id, "report", synclog.PUSH, count=refused, error=first)
    if refused < len(entries):
        synclog.note(node_id, "report", synclog.PUSH, count=rows)


def _measure(node: Node, pairs: Iterable[tuple[Entry, Held]], above: Mapping[int, int], now: Any) -> None:
    """The node's seconds per item; also a sign of life."""
    speeds = reports.measured(node.speeds, pairs, lambda kind, run: pace_key(kind, above.get(run, run)))
    alive = {"last_beat_at": now} if registry.is_online(node, now) else {}  # one that has said good-bye stays offline
    if alive:
        _ALIVE.run(node=node.pk, speeds=json.dumps(speeds), now=now)
    else:
        Node.objects.filter(pk=node.pk).update(speeds=speeds)


# What is in a report


Lengths = dict[tuple[str, str], int | Answer]
"""(segment, task type) -> its number of rows, or the refusal of whoever names it."""


def _segment_lengths(caller: Caller, entries: Sequence[Entry]) -> Lengths:
    if not entries:
        return {}
    mine = Allocation.objects.filter(
        pk__in=[entry.allocation for entry in entries], node_id=caller.node_id, state__in=LIVE
    )
    types = dict(mine.values_list("pk", "type"))
    named = {(entry.segment, types[entry.allocation]) for entry in entries if entry.allocation in types}
    return {(segment, task_type): _rows_in(segment, executors.get(task_type).dataset) for segment, task_type in named}


def _rows_in(sha256: str, dataset: Dataset) -> int | Answer:
    """The length of a segment in the spool, or the refusal of whoever names it."""
    path = spool.path(settings.CASCADE.spool, sha256)
    if not path.exists():
        return Answer(412, f"segment {sha256} is not here; upload it, then report again")
    try:
        return decoding.rows(path, dataset)
    except (FieldError, TooLarge, Unprocessable) as error:
        return Answer(422, str(error))


def _problem(entry: Entry, held: Held, lengths: Lengths) -> Answer | None:
    """What is wrong with the rows and outcomes that ``entry`` brings."""
    try:
        if entry.inline:
            datasets.check_rows(executors.get(held.type).dataset, entry.inline)
        if entry.outcomes:
            found.check(held.type, entry)
    except CascadeError as error:
        return Answer(422, str(error))
    if not entry.segment:
        return None
    length = lengths.get((entry.segment, held.type))
    if length is None:
        return Answer(409, f"allocation {entry.allocation} changed while its segment was read; report again")
    if isinstance(length, Answer):
        return length
    if (last := entry.offset + entry.rows) > length:
        return Answer(422, f"rows {entry.offset} to {last} are not in the segment, which has {length}")
    return None
