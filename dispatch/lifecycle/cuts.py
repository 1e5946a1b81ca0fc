"""What a pass leaves of the shards that it does not give out whole: rests, and shards that wait for their rate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dispatch.allocator import Grant, Plan
from dispatch.lifecycle.writing import SHARD_COLUMNS
from dispatch.models import Shard
from dispatch.states import ShardState
from nodes.transactions import insert_rows, moment, update_rows


def shorten(grants: Sequence[Grant], now: datetime) -> None:
    """Shards of which only the first part was given out, and are allocated now, end there; the rest waits as shards
    of their own, which have gone through what the whole one has.
    """
    cut = {made.piece.shard: made.piece for made in grants if made.piece.shard is not None and made.piece.rest}
    if not cut:
        return
    columns = ("pk", "run_id", "attempts", "deaths", "losses", "error")
    rests = [
        (run, cut[pk].stop, cut[pk].rest, str(ShardState.PENDING), attempts, deaths, losses, error, None, moment(now))
        for pk, run, attempts, deaths, losses, error in Shard.objects.filter(pk__in=cut).values_list(*columns)
    ]
    update_rows(Shard, ("stop",), [(piece.stop, pk) for pk, piece in cut.items()], [str(ShardState.ALLOCATED)])
    insert_rows(Shard, SHARD_COLUMNS, rests)


def postpone(plan: Plan, now: datetime) -> None:
    """Shards that wait for their rate are not looked at before it may let them through."""
    update_rows(
        Shard,
        ("not_before",),
        [(moment(now + timedelta(seconds=piece.wait)), piece.shard) for piece in plan.later],
        [str(ShardState.PENDING)],
    )
