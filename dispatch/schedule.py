"""Schedules: which tasks fire when, and the runs that come of it. The one door to a task's fire times.

``next_fire_at`` of a task is the next fire time to be dealt with. It moves on in the transaction that inserts the run,
by compare-and-set, and (task, fire time) is unique: any number of dispatchers make one run of one fire time. A run may
begin while an earlier one of its task still goes on.

Fire times that passed while nobody looked (the parent was down, or the scheduler stopped) are misfires: the task says
whether none of them is made up for, one run stands for them, or all are.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import DatabaseError, IntegrityError
from django.db.models import Min
from django.utils import timezone

from dispatch import cron as crons
from dispatch import events, lifecycle, synclog
from dispatch.models import Misfire, Switch, Task
from nodes.executors.base import shown
from nodes.protocol import CascadeError, FieldError, NotFound
from nodes.transactions import write

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler"
"""Name of the switch; without a row it is on."""
GRACE_SECONDS = 60.0
"""A fire time seen so late is still on time: cron knows no seconds, and a busy database may hold a pass up."""
MOST_MISFIRES = 100
"""With the policy ``all``: only the newest so many fire times are made up for; the others are noted and dropped."""
MOST_AT_ONCE = 200
"""Tasks looked at in one pass; the next second brings the rest."""
FIELDS = ("cron", "time_zone", "misfire", "active")
ERROR = "schedule_error"
"""Under this key of ``extra``: why the last fire time brought no run."""


class _First(Exception):
    """Another dispatcher, or an operator, changed the schedule first."""


# What a schedule may be


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``FIELDS`` that are in ``given``, as they are stored. Raises FieldError."""
    checked: dict[str, Any] = {}
    if "cron" in given:
        blank = isinstance(given["cron"], str) and not given["cron"].strip()
        checked["cron"] = "" if blank else crons.check(given["cron"])
    if "time_zone" in given:
        crons.zone(given["time_zone"])
        checked["time_zone"] = given["time_zone"]
    if "misfire" in given:
        if given["misfire"] not in Misfire.values:
            raise FieldError("misfire", f"{shown(given['misfire'])} is not one of: {', '.join(Misfire.values)}")
        checked["misfire"] = given["misfire"]
    if "active" in given:
        if not isinstance(given["active"], bool):
            raise FieldError("active", f"{shown(given['active'])} is neither true nor false")
        checked["active"] = given["active"]
    return checked


def zone_of(task: Task) -> ZoneInfo:
    """Whose clock the cron fields of ``task`` mean. Raises FieldError for a zone this machine does not know."""
    return crons.zone(task.time_zone, settings.CASCADE.time_zone)


def upcoming(task: Task, count: int, now: dt.datetime) -> list[dt.datetime]:
    """The next ``count`` fire times (UTC) after ``now``; none of a task without cron, or not active."""
    if not task.cron or not task.active:
        return []
    return crons.next_fires(task.cron, zone_of(task), now, count)


# Changing it


def store(task: Task) -> None:
    """Saves ``task``, new or changed, with its next fire time: what every form and serializer calls.

    Only a changed schedule is reckoned anew, from now; a fire time that is due stays due. Raises FieldError.
    """
    for name, value in check({field: getattr(task, field) for field in FIELDS}).items():
        setattr(task, name, value)
    with write():
        known = Task.objects.select_for_update().defer("items").filter(pk=task.pk).first() if task.pk else None
        if known is not None and _same(known, task):
            # The dispatcher may have moved these on since ``task`` was read.
            task.next_fire_at, task.fired_at = known.next_fire_at, known.fired_at
            task.extra = _with_error(task.extra, known.extra.get(ERROR))
        else:
            task.next_fire_at = next(iter(upcoming(task, 1, timezone.now())), None)
            task.extra = _with_error(task.extra, None)
        task.save()


def _same(known: Task, task: Task) -> bool:
    if task.cron and task.active and known.next_fire_at is None:
        return False  # it was given up; this may be the second try
    return all(getattr(known, name) == getattr(task, name) for name in ("cron", "time_zone", "active"))


def set_schedule(task_id: int, **given: Any) -> Task:
    """Changes what is given of cron (an empty one: none), time_zone, misfire, active. Raises NotFound, FieldError."""
    for name in given:
        if name not in FIELDS:
            raise FieldError(name, f"is not one of: {', '.join(FIELDS)}")
    checked = check(given)
    with write():
        task = Task.objects.select_for_update().filter(pk=task_id).first()
        if task is None:
            raise NotFound(f"there is no task {task_id}")
        for name, value in checked.items():
            setattr(task, name, value)
        store(task)
    return task


