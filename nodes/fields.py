"""What may be said of a node, its quotas and its load: every value from outside is checked here.

Each function returns the value as it is kept, or raises FieldError on the field's name.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

from nodes import executors
from nodes.executors.base import shown
from nodes.models import Node, Quota, name_validator
from nodes.protocol import SLOTS_LIMIT, FieldError

CAPACITY_LIMIT = 10_000
PATH_LEVELS = 64
_TASK_TYPE = re.compile(r"\A[a-z_][a-z0-9_]{0,59}\Z")
_LABEL = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?\Z")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_QUOTA = re.compile(r"\A([^=\[\]]+)(?:\[(.*)\])?=(\d{1,9})(?:/(\d{1,9}))?\Z", re.DOTALL)


@dataclass(frozen=True)
class QuotaSpec:
    """A quota as somebody asks for it; see ``nodes.models.Quota``."""

    task_type: str
    slots: int
    item: str = ""
    limit: int | None = None


def parse_quota(text: str) -> QuotaSpec:
    """``data_import=4``, ``data_import[AAPL]=2`` (one item), ``echo=2/4`` (slots/limit). Raises FieldError."""
    match = _QUOTA.match(text)
    if match is None:
        raise FieldError("quota", f"{shown(text)} is not like data_import=4, data_import[AAPL]=2 or data_import=2/4")
    task_type, item, slots, limit = match.groups()
    if item == "":
        raise FieldError("quota", f"{shown(text)}: between [ and ] an item is missing")
    return QuotaSpec(task_type, int(slots), item or "", None if limit is None else int(limit))


def spelled(quota: Quota) -> str:
    """As ``parse_quota`` reads it."""
    item = f"[{quota.item}]" if quota.item else ""
    limit = "" if quota.limit is None else f"/{quota.limit}"
    return f"{quota.task_type}{item}={quota.slots}{limit}"


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a node that an operator may set, checked one by one. Raises FieldError on the field's name."""
    checked = {}
    for name, value in fields.items():
        if name not in _READERS:
            raise FieldError(name, f"cannot be set; what can is: {', '.join(sorted(_READERS))}")
        checked[name] = _READERS[name](name, value)
    return checked


def check_quota(spec: QuotaSpec, capacity: int, path: str = "") -> None:
    """Raises FieldError on ``path`` + the part's name for a quota that a node with ``capacity`` cannot have."""
    if spec.task_type not in executors.names():
        known = ", ".join(executors.names())
        raise FieldError(f"{path}task_type", f"{shown(spec.task_type)} is not a task type; known are: {known}")
    read_text(f"{path}item", spec.item, 200)
    read_whole(f"{path}slots", spec.slots, 0, SLOTS_LIMIT)
    if spec.slots > capacity:
        raise FieldError(f"{path}slots", f"{spec.slots} is above the node's capacity, {capacity}")
    if spec.limit is not None:
        read_whole(f"{path}limit", spec.limit, 0, SLOTS_LIMIT)
        if spec.slots > spec.limit:
            raise FieldError(f"{path}slots", f"{spec.slots} is above this quota's own limit, {spec.limit}")


def check_quotas(quotas: Sequence[QuotaSpec], capacity: int) -> None:
    """All quotas that a node with ``capacity`` is to have. Raises FieldError on ``quotas.<index>.<part>``."""
    seen = set()
    for index, spec in enumerate(quotas):
        check_quota(spec, capacity, f"quotas.{index}.")
        if (spec.task_type, spec.item) in seen:
            item = f"[{spec.item}]" if spec.item else ""
            raise FieldError(f"quotas.{index}.task_type", f"{spec.task_type}{item} is named twice; once is allowed")
        seen.add((spec.task_type, spec.item))


