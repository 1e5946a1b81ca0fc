"""The page where a run is submitted: a form made from what its type declares, a preview of how the run would be cut and
where it would start, and then the run, or a schedule of it. Also where a run is submitted again as it was."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import IntegrityError
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from rest_framework.exceptions import ValidationError

from api import submit_form
from api.errors import flat
from api.parts import iso
from api.serializers import Submission, TaskSerializer
from api.submit_form import Group
from dispatch import balancers, lifecycle, schedule
from dispatch.explaining import drafts
from dispatch.items import Frozen
from dispatch.lifecycle import origins
from dispatch.lifecycle.submit import defaults, with_settings
from dispatch.models import Fallback, Misfire, Run, Source, Task, TypeSettings
from dispatch.results import room
from nodes import executors
from nodes.executors.base import Executor, Item, shown
from nodes.protocol import CascadeError, FieldError, NotFound
from nodes.transactions import write

TYPED_ITEMS, TYPED_CHARACTERS = 1_000, 100_000
"""Of a run that is submitted again: with more items than this they are not written into the form, but named."""
FIRES = 5
_KEY = re.compile(r"[0-9a-f]{32}")
ORIGINS = ("typed", "source_kind", "items_column", "all", "run")


@dataclass
class Form:
    """What was typed, by the fields' names, and what speaks against it, by the API's names."""

    typed: dict[str, str]
    problems: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    earlier: int | None = None
    """The run that this very form has made already."""

    @property
    def executor(self) -> type[Executor] | None:
        kind = self.typed.get("type", "")
        return executors.get(kind) if kind in executors.names() else None

    @property
    def as_json(self) -> bool:
        return self.typed.get("mode") == "json"

    def refuse(self, errors: Mapping[str, str]) -> None:
        self.problems |= errors
        self.problem = "; ".join(f"{name}: {message}" if name else message for name, message in errors.items())


# ---- what is shown -----------------------------------------------------------------------------------------------


def show(request: HttpRequest) -> HttpResponse:
    """The page as the address asks for it: of a type, or of a run to be submitted ``again``. Raises NotFound."""
    again = request.GET.get("again", "")
    if again:
        return _page(request, Form(typed_of(_run(again))))
    kind = request.GET.get("type", "")
    return _page(request, Form({"type": kind if kind in executors.names() else ""}))


def _run(number: str) -> Run:
    found = Run.objects.filter(pk=_number(number)).first()
    if found is None:
        raise NotFound(f"there is no run {number[:20]}")
    return found


def _scheduled(number: str) -> Task | None:
    """A task that fires again: of another one there is no next time to be told."""
    return Task.objects.filter(pk=_number(number), next_fire_at__isnull=False).first()


def _number(text: str) -> int:
    """0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _page(request: HttpRequest, form: Form, **more: Any) -> HttpResponse:
    form.typed["key"] = form.typed.get("key") or uuid.uuid4().hex
    kind, typed = form.executor, form.typed
    scheduled = request.GET.get("scheduled", "")
    again, listed = typed.get("again", ""), typed.get("items_run", "")
    context = {
        "form": form,
        "typed": typed,
        "items_typed": typed.get("items", ""),
        "problems": list(form.problems.items()),
        "origin": typed.get("origin") or "typed",
        "kinds": [_told(executors.get(name)) for name in executors.names()],
        "kind": _told(kind) if kind else None,
        "splits": kind is not None and kind.expand.__func__ is not Executor.expand.__func__,  # type: ignore[attr-defined]
        "groups": _groups(form),
        "own_settings": _settings_of(typed.get("type", "")) if kind and not again else {},
        "again": again,
        "listed": _listed(listed),
        "source_kinds": dict(Source.objects.filter(active=True).order_by().values_list("kind").annotate(Count("pk"))),
        "columns": _columns(),
        "defaults": defaults(),
        "balancers": [*balancers.names(), *settings.CASCADE.balancers],
        "fallbacks": Fallback.values,
        "misfires": Misfire.values,
        "zone": settings.CASCADE.time_zone,
        "open_options": any(typed.get(name) for name in submit_form.OPTIONS if name != "name"),
        "scheduled": _scheduled(scheduled) if scheduled else None,
        "now": int(timezone.now().timestamp() * 1000),
        **more,
    }
    # A script that draws the answer into the page would have its browser complain of each 400.
    status = 400 if form.problem and not typed.get("drawn") else 200
    return render(request, "submit.html", context, status=status)


def _told(kind: type[Executor]) -> dict[str, Any]:
    """What a template shows of a type; a class itself it would call."""
    told = {name: getattr(kind, name) for name in ("type", "items_optional")}
    told |= {name: submit_form.translated(getattr(kind, name)) for name in ("title", "item_form")}
    return told | {"sources": any(variant.by == "source" for variant in kind.variants())}


def _groups(form: Form) -> list[Group]:
    if form.executor is None or form.as_json:
        return []
    return submit_form.groups(form.executor, form.typed, form.problems)


def _settings_of(kind: str) -> dict[str, Any]:
    return TypeSettings.objects.filter(type=kind).values_list("params", flat=True).first() or {}


