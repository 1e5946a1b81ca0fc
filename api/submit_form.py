"""What the form of a submission holds: fields made from what a type declares, as text, and what they say as values.

A form says what was typed and nothing else: an empty field is not given, so that the default holds. What cannot be said
in fields without a loss (an empty text, say) is said as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from nodes import sentences
from nodes.executors import described
from nodes.executors.base import REQUIRED, Executor, Item, Param, Variant, shown
from nodes.protocol import FieldError

OPTION = 200


@dataclass(frozen=True)
class Input:
    """A field as shown. ``value`` is text; ``choices`` are of a list to choose from. ``redraws``: its value decides
    which other fields there are; ``suggested`` are values that bring some."""

    id: str
    label: str
    kind: str
    help: str
    allowed: str
    default: str
    required: bool
    value: str
    choices: tuple[str, ...] = ()
    redraws: bool = False
    suggested: tuple[str, ...] = ()
    problem: str = ""

    @property
    def long(self) -> bool:
        return self.kind in ("object", "list") or "\n" in self.value

    @property
    def hint(self) -> str:
        default = _("default {value}").format(value=self.default) if self.default and not self.choices else ""
        words = (self.help, "" if self.choices else self.allowed, default, self.kind)
        return " · ".join(word for word in words if word)


@dataclass(frozen=True)
class Group:
    """Fields that there are because of what another one says; ``title`` is empty for those of the type itself."""

    title: str
    inputs: tuple[Input, ...]


def translated(text: str) -> str:
    """What a type declares in English, as the reader has it. Where the catalogue has it not, it stays English."""
    return _(text) if text else ""


# ---- parameters --------------------------------------------------------------------------------------------------


def groups(executor: type[Executor], typed: Mapping[str, str], problems: Mapping[str, str]) -> list[Group]:
    """The fields of the params of a type for what is ``typed``, by the fields' names; ``problems`` by the API's."""
    variants = chosen(executor, typed)
    deciding: dict[str, tuple[str, ...]] = {}
    for variant in executor.variants():
        deciding[variant.by] = (*deciding.get(variant.by, ()), variant.value)
    narrowed = {name: choices for variant in variants for name, choices in variant.choices.items()}
    within = {variant.within for variant in variants if variant.within}
    own = tuple(
        _input(param, f"p.{param.name}", typed, problems, narrowed.get(param.name), deciding.get(param.name, ()))
        for param in executor.params
        if param.name not in within
    )
    found = [Group("", own)] if own else []
    for variant in variants:
        prefix = f"w.{variant.within}." if variant.within else "p."
        inputs = tuple(_input(param, f"{prefix}{param.name}", typed, problems) for param in variant.params)
        if inputs:
            found.append(Group(_("With {name} {value}").format(name=variant.by, value=variant.value), inputs))
    return found


def chosen(executor: type[Executor], typed: Mapping[str, str]) -> list[Variant]:
    """The variants that hold for what is typed."""
    defaults = {param.name: param.default for param in executor.params}
    said = {name: typed.get(f"p.{name}") or defaults.get(name) for name in defaults}
    return [variant for variant in executor.variants() if said.get(variant.by) == variant.value]


def _input(
    param: Param,
    name: str,
    typed: Mapping[str, str],
    problems: Mapping[str, str],
    choices: Sequence[Any] | None = None,
    deciding: tuple[str, ...] = (),
) -> Input:
    if param.kind == "boolean":
        choices = ("true", "false")
    elif choices is None and param.kind != "list":
        choices = param.choices
    default = "" if param.default is REQUIRED or param.default is None else text_of(param.default)
    return Input(
        id=name,
        label=param.name,
        kind=param.kind,
        help=translated(param.help),
        allowed=described.allowed(param) if param.choices else sentences.said(described.allowed(param)),
        default=default,
        required=param.default is REQUIRED,
        value=typed.get(name, ""),
        choices=tuple(text_of(choice) for choice in choices or () if choice != ""),
        redraws=bool(deciding),
        suggested=deciding,
        problem=problems.get(path_of(name), ""),
    )


def path_of(name: str) -> str:
    """The API's name of a field: ``p.days`` is ``params.days``, ``w.strategy_params.n`` is a name below that."""
    first, _, rest = name.partition(".")
    return f"params.{rest}" if first in ("p", "w") else name


def params_of(executor: type[Executor], typed: Mapping[str, str]) -> dict[str, Any]:
    """The params that are typed, as text where they are not of their kind; none of fields that are not there now."""
    variants = chosen(executor, typed)
    within = {variant.within for variant in variants if variant.within}
    params: dict[str, Any] = {}
    for param in [*executor.params, *(param for each in variants if not each.within for param in each.params)]:
        if param.name not in within and (text := typed.get(f"p.{param.name}", "")):
            params[param.name] = _read(param, text)
    for variant in variants:
        if variant.within:
            said = {
                param.name: _read(param, text)
                for param in variant.params
                if (text := typed.get(f"w.{variant.within}.{param.name}", ""))
            }
            if said:
                params[variant.within] = said
    return params


