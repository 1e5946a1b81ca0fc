"""Submit: a checked definition becomes a run with frozen items."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import IntegrityError

from dispatch import balancers, buckets, events, packages
from dispatch.items import freeze, item_key
from dispatch.lifecycle.origins import FIELDS, items_from, items_of
from dispatch.models import WORK_FIELDS, Fallback, Hands, Run, SeenItem, Source, Task, TypeSettings
from dispatch.ranges import MOST_ITEMS
from nodes import executors, journal
from nodes.executors.base import Item, shown
from nodes.models import Node
from nodes.protocol import Conflict, FieldError, Unprocessable
from nodes.transactions import write

KEY_LIMIT = 200
SLICE = 500
SPELLED = ("priority", "timeout", "max_attempts", "backoff", "island_seconds")
"""Fields whose bounds are declared by the model's validators."""


def submit(
    *,
    type: str,
    items: Sequence[Item],
    params: Mapping[str, Any] | None = None,
    name: str = "",
    task: Task | None = None,
    split: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    max_attempts: int | None = None,
    backoff: float = 1.0,
    shard_size: int = 0,
    balancer: str | None = None,
    labels: Mapping[str, str] | None = None,
    affinity: Mapping[str, str] | None = None,
    rate_key: str = "",
    fallback: str = Fallback.ALLOWED,
    island_seconds: float | None = None,
    fire_time: dt.datetime | None = None,
    submitted_by: str = "",
    idempotency_key: str | None = None,
    first: Callable[[], None] | None = None,
) -> Run:
    """A new run over ``items``; the same one again for an ``idempotency_key`` seen before.

    ``split`` asks the executor to cut the items finer ("year"). Times in seconds. Parameters that are not given are
    those of the type's settings, then the executor's own defaults; priority, timeout, max_attempts and balancer are
    then those of this server's settings. ``fire_time`` is the time of its task's schedule that the run is for:
    IntegrityError where that has one already. ``first`` is called in the transaction that inserts the run; what it
    raises calls both off.
    Raises FieldError for anything that could never be run, Unprocessable for a key used with another submission.
    """
    made = draft(
        type=type,
        items=items,
        params=params,
        name=name,
        split=split,
        priority=priority,
        timeout=timeout,
        max_attempts=max_attempts,
        backoff=backoff,
        shard_size=shard_size,
        balancer=balancer,
        labels=labels,
        affinity=affinity,
        rate_key=rate_key,
        fallback=fallback,
        island_seconds=island_seconds,
    )
    run, executor = made.run, executors.get(type)
    run.task, run.fire_time, run.submitted_by = task, fire_time, submitted_by[:150]
    if idempotency_key is not None:
        run.idempotency_key = check_text("Idempotency-Key", idempotency_key, 160)
        # The key remembers what it stood for, so that a reuse by mistake does not pass for a repetition.
        work = {name: getattr(run, name) for name in WORK_FIELDS}
        meant = {name: value for name, value in work.items() if name != "island_seconds" or value is not None}
        run.fingerprint = hashlib.sha256(bytes(run.items) + json.dumps(meant, sort_keys=True).encode()).hexdigest()
        if (earlier := _submitted_before(run)) is not None:
            return earlier
    # Not part of what an idempotency key stands for: it depends on who is there.
    run.shard_size = fitting_size(run)
    try:
        with write():
            if first is not None:
                first()
            run.save(force_insert=True)
            journal.record(journal.About.RUN, "submitted", run=run.pk, count=run.count, text=run.submitted_by)
            if executor.grows or run.growing:
                SeenItem.objects.bulk_create(seen(run.pk, made.items), SLICE)
    except IntegrityError:
        # Two submissions raced with one key: the other one's run is the run. (Or the fire time has its run already.)
        if idempotency_key is None or (earlier := _submitted_before(run)) is None:
            raise
        return earlier
    events.changed()
    if run.growing:
        events.plan()
    return run


@dataclass(frozen=True)
class Draft:
    """A run as it would be submitted, not stored, and the ``items`` that it begins with."""

    run: Run
    items: list[Item]


