"""What a child sends, read and checked: JSON in, frozen dataclasses out. Unknown fields are ignored.

Every reader raises FieldError naming the field, so that a bad message is a 400 on every carrier.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from nodes import identity
from nodes.executors.base import FOUND_LIMIT, MEMORY_LIMIT, shown
from nodes.protocol import (
    CHILDREN_TOLD,
    LOG_CHARACTERS,
    LOG_LIMIT,
    LOG_PIECES,
    OLDEST,
    SLOTS_LIMIT,
    SUMMARY_NUMBERS,
    VERSION,
    FieldError,
)

BRANCHES_LIMIT = 100
CONFIGS_LIMIT = 10
NODES_LIMIT = 10_000_000
"""In one subtree."""
CHILDREN_LIMIT = 100
"""Named in what a relay says of its subtree with each beat."""
ANSWERS_LIMIT = 100
TOLD_LIMIT = 4_000_000
"""Characters of one answer."""
SLOTS_TOLD = ("capacity", "used", "queued")
CARRIERS = ("pull", "push", "http")
ROLES = ("child", "relay", "parent", "standalone")
STATES = ("online", "draining", "offline", "inactive")
SECONDS_LIMIT = 1e10
PATH_LIMIT = 500
"""Characters of the names of nodes from one node down to another."""
IDS_LIMIT = 20_000
TEXT_LIMIT = 4_000
ENTRIES_LIMIT = 5_000
STATUS_LIMIT = 200
COUNTS_LIMIT = 20
LARGEST_ID = 2**63 - 1
LONGEST_LOG = 2**53
"""Characters that a shard may have printed."""
_SHA256 = re.compile(r"\A[0-9a-f]{64}\Z")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Claim:
    """A child asks for work: ``slots`` free ones; ``wait`` seconds it would wait."""

    boot: str
    slots: int
    wait: float
    held: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Below:
    """What a relay's nodes can do together: slots in all and by type, and which labels there are together.

    ``begun``: of allocations that came with tokens of a rate, how many items were begun. ``configs``: version of the
    configuration -> nodes below that have it; 0 for any other.
    """

    slots: int
    types: dict[str, int]
    branches: tuple[dict[str, str], ...]
    begun: dict[int, int] = field(default_factory=dict)
    configs: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Beat:
    """A child is alive. ``hello`` opens a session: what it does not name as held is given to others."""

    boot: str
    hello: bool
    held: tuple[int, ...]
    running: tuple[int, ...]
    progress: dict[int, int]
    cpu: float | None
    memory: float | None
    disk: float | None
    version: str
    executors: tuple[str, ...] | None
    carrier: str
    leaving: bool
    config: int | None = None
    """The version of the configuration that it works with, 0 for none; None when it does not say."""
    protocol: int = VERSION
    below: Below | None = None
    """Of a relay: what its nodes can do now."""
    id: str = ""
    """Of a relay: who it is, wherever it hangs."""
    subtree: dict[str, Any] | None = None
    """Of a relay: what hangs below it, in short; see ``dispatch.relay.subtree``."""


@dataclass(frozen=True, slots=True)
class Told:
    """A relay's answer to a question, ``status`` as of an HTTP answer: with 200 ``body`` has what hangs below the node
    that was asked for, else ``detail`` says why it does not.
    """

    id: int
    status: int
    body: dict[str, Any] | None
    detail: str


@dataclass(frozen=True, slots=True)
class Printed:
    """A part of what a running shard has printed; before it, ``start`` characters."""

    allocation: int
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class ItemError:
    index: int
    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What an item brought beside rows; see ``nodes.executors.base.Outcome``."""

    index: int
    found: tuple[Any, ...] = ()
    memory: dict[str, Any] | None = None
    status: str = ""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished allocation, or a part of one; see ``nodes.protocol`` for the fields. ``rows`` is the number of rows
    it brings.
    """

    allocation: int
    ranges: tuple[tuple[int, int, int], ...] = ()
    """(start, stop, rows)."""
    errors: tuple[ItemError, ...] = ()
    failure: str = ""
    message: str = ""
    inline: list[list[Any]] | None = None
    segment: str = ""
    offset: int = 0
    seconds: float = 0.0
    log: str = ""
    log_start: int = 0
    """Characters of the log that are left out before ``log``."""
    digest: str = field(default="", compare=False)
    stopped: int | None = None
    outcomes: tuple[ItemOutcome, ...] = ()
    part: int = 0
    """1, 2, …: a part of what the allocation covers, which goes on; 0: all that is left of it."""
    nodes: tuple[str, ...] = ()
    """Who worked, of the reporting node's own nodes; ``by`` has, for each range, the number of its name here."""
    by: tuple[int, ...] = ()

    @property
    def unsaved(self) -> bool:
        """Some of its items are not done."""
        return bool(self.failure or self.errors or self.stopped is not None)

    @property
    def rows(self) -> int:
        return sum(count for _, _, count in self.ranges)


