"""``manage.py tree``: what hangs below this server, as far as it is known here or can be asked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cascade import console, reach
from dispatch.relay import subtree
from nodes import registry
from nodes.fields import read_path
from nodes.models import Node
from nodes.protocol import FieldError

KNOWN_LEVELS = 2
"""A server's own nodes, and what each relay among them says of its own: all that takes no question."""

Told = dict[str, Any]
"""As ``dispatch.relay.subtree`` tells a node; beside it ``nodes``, its children, where these were looked at, and
``problem``, why they were not."""


class Command(console.Command):
    help = "Shows the tree below this server: state, slots in use, what is queued, last beat and version of each node."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--depth",
            type=int,
            default=KNOWN_LEVELS,
            metavar="N",
            help=f"levels to show; those below the first {KNOWN_LEVELS} are asked for (default: {KNOWN_LEVELS})",
        )
        parser.add_argument("--below", default="", metavar="PATH", help="only what hangs there, asked for: eu/paris")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["depth"] < 1:
            raise FieldError("--depth", f"{options['depth']} is below 1")
        path = read_path("--below", options["below"])
        root = _asked(path) if path else subtree.in_full()
        top = {name: root[name] for name in ("live", "seconds_ago", "below")}
        top["name"] = "/".join(path) or root["node"]
        nodes = _with_nodes(root["children"], path, options["depth"])
        if options["json"]:
            self.tell_json({**top, "more": root["more"], "nodes": nodes})
            return
        age = "" if root["live"] else f", as it said {_ago(root['seconds_ago'])}: it is not there"
        self.stdout.write(f"{top['name']}: {_counted(root['below']) if root['below'] else 'nothing known'}{age}")
        rows = [("NODE", "ROLE", "STATE", "SLOTS", "QUEUED", "BEAT", "VERSION", "BELOW"), *_rows(nodes, root["more"])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows if len(rows) > 1 else []:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if len(rows) == 1:
            self.stdout.write("nothing hangs below it")


def _asked(path: Sequence[str]) -> Told:
    """What hangs at ``path``, the first name of which is a node of this server."""
    node = registry.find_node(path[0])
    found: Told = reach.asked(f"/api/v1/nodes/{node.pk}/below", {"path": "/".join(path[1:])})
    return found


def _with_nodes(children: Sequence[Told], path: Sequence[str], depth: int) -> list[Told]:
    """``children`` with theirs, down to ``depth`` levels."""
    return [_with_its_nodes(child, [*path, child["name"]], depth) for child in children]


def _with_its_nodes(child: Told, path: Sequence[str], depth: int) -> Told:
    if depth < 2 or child["role"] != Node.Role.RELAY:
        return child
    if len(path) == 1 and depth == KNOWN_LEVELS:
        told = subtree.kept(registry.find_node(path[0]))
        return {**child, "nodes": told["children"], "more": told["more"]}
    try:
        told = _asked(path)
    except console.Unreachable as error:
        return {**child, "problem": str(error)}
    return {**child, "nodes": _with_nodes(told["children"], path, depth - 1), "more": told["more"]}


def _rows(nodes: Sequence[Told], more: int, indent: str = "") -> Iterator[tuple[str, ...]]:
    for at, node in enumerate(nodes):
        last = at == len(nodes) - 1 and not more
        yield _row(indent + ("└── " if last else "├── ") + node["name"], node)
        inner = indent + ("    " if last else "│   ")
        if problem := node.get("problem"):
            yield (f"{inner}└── ? {problem}", *[""] * 7)
        yield from _rows(node.get("nodes", []), node.get("more", 0), inner)
    if more:
        yield (f"{indent}└── and {more} more", *[""] * 7)


def _row(name: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    slots = node["below"] or node
    return (
        name,
        node["role"],
        node["state"],
        f"{slots['used']}/{slots['capacity']}",
        str(slots["queued"] or "-"),
        "-" if node["beat_seconds_ago"] is None else _ago(node["beat_seconds_ago"]),
        node["version"] or "-",
        _counted(node["below"]) if node["below"] else "",
    )


def _counted(numbers: Mapping[str, int]) -> str:
    levels = f", {numbers['depth']} levels" if numbers["depth"] > 1 else ""
    slots = f"{numbers['used']}/{numbers['capacity']} slots in use"
    queued = f", {numbers['queued']} queued" if numbers["queued"] else ""
    return f"{numbers['online']}/{numbers['nodes']} nodes online, {slots}{queued}{levels}"


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"