def draft(
    *,
    type: str,
    items: Sequence[Item],
    params: Mapping[str, Any] | None = None,
    name: str = "",
    split: str = "",
    priority: int | None = None,
    timeout: float | None = None,
    max_attempts: int | None = None,
    backoff: float = 1.0,
    shard_size: int = 0,
    balancer: str | None = None,
    labels: Mapping[str, str] | None = None,
    affinity: Mapping[str, str] | None = None,
    rate_key: str = "",
    fallback: str = Fallback.ALLOWED,
    island_seconds: float | None = None,
) -> Draft:
    """What ``submit`` would store of these. Raises FieldError as it does; changes nothing."""
    executor = executors.get(type)
    checked = executor.check(with_settings(type, params or {}))
    frozen = check_items(type, items, dict(checked), split)
    frozen = executor.begin(resolved(executor, frozen), checked)
    most = settings.CASCADE.max_items
    if not 0 < len(frozen) <= most:
        # A run of none would never end.
        raise FieldError("params", f"these make {len(frozen)} items; 1 to {most} are allowed (CASCADE_MAX_ITEMS)")
    expected = executor.expected(frozen, checked)
    named = {"priority": priority, "timeout": timeout, "max_attempts": max_attempts, "balancer": balancer}
    work: dict[str, Any] = {
        "type": type,
        "params": checked,
        **defaults(),
        **{name: value for name, value in named.items() if value is not None},
        "backoff": backoff,
        "shard_size": shard_size,
        "labels": {} if labels is None else labels,
        "affinity": {} if affinity is None else affinity,
        "rate_key": buckets.settled(executor.pace(checked), rate_key),
        "fallback": fallback,
        "island_seconds": island_seconds,
    }
    check_work(work)
    run = Run(
        **work,
        items=freeze(frozen),
        count=len(frozen),
        name=check_text("name", name, 200),
        hands=hands_of(executor, frozen, checked),
        expected=expected,
        growing=expected is not None and expected > len(frozen),
    )
    return Draft(run, frozen)


def fitting_size(run: Run) -> int:
    """Items per shard of a run that is about to be submitted, by who is there for it; 0: sized for each node."""
    return run.shard_size or packages.fair_size(run.type, run.count, run.labels)


def seen(run_id: int, items: Iterable[Item]) -> list[SeenItem]:
    """What is noted of ``items`` so that a run that grows has none of them twice."""
    return [SeenItem(run_id=run_id, digest=digest) for digest in dict.fromkeys(map(digest_of, items))]


def digest_of(item: Item) -> bytes:
    return hashlib.sha256(item_key(item).encode()).digest()[:16]


def resolved(executor: type[executors.Executor], items: Sequence[Item]) -> list[Item]:
    """``items``, those that name a source by its key with what the source says of itself."""
    kind = executor.source_kind
    keys = {item for item in items if isinstance(item, str)} if kind else set()
    known: dict[str, tuple[str, str]] = {}
    for some in _slices(sorted(keys)):
        rows = Source.objects.filter(kind=kind, key__in=some).exclude(address="")
        known.update((key, (address, name)) for key, address, name in rows.values_list("key", "address", "name"))
    return [executor.resolve(item, *known[item]) if isinstance(item, str) and item in known else item for item in items]


def hands_of(executor: type[executors.Executor], items: Sequence[Item], params: Mapping[str, Any]) -> str:
    """Which nodes can run ``items``, beside having their type."""
    if executor.outside(items, params) and (
        # One item without an address must not keep the others waiting for clients that do not exist here.
        all(executor.outside([item], params) for item in items)
        or Node.objects.filter(active=True, dialect__in=Node.PATIENT).exists()
    ):
        return Hands.OUTSIDE
    talks = executor.grows or executor.remembers or executor.reads(items[:1], params) is not None
    return Hands.LINE if talks else ""


def _slices(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(keys), SLICE):
        yield keys[at : at + SLICE]


def defaults() -> dict[str, Any]:
    """What work has that says nothing of it, by this server's settings."""
    settled = settings.CASCADE
    return {
        "priority": settled.default_priority,
        "timeout": settled.default_timeout,
        "max_attempts": settled.default_max_attempts,
        "balancer": settled.default_balancer,
    }


def submit_task(task: Task, **given: Any) -> Run:
    """A run of ``task``; ``given`` overrides what it says, as in ``submit``, and params are laid over its own.

    Its items are its own, or else the active sources of its kind. Raises as ``submit``, and Conflict for a task that
    is not active.
    """
    if not task.active:
        raise Conflict(f"task {task.name!r} is not active")
    own: dict[str, Any] = {field: getattr(task, field) for field in WORK_FIELDS}
    named = {name: given.pop(name) for name in FIELDS if name in given}
    items = items_from(named) if any(named.values()) else items_of(task) if "items" not in given else []
    own |= {"name": task.name, "items": items}
    return submit(**{**own, **given, "params": {**task.params, **(given.get("params") or {})}}, task=task)