def start(by: str = "") -> bool:
    """Schedules fire again; what passed meanwhile is a misfire. False where they did already."""
    return _turn(True, by)


def stop(by: str = "") -> bool:
    """No schedule fires once this has returned; tasks can still be run by hand. False where none did already."""
    return _turn(False, by)


def _turn(on: bool, by: str) -> bool:
    with write():
        switch, _ = Switch.objects.select_for_update().get_or_create(name=SCHEDULER)
        if switch.on is on:
            return False
        # ``changed_at`` is the end of the pause, as ``fire`` reads it: only a change may touch the row.
        switch.on, switch.note = on, f"{'started' if on else 'stopped'} by {by}"[:200] if by else ""
        switch.save()
    logger.info("scheduler %s%s", "started" if on else "stopped", f" by {by}" if by else "")
    return True


def reload() -> int:
    """Reckons every next fire time anew from now, as after new time zone rules. Those due stay due. How many tasks."""
    now = timezone.now()
    count = 0
    for pk in list(Task.objects.exclude(cron="").values_list("pk", flat=True)):
        with write():
            task = Task.objects.select_for_update().defer("items").filter(pk=pk, active=True).exclude(cron="").first()
            if task is None or (task.next_fire_at is not None and task.next_fire_at <= now):
                continue
            try:
                following = next(iter(upcoming(task, 1, now)), None)
            except FieldError as error:
                _note_error(task.pk, None, str(error))
                continue
            Task.objects.filter(pk=pk).update(next_fire_at=following)
            count += 1
    return count


def state() -> dict[str, Any]:
    """Whether schedules fire, since when and why not, how many tasks have one, and the next fire time of all."""
    switch = Switch.objects.filter(name=SCHEDULER).first()
    scheduled = Task.objects.filter(active=True, next_fire_at__isnull=False)
    return {
        "running": switch is None or switch.on,
        "changed_at": switch and switch.changed_at,
        "note": switch.note if switch else "",
        "tasks": scheduled.count(),
        "next_fire_at": scheduled.aggregate(first=Min("next_fire_at"))["first"],
    }


def describe(task: Task, count: int, now: dt.datetime) -> dict[str, Any]:
    """A task's schedule for people: with its next ``count`` fire times, and why the last one brought no run."""
    switch = Switch.objects.filter(name=SCHEDULER).first()
    try:
        following = upcoming(task, count, now)
    except FieldError:
        following = []  # written past every check; the error is told when it should have fired
    return {
        "task": task.pk,
        "name": task.name,
        "active": task.active,
        "cron": task.cron,
        "time_zone": task.time_zone or settings.CASCADE.time_zone,
        "misfire": task.misfire,
        "running": switch is None or switch.on,
        "fired_at": task.fired_at,
        "next_fire_at": task.next_fire_at,
        "next": following,
        "error": task.extra.get(ERROR),
    }


# Firing


def fire(now: dt.datetime) -> int:
    """Makes the runs that are due; returns how many. One query where nothing is."""
    due = Task.objects.filter(next_fire_at__lte=now, active=True).order_by("next_fire_at")
    ids = list(due.values_list("pk", flat=True)[:MOST_AT_ONCE])
    if not ids:
        return 0
    switch = Switch.objects.filter(name=SCHEDULER).first()
    if switch is not None and not switch.on:
        return 0
    since = switch.changed_at if switch is not None else None
    made = 0
    for pk in ids:
        # One that cannot be run, or meets a fault of ours, holds up none of the others.
        try:
            made += _fire(pk, now, since)
        except _First:
            pass
        except Exception:
            logger.exception("the schedule of task %s could not be dealt with; the next pass tries again", pk)
    if made:
        events.changed()
    return made


