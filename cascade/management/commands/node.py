"""``manage.py node``: the nodes of this parent and their keys, at a terminal. ``nodes.registry`` does the work."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.utils import timezone

from cascade import console, reach
from nodes import keys, registry, starting
from nodes.fields import parse_quota
from nodes.keys import IssuedKey
from nodes.models import Node
from nodes.protocol import CascadeError, FieldError, NotFound, Unprocessable

URL = "http://127.0.0.1:8000"


class Command(console.Command):
    help = "Add, list, drain, resume, remove nodes; rotate and revoke their keys."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        add = verbs.add_parser("add", help="A new node with its first key, and the command that starts it.")
        add.add_argument("name")
        add.add_argument("--capacity", type=int, default=4, help="Slots: shards running at once (default 4).")
        add.add_argument(
            "--quota",
            action="append",
            default=[],
            metavar="TYPE[ITEM]=SLOTS/LIMIT",
            help="Slots of a task type it is given first: data_import=4, 'data_import[AAPL]=2', echo=2/3. Repeatable.",
        )
        add.add_argument("--label", action="append", default=[], metavar="NAME=TEXT", help="Repeatable: region=eu.")
        add.add_argument("--description", default="")
        add.add_argument("--role", choices=["child", "relay"], default="child")
        add.add_argument("--weight", type=float, default=1.0, help="For balancer 'weighted' (default 1).")
        add.add_argument("--max-cpu", type=float, metavar="PERCENT", help="No new work above it (setting max_cpu).")
        add.add_argument("--max-memory", type=float, metavar="PERCENT", help="No new work above it.")
        add.add_argument(
            "--carrier",
            choices=Node.Carrier.values,
            default=Node.Carrier.PULL,
            help="How work reaches it: its agent says pull or push; http: this parent calls it at --api-url.",
        )
        add.add_argument("--api-url", default="", help="Where this parent reaches it, like http://worker:8900.")
        add.add_argument("--api-key", default="", help="What it asks for as X-API-Key; - reads it from standard input.")
        add.add_argument(
            "--dialect", choices=Node.Dialect.values, default=Node.Dialect.NATIVE, help="What its client speaks."
        )
        _add_url(add)
        _add_key_file(add)
        console.add_json(add)

        listing = verbs.add_parser("list", help="All nodes, with state, slots, quotas and keys.")
        console.add_json(listing)

        for verb, text in (
            ("drain", "It finishes what it has and gets no new work."),
            ("resume", "It gets work again."),
        ):
            one = verbs.add_parser(verb, help=text)
            one.add_argument("name")
            console.add_json(one)

        rotate = verbs.add_parser("rotate", help="A new key; the newest before it stays valid until revoked.")
        rotate.add_argument("name")
        _add_url(rotate)
        _add_key_file(rotate)
        console.add_json(rotate)

        revoke = verbs.add_parser("revoke", help="Makes its keys invalid, at once.")
        revoke.add_argument("name")
        revoke.add_argument("--key", default="", metavar="CN…", help="Only this one.")
        console.add_json(revoke)

        remove = verbs.add_parser("remove", help="Forgets the node, its keys and its history.")
        remove.add_argument("name")
        remove.add_argument("--force", action="store_true", help="Even while it holds live work.")
        console.add_json(remove)

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, f"_{options['verb']}")(options)

    def explained(self, error: CascadeError, options: dict[str, Any]) -> str:
        """quotas.1.slots is the second --quota; its text says more than its number."""
        if not isinstance(error, FieldError):
            return str(error)
        collection, _, rest = error.field.partition(".")
        if collection == "quotas":
            return f"--quota {options['quota'][int(rest.split('.')[0])]}: {error.message}"
        return str(error)

    def _add(self, options: dict[str, Any]) -> None:
        if options["carrier"] == Node.Carrier.HTTP and not options["api_url"]:
            raise FieldError("--api-url", "is needed with --carrier http: where this parent calls the node")
        _refuse_to_replace(options["key_file"])
        node, key = registry.add_node(
            options["name"],
            capacity=options["capacity"],
            quotas=[parse_quota(text) for text in options["quota"]],
            description=options["description"],
            role=options["role"],
            labels=dict(_label(text) for text in options["label"]),
            weight=options["weight"],
            carrier=options["carrier"],
            api_url=options["api_url"],
            api_key=sys.stdin.readline().strip() if options["api_key"] == "-" else options["api_key"],
            dialect=options["dialect"],
            max_cpu=options["max_cpu"],
            max_memory=options["max_memory"],
        )
        quotas = ", ".join(str(quota) for quota in node.quotas.all()) or "none"
        self._show_key(f"Added node {node.name}: capacity {node.capacity}, quotas: {quotas}.", key, options)

    def _list(self, options: dict[str, Any]) -> None:
        now = timezone.now()
        nodes = list(Node.objects.prefetch_related("quotas", "keys"))
        in_use = registry.in_use(nodes)
        if options["json"]:
            self.tell_json([_as_dict(node, in_use[node.pk]) for node in nodes])
            return
        rows = []
        for node in nodes:
            quotas = ", ".join(str(quota) for quota in node.quotas.all())
            live = [key.access_key for key in node.keys.all() if key.revoked_at is None]
            rows.append(
                (
                    node.name,
                    registry.state_of(node, now),
                    node.carrier,
                    f"{in_use[node.pk]} of {node.capacity}",
                    quotas,
                    node.version,
                    registry.ago(node.last_beat_at, now),
                    ", ".join(live) or "none",
                )
            )
        head = ("name", "state", "carrier", "in use", "quotas", "version", "last beat", "keys")
        self.tell_table(head, rows, empty="No nodes yet. Add one: python manage.py node add NAME --capacity 8")

    def _drain(self, options: dict[str, Any]) -> None:
        node = registry.drain(registry.find_node(options["name"]).pk)
        held = registry.in_use([node])[node.pk]
        text = f"{node.name} is draining: it holds {held} live allocation{'' if held == 1 else 's'}, and gets no more."
        self._say(text, options, node=node.name, draining=True, held=held)

    def _resume(self, options: dict[str, Any]) -> None:
        node = registry.resume(registry.find_node(options["name"]).pk)
        self._say(f"{node.name} gets work again.", options, node=node.name, draining=False)

    def _rotate(self, options: dict[str, Any]) -> None:
        _refuse_to_replace(options["key_file"])
        node = registry.find_node(options["name"])
        key = keys.rotate(node.pk)
        valid = node.keys.filter(revoked_at=None).exclude(access_key=key.access_key).first()
        old = f" {valid} stays valid until: python manage.py node revoke {shlex.quote(node.name)} --key {valid}"
        self._show_key(f"New key for {node.name}.{old if valid else ''}", key, options)

    def _revoke(self, options: dict[str, Any]) -> None:
        node = registry.find_node(options["name"])
        if not options["key"]:
            count = keys.revoke_all(node.pk)
            text = f"Revoked {count} {'key' if count == 1 else 'keys'} of {node.name}."
            self._say(text, options, node=node.name, revoked=count)
            return
        if not node.keys.filter(access_key=options["key"]).exists():
            raise NotFound(f"{node.name} has no key {options['key']}; see: python manage.py node list")
        keys.revoke(options["key"])
        self._say(f"Revoked {options['key']} of {node.name}.", options, node=node.name, revoked=1)

    def _remove(self, options: dict[str, Any]) -> None:
        node = registry.find_node(options["name"])
        registry.remove_node(node.pk, force=options["force"])
        self._say(f"Removed {node.name}.", options, node=node.name, removed=True)

    def _say(self, text: str, options: dict[str, Any], **document: Any) -> None:
        if options["json"]:
            self.tell_json(document)
        else:
            self.stdout.write(text)

    def _show_key(self, headline: str, key: IssuedKey, options: dict[str, Any]) -> None:
        if file := options["key_file"]:
            _write_keys(Path(file), key)
            if options["json"]:
                self.tell_json({"id": key.node.pk, "name": key.node.name, "key_file": file})
            else:
                self.stdout.write(f"{headline}\nBoth keys are in {file}.")
            return
        parent = options["url"] or reach.server() or URL
        commands = starting.commands(key.node, parent, key.access_key, key.secret_key)
        served, bare = commands["django"], commands.get("agent", "")
        if options["json"]:
            made = {
                "id": key.node.pk,
                "name": key.node.name,
                "access_key": key.access_key,
                "secret_key": key.secret_key,
                "command": served,
                **({"agent_command": bare} if bare else {}),
            }
            self.tell_json(made)
            return
        without = f"\nor, without Django:\n\n  {bare}\n" if bare else ""
        self.stdout.write(f"""{headline}

  access key  {key.access_key}
  secret key  {key.secret_key}
  The secret is shown this once; only its public half is kept here.

