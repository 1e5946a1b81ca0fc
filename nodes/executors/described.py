"""What a task type declares, as people and programs read it: lists for the API and the command line, JSON Schema.

From the same declarations comes the validation, so neither can say what the other does not do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nodes import executors
from nodes.executors.base import REQUIRED, Executor, Param, Variant

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES: Mapping[str, Json] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
    "object": {"type": "object"},
    "list": {"type": "array"},
}
KINDS = tuple(_TYPES)


def described(executor: type[Executor]) -> Json:
    """All that it declares."""
    dataset = executor.dataset
    return {
        "type": executor.type,
        "title": executor.title,
        "waits": executor.waits,
        "remembers": executor.remembers,
        "grows": executor.grows,
        "outside": executor.type in executors.OUTSIDE,
        "items": executor.item_form,
        "items_optional": executor.items_optional,
        "source_kind": executor.source_kind,
        "params": declared(executor.params),
        "variants": [
            {
                "by": variant.by,
                "value": variant.value,
                "within": variant.within,
                "params": declared(variant.params),
                "choices": {name: list(choices) for name, choices in variant.choices.items()},
            }
            for variant in executor.variants()
        ],
        "dataset": {
            "table": dataset.table,
            "columns": [asdict(column) for column in dataset.columns],
            "key": list(dataset.key),
            "views": [{"name": name, "select": select} for name, select in dataset.views],
        },
        "reductions": [{"name": name, "select": select} for name, select in executor.reductions.items()],
    }


def declared(params: Iterable[Param]) -> list[Json]:
    """Parameters one by one; ``default`` is None where there is none."""
    return [
        asdict(param)
        | {
            "required": param.default is REQUIRED,
            "default": None if param.default is REQUIRED else param.default,
            "choices": None if param.choices is None else list(param.choices),
        }
        for param in params
    ]


def allowed(param: Param) -> str:
    """Its choices or bounds, in a few words; "" for none."""
    if param.choices is not None:
        return ", ".join(str(choice) or "''" for choice in param.choices)
    least, most = _number(param.minimum), _number(param.maximum)
    if least and most:
        return f"{least} to {most}"
    return f"from {least}" if least else f"up to {most}" if most else ""


def _number(bound: float | None) -> str:
    if bound is None:
        return ""
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:,}"


# JSON Schema


def schema(executor: type[Executor]) -> Json:
    """JSON Schema 2020-12 of the type's params, as JSON has them: text that is read as a number is left out."""
    made = {"$schema": DIALECT, "title": executor.type, "description": executor.title, **_object(executor.params)}
    variants = executor.variants()
    if not variants:
        return made
    if not all(variant.within for variant in variants):
        # What is beside the others is known by the branch that holds, which additionalProperties does not see.
        del made["additionalProperties"]
        made["unevaluatedProperties"] = False
    made["allOf"] = [_branch(executor.params, variant) for variant in variants]
    return made


def plain_schema(executor: type[Executor]) -> Json:
    """The same as far as OpenAPI 3.0 can say it: what depends on another parameter is allowed with all its values."""
    made = _object(executor.params) | {"title": executor.type, "description": executor.title}
    properties: dict[str, Json] = made["properties"]
    for variant in executor.variants():
        if variant.within:
            continue
        for param in variant.params:
            told = f"With {variant.by} {variant.value}: {param.help}"
            new = param_schema(param) | {"description": told}
            old = properties.get(param.name)
            if old is None:
                properties[param.name] = new
            else:
                # Two sources may call different things the same: what both agree on stays.
                both = {word: value for word, value in new.items() if old.get(word) == value}
                properties[param.name] = both | {"description": f"{old['description']} {told}"}
    return made


def param_schema(param: Param) -> Json:
    made: Json = dict(_TYPES[param.kind])
    if param.kind == "list":
        element = replace(param, kind=param.of, of=None, default=None, help="") if param.of else None
        made["items"] = {} if element is None else param_schema(element)
    else:
        bounds = {"enum": param.choices and list(param.choices), "minimum": param.minimum, "maximum": param.maximum}
        made |= {word: value for word, value in bounds.items() if value is not None}
    if param.help:
        made["description"] = param.help
    if param.default is not REQUIRED and param.default is not None:
        made["default"] = param.default
    return made


def _object(params: Sequence[Param]) -> Json:
    made: Json = {"type": "object", "properties": {param.name: param_schema(param) for param in params}}
    if required := [param.name for param in params if param.default is REQUIRED]:
        made["required"] = required
    return made | {"additionalProperties": False}


def _branch(params: Sequence[Param], variant: Variant) -> Json:
    """If ``by`` is ``value``, which it also is where it is not given and that is its default."""
    default = next((param.default for param in params if param.name == variant.by), REQUIRED)
    condition: Json = {"properties": {variant.by: {"const": variant.value}}}
    if default != variant.value:
        condition["required"] = [variant.by]
    if variant.within:
        return {"if": condition, "then": {"properties": {variant.within: _object(variant.params)}}}
    then = _object(variant.params)
    del then["additionalProperties"]
    then["properties"] |= {name: {"enum": list(choices)} for name, choices in variant.choices.items()}
    return {"if": condition, "then": then}