def _fire(pk: int, now: dt.datetime, since: dt.datetime | None) -> int:
    task = Task.objects.filter(pk=pk, active=True, next_fire_at__lte=now).first()
    if task is None or task.next_fire_at is None:
        return 0
    try:
        zone = zone_of(task)
        times, dropped = _chosen(task, zone, task.next_fire_at, now, since)
        after = crons.next_fires(task.cron, zone, now, 1)
    except CascadeError as error:
        # Written past every check. Without a next time it is not met again each second; a change sets one.
        _move(task, task.next_fire_at, None)
        _note_error(pk, task.next_fire_at, str(error))
        return 0
    following: list[dt.datetime | None] = [*times[1:], after[0] if after else None]
    expected: dt.datetime = task.next_fire_at
    if not times:
        _move(task, expected, following[0])
        return 0
    made = 0
    for at, coming in zip(times, following, strict=True):
        try:
            made += _submit(task, expected, at, coming)
        except _First:
            return made  # whoever it was goes on from there
        if coming is None:
            break
        expected = coming
    if dropped:
        _note_error(
            pk, task.next_fire_at, f"more than {MOST_MISFIRES} fire times were missed: the older ones got no run"
        )
    return made


def _chosen(
    task: Task, zone: ZoneInfo, first: dt.datetime, now: dt.datetime, since: dt.datetime | None
) -> tuple[list[dt.datetime], bool]:
    """Which of the fire times in [first, now] get a run, and whether some were too many.

    ``since``: when the scheduler was started last; what passed before it is a misfire however short ago.
    """
    if task.misfire == Misfire.ALL:
        return crons.last_fires(task.cron, zone, first, now, MOST_MISFIRES)
    earliest = first
    if task.misfire == Misfire.SKIP:
        on_time = now - dt.timedelta(seconds=GRACE_SECONDS)
        earliest = max(first, on_time, since or on_time)
        if earliest > now:
            return [], False
    latest, _ = crons.last_fires(task.cron, zone, earliest, now, 1)
    return latest, False


def _submit(task: Task, expected: dt.datetime, at: dt.datetime, coming: dt.datetime | None) -> int:
    """The run of the fire time ``at``, and ``expected`` moved on to ``coming``, in one transaction. 0 or 1 runs."""

    def first() -> None:
        _check_on()
        _move(task, expected, coming, at)

    try:
        run = lifecycle.submit_task(task, fire_time=at, submitted_by="schedule", first=first)
    except IntegrityError:
        # That fire time has its run already: the clock or the schedule was set back.
        _move(task, expected, coming, at)
        return 0
    except (_First, DatabaseError):
        raise
    except Exception as error:
        if not isinstance(error, CascadeError):
            logger.exception("task %s cannot be run", task.pk)
        with write():
            first()
            _note_error(
                task.pk, at, str(error) if isinstance(error, CascadeError) else f"{type(error).__name__}: {error}"
            )
        return 0
    if ERROR in task.extra:
        _note_error(task.pk, None, "")
    logger.info("task %s fired for %s: run %s", task.pk, at.isoformat(), run.pk)
    return 1


def _move(task: Task, expected: dt.datetime, coming: dt.datetime | None, fired: dt.datetime | None = None) -> None:
    """Compare-and-set of ``next_fire_at``. Raises _First where the schedule is not as ``task`` was read."""
    as_read = {"active": True, "cron": task.cron, "time_zone": task.time_zone, "misfire": task.misfire}
    change = {"next_fire_at": coming, **({"fired_at": fired} if fired else {})}
    with write():
        if not Task.objects.filter(pk=task.pk, next_fire_at=expected, **as_read).update(**change):
            raise _First


def _check_on() -> None:
    """Inside the run's transaction: a stop that has committed holds. Raises _First."""
    switch = Switch.objects.select_for_update().filter(name=SCHEDULER).first()
    if switch is not None and not switch.on:
        raise _First


def _note_error(task_id: int, at: dt.datetime | None, error: str) -> None:
    """Where operators see it: beside the task's fire times and in the sync log. An empty error takes it back."""
    with write():
        task = Task.objects.select_for_update().only("extra").filter(pk=task_id).first()
        if task is None:
            return
        entry = {"error": error[:1000], "fire_time": at and at.isoformat(), "at": timezone.now().isoformat()}
        task.extra = _with_error(task.extra, entry if error else None)
        task.save(update_fields=["extra"])
    if error:
        logger.warning("schedule of task %s: %s", task_id, error)
        synclog.note(None, "schedule", "push", error=error, extra={"task": task_id})


def _with_error(extra: Mapping[str, Any], error: Any) -> dict[str, Any]:
    kept = {name: value for name, value in extra.items() if name != ERROR}
    return {**kept, ERROR: error} if error else kept
