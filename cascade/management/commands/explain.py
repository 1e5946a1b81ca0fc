"""``manage.py explain``: why a run, a shard or an item waits, node by node, and who had it; why an allocation went
where it did; and what would be given out if something were otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.core.management.base import CommandParser

from cascade import console, supposing
from dispatch import whatif
from dispatch.explaining import history, places, supposed, waiting
from dispatch.models import Allocation, Run, Shard
from dispatch.states import RunState
from nodes.protocol import CascadeError, FieldError, NotFound

BEFORE = 5
"""Runs before one that are shown; --json has more."""
Told = Mapping[str, Any]
_BEFORE = {"priority": "priority", "served": "having fewer slots", "age": "age"}


class Command(console.Command):
    help = (
        "Says why a run waits, node by node, and what would be given out now; where an item is and who had it; why an "
        "allocation went to its node; and what the next pass would do if something were otherwise."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("run", type=int, nargs="?", help="a run's id")
        parser.add_argument("--item", metavar="KEY", help="of this item of the run")
        parser.add_argument("--index", type=int, metavar="N", help="of the item of this number, from 0")
        parser.add_argument("--shard", type=int, metavar="ID", help="who had it, and why it waits")
        parser.add_argument("--allocation", type=int, metavar="ID", help="why it went where it did")
        parser.add_argument(
            "--limit",
            type=int,
            default=supposed.LISTED,
            metavar="N",
            help=f"lines of each list (default: {supposed.LISTED})",
        )
        supposing.add_arguments(parser)
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if not 1 <= options["limit"] <= supposed.MOST:
            raise FieldError("--limit", f"{options['limit']} is not from 1 to {supposed.MOST}")
        asked = [name for name in ("item", "index", "shard", "allocation") if options[name] is not None]
        if len(asked) > 1:
            raise FieldError(f"--{asked[1]}", f"is given beside --{asked[0]}; one of them says what is meant")
        if any(options[name] for name in supposing.OPTIONS):
            if asked:
                raise FieldError(f"--{asked[0]}", "does not go with what is supposed; a run's id does")
            self._what_if(options)
            return
        of_run = not asked or asked[0] in ("item", "index")
        if of_run and options["run"] is None:
            raise FieldError("run", "is needed, or --shard ID, --allocation ID, or something to suppose: --if …")
        if not of_run and options["run"] is not None:
            raise FieldError("run", f"is needed without --{asked[0]}, which says its own")
        getattr(self, f"_{asked[0] if asked else 'run'}")(options)

    def explained(self, error: CascadeError, options: dict[str, Any]) -> str:
        """nodes.0.capacity is of the first node that --if names; its name says more than its number."""
        return supposing.named(error, options) if isinstance(error, FieldError) else str(error)

    # A run, a shard, an item

    def _run(self, options: dict[str, Any]) -> None:
        run = _found_run(options["run"])
        told = waiting.in_full(run, options["limit"])
        if options["json"]:
            self.tell_json(told)
            return
        wait = f"{told['pending']} of {run.count} items wait, {told['in_flight']} are with nodes"
        self.stdout.write(f"run {run.pk} is {run.state}: {wait}.")
        if run.state == RunState.RUNNING:
            self._waits(told)

    def _item(self, options: dict[str, Any]) -> None:
        self._place(places.of_key(_found_run(options["run"]), options["item"]), options)

    def _index(self, options: dict[str, Any]) -> None:
        self._place(places.of_index(_found_run(options["run"]), options["index"]), options)

    def _shard(self, options: dict[str, Any]) -> None:
        shard = Shard.objects.filter(pk=options["shard"]).first()
        if shard is None:
            raise NotFound(f"there is no shard {options['shard']}")
        self._place(places.of_shard(_found_run(shard.run_id), shard), options)

    def _place(self, told: Told, options: dict[str, Any]) -> None:
        if options["json"]:
            self.tell_json(told)
            return
        shard = told["shard"]
        where = f"shard {shard['id']}, items {_range(shard)}" if shard else "in no shard yet"
        item = f"item {told['index']} ({told['item']}), " if "item" in told else ""
        self.stdout.write(f"{item}{where} of run {told['run']}: {told['state']}.")
        if len(told.get("indexes", ())) > 1:
            self.stdout.write(f"The same item is at: {', '.join(map(str, told['indexes']))}.")
        if shard and shard["error"]:
            self.stdout.write(f"Its last error: {shard['error']}")
        rows = [
            (
                each["allocation"],
                _range(each),
                each["node"],
                each["reason"],
                each["granted_at"],
                each["started_at"],
                each["finished_at"],
                each["state"],
                each["receipt"],
                ", ".join(each["ran_by"]),
                each["error"],
            )
            for each in told["attempts"]
        ]
        head = (
            "#allocation",
            "items",
            "node",
            "why",
            "granted",
            "begun",
            "ended",
            "state",
            "#receipt",
            "ran by",
            "error",
        )
        self.tell_table(head, rows, empty="Nobody had it yet.")
        if told["older"]:
            self.stdout.write(f"and {told['older']} older ones")
        if told["waiting"]:
            if ahead := told["ahead"]:
                self.stdout.write(
                    f"Before it in its own run: {ahead['shards']} shards, {ahead['items']} items in no shard yet."
                )
            self._waits({**told["waiting"], "more_refusals": 0, "more_grants": 0})

    def _waits(self, told: Told) -> None:
        self.stdout.write(f"Waits for: {told['waits_for']}.")
        if told["put_off"] and told["put_off"]["why"] != told["waits_for"]:
            self.stdout.write(f"Put off: {told['put_off']['why']}.")
        if place := told["position"]:
            behind = ", ".join(f"{count} by {why}" for why, count in place["ahead"].items())
            self.stdout.write(
                f"Place in line: {place['position']} of {place['of']}{'; before it ' if behind else ''}{behind}."
            )
            if place["before"]:
                first = [(each["run"], each["name"], each["type"], each["why"]) for each in place["before"][:BEFORE]]
                title = "First in line:" if place["of"] > BEFORE else "Before it:"
                self.tell_table(("#run", "name", "type", "why it comes before"), first, empty="", title=title)
        if told["grants"]:
            granted = [(each["node"], _range(each), each["reason"]) for each in told["grants"]]
            self.tell_table(("node", "items", "why"), granted, empty="", title="The next pass would give out:")
            self._more(told["more_grants"])
        if len(told["reasons"]) > 1:
            self.stdout.write("Nodes by reason:")
            for group in told["reasons"]:
                self.stdout.write(f"  {group['text']}")
        lines = [(each["node"], each["code"], each["reason"]) for each in told["refusals"]]
        none = told["waits_for"] == "there is no node"
        empty = "There are no nodes. Add one: python manage.py node add NAME" if none else ""
        if lines or empty:
            self.tell_table(("node", "code", "why it takes no more"), lines, empty=empty)
        self._more(told["more_refusals"])

    def _more(self, count: int) -> None:
        if count:
            self.stdout.write(f"and {count} more (--limit)")

    # An allocation

    def _allocation(self, options: dict[str, Any]) -> None:
        found = Allocation.objects.filter(pk=options["allocation"]).select_related("node").first()
        if found is None:
            raise NotFound(f"there is no allocation {options['allocation']}")
        (about,) = history.told([found])
        about = {**about, "run": found.run_id}
        if options["json"]:
            self.tell_json(about)
        else:
            self.tell_pairs({**about, "ran_by": ", ".join(about["ran_by"])}.items())

    # What if

    def _what_if(self, options: dict[str, Any]) -> None:
        if options["run"] is not None:
            _found_run(options["run"])
        answer = whatif.suppose(supposing.given(options))
        told = supposed.told(answer, most=options["limit"], run=options["run"])
        if options["json"]:
            self.tell_json(told)
            return
        for each in told["changes"] or [None]:
            self.stdout.write(f"Supposed: {_change(each)}." if each else "Nothing of that differs from what is there.")
        before, after = told["before"], told["after"]
        self.stdout.write(f"The next pass gives out {_sum(before)} as it is, and would give out {_sum(after)}.")
        if not told["looked_at"]["complete"]:
            self.stdout.write(f"Not all is looked at: {told['looked_at']['limit']}.")
        changed = [_node_line(each) for each in told["nodes"] if each["changes"]]
        head = ("node", "state", "#capacity", "#in use", "#gets as it is", "#would get", "#free then")
        self.tell_table(head, changed, empty="For no node anything changes.", title="Nodes:")
        starts = [(each["run"], _range(each), each["node"], each["reason"]) for each in told["grants"]]
        self.tell_table(("#run", "items", "node", "why"), starts, empty="Nothing would start.", title="Would start:")
        self._more(told["more_grants"])
        lines = [(each["position"], each["run"], each["items"], each["waits_for"]) for each in told["waiting"]]
        empty = "Nothing of it would still wait for a node."
        self.tell_table(("#place", "#run", "#items", "waits for"), lines, empty=empty, title="Would still wait:")
        rest = told["waiting_in_all"]["runs"] - len(lines)
        self._more(rest if options["run"] is None else 0)


def _found_run(pk: int) -> Run:
    run = Run.objects.defer("items").filter(pk=pk).first()
    if run is None:
        raise NotFound(f"there is no run {pk}; see: python manage.py runs")
    return run


def _range(about: Told) -> str:
    return f"{about['start']} to {about['stop'] - 1}"


def _change(each: Told) -> str:
    if each["field"] == "added":
        return f"{each['what']} is there, {each['then']}"
    now, then = ("none" if value is None else value for value in (each["now"], each["then"]))
    return f"{each['what']}: {each['field']} {then} instead of {now}"


def _sum(about: Mapping[str, int]) -> str:
    return f"{about['shards']} shards ({about['items']} items)"


def _node_line(each: Told) -> Sequence[Any]:
    before, after = each["before"], each["after"]
    side = after or before
    return (
        each["node"] + (" (supposed)" if each["supposed"] else ""),
        after["state"] if after else "inactive",
        after["capacity"] if after else 0,
        side["in_use"],
        before["gets"]["shards"] if before else 0,
        after["gets"]["shards"] if after else 0,
        after["free"] if after else 0,
    )
