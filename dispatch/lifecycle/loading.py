"""Rows of the database as the records that decisions are made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet

from dispatch.attempts import Limits
from dispatch.deciding.effects import FROM_NODE
from dispatch.deciding.records import Held, Lease, Patience
from dispatch.deciding.records import Shard as ShardRecord
from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE
from nodes.models import Node
from nodes.prepared import Given, Prepared

SLICE = 5000
"""So many ids a statement names at most."""
HELD = ("pk", "run_id", "shard_id", "node_id", "type", "start", "stop", "state", "receipt_id", "parts", "digests")
SHARD = ("pk", "run_id", "start", "stop", "state", "attempts", "deaths", "losses")
_LIVE_OF = "SELECT shard_id, id, node_id FROM dispatch_allocation WHERE state IN (%s, %s) AND shard_id IN ({})"


_HELD = Prepared(
    lambda: Allocation.objects.select_for_update().filter(pk__among=Given("ids"), node=Given("node")).values_list(*HELD)
)


def held_by(node_id: int, ids: Sequence[int]) -> dict[int, Held]:
    """Those of ``ids`` that this node has or had. Locked."""
    return {row[0]: Held(*row) for row in _HELD.rows(node=node_id, ids=ids)}


def attempts(allocations: QuerySet[Allocation]) -> list[tuple[Held, ShardRecord]]:
    """Each with its shard, or with each of those that are left of one in parts.

    A lock on ``allocations`` is on the shards, too, unless it says otherwise.
    """
    rows = allocations.values_list(*HELD, *(f"shard__{column}" for column in SHARD))
    found = [(Held(*row[: len(HELD)]), ShardRecord(*row[len(HELD) :])) for row in rows]
    if not any(each.parts for each, _ in found):
        return found
    left = left_of([each for each, _ in found if each.parts])
    whole = [(each, shard) for each, shard in found if not each.parts]
    return whole + [(each, shard) for each, _ in found if each.parts for shard in left[each.id]]


def left_of(parted: Iterable[Held]) -> dict[int, list[ShardRecord]]:
    """The shards, ascending, that are still with each of these allocations, of which parts were accepted. Locked.

    No other live allocation is on any of their items: what is in parts is never copied.
    """
    found: dict[int, list[ShardRecord]] = {}
    for each in parted:
        mine = Shard.objects.select_for_update().filter(
            run=each.run, start__gte=each.start, start__lt=each.stop, state__in=FROM_NODE
        )
        found[each.id] = [ShardRecord(*row) for row in mine.order_by("start").values_list(*SHARD)]
    return found


def shards(ids: Iterable[int]) -> dict[int, ShardRecord]:
    """Locked."""
    rows = Shard.objects.select_for_update().filter(pk__in=list(ids)).values_list(*SHARD)
    return {row[0]: ShardRecord(*row) for row in rows}


def twins_of(shards: Sequence[int], *, but: Iterable[int]) -> dict[int, list[tuple[int, int | None]]]:
    """Shard -> its live allocations (id, node) that are not among ``but``; shards without any are left out."""
    twins: dict[int, list[tuple[int, int | None]]] = {}
    left = set(but)
    with connection.cursor() as cursor:
        for at in range(0, len(shards), SLICE):
            some = shards[at : at + SLICE]
            # By hand: asked with every report, it costs the ORM ten times as long as the database.
            cursor.execute(_LIVE_OF.format(", ".join(["%s"] * len(some))), [*map(str, LIVE), *some])
            for shard, pk, node in cursor.fetchall():
                if pk not in left:
                    twins.setdefault(shard, []).append((pk, node))
    return twins


def limits_of(run_ids: Iterable[int]) -> dict[int, Limits]:
    deaths = settings.CASCADE.worker_deaths
    found = Run.objects.filter(pk__in=set(run_ids)).values_list("pk", "max_attempts", "backoff")
    return {pk: Limits(most, backoff, deaths) for pk, most, backoff in found}


def patience_of(node: Node) -> Patience:
    settled = settings.CASCADE
    # Devices beat while they work; other clients that poll rarely say nothing until they have finished.
    device = node.dialect == Node.Dialect.DISTRIBUTION
    return Patience(settled.lease_seconds, settled.patient_seconds, node.patient, device)


def leases(allocations: QuerySet[Allocation], patience: Patience) -> list[Lease]:
    """Of one node. The times of a node that beats decide nothing, so they are not asked for."""
    if not patience.polls_rarely:
        return [Lease(pk) for pk in allocations.values_list("pk", flat=True)]
    columns = ("pk", "delivered", "deadline", "run__timeout", "delivered_at")
    return [Lease(*row) for row in allocations.values_list(*columns)]
