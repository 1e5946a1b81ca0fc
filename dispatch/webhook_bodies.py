"""What a webhook says: its address, headers and template as they may be, and the body for one ended run.

Templates are Django's, without escaping and without everything that reads files or settings. They know ``run``,
``task``, ``counts``, ``items``, ``failed_items``, ``time`` and the filter ``json``, which writes any value as JSON:

    {"text": {{ run.name|json }}, "articles": {{ counts.rows }}}
    {% for item in items %}{{ item.name }}: {{ item.rows }} new
    {% endfor %}
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.core.serializers.json import DjangoJSONEncoder
from django.template import Context, Engine, Library, TemplateSyntaxError, defaultfilters, defaulttags
from django.template.base import Template
from django.utils import timezone

from dispatch.items import item_key
from dispatch.lifecycle.kept import frozen
from dispatch.lifecycle.submit import check_text
from dispatch.models import Receipt, Run, Shard, Source, Task
from dispatch.states import ShardState
from nodes.executors.base import shown
from nodes.protocol import FieldError

URL_LENGTH = 500
TEMPLATE_LENGTH = 20_000
BODY_LENGTH = 1024 * 1024
MOST_HEADERS = 50
MOST_ITEMS = 1000
"""Items that a template is given; a message with more is not read."""
TAGS = (
    *("comment", "cycle", "filter", "firstof", "for", "if", "ifchanged", "now", "regroup", "resetcycle"),
    *("spaceless", "templatetag", "verbatim", "widthratio", "with"),
)
# A few letters of these ask for gigabytes.
NO_FILTERS = ("center", "floatformat", "ljust", "rjust", "stringformat")
OURS = ("host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te", "trailer")
"""Headers that the connection sets itself; beside them all of X-Cascade-*."""
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


def check(given: Mapping[str, Any]) -> None:
    """Those of webhook_url, webhook_template, webhook_headers, webhook_secret that are in ``given``. Raises FieldError.

    Where an address leads is looked at when it is called: names may lead elsewhere by then.
    """
    if "webhook_url" in given:
        _check_url(given["webhook_url"])
    if "webhook_headers" in given:
        _check_headers(given["webhook_headers"])
    if "webhook_secret" in given:
        check_text("webhook_secret", given["webhook_secret"], 200)
    if "webhook_template" in given:
        text = check_text("webhook_template", given["webhook_template"], TEMPLATE_LENGTH)
        try:
            _compiled(text).render(Context(_sample(), autoescape=False))
        except Exception as error:  # filters raise whatever they like
            raise FieldError("webhook_template", str(error) or type(error).__name__) from None


def _check_url(url: Any) -> None:
    check_text("webhook_url", url, URL_LENGTH)
    if not url:
        return
    wrong = f"{shown(url)} is not an address like https://example.org/hook"
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise FieldError("webhook_url", f"{wrong}: spaces and other scripts have to be encoded")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise FieldError("webhook_url", f"{wrong}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise FieldError("webhook_url", f"{wrong}; http and https are allowed")
    if "@" in parts.netloc:
        raise FieldError("webhook_url", "holds a user name or password; send them in webhook_headers")


def _check_headers(headers: Any) -> None:
    if not isinstance(headers, Mapping):
        raise FieldError("webhook_headers", f"{shown(headers)} is not an object of texts")
    if len(headers) > MOST_HEADERS:
        raise FieldError("webhook_headers", f"has {len(headers)} headers; at most {MOST_HEADERS} are allowed")
    for name, value in headers.items():
        field = f"webhook_headers.{name}"
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            raise FieldError("webhook_headers", f"{shown(name)} is not the name of a header")
        if name.lower() in OURS or name.lower().startswith("x-cascade-"):
            raise FieldError(field, "is set by this server")
        # The value is not shown: it may be a password.
        check_text(field, value, 2000)
        if value != value.strip() or not all(" " <= each <= "~" or each == "\t" for each in value):
            raise FieldError(field, "holds characters that no header may have, or spaces at an end")


@cache
def _engine() -> Engine:
    allowed = Library()
    allowed.tags = {name: defaulttags.register.tags[name] for name in TAGS}
    allowed.filters = {name: made for name, made in defaultfilters.register.filters.items() if name not in NO_FILTERS}
    allowed.filters["json"] = _json
    engine = Engine(loaders=[], autoescape=False)
    engine.template_builtins = [allowed]
    engine.template_libraries = {}
    return engine


def _json(value: Any) -> str:
    return json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False)


def _compiled(text: str) -> Template:
    try:
        return _engine().from_string(text)
    except RecursionError:
        raise TemplateSyntaxError("is nested too deeply") from None


def body(run: Run, task: Task, delivery: int) -> tuple[bytes, str]:
    """What is sent about ``run``, and its content type. Raises FieldError where the template cannot be filled in."""
    about = _about(run, task)
    if not task.webhook_template:
        sent = {"event": "run.ended", "delivery": delivery, **about}
        return _json(sent).encode(), "application/json"
    if "items" in task.webhook_template:
        about["items"] = items_of(run, task)
        about["failed_items"] = [
            item for item in about["items"] if item["state"] in (ShardState.FAILED, ShardState.QUARANTINED)
        ]
    try:
        text = str(_compiled(task.webhook_template).render(Context(about, autoescape=False)))
    except Exception as error:
        raise FieldError("webhook_template", str(error) or type(error).__name__) from None
    if len(text) > BODY_LENGTH:
        raise FieldError("webhook_template", f"gives {len(text)} characters; at most {BODY_LENGTH} are sent")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text.encode(errors="replace"), "text/plain; charset=utf-8"
    return text.encode(errors="replace"), "application/json"


def items_of(run: Run, task: Task) -> list[dict[str, Any]]:
    """What became of the first items: index, item, key, name (of its source), state, rows saved, error.

    ``rows`` is null where several items came in one piece, which is then known only as a whole.
    """
    items = frozen(run.pk).slice(0, min(run.count, MOST_ITEMS))
    keys = [item_key(item) for item in items]
    names: dict[str, str] = {}
    if task.source_kind:
        named = Source.objects.filter(kind=task.source_kind).exclude(name="")
        names = dict(named.values_list("key", "name"))
    about: list[dict[str, Any]] = [
        {"index": at, "item": item, "key": key, "name": names.get(key, key), "state": "", "rows": 0, "error": ""}
        for at, (item, key) in enumerate(zip(items, keys, strict=True))
    ]
    for start, stop, state, error in Shard.objects.filter(run=run, start__lt=len(items)).values_list(
        "start", "stop", "state", "error"
    ):
        for entry in about[start:stop]:
            entry |= {"state": state, "error": "" if state == ShardState.SAVED else error}
    receipts = Receipt.objects.filter(allocations__run=run, saved_at__isnull=False).distinct()
    for manifest in receipts.values_list("manifest", flat=True).iterator():
        for start, stop, rows, _ in (each for entry in manifest if entry["run"] == run.pk for each in entry["ranges"]):
            for entry in about[start:stop]:
                entry["rows"] = rows if stop - start == 1 or not rows else None
    return about


def _about(run: Run, task: Task) -> dict[str, Any]:
    fields = ("name", "type", "state", "count", "saved", "failed", "quarantined", "cancelled", "rows", "submitted_by")
    times = ("created_at", "ended_at", "fire_time")
    seconds = (run.ended_at - run.created_at).total_seconds() if run.ended_at else None
    return {
        "run": {"id": run.pk, **{name: getattr(run, name) for name in (*fields, *times)}, "seconds": seconds},
        "task": {"id": task.pk, "name": task.name, "type": task.type},
        "counts": {
            "items": run.count,
            "saved": run.saved,
            "failed": run.failed + run.quarantined,
            "cancelled": run.cancelled,
            "rows": run.rows,
        },
        "time": timezone.now(),
    }


def _sample() -> dict[str, Any]:
    """What a template is tried on when it is saved."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    task = Task(pk=1, name="nightly", type="echo")
    run = Run(pk=1, name="nightly", type="echo", state="partial", count=2, saved=1, failed=1, rows=3, ended_at=now)
    item: dict[str, Any] = {"index": 0, "item": "a", "key": "a", "name": "a", "state": "saved", "rows": 3, "error": ""}
    return {**_about(run, task), "items": [item], "failed_items": [{**item, "state": "failed", "rows": 0}]}