Start it with:

  {served}
{without}""")


def _add_url(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default="",
        help=f"This parent's address as the child reaches it (default: where it runs on this machine now, else {URL}).",
    )


def _add_key_file(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--key-file", metavar="FILE", help="Writes both keys into this new file, one a line, instead of showing them."
    )


def _refuse_to_replace(file: str | None) -> None:
    """Said before anything is made: keys that cannot be written would be lost. Raises FieldError."""
    if file is None:
        return
    if os.path.lexists(file):
        raise FieldError("--key-file", f"{file} exists")
    folder = Path(file).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise FieldError("--key-file", f"{folder} is no folder that can be written to")


def _write_keys(file: Path, key: IssuedKey) -> None:
    """Readable by its owner only, and there with both keys or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
            out.write(f"{key.access_key}\n{key.secret_key}\n")
            out.flush()
            os.fsync(out.fileno())
        os.link(draft, file)
    except OSError as error:
        raise Unprocessable(
            f"{file}: {error.strerror}; {key.node.name} has a key that nobody holds. Next: "
            f"python manage.py node revoke {shlex.quote(key.node.name)} --key {key.access_key}"
        ) from None
    finally:
        draft.unlink(missing_ok=True)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise FieldError("label", f"{text!r} is not like region=eu")
    return name, value


def _as_dict(node: Node, in_use: int) -> dict[str, Any]:
    return {
        "id": node.pk,
        "name": node.name,
        "state": registry.state_of(node, timezone.now()),
        "role": node.role,
        "carrier": node.carrier,
        "capacity": node.capacity,
        "in_use": in_use,
        "quotas": [
            {"task_type": quota.task_type, "item": quota.item, "slots": quota.slots, "limit": quota.limit}
            for quota in node.quotas.all()
        ],
        "labels": node.labels,
        "version": node.version,
        "executors": node.executors,
        "last_beat_at": node.last_beat_at,
        "keys": [key.access_key for key in node.keys.all() if key.revoked_at is None],
    }