def read_object(value: Any, name: str = "body") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(name, f"{shown(value)} is not an object")
    return value


def _whole(value: Any, name: str, least: int = 0, most: int = LARGEST_ID) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FieldError(name, f"{shown(value)} is not a whole number from {least} to {most}")
    return value


def _number(value: Any, name: str, most: float = 1e12) -> float:
    # NaN fails the comparison, and a whole number too large for a float never gets to be one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise FieldError(name, f"{shown(value)} is not a number from 0 to {most:g}")
    return float(value)


def _text(value: Any, name: str, limit: int) -> str:
    if not isinstance(value, str):
        raise FieldError(name, f"{shown(value)} is not a text")
    # Neither database nor JSON peers can carry these; what a program printed must not cost its result.
    return _UNSTORABLE.sub("\ufffd", value)[:limit]


def _list(value: Any, name: str, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise FieldError(name, f"{shown(value)} is not a list")
    if len(value) > limit:
        raise FieldError(name, f"has {len(value)} entries; at most {limit} are allowed")
    return value


def read_ids(value: Any, name: str) -> tuple[int, ...]:
    return tuple(_whole(each, name) for each in _list(value, name, IDS_LIMIT))


def read_claim(body: Any) -> Claim:
    body = read_object(body)
    return Claim(
        boot=_text(body.get("boot", ""), "boot", 64),
        slots=_whole(body.get("slots", 1), "slots", 0, 100_000),
        wait=_number(body.get("wait", 0), "wait"),
        held=read_ids(body.get("held", []), "held"),
    )


def read_beat(body: Any) -> Beat:
    body = read_object(body)
    executors = body.get("executors")

    def load(name: str) -> float | None:
        return None if body.get(name) is None else min(_number(body[name], name), 100.0)

    return Beat(
        boot=_text(body.get("boot", ""), "boot", 64),
        hello=body.get("hello") is True,
        held=read_ids(body.get("held", []), "held"),
        running=read_ids(body.get("running", []), "running"),
        progress=_counted(body, "progress", IDS_LIMIT),
        cpu=load("cpu"),
        memory=load("memory"),
        disk=load("disk"),
        version=_text(body.get("version", ""), "version", 40),
        executors=None
        if executors is None
        else tuple(_text(each, "executors", 60) for each in _list(executors, "executors", 100)),
        carrier=_carrier(body.get("carrier", "pull")),
        leaving=body.get("leaving") is True,
        config=None if body.get("config") is None else _whole(body["config"], "config"),
        protocol=_whole(body.get("protocol", OLDEST), "protocol"),
        below=_below(body) if body.get("role") == "relay" else None,
        id=identity.check(_text(body.get("id", ""), "id", 40)) if body.get("role") == "relay" else "",
        subtree=_subtree(body["subtree"]) if body.get("role") == "relay" and "subtree" in body else None,
    )


def _subtree(value: Any) -> dict[str, Any]:
    body = read_object(value, "subtree")
    children = _list(body.get("children", []), "subtree.children", CHILDREN_LIMIT)
    return {
        **_numbers(body, "subtree"),
        "children": [_child(each, f"subtree.children[{at}]") for at, each in enumerate(children)],
        "more": _whole(body.get("more", 0), "subtree.more", 0, NODES_LIMIT),
    }


def _numbers(body: dict[str, Any], name: str) -> dict[str, int]:
    return {each: _whole(body.get(each, 0), f"{name}.{each}", 0, NODES_LIMIT) for each in SUMMARY_NUMBERS}


def _child(value: Any, name: str) -> dict[str, Any]:
    """A node of a relay, in short."""
    body = read_object(value, name)
    below = body.get("below")
    return {
        "name": _text(body.get("name", ""), f"{name}.name", 100),
        "role": _word(body.get("role", "child"), f"{name}.role", ROLES),
        "state": _word(body.get("state", "online"), f"{name}.state", STATES),
        **{
            part: _whole(body.get(part, 0), f"{name}.{part}", 0, NODES_LIMIT) for part in ("capacity", "used", "queued")
        },
        "below": None if below is None else _numbers(read_object(below, f"{name}.below"), f"{name}.below"),
    }


def _word(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise FieldError(name, f"{shown(value)} is not one of: {', '.join(allowed)}")
    return str(value)


def _below(body: dict[str, Any]) -> Below:
    types = read_object(body.get("types", {}), "types")
    branches = _list(body.get("branches", []), "branches", BRANCHES_LIMIT)
    if len(types) > 100:
        raise FieldError("types", f"has {len(types)} entries; at most 100 are allowed")
    return Below(
        slots=_whole(body.get("slots", 0), "slots", 0, SLOTS_LIMIT),
        types={
            _text(name, "types", 60): _whole(count, f"types.{name[:60]}", 0, SLOTS_LIMIT)
            for name, count in types.items()
        },
        branches=tuple(
            {
                _text(name, "branches", 100): _text(value, "branches", 200)
                for name, value in read_object(branch, "branches").items()
            }
            for branch in branches
        ),
        begun=_counted(body, "begun", IDS_LIMIT),
        configs=_counted(body, "configs", CONFIGS_LIMIT),
    )


def _counted(body: dict[str, Any], name: str, limit: int) -> dict[int, int]:
    """An object of whole numbers by whole numbers."""
    told = read_object(body.get(name, {}), name)
    if len(told) > limit:
        raise FieldError(name, f"has {len(told)} entries; at most {limit} are allowed")
    return {_key(each, name): _whole(count, name) for each, count in told.items()}


def _key(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        what = "a version's number" if name == "configs" else "an allocation's id"
        raise FieldError(name, f"{shown(text)} is not {what}")
    return int(text)


def _carrier(value: Any) -> str:
    return _word(value, "carrier", CARRIERS)


def read_release(body: Any) -> tuple[tuple[int, ...], str]:
    """The allocations handed back, and why."""
    body = read_object(body)
    if "allocations" not in body:
        raise FieldError("allocations", "is required: the ids that are handed back")
    return read_ids(body["allocations"], "allocations"), _text(body.get("detail", ""), "detail", 200)


def read_accept(body: Any) -> tuple[int, ...]:
    return read_release(body)[0]


def read_logs(body: Any) -> list[Printed]:
    """What shards have printed that are still running."""
    body = read_object(body)
    if "logs" not in body:
        raise FieldError("logs", "is required: a list of [allocation, start, text]")
    found = [_printed(each, f"logs[{at}]") for at, each in enumerate(_list(body["logs"], "logs", LOG_PIECES))]
    if (size := sum(len(each.text) for each in found)) > LOG_CHARACTERS:
        raise FieldError("logs", f"has {size} characters; at most {LOG_CHARACTERS} are allowed")
    if len({each.allocation for each in found}) < len(found):
        raise FieldError("logs", "has an allocation twice")
    return found


def _printed(value: Any, name: str) -> Printed:
    if not isinstance(value, list) or len(value) != 3:
        raise FieldError(name, f"{shown(value)} is not [allocation, start, text]")
    allocation, start, text = value
    if isinstance(text, str) and len(text) > LOG_LIMIT:
        raise FieldError(name, f"has {len(text)} characters; at most {LOG_LIMIT} of one allocation are allowed")
    return Printed(_whole(allocation, name), _whole(start, name, 0, LONGEST_LOG), _text(text, name, LOG_LIMIT))


def read_tell(body: Any) -> list[Told]:
    """Answers to what this node was asked."""
    body = read_object(body)
    answers = _list(body.get("answers", []), "answers", ANSWERS_LIMIT)
    return [_told(each, f"answers[{at}]") for at, each in enumerate(answers)]


def _told(value: Any, name: str) -> Told:
    body = read_object(value, name)
    if "id" not in body:
        raise FieldError(f"{name}.id", "is required: the question's")
    status = body.get("status", 200)
    if status not in (200, 404, 504) or isinstance(status, bool):
        raise FieldError(f"{name}.status", f"{shown(status)} is not one of: 200, 404, 504")
    about = _picture(body.get("body"), f"{name}.body") if status == 200 else None
    return Told(
        _whole(body["id"], f"{name}.id"), status, about, _text(body.get("detail", ""), f"{name}.detail", TEXT_LIMIT)
    )


def _picture(value: Any, name: str) -> dict[str, Any]:
    """What hangs below a relay, in full; see ``dispatch.relay.subtree.in_full``."""
    body = read_object(value, name)
    children = _list(body.get("children", []), f"{name}.children", CHILDREN_TOLD)
    found = {
        "node": _text(body.get("node", ""), f"{name}.node", 100),
        "live": body.get("live") is True,
        "seconds_ago": _perhaps(body, name, "seconds_ago", SECONDS_LIMIT),
        "below": None if (below := body.get("below")) is None else _numbers(read_object(below, name), f"{name}.below"),
        "children": [_child_in_full(each, f"{name}.children[{at}]") for at, each in enumerate(children)],
        "more": _whole(body.get("more", 0), f"{name}.more", 0, NODES_LIMIT),
    }
    if (size := len(_plain(found, name))) > TOLD_LIMIT:
        raise FieldError(name, f"has {size} characters; at most {TOLD_LIMIT} are allowed")
    return found


def _child_in_full(value: Any, name: str) -> dict[str, Any]:
    body = read_object(value, name)

    def whole(field: str) -> int | None:
        return None if body.get(field) is None else _whole(body[field], f"{name}.{field}")

    def texts(field: str, most: int) -> dict[str, str] | None:
        if body.get(field) is None:
            return None
        found = read_object(body[field], f"{name}.{field}")
        _list(list(found), f"{name}.{field}", most)
        return {_text(key, f"{name}.{field}", 100): _text(each, f"{name}.{field}", 200) for key, each in found.items()}

    def list_of(field: str, most: int) -> list[Any] | None:
        return None if body.get(field) is None else _list(body[field], f"{name}.{field}", most)

    types, quotas = list_of("types", 100), list_of("quotas", 100)
    speeds = None if body.get("speeds") is None else read_object(body["speeds"], f"{name}.speeds")
    if speeds is not None:
        _list(list(speeds), f"{name}.speeds", 100)
    return {
        **_child(value, name),
        "id": whole("id"),
        "carrier": None if body.get("carrier") is None else _word(body["carrier"], f"{name}.carrier", CARRIERS),
        "allowed": whole("allowed"),
        "quotas": None if quotas is None else [_quota(each, f"{name}.quotas") for each in quotas],
        "labels": texts("labels", 100),
        "version": None if body.get("version") is None else _text(body["version"], f"{name}.version", 40),
        "config_version": whole("config_version"),
        "types": None if types is None else [_text(each, f"{name}.types", 60) for each in types],
        "speeds": None
        if speeds is None
        else {_text(key, f"{name}.speeds", 60): _number(each, f"{name}.speeds") for key, each in speeds.items()},
        **{each: _perhaps(body, name, each, 100.0) for each in ("cpu", "memory")},
        **{each: _perhaps(body, name, each, SECONDS_LIMIT) for each in ("beat_seconds_ago", "below_seconds_ago")},
    }


def _perhaps(body: dict[str, Any], name: str, field: str, most: float) -> float | None:
    return None if body.get(field) is None else _number(body[field], f"{name}.{field}", most)


def _quota(value: Any, name: str) -> dict[str, Any]:
    body = read_object(value, name)
    limit = body.get("limit")
    return {
        "task_type": _text(body.get("task_type", ""), f"{name}.task_type", 60),
        "item": _text(body.get("item", ""), f"{name}.item", 200),
        "slots": _whole(body.get("slots", 0), f"{name}.slots", 0, SLOTS_LIMIT),
        "limit": None if limit is None else _whole(limit, f"{name}.limit", 0, SLOTS_LIMIT),
    }


def read_rotate(body: Any) -> str:
    """The public half of the child's new key, in hex; ``keys`` says whether it is one."""
    body = read_object(body)
    if "public_key" not in body:
        raise FieldError("public_key", "is required: the public half of the new key, in hex")
    return _text(body["public_key"], "public_key", 100)


def read_report(body: Any) -> list[Entry]:
    """The entries. Two for one allocation are refused."""
    body = read_object(body)
    if "reports" not in body:
        raise FieldError("reports", "is required: a list of finished allocations")
    entries = [
        _entry(each, f"reports[{at}]") for at, each in enumerate(_list(body["reports"], "reports", ENTRIES_LIMIT))
    ]
    seen: set[tuple[int, int]] = set()
    for at, entry in enumerate(entries):
        if (entry.allocation, entry.part) in seen:
            raise FieldError(f"reports[{at}].allocation", f"{entry.allocation} stands in this message twice")
        seen.add((entry.allocation, entry.part))
    return entries


def _entry(value: Any, name: str) -> Entry:
    body = read_object(value, name)
    if "allocation" not in body:
        raise FieldError(f"{name}.allocation", "is required")
    allocation = _whole(body["allocation"], f"{name}.allocation")
    seconds = _number(body.get("seconds", 0), f"{name}.seconds")
    log = _text(body.get("log", ""), f"{name}.log", LOG_LIMIT)
    log_start = _whole(body.get("log_start", 0), f"{name}.log_start", 0, LONGEST_LOG)
    if (failure := body.get("failure")) is not None:
        failure = read_object(failure, f"{name}.failure")
        kind = failure.get("kind")
        if kind not in ("error", "timeout", "crash"):
            raise FieldError(f"{name}.failure.kind", f"{shown(kind)} is not one of: error, timeout, crash")
        message = _text(failure.get("message", ""), f"{name}.failure.message", TEXT_LIMIT)
        about: dict[str, Any] = {"seconds": seconds, "log": log, "log_start": log_start}
        return Entry(allocation, failure=kind, message=message, digest=_digest([kind, message], name), **about)
    told = [_range(each, f"{name}.ranges") for each in _list(body.get("ranges", []), f"{name}.ranges", IDS_LIMIT)]
    ranges = tuple(each[:3] for each in told)
    nodes = tuple(
        _text(each, f"{name}.nodes", PATH_LIMIT) for each in _list(body.get("nodes", []), f"{name}.nodes", IDS_LIMIT)
    )
    by = tuple(each[3] for each in told) if nodes else ()
    if any(number >= len(nodes) for number in by):
        raise FieldError(f"{name}.ranges", f"name a node that is not among the {len(nodes)} of nodes")
    part = _whole(body.get("part", 0), f"{name}.part")
    if part and (body.get("errors") or body.get("stopped") is not None):
        raise FieldError(f"{name}.part", "brings what is done only; errors and stopped come with the last one")
    errors = tuple(
        _error(each, f"{name}.errors") for each in _list(body.get("errors", []), f"{name}.errors", IDS_LIMIT)
    )
    stopped = None if body.get("stopped") is None else _whole(body["stopped"], f"{name}.stopped")
    outcomes = tuple(
        _outcome(each, f"{name}.outcomes") for each in _list(body.get("outcomes", []), f"{name}.outcomes", IDS_LIMIT)
    )
    done = _indices(ranges) if outcomes else set()
    if len({each.index for each in outcomes}) < len(outcomes) or any(each.index not in done for each in outcomes):
        raise FieldError(f"{name}.outcomes", "must be about items of the ranges, each once")
    entry = Entry(allocation, ranges, errors, seconds=seconds, log=log)
    segment = body.get("segment") or ""
    inline = body.get("rows")
    if segment:
        if not isinstance(segment, str) or not _SHA256.match(segment):
            raise FieldError(f"{name}.segment", f"{shown(segment)} is not a SHA-256 in 64 lower-case hex digits")
        if inline:
            raise FieldError(f"{name}.rows", "stands beside segment; rows travel one way or the other")
    else:
        inline = _list(inline or [], f"{name}.rows", 100_000)
        if len(inline) != entry.rows:
            raise FieldError(f"{name}.rows", f"has {len(inline)} rows, but the ranges count {entry.rows}")
    offset = _whole(body.get("offset", 0), f"{name}.offset")
    content = [body.get("ranges", []), body.get("errors", []), segment, offset, inline]
    content += [] if stopped is None else [stopped]
    content += [[part, list(nodes)]] if part or nodes else []
    digest = _digest(content + ([body["outcomes"]] if outcomes else []), name)
    return Entry(
        allocation,
        ranges,
        errors,
        inline=None if segment else inline,
        segment=segment,
        offset=offset,
        seconds=seconds,
        log=log,
        log_start=log_start,
        digest=digest,
        stopped=stopped,
        outcomes=outcomes,
        part=part,
        nodes=nodes,
        by=by,
    )


def _range(value: Any, name: str) -> tuple[int, int, int, int]:
    if not isinstance(value, list) or len(value) not in (3, 4):
        raise FieldError(name, f"{shown(value)} is not [start, stop, rows] or [start, stop, rows, node]")
    start, stop, rows, *node = (_whole(each, name) for each in value)
    if start >= stop:
        raise FieldError(name, f"[{start}, {stop}) is empty")
    return start, stop, rows, node[0] if node else 0


def _error(value: Any, name: str) -> ItemError:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], bool):
        raise FieldError(name, f"{shown(value)} is not [index, message, retry]")
    return ItemError(_whole(value[0], name), _text(value[1], name, TEXT_LIMIT), value[2])


def _indices(ranges: tuple[tuple[int, int, int], ...]) -> set[int]:
    """Those that outcomes may be about: a shard that has any is not large."""
    return {index for first, last, _ in ranges for index in range(first, min(last, first + IDS_LIMIT))}


def _outcome(value: Any, name: str) -> ItemOutcome:
    if not isinstance(value, list) or len(value) != 2:
        raise FieldError(name, f"{shown(value)} is not [index, object]")
    body = read_object(value[1], name)
    memory = body.get("memory")
    if memory is not None:
        memory = read_object(memory, f"{name}.memory")
        if len(text := _plain(memory, f"{name}.memory")) > MEMORY_LIMIT:
            raise FieldError(f"{name}.memory", f"has {len(text)} characters; at most {MEMORY_LIMIT} are allowed")
    counts = read_object(body.get("counts", {}), f"{name}.counts")
    if len(counts) > COUNTS_LIMIT:
        raise FieldError(f"{name}.counts", f"has {len(counts)} entries; at most {COUNTS_LIMIT} are allowed")
    return ItemOutcome(
        _whole(value[0], name),
        tuple(_list(body.get("found", []), f"{name}.found", FOUND_LIMIT)),
        memory,
        _text(body.get("status", ""), f"{name}.status", STATUS_LIMIT),
        {_text(key, f"{name}.counts", 40): _whole(number, f"{name}.counts") for key, number in counts.items()},
    )


def _plain(value: Any, name: str) -> str:
    """``value`` as JSON that any database can hold. Raises FieldError."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError):
        raise FieldError(name, "is not plain JSON") from None
    if "\\u0000" in text:
        raise FieldError(name, "has NUL, which cannot be stored")
    return text


def _digest(content: Any, name: str) -> str:
    """What makes a report the same report: its content, not its timing or its log."""
    try:
        return hashlib.sha256(json.dumps(content, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise FieldError(name, "is nested too deep") from None
