"""``manage.py schedule``: which tasks fire when; the scheduler on and off."""

from __future__ import annotations

import getpass
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from cascade.console import Command as Base
from cascade.console import add_json
from dispatch import cron, schedule
from dispatch.models import Misfire, Task
from nodes.protocol import FieldError, NotFound

COLUMNS = ("task", "active", "cron", "time zone", "misfire", "next", "error")


class Command(Base):
    help = "Shows and changes the schedules of tasks, and turns the scheduler on and off."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)

        def verb(name: str, text: str) -> ArgumentParser:
            made: ArgumentParser = verbs.add_parser(name, help=text, description=text)
            add_json(made)
            return made

        verb("list", "the tasks with a schedule, the next to fire first")
        shown = verb("show", "one task's schedule with its next fire times")
        shown.add_argument("task", help="name or id")
        shown.add_argument("--count", type=int, default=5, help="how many fire times, up to 100")
        changed = verb("set", "give a task a schedule, or change what is given")
        changed.add_argument("task", help="name or id")
        changed.add_argument("cron", nargs="?", help="five fields in quotes, like '*/15 9-17 * * 1-5'")
        changed.add_argument("--time-zone", help="of the fields, like Europe/Berlin; '' for the server's")
        changed.add_argument("--misfire", choices=Misfire.values, help="what becomes of fire times that were missed")
        changed.add_argument("--active", choices=("yes", "no"))
        verb("clear", "take a task's schedule away").add_argument("task", help="name or id")
        tried = verb("next", "when an expression would fire, whatever the tasks")
        tried.add_argument("cron")
        tried.add_argument("--time-zone", default="", help="like Europe/Berlin; default: the server's")
        tried.add_argument("--count", type=int, default=5, help="how many fire times, up to 100")
        verb("start", "schedules fire again")
        verb("stop", "no schedule fires any more")
        verb("reload", "reckon all next fire times anew")
        verb("status", "whether schedules fire, and what comes first")

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, f"_{options['verb']}")(options)

    def _list(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        tasks = Task.objects.defer("items").exclude(cron="").order_by("next_fire_at", "name")
        about = [schedule.describe(task, 1, now) for task in tasks]
        if options["json"]:
            self.tell_json(about)
            return
        fields = ("name", "active", "cron", "time_zone", "misfire", "next_fire_at")
        rows = [(*(each[name] for name in fields), _error(each)) for each in about]
        self.tell_table(COLUMNS, rows, empty="No task has a schedule yet: manage.py schedule set TASK '0 6 * * *'")
        if not schedule.state()["running"]:
            self.stderr.write("The scheduler is stopped; manage.py schedule start starts it.")

    def _show(self, options: dict[str, Any]) -> None:
        self._tell(_task(options["task"]), options)

    def _set(self, options: dict[str, Any]) -> None:
        given = {name: options[name] for name in ("cron", "time_zone", "misfire") if options[name] is not None}
        if options["active"]:
            given["active"] = options["active"] == "yes"
        if not given:
            raise FieldError("cron", "nothing is given to be set: an expression is needed, or an option")
        self._tell(schedule.set_schedule(_task(options["task"]).pk, **given), options)

    def _clear(self, options: dict[str, Any]) -> None:
        self._tell(schedule.set_schedule(_task(options["task"]).pk, cron=""), options)

    def _next(self, options: dict[str, Any]) -> None:
        zone = cron.zone(options["time_zone"], timezone.get_default_timezone_name())
        times = cron.next_fires(cron.check(options["cron"]), zone, timezone.now(), _count(options))
        local = [at.astimezone(zone).isoformat() for at in times]
        if options["json"]:
            self.tell_json(local)
        else:
            self.stdout.write("\n".join(local))

    def _start(self, options: dict[str, Any]) -> None:
        schedule.start(_operator())
        self._status(options)

    def _stop(self, options: dict[str, Any]) -> None:
        schedule.stop(_operator())
        self._status(options)

    def _reload(self, options: dict[str, Any]) -> None:
        count = schedule.reload()
        if options["json"]:
            self.tell_json({**schedule.state(), "reloaded": count})
        else:
            self.stdout.write(f"reckoned anew: {count}")

    def _status(self, options: dict[str, Any]) -> None:
        state = schedule.state()
        if options["json"]:
            self.tell_json(state)
        else:
            self.tell_pairs((name.replace("_", " "), value) for name, value in state.items())

    def _tell(self, task: Task, options: dict[str, Any]) -> None:
        about = schedule.describe(task, _count(options), timezone.now())
        if options["json"]:
            self.tell_json(about)
            return
        zone = schedule.zone_of(task)
        times = [at.astimezone(zone).isoformat() for at in about.pop("next")]
        about["error"] = _error(about)
        self.tell_pairs([*((name.replace("_", " "), value) for name, value in about.items())])
        self.tell_pairs([("fires", at) for at in times])


def _task(given: str) -> Task:
    """By name, or by id where no task is called so. Raises NotFound."""
    found = Task.objects.filter(name=given).first()
    if found is None and given.isascii() and given.isdigit() and len(given) < 19:
        found = Task.objects.filter(pk=int(given)).first()
    if found is None:
        raise NotFound(f"there is no task {given!r}")
    return found


def _count(options: dict[str, Any]) -> int:
    count = int(options.get("count", 5))
    if not 0 <= count <= 100:
        raise FieldError("count", f"{count} is not from 0 to 100")
    return count


def _operator() -> str:
    try:
        return f"{getpass.getuser()} (command line)"
    except (OSError, KeyError):  # no such user on this system, as in containers
        return "command line"


def _error(about: dict[str, Any]) -> str:
    return str((about["error"] or {}).get("error", ""))