def _listed(number: str) -> dict[str, Any] | None:
    """Of the run whose items are meant without being written here: its number, and how many they are."""
    if not number:
        return None
    try:
        run = _run(number)
        return {"run": run.pk, "count": Frozen(bytes(run.items)).count()}
    except NotFound:
        return None


def _columns() -> list[str]:
    """Columns that name what items are about: the keys of the types' tables."""
    datasets = {executors.get(name).dataset.table: executors.get(name).dataset for name in executors.names()}
    return sorted(f"{table}.{column}" for table, dataset in datasets.items() for column in dataset.key)


# ---- a run again -------------------------------------------------------------------------------------------------


def typed_of(run: Run) -> dict[str, str]:
    """The form that says a run exactly as it was: every parameter, option and item it was submitted with."""
    executor, items = executors.get(run.type), Frozen(bytes(run.items))
    typed = {"type": run.type, "again": str(run.pk), "name": run.name}
    fields = submit_form.fields_of(executor, run.params)
    if submit_form.says(executor, fields, run.params):
        typed |= fields
    else:
        typed |= {"mode": "json", "params": submit_form.written(run.params)}
    for name in (*submit_form.WHOLE, *submit_form.REAL):
        value = getattr(run, name)
        typed[name] = "" if value is None else repr(value).removesuffix(".0")
    for name in submit_form.PAIRS:
        typed[name] = submit_form.pairs_text(name, getattr(run, name))
    typed |= {"rate_key": run.rate_key, "balancer": run.balancer, "fallback": run.fallback}
    if executor.items_optional and run.expected is not None:
        return typed  # the parent planned them, from the params
    if items.count() <= TYPED_ITEMS and len(text := submit_form.items_text(items.all())) <= TYPED_CHARACTERS:
        return {**typed, "items": text}
    return {**typed, "origin": "run", "items_run": str(run.pk)}


def _exact(executor: type[Executor], params: dict[str, Any]) -> dict[str, Any]:
    """``params`` which say of what they do not give that it is not given, so that the type's settings do not say it."""
    variants = submit_form.chosen(executor, submit_form.fields_of(executor, params))
    known = {param.name for param in executor.params}
    known |= {param.name for variant in variants if not variant.within for param in variant.params}
    absent = {name: None for name in _settings_of(executor.type) if name in known and name not in params}
    return {**absent, **params}


# ---- what its buttons do -----------------------------------------------------------------------------------------


def act(request: HttpRequest) -> HttpResponse:
    """What a button of the page asks for; what speaks against it is said there, and what was typed stays."""
    typed = {name: str(value).replace("\r\n", "\n") for name, value in request.POST.items()}
    typed.pop("csrfmiddlewaretoken", None)
    if not _KEY.fullmatch(typed.get("key", "")):
        typed.pop("key", None)
    if not _number(typed.get("again", "")):
        typed.pop("again", None)
    do, form = typed.pop("do", ""), Form(typed)
    try:
        return _VERBS.get(do, _draw)(request, form)
    except ValidationError as error:
        form.refuse({".".join(path): message for path, message in flat(error.detail)})
    except FieldError as error:
        form.refuse({error.field: error.message})
    except CascadeError as error:
        form.problem = str(error)
    return _page(request, form)


def _draw(request: HttpRequest, form: Form) -> HttpResponse:
    """The form again, as the type and the values that it has now want it."""
    again = form.typed.get("again", "")
    if again and _run(again).type != form.typed.get("type"):
        del form.typed["again"]  # another type is another run
    return _page(request, form)


def _to_json(request: HttpRequest, form: Form) -> HttpResponse:
    if not form.as_json:
        form.typed["params"] = submit_form.written(_params(form))
        form.typed["mode"] = "json"
    return _page(request, form)


def _to_form(request: HttpRequest, form: Form) -> HttpResponse:
    if form.as_json and form.executor is not None:
        params = submit_form.params_of_json(form.typed.get("params", ""))
        fields = submit_form.fields_of(form.executor, params)
        if not submit_form.says(form.executor, fields, params):
            raise FieldError("params", "says what the form has no field for; correct it, or submit it from here")
        kept = {name: text for name, text in form.typed.items() if not name.startswith(("p.", "w."))}
        form.typed = {**kept, **fields, "mode": "form"}
    return _page(request, form)


def _preview(request: HttpRequest, form: Form) -> HttpResponse:
    return _page(request, form, preview=drafts.preview(lifecycle.draft(**_with_items(_wished(form)))))


def _submit(request: HttpRequest, form: Form) -> HttpResponse:
    key = form.typed.get("key", "") or uuid.uuid4().hex
    earlier = Run.objects.filter(idempotency_key=key).values_list("pk", flat=True).first()
    if earlier is not None:
        # A second press, or the form of a page that was gone back to.
        form.earlier, form.typed["key"] = earlier, ""
        told = _("This form was sent already, and became run {n}. Send it again to have another one.")
        form.problem = told.format(n=earlier)
        return _page(request, form)
    wished = _with_items(_wished(form))
    room.check_work()
    run = lifecycle.submit(**wished, submitted_by=request.user.get_username(), idempotency_key=key)
    return redirect("run", run.pk)


