"""Rate limits as they are stored: which there are, what is left of each bucket, and the door to change them.

What is left of a bucket is read and written in the transaction that grants.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.db import IntegrityError
from django.db.models import Q, Sum
from django.utils import timezone

from dispatch import events, rates
from dispatch.models import RateBucket, RateLease, RateLimit
from dispatch.rates import Bucket, Limits, Rate
from dispatch.states import AllocationState
from nodes.executors.base import Pace, shown
from nodes.protocol import Conflict, FieldError, NotFound
from nodes.transactions import write

PATTERN_STARS = 5
MOST_PER_SECOND = 100_000.0
MOST_BURST = 1_000_000
SLICE = 500
"""Rows per transaction where many are removed."""


def limits() -> Limits:
    """All of them as they are now."""
    return Limits((key, Rate(per_second, burst)) for key, per_second, burst in _rows())


def _rows() -> Iterator[tuple[str, float, int]]:
    return RateLimit.objects.order_by("key").values_list("key", "per_second", "burst").iterator()


def check(template: str, params: Any) -> None:
    """Raises FieldError on ``rate_key`` for one that could never mean anything."""
    if not template:
        return
    found = rates.places(template)
    source = params.get("source") if isinstance(params, Mapping) else None
    if "source" in found and not source:
        raise FieldError("rate_key", f"{template!r} names {{source}}, but params has no source")
    if not found and not limits().of(rates.fill(template)):
        names = list(RateLimit.objects.order_by("key").values_list("key", flat=True)[:21])
        known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        raise FieldError("rate_key", f"there is no rate limit {template!r}; there are: {known or 'none yet'}")


def settled(pace: Pace | None, template: Any) -> Any:
    """The rate key of a run with a ``pace`` of its own, for which ``template`` was asked. Raises FieldError."""
    if pace is None or not template:
        return template if pace is None else pace.template
    needed = rates.places(pace.template)
    # Finer keys would each have lanes of their own.
    if isinstance(template, str) and rates.places(template) & rates.OF_ITEMS != needed:
        places = " and ".join(f"{{{place}}}" for place in sorted(needed))
        raise FieldError("rate_key", f"{template!r}: runs of this type are paced by {places}, and so is their key")
    return template


# What is left


def load(keys: Iterable[str], known: Limits, now: dt.datetime, *, lock: bool = False) -> dict[str, Bucket]:
    """The buckets of ``keys``, for each of which there is a limit, filled up to ``now``."""
    wanted = {key: rate for key in keys if (rate := known.of(key)) is not None}
    if not wanted:
        return {}
    rows = RateBucket.objects.filter(key__in=wanted).order_by("key")
    if lock:
        rows = rows.select_for_update()
    found = {row.key: (row.tokens, row.filled_at) for row in rows}
    leased = _leased(wanted)
    # One that nobody has drawn from is full.
    return {
        key: Bucket(rate, *found.get(key, (rate.burst, now)), leased.get(key, 0)).filled(now)
        for key, rate in wanted.items()
    }


def foreseen(keys: Iterable[str], known: Limits, now: dt.datetime, *, before: Limits) -> dict[str, Bucket]:
    """The buckets as ``load`` would find them, if ``known`` were the limits from ``now`` on and a pass had taken back
    what relays have ended; ``before`` are the limits that are stored. Changes nothing."""
    wanted = {key: rate for key in keys if (rate := known.of(key)) is not None}
    rows = {row.key: row for row in RateBucket.objects.filter(key__in=wanted)}
    leased = _leased(wanted)
    # As dispatch.relay.leased takes it back.
    ended = Q(allocation__state=AllocationState.COMPLETED) | Q(allocation__deadline__lt=now)
    over = dict(RateLease.objects.filter(ended, key__in=wanted).order_by().values_list("key").annotate(Sum("tokens")))
    found = {}
    for key, rate in wanted.items():
        left = leased.get(key, 0)
        tokens, at = float(rate.burst), now
        if (row := rows.get(key)) is not None:
            until = Bucket(before.of(key) or rate, row.tokens, row.filled_at, left).filled(now)
            tokens, at = until.tokens, until.at
        found[key] = Bucket(rate, tokens, at, left - over.get(key, 0)).filled(now)
    return found


def _leased(keys: Iterable[str] | None = None) -> dict[str, int]:
    """Key -> tokens that relays have; of all keys unless some are named."""
    rows = RateLease.objects.order_by()
    rows = rows if keys is None else rows.filter(key__in=list(keys))
    return dict(rows.values_list("key").annotate(Sum("tokens")))


def spend(buckets: Mapping[str, Bucket], spent: Mapping[str, int]) -> None:
    """Takes what was given out. Call it in the transaction that loaded ``buckets``."""
    RateBucket.objects.bulk_create(
        [
            RateBucket(key=key, tokens=buckets[key].tokens - count, filled_at=buckets[key].at)
            for key, count in spent.items()
        ],
        update_conflicts=True,
        unique_fields=["key"],
        update_fields=["tokens", "filled_at"],
    )


def left(now: dt.datetime, most: int) -> dict[str, list[tuple[str, float]]]:
    """A limit's key -> (key, tokens now) of up to ``most`` buckets that were drawn from, those with least first."""
    known, leased = limits(), _leased()
    found: dict[str, list[tuple[str, float]]] = {}
    for row in RateBucket.objects.iterator():
        if (holds := known.named(row.key)) is not None:
            name, rate = holds
            bucket = Bucket(rate, row.tokens, row.filled_at, leased.get(row.key, 0)).filled(now)
            found.setdefault(name, []).append((row.key, bucket.tokens))
    return {name: sorted(each, key=lambda pair: (pair[1], pair[0]))[:most] for name, each in found.items()}


