"""What-if at a terminal: ``--if n1.capacity=8`` and its like, read as ``dispatch.whatif.Changes``."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dispatch.whatif import Changes, NewNode, NodeChange
from nodes import registry
from nodes.executors.base import shown
from nodes.fields import QuotaSpec, parse_quota
from nodes.protocol import FieldError

_SET = re.compile(r"\A(.+?)\.(capacity|weight|active|draining|max_cpu|max_memory|types)=(.*)\Z", re.DOTALL)
_LABEL = re.compile(r"\A(.+?)\.label\.([^=]+)=(.*)\Z", re.DOTALL)
_QUOTA = re.compile(r"\A([^=]+?)\.quota\.(.+)=(.*)\Z", re.DOTALL)
_NONE = "none"
_FLAGS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def add_arguments(parser: argparse.ArgumentParser | Any) -> None:
    """The options of a what-if. ``given`` reads them."""
    some = parser.add_argument_group(
        "what if", "What the next pass would give out if something were otherwise. Each may be there several times."
    )
    for option, metavar, meaning in (
        (
            "--if",
            "NODE.WHAT=VALUE",
            "n1.capacity=8, n1.draining=yes, n1.active=no, n1.weight=2, n1.max_cpu=80, n1.label.region=eu, "
            "n1.quota.data_import=4, n1.quota.echo=2/4 (slots/limit), 'n1.quota.echo[x]=none'",
        ),
        ("--drain", "NODE", "as --if NODE.draining=yes"),
        ("--resume", "NODE", "as --if NODE.draining=no"),
        ("--add", "NAME", "a node that is not there; --if says more of it: NAME.capacity=16, NAME.types=echo,crawl"),
        ("--priority", "RUN=N", "of a run that goes on: 12=9"),
        ("--rate", "KEY=N/BURST", "items a second, and at once: host:a.org=2/4; none for no limit"),
    ):
        some.add_argument(option, metavar=metavar, help=meaning, action="append", default=[])


OPTIONS = ("if", "drain", "resume", "add", "priority", "rate")


@dataclass
class _Node:
    """What is said of a node so far. ``quotas`` and ``labels`` are all that it would have; None: as they are."""

    quotas: dict[tuple[str, str], QuotaSpec] | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    types: list[str] | None = None


def given(options: Mapping[str, Any]) -> Changes:
    """The changes that ``options`` name. Raises FieldError on the option, and NotFound for nodes that are not there."""
    added = list(dict.fromkeys(options["add"]))
    said: dict[str, _Node] = {name: _Node() for name in added}
    settings = [*options["if"], *(f"{name}.draining=yes" for name in options["drain"])]
    for text in [*settings, *(f"{name}.draining=no" for name in options["resume"])]:
        _set(text, said, added)
    return Changes(
        nodes=[
            NodeChange(name, node.fields, None if node.quotas is None else list(node.quotas.values()))
            for name, node in said.items()
            if name not in added
        ],
        add=[_new(name, said[name]) for name in added],
        priorities=dict(_priority(text) for text in options["priority"]),
        rates=dict(_rate(text) for text in options["rate"]),
    )


def named(error: FieldError, options: Mapping[str, Any]) -> str:
    """``error`` of what ``given`` read, with the name of whom it is about for its number."""
    collection, _, rest = error.field.partition(".")
    at, _, what = rest.partition(".")
    if collection not in ("nodes", "add", "runs", "rates") or not at.isdigit():
        return str(error)
    asked = given(options)
    names: Mapping[str, Sequence[Any]] = {
        "nodes": [change.node for change in asked.nodes],
        "add": [new.name for new in asked.add],
        "runs": list(asked.priorities),
        "rates": list(asked.rates),
    }
    return f"{names[collection][int(at)]}: {what}: {error.message}"


def _new(name: str, node: _Node) -> NewNode:
    fields = dict(node.fields)
    capacity = fields.pop("capacity", NewNode.capacity)
    return NewNode(name, capacity, node.types, list((node.quotas or {}).values()), fields)


def _set(text: str, said: dict[str, _Node], added: Sequence[str]) -> None:
    if match := _QUOTA.match(text):
        name, key, value = match.groups()
        _quota(_node(name, said), name, key, value, new=name in added)
    elif match := _LABEL.match(text):
        name, label, value = match.groups()
        node = _node(name, said)
        stored = {} if name in added else registry.find_node(name).labels
        labels = {**node.fields.get("labels", stored), label: value}
        node.fields["labels"] = {each: of for each, of in labels.items() if of != _NONE}
    elif match := _SET.match(text):
        name, what, value = match.groups()
        node = _node(name, said)
        if what == "types":
            if name not in added:
                raise FieldError("--if", f"{shown(text)}: the types of a node that is there are its own to say")
            node.types = [each.strip() for each in value.split(",") if each.strip()]
        else:
            node.fields[what] = _READERS[what](text, value)
    else:
        raise FieldError("--if", f"{shown(text)} is not like n1.capacity=8, n1.quota.echo=2/4 or n1.label.region=eu")


def _node(name: str, said: dict[str, _Node]) -> _Node:
    if name not in said:
        registry.find_node(name)
        said[name] = _Node()
    return said[name]


def _quota(node: _Node, name: str, key: str, value: str, *, new: bool) -> None:
    if node.quotas is None:
        stored = [] if new else registry.find_node(name).quotas.all()
        node.quotas = {
            (each.task_type, each.item): QuotaSpec(each.task_type, each.slots, each.item, each.limit) for each in stored
        }
    spec = parse_quota(f"{key}={'0' if value == _NONE else value}")
    if value != _NONE:
        node.quotas[spec.task_type, spec.item] = spec
    elif node.quotas.pop((spec.task_type, spec.item), None) is None:
        raise FieldError("--if", f"{shown(name)} has no quota for {key}")


def _whole(text: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise FieldError("--if", f"{shown(text)}: {shown(value)} is not a whole number")
    return int(value)


def _real(option: str, text: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise FieldError(option, f"{shown(text)}: {shown(value)} is not a number")
    return found


def _flag(text: str, value: str) -> bool:
    if value.lower() not in _FLAGS:
        raise FieldError("--if", f"{shown(text)}: {shown(value)} is neither yes nor no")
    return _FLAGS[value.lower()]


def _percent(text: str, value: str) -> float | None:
    return None if value == _NONE else _real("--if", text, value)


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "capacity": _whole,
    "weight": lambda text, value: _real("--if", text, value),
    "active": _flag,
    "draining": _flag,
    "max_cpu": _percent,
    "max_memory": _percent,
}


def _priority(text: str) -> tuple[int, int]:
    run, _, priority = text.partition("=")
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in (run, priority)):
        raise FieldError("--priority", f"{shown(text)} is not like 12=9, a run's number and its priority")
    return int(run), int(priority)


def _rate(text: str) -> tuple[str, tuple[float, int] | None]:
    key, _, value = text.rpartition("=")
    if not key:
        raise FieldError("--rate", f"{shown(text)} is not like host:a.org=2/4, a key, items a second and at once")
    if value == _NONE:
        return key, None
    seconds, _, burst = value.partition("/")
    if burst and not (burst.isascii() and burst.isdigit() and len(burst) < 10):
        raise FieldError("--rate", f"{shown(text)}: {shown(burst)} is not a whole number")
    return key, (_real("--rate", text, seconds), int(burst or 1))
