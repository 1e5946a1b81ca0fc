"""How a run would be cut and where it would start, before it is submitted: the allocator's own answer for a run that is
not stored. Changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.conf import settings

from dispatch import lifecycle, whatif
from dispatch.explaining import supposed
from dispatch.lifecycle import kept
from dispatch.lifecycle.submit import fitting_size
from dispatch.ranges import MOST_ITEMS
from dispatch.whatif import Answer, Changes

FIRST = 10
"""Shards whose nodes are told."""


def preview(made: lifecycle.Draft) -> dict[str, Any]:
    """``items``: how many it begins with; ``shards``: how many these make where their size is given, else None;
    ``words``: both for people; ``what_if``: as ``supposed.told`` has it, of this run. Raises TooMany."""
    run = made.run
    run.shard_size = fitting_size(run)
    with kept.supposed(run):
        answer = whatif.suppose(Changes(draft=run))
        told = supposed.told(answer, most=FIRST, run=run.pk)
    size = min(run.shard_size, MOST_ITEMS)
    return {
        "items": run.count,
        "expected": run.expected if run.growing else None,
        "shards": -(-run.count // size) if size else None,
        "words": _cut(run.count, size),
        "first": _sizes(answer, run.pk),
        "what_if": told,
    }


def _cut(count: int, size: int) -> str:
    if size:
        shards, last = -(-count // size), count % size
        whole = f"{shards:,} shard{'' if shards == 1 else 's'} of {min(size, count):,} item{'' if size == 1 else 's'}"
        return f"{whole}, the last one of {last:,}" if last and shards > 1 else whole
    seconds = settings.CASCADE.target_seconds
    if count == 1:
        return "1 shard of 1 item"
    most = f"; at most {MOST_ITEMS:,} items each" if count > MOST_ITEMS else ""
    return (
        "shards sized for each node: single items first, to measure, then what takes about "
        f"{seconds:g} s there, and less towards the end{most}"
    )


def _sizes(answer: Answer, run: int) -> str:
    """Of what the next pass would give out: 3 shards of 1 item, 1 shard of 4 items."""
    sizes = Counter(made.piece.stop - made.piece.start for made in answer.plan.grants if made.run == run)
    return ", ".join(
        f"{shards} shard{'' if shards == 1 else 's'} of {size} item{'' if size == 1 else 's'}"
        for size, shards in sorted(sizes.items())
    )