def forget(now: dt.datetime) -> int:
    """Removes buckets that are full again or have no limit any more: no row means a full one. Returns how many."""
    known, leased = limits(), _leased()

    def idle(row: RateBucket) -> bool:
        rate = known.of(row.key)
        if row.key in leased:
            return False
        return rate is None or Bucket(rate, row.tokens, row.filled_at).filled(now).tokens >= rate.burst

    found = [row.pk for row in RateBucket.objects.iterator() if idle(row)]
    count = 0
    for first in range(0, len(found), SLICE):
        with write():
            # Looked at again: somebody may have drawn from it since.
            rows = RateBucket.objects.select_for_update().filter(pk__in=found[first : first + SLICE])
            count += RateBucket.objects.filter(pk__in=[row.pk for row in rows if idle(row)]).delete()[0]
    return count


# The door


def set_limit(key: str, per_second: float, burst: int = 1) -> RateLimit:
    """A new limit. Raises FieldError, and Conflict for a key that has one."""
    checked = check_limit(key, per_second, burst)
    try:
        with write():
            settle(timezone.now())
            made = RateLimit.objects.create(**checked)
    except IntegrityError:
        raise Conflict(f"key: there is a rate limit {key!r} already") from None
    events.changed()
    return made


def change_limit(pk: int, **fields: Any) -> RateLimit:
    """``fields``: key, per_second, burst. What is left of buckets is kept. Raises as ``set_limit``, and NotFound."""
    try:
        with write():
            limit = RateLimit.objects.select_for_update().filter(pk=pk).first()
            if limit is None:
                raise NotFound(f"there is no rate limit {pk}")
            now = {"key": limit.key, "per_second": limit.per_second, "burst": limit.burst} | fields
            for name, value in check_limit(**now).items():
                setattr(limit, name, value)
            settle(timezone.now())
            limit.save()
    except IntegrityError:
        raise Conflict(f"key: there is a rate limit {fields['key']!r} already") from None
    events.changed()
    return limit


def remove_limit(pk: int) -> None:
    """What named it is unlimited from now on. Raises NotFound."""
    with write():
        if not RateLimit.objects.filter(pk=pk).delete()[0]:
            raise NotFound(f"there is no rate limit {pk}")
    events.changed()


def settle(now: dt.datetime, keys: Iterable[str] | None = None) -> None:
    """Buckets, all of them unless some are named, are filled at the rate and with the room that they had until ``now``,
    before that changes."""
    known, leased = limits(), _leased(keys)
    rows = RateBucket.objects.select_for_update().order_by("key")
    for row in rows if keys is None else rows.filter(key__in=list(keys)):
        if (rate := known.of(row.key)) is not None:
            bucket = Bucket(rate, row.tokens, row.filled_at, leased.get(row.key, 0)).filled(now)
            RateBucket.objects.filter(pk=row.pk).update(tokens=bucket.tokens, filled_at=bucket.at)


def check_limit(key: Any, per_second: Any, burst: Any) -> dict[str, Any]:
    """What is stored of a limit. Raises FieldError."""
    if not isinstance(key, str) or not 0 < len(key) <= rates.KEY_LIMIT or not key.isprintable():
        raise FieldError("key", f"{shown(key)} is not a text of 1 to {rates.KEY_LIMIT} printable characters")
    if key.count("*") > PATTERN_STARS:
        raise FieldError("key", f"{shown(key)} has more than {PATTERN_STARS} times *")
    number = isinstance(per_second, int | float) and not isinstance(per_second, bool)
    if not number or not math.isfinite(per_second) or not 0.001 <= per_second <= MOST_PER_SECOND:
        raise FieldError("per_second", f"{shown(per_second)} is not a number from 0.001 to {MOST_PER_SECOND:.0f}")
    if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= MOST_BURST:
        raise FieldError("burst", f"{shown(burst)} is not a whole number from 1 to {MOST_BURST}")
    return {"key": key, "per_second": float(per_second), "burst": burst}
