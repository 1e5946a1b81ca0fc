"""``manage.py types``: the task types, and what one of them declares: parameters, items, columns."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from cascade import console
from nodes import executors
from nodes.executors.base import REQUIRED, Executor, Param, Variant
from nodes.executors.described import allowed, described
from nodes.protocol import FieldError, NotFound

WIDE = 60
HEAD = ("name", "kind", "default", "allowed", "meaning")


class Command(console.Command):
    help = "Lists the task types; of one, its parameters, its items and the columns of its rows."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("type", nargs="?", help=f"one of {', '.join(executors.names())}")
        parser.add_argument("--source", help="of the parameters of sources, only those of this one")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["type"] is None:
            if options["source"]:
                raise FieldError("--source", "belongs to a type: manage.py types data_import --source files")
            self._list(options["json"])
        else:
            self._show(executor_called(options["type"]), options["source"], options["json"])

    def _list(self, as_json: bool) -> None:
        known = [executors.get(name) for name in executors.names()]
        if as_json:
            self.tell_json([described(each) for each in known])
            return
        self.tell_table(
            ("type", "title", "runs", "table"),
            [(each.type, each.title, _runs(each), each.dataset.table) for each in known],
            empty="No task types.",
        )

    def _show(self, executor: type[Executor], source: str | None, as_json: bool) -> None:
        variants = variants_of(executor, source)
        if as_json:
            told = described(executor)
            kept = [(variant.by, variant.value) for variant in variants]
            told["variants"] = [each for each in told["variants"] if (each["by"], each["value"]) in kept]
            self.tell_json(told)
            return
        self.stdout.write(f"{executor.type}: {executor.title}\n")
        sources = f"; or the key of a source of kind {executor.source_kind}" if executor.source_kind else ""
        optional = " None needed: they can be made of the parameters." if executor.items_optional else ""
        pairs = [("runs", _runs(executor)), ("items", executor.item_form.rstrip(".") + sources + "." + optional)]
        if executor.grows:
            pairs.append(("grows", "items may find further ones, which join the run"))
        if executor.remembers:
            pairs.append(("remembers", "each item knows what it saw the last time"))
        self.tell_pairs(pairs)
        tell_params(self, executor, variants)
        self._tell_rows(executor)

    def _tell_rows(self, executor: type[Executor]) -> None:
        dataset = executor.dataset
        rows = [(column.name, column.type, "yes" if column.name in dataset.key else "") for column in dataset.columns]
        self.tell_table(
            ("column", "type", "key"), rows, empty="No columns.", title=f"\nRows of the table {dataset.table}"
        )
        ways = [("views", [name for name, _ in dataset.views]), ("reductions", list(executor.reductions))]
        if any(names for _, names in ways):
            self.stdout.write("")
            self.tell_pairs([(name, ", ".join(names)) for name, names in ways if names])


def executor_called(name: str) -> type[Executor]:
    """Raises NotFound."""
    if name not in executors.names():
        raise NotFound(f"there is no task type {name!r}; there are: {', '.join(executors.names())}")
    return executors.get(name)


def variants_of(executor: type[Executor], source: str | None = None) -> list[Variant]:
    """All, or without those of other sources than ``source``. Raises FieldError for one that the type does not take."""
    variants = list(executor.variants())
    sources = [variant.value for variant in variants if variant.by == "source"]
    if source is not None and source not in sources:
        known = ", ".join(sources) or "it takes none"
        raise FieldError("--source", f"{source!r} is not a source of {executor.type}: {known}")
    return [variant for variant in variants if variant.by != "source" or source in (None, variant.value)]


def tell_params(command: console.Command, executor: type[Executor], variants: Iterable[Variant]) -> None:
    """Tables of the type's parameters, and of those that come with a value of one of them."""
    command.tell_table(
        HEAD, _rows(executor.params), empty="\nNo parameters.", title="\nParameters (--param NAME=VALUE)"
    )
    for variant in variants:
        title = f"\nWith {variant.by}={variant.value}" + (f", in the object {variant.within}" if variant.within else "")
        limits = "".join(f"; {name}: {', '.join(map(str, each))}" for name, each in variant.choices.items())
        title += limits
        command.tell_table(HEAD, _rows(variant.params), empty=f"{title}\nNo further parameters.", title=title)


def _rows(params: Iterable[Param]) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for param in params:
        kind = f"{param.kind} of {param.of}" if param.of else param.kind
        may, meaning = allowed(param), param.help
        if len(may) > WIDE:  # a column so wide would push the rest off the screen
            may, meaning = "", f"{meaning} One of: {may}."
        rows.append((param.name, kind, _default(param.default), may, meaning))
    return rows


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "required"
    if value is None:
        return ""
    return value or "''" if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _runs(executor: type[Executor]) -> str:
    if executor.type in executors.OUTSIDE:
        return "elsewhere"
    return "waits" if executor.waits else "computes"