def read_path(name: str, text: str) -> list[str]:
    """Names of nodes, each below the one before: ``paris/lyon``; none for an empty text. Raises FieldError."""
    names = text.strip("/").split("/") if text.strip("/") else []
    if len(names) > PATH_LEVELS:
        raise FieldError(name, f"has {len(names)} names; at most {PATH_LEVELS} are allowed")
    for each in names:
        try:
            name_validator(each)
        except ValidationError:
            raise FieldError(name, f"{shown(each)} is no node's name; a path is like paris/lyon") from None
    return names


def read_whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FieldError(name, f"{shown(value)} is not a whole number from {least} to {most}")
    return value


def _number(name: str, value: Any, least: float, most: float) -> float:
    # NaN fails the comparison, as it should.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise FieldError(name, f"{shown(value)} is not a number from {least} to {most}")
    return float(value)


def _optional(name: str, value: Any, least: float, most: float) -> float | None:
    return None if value is None else _number(name, value, least, most)


def _facts(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(name, f"{shown(value)} is not an object")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        raise FieldError(name, "is not plain JSON") from None
    if len(text) > 20_000 or "\\u0000" in text:
        raise FieldError(name, "has more than 20000 characters, or a NUL")
    return value


def read_percent(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FieldError(name, f"{shown(value)} is not a percentage from 0 to 100")
    # A load measured over a short time can come out a little above 100.
    return float(min(100, max(0, value)))


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise FieldError(name, f"{shown(value)} is not true or false")
    return value


def read_text(name: str, value: Any, most: int) -> str:
    if not isinstance(value, str):
        raise FieldError(name, f"{shown(value)} is not a text")
    if len(value) > most:
        raise FieldError(name, f"has {len(value)} characters; allowed are {most}")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value) or _BIDI.search(value):
        raise FieldError(name, f"{shown(value)} has control or text-direction characters, which are not allowed")
    return value


def _name(name: str, value: Any) -> str:
    read_text(name, value, 100)
    try:
        name_validator(value)
    except ValidationError as error:
        raise FieldError(name, f"{shown(value)} is not allowed. {error.messages[0]}") from None
    return str(value)


def read_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise FieldError(name, f"{shown(value)} is not one of: {', '.join(allowed)}")
    return str(value)


def _url(name: str, value: Any) -> str:
    url = read_text(name, value, 500)
    if not url:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in url
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc:
        raise FieldError(name, f"{shown(url)} is not an address like http://host:8001 (no user or password in it)")
    return url


def _labels(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > 50:
        raise FieldError(name, f'{shown(value)} is not an object of at most 50 texts, like {{"region": "eu"}}')
    for label, text in value.items():
        if not isinstance(label, str) or not _LABEL.match(label):
            raise FieldError(name, f"{shown(label)} is not a label; allowed are 1 to 63 letters, digits or _ . / -")
        read_text(f"{name}.{label}", text, 200)
    return dict(value)


def read_task_types(name: str, value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or len(value) > 100:
        raise FieldError(name, "is not a list of at most 100 task types")
    for index, task_type in enumerate(value):
        if not isinstance(task_type, str) or not _TASK_TYPE.match(task_type):
            raise FieldError(
                f"{name}.{index}", f"{shown(task_type)} is not a task type: small letters, digits and _ only"
            )
    return list(dict.fromkeys(value))


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": _name,
    "description": lambda name, value: read_text(name, value, 500),
    "role": lambda name, value: read_choice(name, value, Node.Role.values),
    "carrier": lambda name, value: read_choice(name, value, Node.Carrier.values),
    "api_url": _url,
    "capacity": lambda name, value: read_whole(name, value, 1, CAPACITY_LIMIT),
    "weight": lambda name, value: _number(name, value, 0.01, 1000),
    "labels": _labels,
    "active": _boolean,
    "draining": _boolean,
    "allow_plain_key": _boolean,
    "max_cpu": lambda name, value: _optional(name, value, 1, 100),
    "max_memory": lambda name, value: _optional(name, value, 1, 100),
    "dialect": lambda name, value: read_choice(name, value, Node.Dialect.values),
    "api_key": lambda name, value: read_text(name, value, 200),
    "facts": lambda name, value: _facts(name, value),
}
