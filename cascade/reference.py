"""Pages of reference in docs/, made of the code: settings, commands, the HTTP API, metrics. ``make docs`` writes them,
and a test fails while one differs. Of docs/http-api.md the part above MARK is written by hand.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cascade import config, config_file
from cascade.config import BASE_DIR, Config
from nodes import aliases
from nodes.agent import config as agent
from nodes.given import is_secret

MARK = "<!-- From here on made by `make docs` -->"
MADE = "<!-- Made by `make docs` from the code; changes belong there. -->"
PLACES = {"data_dir": "`data` beside manage.py"}
"""Defaults that depend on where this is."""
SHARED = (
    "--version",
    "-v",
    "--settings",
    "--pythonpath",
    "--traceback",
    "--no-color",
    "--force-color",
    "--skip-checks",
)
"""Options that Django gives to every command."""


SETTINGS_HEAD = """\
Every setting, with its default, what it may be, and what it is for. Where they come from, which of several holds, and
other systems' names for them: [configuration.md](configuration.md). A file has them by the names here, the
environment as `CASCADE_<NAME>`, a command as `--set NAME=VALUE`, unless the setting is marked *secret*: those are not
taken from arguments. Times are in seconds unless the name says otherwise.
"""
COMMANDS_HEAD = """\
`python manage.py COMMAND`. Every command takes `--config FILE` and `--set NAME=VALUE` as well, before or after its
name: [configuration.md](configuration.md); and Django's own options, of which `--traceback` may be of use. Django
brings more commands: `migrate`, `createsuperuser`, `changepassword` are those that one needs.