def with_settings(task_type: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` over the settings that this parent has for the type."""
    if not isinstance(params, Mapping):
        raise FieldError("params", f"{shown(params)} is not an object")
    settled = TypeSettings.objects.filter(type=task_type).values_list("params", flat=True).first()
    return executors.get(task_type).merged(settled or {}, params)


def _submitted_before(run: Run) -> Run | None:
    """The run that has this one's key already. Raises Unprocessable where that one is another submission."""
    earlier = Run.objects.filter(idempotency_key=run.idempotency_key).defer("items").first()
    if earlier is not None and earlier.fingerprint != run.fingerprint:
        raise Unprocessable(
            f"Idempotency-Key {run.idempotency_key!r} was used for another submission, run {earlier.pk}"
        )
    return earlier


def check_work(work: Mapping[str, Any]) -> None:
    """The bounds of everything but type, params and items. Raises FieldError."""
    for field in SPELLED:
        value = work[field]
        column = Run._meta.get_field(field)
        if value is None and getattr(column, "null", False):
            continue
        whole = field in ("priority", "max_attempts")
        if (
            isinstance(value, bool)
            or not isinstance(value, int if whole else (int, float))
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise FieldError(field, f"{value!r} is not a {'whole ' if whole else ''}number")
        for validator in getattr(column, "validators", ()):
            if isinstance(validator, MinValueValidator | MaxValueValidator):
                try:
                    validator(value)
                except ValidationError as error:
                    raise FieldError(field, f"{value}: {error.messages[0]}") from None
    size = work["shard_size"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MOST_ITEMS:
        raise FieldError("shard_size", f"{size!r} is not a whole number from 0 (automatic) to {MOST_ITEMS}")
    name = check_text("balancer", work["balancer"], 200)
    if name not in (allowed := [*balancers.names(), *settings.CASCADE.balancers]):
        known = ", ".join(allowed)
        raise FieldError("balancer", f"{name!r} is not one of: {known}; dotted paths are allowed by CASCADE_BALANCERS")
    balancers.get(name)
    for field in ("labels", "affinity"):
        if not isinstance(work[field], Mapping):
            raise FieldError(field, f"{shown(work[field])} is not an object of texts")
        for label, value in work[field].items():
            check_text(field, label, 100)
            check_text(f"{field}.{label}", value, 200)
    buckets.check(check_text("rate_key", work["rate_key"], 200), work.get("params"))
    if work["fallback"] not in Fallback.values:
        raise FieldError("fallback", f"{shown(work['fallback'])} is not one of: {', '.join(Fallback.values)}")


def check_items(type: str, items: Any, params: dict[str, Any], split: str = "") -> list[Item]:
    """``items`` after ``split``, each one checked by its executor. Raises FieldError naming the first bad one."""
    if not isinstance(items, list | tuple):
        raise FieldError("items", f"{shown(items)} is not a list")
    executor = executors.get(type)
    if not items and not executor.items_optional:
        raise FieldError("items", "is empty; a run needs at least one item")
    for at, item in enumerate(items):
        check_item(executor, item, f"items[{at}]")
    most = settings.CASCADE.max_items
    if len(items) > most:
        raise FieldError("items", f"{len(items)} items; at most {most} are allowed (CASCADE_MAX_ITEMS)")
    if not split:
        return list(items)
    expanded = executor.expand(items, params, check_text("split", split, 40))
    if not expanded:
        raise FieldError("split", f"{split!r} leaves no item")
    if len(expanded) > most:
        raise FieldError(
            "split", f"{split!r} gives {len(expanded)} items; at most {most} are allowed (CASCADE_MAX_ITEMS)"
        )
    return expanded


def check_item(executor: type[executors.Executor], item: Any, name: str) -> None:
    """Raises FieldError on ``name`` for what cannot be an item of this type."""
    if isinstance(item, bool) or not isinstance(item, str | int | float | dict):
        raise FieldError(name, f"{shown(item)} is not a text, a number or an object")
    if isinstance(item, float) and not math.isfinite(item):
        raise FieldError(name, f"{item!r} is not a finite number")
    try:
        text = json.dumps(item, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        raise FieldError(name, "is not plain JSON") from None
    if len(text) > 10_000:
        raise FieldError(name, f"has {len(text)} characters; at most 10000 are allowed")
    # JSON writes NUL as an escape whatever the options.
    check_text(name, text.replace("\\u0000", "\x00"), 10_000)
    key = item_key(item)
    if not key or len(key) > KEY_LIMIT:
        raise FieldError(name, f"its key {shown(key)} must have 1 to {KEY_LIMIT} characters")
    check_text(name, key, KEY_LIMIT)
    try:
        executor.check_item(item)
    except ValueError as error:
        raise FieldError(name, str(error)) from None


def check_text(field: str, value: Any, limit: int) -> str:
    """``value`` as a storable text of at most ``limit`` characters. Raises FieldError."""
    if not isinstance(value, str):
        raise FieldError(field, f"{shown(value)} is not a text")
    if len(value) > limit:
        raise FieldError(field, f"has {len(value)} characters; at most {limit} are allowed")
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise FieldError(field, f"{shown(value)} has characters that cannot be stored (NUL or half a surrogate pair)")
    return value
