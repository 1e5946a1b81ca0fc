"""A file with every setting of a role: what ``manage.py config`` writes. All but the role are comments, so reading it
back changes nothing else.

TOML and YAML have comments. JSON has none, so there every setting is written with its default, under no other names
than ours, and what may be said of it is left to the other two.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cascade.config import Config, allowed
from nodes import aliases
from nodes.agent import config as agent

SERVED = (
    "role data_dir debug django_key allowed_hosts csrf_trusted_origins https time_zone log_level host port node_id "
    "node_name node_api_key healthy_word workers max_cpu max_memory max_memory_mb default_timeout upload_limit"
)
"""Settings of a server that a child has, too."""
WIDTH = 100


def names(role: str) -> list[str]:
    """The settings that matter to a process of this role, in the order of their declaration."""
    if role != "child":
        return list(Config.model_fields)
    served = SERVED.split()
    server = [name for name in Config.model_fields if name in served]
    return [*(name for name in agent.BY_NAME if name not in server), *server]


def default(name: str, role: str) -> Any:
    if name == "role":
        return role
    if name in Config.model_fields:
        return Config.model_fields[name].get_default(call_default_factory=True)
    return agent.BY_NAME[name].default


def description(name: str) -> str:
    if name in Config.model_fields:
        return Config.model_fields[name].description or ""
    return agent.BY_NAME[name].description


def write(role: str, format: str) -> str:
    """The file's text; ``format`` is one of WRITERS."""
    return WRITERS[format](role)


def _value(name: str, role: str) -> Any:
    value = default(name, role)
    return str(value) if isinstance(value, Path) else value


def _comment(name: str, role: str) -> list[str]:
    text = f"{description(name)} Allowed: {allowed(name)}."
    if others := [alias for alias in aliases.of(name) if any(role in each.roles for each in _rows(alias))]:
        text += f" Also called: {', '.join(others)}."
    text += f" Variable: CASCADE_{name.upper()}."
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _rows(alias: str) -> list[aliases.Alias]:
    return [each for each in aliases.ALIASES if each.name == alias]


def _head(role: str, suffix: str) -> list[str]:
    return textwrap.wrap(
        f"Settings of a {role}. Each line below shows a default; take its # away and change it. The environment comes "
        "before this file, and arguments before both. Read it with: "
        f"python manage.py runserver --config cascade.{suffix}",
        WIDTH,
    )


def _commented(role: str, suffix: str, line: Callable[[str, str], str]) -> str:
    lines = [f"# {text}" for text in _head(role, suffix)]
    for name in names(role):
        lines += ["", *(f"# {text}" for text in _comment(name, role))]
        # The role alone is set: it is what the file was written for.
        shown = line(name, json.dumps(_value(name, role), ensure_ascii=False))
        lines.append(shown if name == "role" else f"#{shown}")
    return "\n".join(lines) + "\n"


def _toml(role: str) -> str:
    return _commented(role, "toml", lambda name, value: f"{name} = {value}")


def _yaml(role: str) -> str:
    return _commented(role, "yaml", lambda name, value: f"{name}: {value}")


def _json(role: str) -> str:
    # These two mean something else when they are given than when they are not.
    left = {"data_dir", "allowed_hosts"} if role == "child" else set()
    made = {name: None if name in left else _value(name, role) for name in names(role)}
    return json.dumps({name: None if value == "" else value for name, value in made.items()}, indent=2) + "\n"


WRITERS: dict[str, Callable[[str], str]] = {"toml": _toml, "json": _json, "yaml": _yaml}