Exit status: 0 done, 1 what was asked about ended badly, 2 wrong usage or value, 3 no such thing, 4 conflict, 5
something needed cannot be reached, 130 interrupted.
"""
METRICS_HEAD = """\
What `/metrics` has, in Prometheus' text format. Who may read it: [security.md](security.md#metrics). What to watch,
and what to do then: [operating.md](operating.md). `deploy/grafana.json` is a dashboard of these, `deploy/alerts.yml`
are rules.
"""
METRICS_WHOLE = """\
Read from the database, so that every process of a parent says the same: take one of them (`max by (state) (…)`),
never their sum. Each relay says its own. They are read at most once a second, and never for more than a twentieth of
the time; with more than `metrics_nodes` nodes those with the label `node` are left out.
"""
METRICS_COUNTED = """\
Counted in memory since the process began, and from 0 again after a restart, which `rate()` knows: sum them over all
processes of a parent (`sum (rate(…[5m]))`). What the leader does is counted where it leads. A separate dispatcher is
asked at its `dispatcher_port`. What is written is counted when it is committed.
"""


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(each) for each in row) + " |"


# Settings


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        SETTINGS_HEAD,
        f"## Of a server ({len(Config.model_fields)})",
        "",
        "A parent, a relay, a standalone server; a child (`runserver --role child`) has those marked *child*, too.",
        "",
        *_table(_SETTING_HEAD, [_setting(name) for name in Config.model_fields]),
        "",
        "## Of an agent",
        "",
        "A child's line to its parent, and a relay's; `python -m nodes.agent` has these alone.",
        "",
        *_table(_SETTING_HEAD, [_setting(name) for name in agent.BY_NAME if name not in Config.model_fields]),
        "",
        "An agent has these of a server's, too: "
        + ", ".join(f"`{name}`" for name in agent.BY_NAME if name in Config.model_fields)
        + ".",
    ]
    return "\n".join(lines) + "\n"


_SETTING_HEAD = ("setting", "variable", "default", "may be", "meaning")


def _setting(name: str) -> tuple[object, ...]:
    shown = PLACES.get(name) or _default(config_file.default(name, "parent"))
    about = config_file.description(name)
    if others := [alias for alias in aliases.of(name) if alias != name]:
        about += " Also: " + ", ".join(f"`{other}`" for other in others) + "."
    marks = [*(["secret"] if is_secret(name) else []), *(["child"] if name in config_file.SERVED.split() else [])]
    named = f"`{name}`" + "".join(f" *{mark}*" for mark in marks)
    return named, f"`CASCADE_{name.upper()}`", shown, config.allowed(name), about


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ("", (), []) or value == {}:
        return "empty"
    return f"`{', '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


# Commands


def commands_page() -> str:
    from django.core.management import load_command_class

    lines = [
        "# Commands",
        "",
        MADE,
        "",
        COMMANDS_HEAD.rstrip(),
    ]
    folder = BASE_DIR / "cascade" / "management" / "commands"
    for name in sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__"):
        command = load_command_class("cascade", name)
        parser = command.create_parser("manage.py", name)
        lines += ["", f"## {name}", "", _sentences(command.help), *_options(parser, name)]
    lines += ["", "## python -m nodes.agent", "", *_agent_commands()]
    return "\n".join(lines) + "\n"


def _agent_commands() -> list[str]:
    from nodes.agent import offline

    alone, without = agent.parser(), offline.parser()
    name = "python -m nodes.agent"
    return [_sentences(alone.description or ""), *_options(alone, name), *_options(without, name)]


def _sentences(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")


def _options(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    shown = [action for action in parser._actions if not isinstance(action, _UNSHOWN) and not _shared(action)]
    if shown:
        yield ""
        yield from _table(("argument", "meaning"), [(_written(each), _meaning(each)) for each in shown])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help for each in action._choices_actions}
            for verb, below in action.choices.items():
                yield from ("", f"### {name} {verb}", "", _sentences(helps.get(verb) or below.description or ""))
                yield from _options(below, f"{name} {verb}")


_UNSHOWN = (argparse._HelpAction, argparse._SubParsersAction)


def _shared(action: argparse.Action) -> bool:
    return any(option in SHARED for option in action.option_strings)


def _written(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else ""
    if not value and action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        value = value or action.dest
        return f"`[{value}]`" if action.nargs in ("?", "*") else f"`{value}`"
    value = value or action.dest.upper()
    return ", ".join(f"`{option}`" if action.nargs == 0 else f"`{option} {value}`" for option in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    text = _sentences(str(action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%"))
    if action.required and action.option_strings:
        text = f"Required. {text}"
    return text


# The HTTP API


def api_page(written: str) -> str:
    """``written``: the part by hand."""
    from drf_spectacular.generators import SchemaGenerator

    schema: Mapping[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    groups: dict[str, list[tuple[object, ...]]] = defaultdict(list)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "put", "patch", "delete"):
                groups[operation["tags"][0]].append(_operation(path, method, operation))
    lines = [
        MARK,
        "",
        "## All of it, by resource",
        "",
        "Query parameters and headers are named, required ones in bold; what a body may have, and every answer, is in",
        "`/api/docs` of a running server, and as OpenAPI in `/api/schema`.",
    ]
    for name in sorted(groups):
        lines += ["", f"### {name}", "", *_table(("", "address", "what it does", "parameters"), groups[name])]
    return f"{written.partition(MARK)[0].rstrip()}\n\n" + "\n".join(lines) + "\n"


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> tuple[object, ...]:
    told = [each for each in operation.get("parameters", ()) if each["in"] in ("query", "header")]
    names = [f"**`{each['name']}`**" if each.get("required") else f"`{each['name']}`" for each in told]
    body = "a body" if "requestBody" in operation else ""
    return method.upper(), f"`{path}`", operation.get("summary", ""), ", ".join([*names, *([body] if body else [])])


# Metrics


def metrics_page() -> str:
    from api.metrics import GAUGES
    from dispatch.metrics import COUNTED, SHORT

    whole, own = (
        [(f"`{gauge.name}`", _labels(gauge.labels), gauge.text) for gauge in GAUGES if gauge.whole is wanted]
        for wanted in (True, False)
    )
    lines = [
        "# Metrics",
        "",
        MADE,
        "",
        METRICS_HEAD,
        "## Of the parent",
        "",
        METRICS_WHOLE,
        *_table(("metric", "labels", "meaning"), whole),
        "",
        "## Of a process: what it is",
        "",
        *_table(("metric", "labels", "meaning"), own),
        "",
        "## Of a process: what it has done",
        "",
        METRICS_COUNTED,
        "Histograms have the bounds " + ", ".join(f"{bound:g}" for bound in SHORT) + " s.",
        "",
        *_table(
            ("metric", "kind", "labels", "meaning"),
            [(f"`{f.name}`", f.kind, _labels((f.label,) if f.label else ()), f.text) for f in COUNTED],
        ),
    ]
    return "\n".join(lines) + "\n"


def _labels(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES: Mapping[str, Callable[[str], str]] = {
    "settings.md": lambda _: settings_page(),
    "commands.md": lambda _: commands_page(),
    "http-api.md": api_page,
    "metrics.md": lambda _: metrics_page(),
}


def differing(folder: Path) -> dict[str, str]:
    """Pages that are not what the code says: name to what they should be."""
    found = {}
    for name, make in PAGES.items():
        file = folder / name
        now = file.read_text() if file.exists() else ""
        if (made := re.sub(r"[ \t]+\n", "\n", make(now))) != now:
            found[name] = made
    return found


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
    import django

    django.setup()
    folder = BASE_DIR / "docs"
    wanted = differing(folder)
    for name, text in wanted.items():
        (folder / name).write_text(text)
        print(f"docs/{name}")
    if not wanted:
        print("docs/ is as the code says")


if __name__ == "__main__":
    main()