def _fires(request: HttpRequest, form: Form) -> HttpResponse:
    cron, zone = _when(form)
    task = Task(cron=cron, time_zone=zone, active=True)
    times = [iso(at) for at in schedule.upcoming(task, FIRES, timezone.now())]
    fires = {"cron": cron, "zone": str(schedule.zone_of(task)), "times": times, "seen": _seen(cron, zone)}
    return _page(request, form, fires={**fires, "local": _local(task), "running": schedule.state()["running"]})


def _when(form: Form) -> tuple[str, str]:
    given = {name: form.typed.get(name, "").strip() for name in ("cron", "time_zone")}
    checked = schedule.check(given)
    if not checked["cron"]:
        raise FieldError("cron", "is empty; five fields say when, like 0 6 * * 1-5 for six o'clock on working days")
    return checked["cron"], checked["time_zone"]


def _seen(cron: str, zone: str) -> str:
    return f"{cron} {zone}".strip()


def _local(task: Task) -> list[str]:
    """The fire times by the clock of the schedule's zone."""
    zone = schedule.zone_of(task)
    at: list[dt.datetime] = schedule.upcoming(task, FIRES, timezone.now())
    local = [each.astimezone(zone) for each in at]
    return [f"{date_format(each, 'D')} {each:%Y-%m-%d %H:%M %Z}" for each in local]


def _schedule(request: HttpRequest, form: Form) -> HttpResponse:
    """A task of what the form says, with its fire times, which were looked at before."""
    cron, zone = _when(form)
    if form.typed.get("seen", "") != _seen(cron, zone):
        return _fires(request, form)
    wished = _wished(form)
    if wished.pop("split", ""):
        raise FieldError("split", "cannot be kept with a schedule; leave it empty, or submit the run now")
    wished.pop("name", None)
    given = {
        **wished,
        "name": form.typed.get("task_name", ""),
        "cron": cron,
        "time_zone": zone,
        "misfire": form.typed.get("misfire") or Misfire.ONE,
    }
    task = TaskSerializer(data=given)
    try:
        task.is_valid(raise_exception=True)
        with write():
            task.save()
    except ValidationError as error:
        raise ValidationError({_task_field(name): said for name, said in dict(error.detail).items()}) from None  # type: ignore[arg-type]
    except IntegrityError:
        raise FieldError("task_name", f"a task called {shown(given['name'])} exists already") from None
    assert task.instance is not None
    return redirect(f"{reverse('submit')}?scheduled={task.instance.pk}")


def _task_field(name: str) -> str:
    return "task_name" if name == "name" else name


_VERBS: Mapping[str, Callable[[HttpRequest, Form], HttpResponse]] = {
    "draw": _draw,
    "json": _to_json,
    "form": _to_form,
    "preview": _preview,
    "run": _submit,
    "fires": _fires,
    "schedule": _schedule,
}


# ---- what a form says --------------------------------------------------------------------------------------------


def _wished(form: Form) -> dict[str, Any]:
    """What the form says, checked as the API would check it. Raises FieldError, ValidationError, NotFound."""
    typed, executor = form.typed, form.executor
    if executor is None:
        raise FieldError("type", f"{shown(typed.get('type', ''))} is not one of: {', '.join(executors.names())}")
    params = _params(form)
    said: dict[str, Any] = {
        "type": executor.type,
        "params": _exact(executor, params) if typed.get("again") else params,
        **submit_form.options_of(typed),
    }
    if split := typed.get("split", "").strip():
        said["split"] = split
    said |= _origin(executor, typed, said["params"])
    asked = Submission(data=said)
    asked.is_valid(raise_exception=True)
    return dict(asked.validated_data)


def _params(form: Form) -> dict[str, Any]:
    if form.as_json:
        return submit_form.params_of_json(form.typed.get("params", ""))
    return submit_form.params_of(form.executor, form.typed) if form.executor else {}


def _origin(executor: type[Executor], typed: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, Any]:
    origin = typed.get("origin") or "typed"
    if origin not in ORIGINS:
        raise FieldError("origin", f"{shown(origin)} is not one of: {', '.join(ORIGINS)}")
    if origin == "run":
        return {"items": Frozen(bytes(_run(typed.get("items_run", "")).items)).all()}
    if origin == "all":
        return {"items": origins.symbols_of(executor.type, executor.check(with_settings(executor.type, params)))}
    if origin in origins.FIELDS:
        if not (value := typed.get(origin, "").strip()):
            raise FieldError(origin, "is empty, and items are to come from it")
        return {origin: value}
    items: list[Item] = submit_form.items_of(typed.get("items", ""))
    return {} if not items and executor.items_optional else {"items": items}


def _with_items(wished: dict[str, Any]) -> dict[str, Any]:
    """With the items that it would have now, wherever they come from."""
    named = {name: wished.pop(name, "") for name in origins.FIELDS}
    items = wished.pop("items", [])
    return {**wished, "items": origins.items_from(named) if any(named.values()) else items}