def _read(param: Param, text: str) -> Any:
    """As the kind where it is one, so that JSON shows a number as a number; else the text, which the check refuses."""
    try:
        return param.check(text)
    except FieldError:
        return text


def fields_of(executor: type[Executor], params: Mapping[str, Any]) -> dict[str, str]:
    """The fields that say ``params``, which may be wrong ones; see ``says``."""
    typed = {f"p.{name}": text_of(value) for name, value in params.items() if value is not None}
    for variant in chosen(executor, typed):
        inner = params.get(variant.within) if variant.within else None
        if isinstance(inner, Mapping):
            del typed[f"p.{variant.within}"]
            typed |= {f"w.{variant.within}.{name}": text_of(value) for name, value in inner.items()}
    return typed


def says(executor: type[Executor], typed: Mapping[str, str], params: Mapping[str, Any]) -> bool:
    """Whether the fields say exactly ``params``."""
    return _plain(executor, params_of(executor, typed)) == _plain(executor, params)


def _plain(executor: type[Executor], params: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing: an empty text, or object, where that is the default."""
    empty = {param.name: param.default for param in executor.params if param.default in ("", {})}
    empty |= {
        p.name: p.default for each in executor.variants() if not each.within for p in each.params if p.default == ""
    }
    found = {name: value for name, value in params.items() if value is not None}
    return {name: value for name, value in found.items() if name not in empty or value != empty[name]}


def params_of_json(text: str) -> dict[str, Any]:
    """Raises FieldError."""
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError("params", f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise FieldError("params", f'{shown(found)} is not an object, like {{"name": "value"}}')
    return found


def written(value: Any) -> str:
    """As JSON for people, the same for the same value."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---- items -------------------------------------------------------------------------------------------------------


def items_of(text: str) -> list[Item]:
    """One a line, objects as JSON; or a JSON list of all. Raises FieldError."""
    stripped = text.strip()
    if stripped.startswith("["):
        return _items_of_json(stripped)
    items: list[Item] = []
    for at, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()):
            continue
        if line.startswith("{"):
            try:
                items.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise FieldError("items", f"line {at}, {shown(line)}, is not JSON: {error}") from None
        else:
            items.append(line)
    return items


def _items_of_json(text: str) -> list[Item]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldError("items", f"begin with [ and so are JSON, which they are not: {error}") from None
    if not isinstance(found, list):
        raise FieldError("items", f"{shown(found)} is not a list")
    return found


def items_text(items: Sequence[Item]) -> str:
    """What ``items_of`` reads as exactly these."""
    if all(isinstance(item, str) for item in items):
        lines = "\n".join(map(str, items))
        if items_of_or_none(lines) == list(items):
            return lines
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]"


def items_of_or_none(text: str) -> list[Item] | None:
    try:
        return items_of(text)
    except FieldError:
        return None


# ---- options -----------------------------------------------------------------------------------------------------

WHOLE = ("priority", "max_attempts", "shard_size")
REAL = ("timeout", "backoff", "island_seconds")
PAIRS = ("labels", "affinity")
TEXTS = ("name", "rate_key", "balancer", "fallback")
OPTIONS = ("name", *WHOLE, *REAL, *PAIRS, "rate_key", "balancer", "fallback")


def options_of(typed: Mapping[str, str]) -> dict[str, Any]:
    """The options that are given. Raises FieldError."""
    found: dict[str, Any] = {}
    for name in OPTIONS:
        text = typed.get(name, "").strip()
        if not text:
            continue
        if name in PAIRS:
            found[name] = pairs_of(name, typed[name])
        elif name in WHOLE or name in REAL:
            found[name] = _number(name, text, whole=name in WHOLE)
        else:
            found[name] = text
    return found


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise FieldError(name, f"{shown(text)} is not a {'whole ' if whole else ''}number") from None


def pairs_of(name: str, text: str) -> dict[str, str]:
    """name=value, one a line or with commas; or a JSON object. Raises FieldError."""
    if text.strip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FieldError(name, f"is not JSON: {error}") from None
        return dict(found)
    pairs = {}
    for part in text.replace(",", "\n").splitlines():
        if part.strip():
            key, equals, value = part.partition("=")
            if not equals or not key.strip():
                raise FieldError(name, f"{shown(part.strip())} is not name=value, like region=eu")
            pairs[key.strip()] = value.strip()
    return pairs


def pairs_text(name: str, pairs: Mapping[str, str]) -> str:
    """What ``pairs_of`` reads as exactly these."""
    lines = "\n".join(f"{key}={value}" for key, value in pairs.items())
    try:
        same = pairs_of(name, lines) == dict(pairs)
    except FieldError:
        same = False
    return lines if same else json.dumps(dict(pairs), ensure_ascii=False)
