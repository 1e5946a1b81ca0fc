"""``manage.py config_release``: which nodes have which version of tasks, sources, type settings; a branch first."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandParser

from cascade import console
from dispatch import config_releases


class Command(console.Command):
    help = (
        "Shows which version of the configuration nodes have; gives new ones to some branches first (canary), then to "
        "all (promote), or takes them back (rollback)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        def verb(name: str, text: str) -> ArgumentParser:
            made: ArgumentParser = verbs.add_parser(name, help=text, description=text)
            console.add_json(made)
            return made

        verb("status", "what is released to whom, and how many nodes have which version")
        canary = verb("canary", "only these nodes get new versions, a relay with all below it; the others keep theirs")
        canary.add_argument("nodes", nargs="+", metavar="NODE", help="its name")
        verb("promote", "all nodes get the newest version, and from now on every new one")
        back = verb("rollback", "all nodes get the version before, and keep it until 'promote'")
        back.add_argument("--to", type=int, metavar="VERSION", help="this one instead; 'status' lists those there are")

    def handle(self, *args: Any, **options: Any) -> None:
        match options["verb"]:
            case "canary":
                state = config_releases.canary(options["nodes"])
            case "promote":
                state = config_releases.promote()
            case "rollback":
                state = config_releases.rollback(options["to"])
            case _:
                state = config_releases.state()
        if options["json"]:
            self.tell_json(state)
            return
        self._tell(state)

    def _tell(self, state: dict[str, Any]) -> None:
        if state["newest"] is None:
            self.stdout.write("There is no configuration yet; it is made within a second of the server's start.")
            return
        how = "all nodes get each new version at once" if state["following"] else "kept until 'promote'"
        self.stdout.write(f"released: version {state['released']} ({how})")
        if state["canary"]:
            self.stdout.write(f"canary:   version {state['newest']} at {', '.join(state['canary'])}")
        self.tell_table(
            ("#version", "mark", "#above", "made", "#nodes"),
            [
                (
                    each["version"],
                    each["mark"],
                    "" if each["above"] is None else each["above"],
                    f"{each['created_at']:%Y-%m-%d %H:%M:%S}",
                    f"{each['nodes']} of {state['nodes']}",
                )
                for each in state["versions"]
            ],
            empty="",
        )
