"""Other systems' names for our settings: one table, for parent and agent alike. Django-free; nothing is read here.

A name may mean different things in different systems; then the role of the process decides, and each meaning is a row
of its own. Where one name has several rows for a role, the first whose ``when`` holds is the one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PARENTS = frozenset({"parent", "relay", "standalone"})
CHILD = frozenset({"child"})
ALL = PARENTS | CHILD

LONGEST_BEAT = 10.0
"""Seconds; a lease lasts 30 unless told otherwise, and should outlive a lost beat or two."""
LONGEST_SILENCE = 180.0
"""Seconds after which any silent node counts as offline."""


@dataclass(frozen=True)
class Alias:
    """``name`` as the other system writes it, with a dot for one level of nesting; ``target`` our setting, or "".

    ``convert`` gives our value, and what is to be said of it at the start ("" for nothing); it raises ValueError with
    what is allowed. ``environ``: a variable of that system, beside CASCADE_<NAME>. ``note`` is said whenever the name
    is used.
    """

    name: str
    target: str
    roles: frozenset[str] = ALL
    convert: Callable[[Any], tuple[Any, str]] | None = None
    note: str = ""
    environ: str = ""
    when: Callable[[Any], bool] | None = None
    rank: int = 1
    """Of several that say something of one setting in one place, the lowest holds; our own name has 0."""


def _number(value: Any, allowed: str, least: float) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(allowed) from None
    if not least <= number < float("inf"):
        raise ValueError(allowed)
    return number


def _mode(value: Any) -> tuple[Any, str]:
    modes = {"master": "parent", "worker": "child", "standalone": "standalone"}
    if value not in modes:
        raise ValueError(f"one of: {', '.join(modes)}")
    return modes[value], ""


def _node_type(value: Any) -> tuple[Any, str]:
    if value not in ("parent", "child"):
        raise ValueError("one of: parent, child")
    return value, ""


def _truth(value: Any) -> bool:
    truths = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return truths[str(value).strip().lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _is_off(value: Any) -> bool:
    return not _truth(value)


def _alone(value: Any) -> tuple[Any, str]:
    return "standalone", "this server works by itself (role standalone)"


def _node_id(value: Any) -> tuple[Any, str]:
    return ("" if value == "auto-generated" else str(value)), ""


def _attempts(value: Any) -> tuple[Any, str]:
    retries = _number(value, "a whole number from 0 to 99", 0)
    if retries != int(retries) or retries > 99:
        raise ValueError("a whole number from 0 to 99")
    return int(retries) + 1, ""


def _beat(value: Any) -> tuple[Any, str]:
    seconds = _number(value, "a number above 0, in seconds", 0.1)
    if seconds <= LONGEST_BEAT:
        return seconds, ""
    return LONGEST_BEAT, f"children beat every {LONGEST_BEAT:g} s at most, so that a lease outlives a lost beat"


def _silence(value: Any) -> tuple[Any, str]:
    seconds = _number(value, "a number from 1 up, in seconds", 1)
    if seconds <= LONGEST_SILENCE:
        return seconds, ""
    return LONGEST_SILENCE, f"a silent node is offline after {LONGEST_SILENCE:g} s at most"


def _timeout(value: Any) -> tuple[Any, str]:
    return _number(value, "a number from 0.1 up, in seconds", 0.1), ""


def _is_access_key(value: Any) -> bool:
    return bool(re.match(r"\ACN[0-9a-zA-Z]{8,38}\Z", str(value)))


_NO_MATTER = "has no effect"
_PARENT_SAYS = "has no effect on a child: its parent tells it"

ALIASES: tuple[Alias, ...] = (
    # Worker nodes that a main program drives (node_config.json)
    Alias("node_id", "node_id", convert=_node_id, environ="NODE_ID"),
    Alias("node_name", "node_name", environ="NODE_NAME"),
    Alias("host", "host", environ="NODE_HOST"),
    Alias("port", "port", environ="NODE_PORT"),
    Alias("node_api_key", "node_api_key", environ="NODE_API_KEY"),
    # One word in three systems: a child's key towards its parent begins with CN; else it is what this server asks of
    # programs that drive it. A parent knows its children by keys of its own.
    Alias("api_key", "access_key", CHILD, when=_is_access_key),
    Alias("api_key", "node_api_key", frozenset({"child", "standalone"})),
    Alias(
        "api_key",
        "",
        frozenset({"parent"}),
        note="has no effect on a parent: nodes have keys of their own (manage.py node add, registration keys)",
    ),
    Alias("max_workers", "workers", CHILD, environ="MAX_WORKERS"),
    Alias("max_workers", "fallback_workers", PARENTS, environ="MAX_WORKERS"),
    Alias("task_timeout", "default_timeout", convert=_timeout),
    Alias("heartbeat_interval", "beat_seconds", PARENTS, convert=_beat),
    Alias("heartbeat_interval", "", CHILD, note=f"{_PARENT_SAYS} how often to beat"),
    Alias("max_cpu_percent", "max_cpu"),
    Alias("enable_caching", "", note=f"{_NO_MATTER}: nothing is cached between tasks"),
    Alias("cache_size_mb", "", note=f"{_NO_MATTER}: nothing is cached between tasks"),
    # Parents and children that update feeds (config.yaml, section cascade)
    Alias("cascade.enabled", "role", convert=_alone, when=_is_off, rank=0),
    Alias("cascade.enabled", ""),
    Alias("cascade.node_type", "role", convert=_node_type),
    Alias("node_type", "role", convert=_node_type),
    Alias("cascade.parent_api_url", "parent"),
    Alias("parent_api_url", "parent"),
    Alias("parent_url", "parent"),
    Alias("cascade.api_key", "access_key"),
    Alias("cascade.api_secret", "secret_key"),
    Alias("api_secret", "secret_key"),
    Alias("sync_interval", "", note=f"{_NO_MATTER}: a child hears of changes with its next beat"),
    # Masters and workers of a crawler (distribution_*.json)
    Alias("mode", "role", convert=_mode),
    Alias("device_id", "node_id"),
    Alias("device_name", "node_name"),
    Alias("master_url", "parent"),
    Alias("concurrent_tasks", "workers", CHILD),
    Alias("concurrent_tasks", "fallback_workers", PARENTS),
    Alias("max_retry_count", "default_max_attempts", convert=_attempts),
    Alias("load_balance_strategy", "default_balancer"),
    Alias("dispatch_interval", "", note=f"{_NO_MATTER}: work is given out as soon as there is some"),
    Alias("timeout_check_interval", "", note=f"{_NO_MATTER}: time-outs are noticed within a second"),
    Alias("device_timeout", "patient_seconds", PARENTS, convert=_silence),
    Alias("device_timeout", "", CHILD, note=f"{_PARENT_SAYS} when it counts as offline"),
    Alias("enable_monitoring", "", note=f"{_NO_MATTER}: what happens is always recorded and shown"),
)


def find(name: str, role: str, value: Any) -> Alias | None:
    """What ``name`` means to a process of this role. Raises ValueError, with what is allowed, for an odd ``value``."""
    for alias in ALIASES:
        if alias.name == name and role in alias.roles and (alias.when is None or alias.when(value)):
            return alias
    return None


def names() -> frozenset[str]:
    return frozenset(alias.name for alias in ALIASES)


def of(setting: str) -> list[str]:
    """The aliases of ``setting``, each once, in the table's order."""
    return list(dict.fromkeys(alias.name for alias in ALIASES if alias.target == setting and alias.name != setting))
