"""The write door of type settings: parameters that all runs of a type have unless they say otherwise."""

from __future__ import annotations

import json
from typing import Any

from dispatch.models import TypeSettings
from nodes import executors
from nodes.protocol import FieldError, NotFound
from nodes.transactions import write

LIMIT = 100_000
"""Characters of JSON."""


def settings_of(task_type: str) -> dict[str, Any]:
    """Empty where none were made. Raises NotFound for a type that nobody knows."""
    _known(task_type)
    found = TypeSettings.objects.filter(type=task_type).values_list("params", flat=True).first()
    return dict(found or {})


def put(task_type: str, params: Any) -> dict[str, Any]:
    """These are the type's settings from now on; runs that were submitted stay as they are. Empty: none any more.

    Required parameters may be missing. Raises NotFound, FieldError.
    """
    _known(task_type)
    checked = check(task_type, params)
    with write():
        if checked:
            TypeSettings.objects.update_or_create(type=task_type, defaults={"params": checked})
        else:
            TypeSettings.objects.filter(type=task_type).delete()
    return checked


def check(task_type: str, params: Any) -> dict[str, Any]:
    """``params`` as the type's executor reads them. Raises FieldError."""
    checked = executors.get(task_type).check_settings(params)
    if len(json.dumps(checked)) > LIMIT:
        raise FieldError("params", f"has more than {LIMIT} characters")
    return checked


def _known(task_type: str) -> None:
    if task_type not in executors.names():
        raise NotFound(f"there is no task type {task_type!r}; there are: {', '.join(executors.names())}")
