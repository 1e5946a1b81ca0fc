"""The page of one allocation: one attempt at a shard by one node, with why, when, how it ended and what it printed."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _

from api.parts import State, iso, lasted
from dispatch import leaves, log_lines
from dispatch.explaining import history
from dispatch.models import Allocation, Run
from dispatch.states import AllocationState
from nodes.protocol import NotFound

LINES = 1_000
SECONDS = 1.0
"""So long its log is looked for."""


def show(request: HttpRequest, pk: int) -> HttpResponse:
    """The page as HTML, as of now. Raises NotFound."""
    found = Allocation.objects.select_related("node", "receipt").defer(
        "log", "digests", "node__speeds", "node__facts", "node__subtree", "receipt__payload", "receipt__manifest"
    )
    each = found.filter(pk=pk).first()
    if each is None:
        raise NotFound(f"there is no allocation {pk}")
    run = Run.objects.defer("items", "params", "reduction").get(pk=each.run_id)
    lines = log_lines.latest(run.pk, None, LINES, log_lines.Wanted(allocation=pk), seconds=SECONDS).lines
    others = Allocation.objects.filter(run=run, start__lt=each.stop, stop__gt=each.start).exclude(pk=pk).order_by("pk")
    context = {
        "each": each,
        "run": run,
        "state": State.of(each.state),
        "ended": history.ENDED[AllocationState(each.state)],
        "ran_by": leaves.of_allocations([each])[pk],
        "facts": _facts(each),
        "lines": lines,
        "cut": len(lines) == LINES or bool(lines and lines[0].missing),
        "others": [(pk, State.of(state)) for pk, state in others.values_list("pk", "state")[:20]],
        "live": each.finished_at is None,
        "now": int(timezone.now().timestamp() * 1000),
    }
    return render(request, "allocation.html", context)


def _facts(each: Allocation) -> list[tuple[str, str]]:
    receipt = each.receipt
    deadline = _("Lease ends") if each.delivered else _("Offer ends")
    facts: list[tuple[str, Any]] = [
        (_("Attempt"), each.attempt),
        (_("Slots"), each.slots if each.slots > 1 else ""),
        (_("Granted"), iso(each.granted_at)),
        (_("Fetched"), iso(each.delivered_at)),
        (_("Started"), iso(each.started_at)),
        (_("Finished"), iso(each.finished_at)),
        (deadline, iso(each.deadline) if each.finished_at is None else ""),
        (_("Ran for"), "" if each.seconds is None else lasted(each.seconds)),
        (_("Items done"), each.progress if each.state == AllocationState.EXECUTING else ""),
        (_("Rows"), f"{each.rows:,}" if each.rows else ""),
        (_("Parts"), each.parts or ""),
        (_("Receipt"), "" if receipt is None else receipt.pk),
        (_("Reported"), "" if receipt is None else iso(receipt.created_at)),
        (_("Saved"), "" if receipt is None else iso(receipt.saved_at)),
    ]
    return [(name, str(value)) for name, value in facts if value not in ("", None)]
