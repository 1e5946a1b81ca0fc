"""What children of the ``cascade`` dialect send: beats, claims, articles and reports. Each request counts as a beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from api.dialects import common
from api.dialects.cascade_articles import identity, named, read_articles, read_results
from api.dialects.cascade_shapes import DIALECT, TYPE, feed_ids, feed_of, ok, package_of, task_of
from dispatch import configuration, lifecycle, queue, synclog
from dispatch.knocking import CALLBACK
from dispatch.models import Allocation, Source, Task
from dispatch.states import LIVE, AllocationState
from nodes import registry
from nodes.executors.base import shown
from nodes.keys import Caller
from nodes.messages import LARGEST_ID, Claim
from nodes.models import Node
from nodes.protocol import FieldError, NotFound


def heartbeat(request: HttpRequest) -> HttpResponse:
    caller = common.authenticated(request, DIALECT)
    body = common.body_of(request)
    load = {name: _percent(body, name) for name in ("cpu", "memory", "disk") if body.get(name) is not None}
    running = body.get("running")
    if isinstance(running, int) and not isinstance(running, bool) and running >= 0:
        load["running"] = running
    _call_back(lifecycle.seen(caller, [TYPE], **load), body.get(CALLBACK))
    return ok({"status": "alive"})


def feeds(request: HttpRequest) -> HttpResponse:
    _, node = common.child(request, DIALECT, [TYPE])
    found = [feed_of(source) for source in Source.objects.filter(kind=Source.Kind.FEED).order_by("pk")]
    return _synced(node, "feeds", found)


def message_tasks(request: HttpRequest) -> HttpResponse:
    _, node = common.child(request, DIALECT, [TYPE])
    return _synced(node, "message_tasks", [task_of(task) for task in Task.objects.filter(type=TYPE).order_by("pk")])


def _synced(node: Node, operation: str, found: list[dict[str, Any]]) -> HttpResponse:
    registry.synced(node.pk, configuration.given(node.pk).version or None, timezone.now())
    synclog.note(node.pk, operation, synclog.PULL, count=len(found))
    return ok(found)


def pending_tasks(request: HttpRequest) -> HttpResponse:
    """One package whatever ``limit`` says: deployed clients throw a list away, and its leases would be stranded."""
    return _claim(request)


def claim_task(request: HttpRequest) -> HttpResponse:
    return _claim(request)


def _claim(request: HttpRequest) -> HttpResponse:
    caller, _ = common.child(request, DIALECT, [TYPE])
    queue.allocate_now()
    reply = lifecycle.claim(caller, Claim(boot="", slots=1, wait=0, held=()), most=1)
    if not reply["work"]:
        return ok(None, "no task is waiting")
    pk, run_id, _, _, _, items = reply["work"][0]
    found = Allocation.objects.select_related("run__task").defer("run__items").get(pk=pk)
    return ok(package_of(found, reply["runs"][run_id]["params"], items))


def task_status(request: HttpRequest) -> HttpResponse:
    caller, _ = common.child(request, DIALECT, [TYPE])
    body = common.body_of(request)
    allocation_id = _allocation_id(body)
    status = common.need(body, "status")
    if status == "executing":
        lifecycle.begin(caller, allocation_id)
    elif status == "completed":
        # After a report it says nothing new, whatever that said of single feeds.
        mine = Allocation.objects.filter(pk=allocation_id, node_id=caller.node_id)
        if not mine.filter(state=AllocationState.COMPLETED).exists():
            lifecycle.report_staged(caller, allocation_id, {})
    elif status == "failed":
        lifecycle.report_failure(caller, allocation_id, _message(body.get("error_message")))
    else:
        raise FieldError("status", f"{shown(status)} is not one of: executing, completed, failed")
    return ok({"allocation_id": str(allocation_id), "status": status})


def upload_articles(request: HttpRequest) -> HttpResponse:
    caller, _ = common.child(request, DIALECT, [TYPE])
    body = common.body_of(request)
    allocation_id = _allocation_id(body)
    sent = common.need(body, "articles", list)
    found = Allocation.objects.filter(pk=allocation_id, node_id=caller.node_id).first()
    rows = read_articles(sent, feed_ids(found) if found else ())
    return ok({"received": len(sent), "new_count": lifecycle.stage(caller, allocation_id, rows)})


def report_completion(request: HttpRequest) -> HttpResponse:
    caller, _ = common.child(request, DIALECT, [TYPE])
    body = common.body_of(request)
    allocation_id = _allocation_id(body)
    lifecycle.report_staged(caller, allocation_id, read_results(body.get("results")))
    return ok(_reported(allocation_id))


def report_result(request: HttpRequest) -> HttpResponse:
    """As ``report_completion``, by the task: for the caller's claim of it that the results name feeds of."""
    caller, _ = common.child(request, DIALECT, [TYPE])
    body = common.body_of(request)
    task_id = identity(body.get("task_id"), "task_id")
    if body.get("results") is None:
        raise FieldError("results", "is required")
    failed = read_results(body["results"])
    found = _of_task(caller, task_id, named(body["results"]))
    lifecycle.report_staged(caller, found.pk, failed)
    return ok(_reported(found.pk))


def _reported(allocation_id: int) -> dict[str, Any]:
    rows = Allocation.objects.values_list("rows", flat=True).get(pk=allocation_id)
    return {"allocation_id": str(allocation_id), "article_count": rows}


def _of_task(caller: Caller, task_id: str, feeds: set[str]) -> Allocation:
    """The oldest live claim of ``task_id`` that has one of ``feeds``, or else the newest one that was reported."""
    mine = Allocation.objects.filter(node_id=caller.node_id, delivered=True).order_by("pk")
    if task_id.startswith("run-"):
        mine = mine.filter(run_id=_number(task_id.removeprefix("run-")), run__task=None)
    else:
        mine = mine.filter(run__task_id=_number(task_id))
    live = list(mine.filter(state__in=LIVE))
    fitting = [each for each in live if not feeds or feeds.intersection(feed_ids(each))]
    if fitting:
        return fitting[0]
    ended = mine.exclude(state__in=LIVE).order_by("-pk")
    reported = ended.filter(state__in=(AllocationState.COMPLETED, AllocationState.FAILED))
    found = reported.first() or ended.first()
    if found is None:
        raise NotFound(f"this node has no allocation of task {shown(task_id)}")
    return found


# Reading


def _allocation_id(body: Mapping[str, Any]) -> int:
    """Raises FieldError where it is missing; an id that cannot be one of ours names nothing (0)."""
    return _number(identity(body.get("allocation_id"), "allocation_id"))


def _number(text: str) -> int:
    """0, which is nobody's id, for what is no number."""
    return int(text) if text.isascii() and text.isdigit() and int(text) <= LARGEST_ID else 0


def _message(value: Any) -> str:
    if value is None:
        return ""
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else shown(value)


def _percent(body: Mapping[str, Any], name: str) -> float:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(name, f"{shown(value)} is not a percentage from 0 to 100")
    return value


def _call_back(node: Node, url: Any) -> None:
    """Where its parent may knock. An address that an operator has set stays."""
    if not url or node.api_url == url or node.api_url not in ("", node.facts.get(CALLBACK)):
        return
    registry.update_node(node.pk, api_url=url, facts={**node.facts, CALLBACK: url})
