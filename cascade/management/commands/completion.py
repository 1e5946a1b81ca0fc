"""``manage.py completion``: a script that completes commands, options and names in bash, zsh or fish.

The script knows commands and options as of when it was made; names of nodes and ids of runs it asks for when they are
wanted: ``manage.py completion words runs``.
"""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandParser

from cascade import console
from dispatch import balancers
from dispatch.models import Run
from nodes import executors
from nodes.models import Node

SHELLS = ("bash", "zsh", "fish")
NEWEST_RUNS = 30
HIDDEN = {
    "compilemessages",
    "makemessages",
    "sendtestemail",
    "squashmigrations",
    "startapp",
    "startproject",
    "testserver",
}
DYNAMIC = {
    ("run", "id"): "runs",
    ("explain", "run"): "runs",
    ("export", "--run"): "runs",
    ("node", "name"): "nodes",
    ("submit", "type"): "types",
    ("types", "type"): "types",
    ("runs", "--type"): "types",
    ("submit", "--balancer"): "balancers",
}
"""(command, argument) -> what ``words`` gives for it."""


class Command(console.Command):
    help = "Prints a script that completes commands in a shell. For bash: source <(python manage.py completion bash)"
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("shell", choices=[*SHELLS, "words"], help="which shell; words: what the script asks for")
        parser.add_argument("kind", nargs="?", choices=("runs", "nodes", "types", "balancers"), help="of words")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["shell"] == "words":
            self.stdout.write("\n".join(_words(options["kind"] or "types")))
        elif options["shell"] == "fish":
            self.stdout.write(_fish(_grammar()))
        else:
            self.stdout.write(("" if options["shell"] == "bash" else _ZSH) + _bash(_grammar()))


def _words(kind: str) -> list[str]:
    if kind == "nodes":
        return [name.replace(" ", "\\ ") for name in Node.objects.values_list("name", flat=True)]
    if kind == "runs":
        return [str(pk) for pk in Run.objects.order_by("-pk").values_list("pk", flat=True)[:NEWEST_RUNS]]
    return list(executors.names() if kind == "types" else sorted(balancers.BALANCERS))


Grammar = dict[str, dict[str, Any]]
"""Place ("node add") -> its options with their values, its verbs, the values of each positional argument.

Values are words, "@kind" for what ``words`` gives, or "@file".
"""


def _grammar() -> Grammar:
    made: Grammar = {}
    for name, app in sorted(get_commands().items()):
        if name in HIDDEN:
            continue
        command = load_command_class(app, name) if isinstance(app, str) else app
        _add(made, name, name, command.create_parser("manage.py", name))
    return made


def _add(made: Grammar, place: str, command: str, parser: argparse.ArgumentParser) -> None:
    about: dict[str, Any] = {"options": {}, "help": {}, "verbs": [], "values": [], "text": parser.description or ""}
    made[place] = about
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about["verbs"] = sorted(action.choices)
            for verb, inner in action.choices.items():
                _add(made, f"{place} {verb}", command, inner)
        elif action.option_strings:
            for option in action.option_strings:
                if option.startswith("--"):
                    about["options"][option] = "" if action.nargs == 0 else _values(command, option, action)
                    about["help"][option] = action.help if action.help != argparse.SUPPRESS else ""
        else:
            about["values"].append(_values(command, action.dest, action))


def _values(command: str, argument: str, action: argparse.Action) -> str:
    if (kind := DYNAMIC.get((command, argument))) is not None:
        return f"@{kind}"
    if action.choices is not None:
        return " ".join(map(str, action.choices))
    return "@file"


_ZSH = "autoload -U +X bashcompinit && bashcompinit\nautoload -U +X compinit && compinit\n"
_BASH = r"""# Completes manage.py, also behind a python; made by: python manage.py completion bash
_cascade_words() {
    case "$1" in
        @file) compgen -f -- "$2" ;;
        @*) compgen -W "$("${_cascade_run[@]}" completion words "${1#@}" 2> /dev/null)" -- "$2" ;;
        *) compgen -W "$1" -- "$2" ;;
    esac
}

_cascade() {
    local word="${COMP_WORDS[COMP_CWORD]}" at=0 place="" given=0 option="" each
    while [[ $at -le $COMP_CWORD && "${COMP_WORDS[at]}" != *manage.py ]]; do at=$((at + 1)); done
    [[ $at -ge $COMP_CWORD ]] && return 1
    local -a _cascade_run=("${COMP_WORDS[@]:0:at + 1}")
    for each in "${COMP_WORDS[@]:at + 1:COMP_CWORD - at - 1}"; do
        if [[ -n "$option" ]]; then
            option=""
        elif [[ "$each" == --*=* ]]; then
            :
        elif [[ "$each" == --* ]]; then
            [[ -n "$(_cascade_takes "$place" "$each")" ]] && option="$each"
        elif [[ -z "$place" ]]; then
            place="$each"
        elif [[ " $(_cascade_verbs "$place") " == *" $each "* ]]; then
            place="$place $each"
        else
            given=$((given + 1))
        fi
    done
    local found
    if [[ -n "$option" ]]; then
        found="$(_cascade_words "$(_cascade_takes "$place" "$option")" "$word")"
    elif [[ "$word" == -* ]]; then
        found="$(compgen -W "$(_cascade_options "$place")" -- "$word")"
    elif [[ -z "$place" ]]; then
        found="$(compgen -W "$_cascade_commands" -- "$word")"
    elif [[ -n "$(_cascade_verbs "$place")" ]]; then
        found="$(compgen -W "$(_cascade_verbs "$place")" -- "$word")"
    else
        found="$(_cascade_words "$(_cascade_values "$place" "$given")" "$word")"
    fi
    COMPREPLY=()
    while IFS= read -r each; do [[ -n "$each" ]] && COMPREPLY+=("$each"); done <<< "$found"
}

"""
_BASH_END = r"""
for _cascade_name in manage.py ./manage.py python python3 .venv/bin/python; do
    complete -o default -o bashdefault -F _cascade "$_cascade_name"
done
unset _cascade_name
"""


def _bash(grammar: Grammar) -> str:
    commands = " ".join(place for place in grammar if " " not in place)
    parts = [_BASH, f"_cascade_commands={_quoted(commands)}\n"]
    cases: dict[str, list[str]] = {"takes": [], "options": [], "verbs": [], "values": []}
    for place, about in grammar.items():
        cases["options"].append(_case(place, " ".join(about["options"])))
        if about["verbs"]:
            cases["verbs"].append(_case(place, " ".join(about["verbs"])))
        cases["takes"] += [_case(f"{place}/{name}", words) for name, words in about["options"].items() if words]
        cases["values"] += [_case(f"{place}/{at}", words) for at, words in enumerate(about["values"])]
    for name, lines in cases.items():
        subject = '"$1"' if name in ("options", "verbs") else '"$1/$2"'
        parts.append(f"_cascade_{name}() {{\n    case {subject} in\n{''.join(lines)}    esac\n}}\n")
    return "".join([*parts, _BASH_END])


def _case(name: str, words: str) -> str:
    return f"        {_quoted(name)}) echo {_quoted(words)} ;;\n" if words else ""


def _fish(grammar: Grammar) -> str:
    lines = ["# Completes manage.py; made by: python manage.py completion fish", "complete -c manage.py -f"]
    for place, about in grammar.items():
        command, _, verb = place.partition(" ")
        seen = f"__fish_seen_subcommand_from {command}" + (f"; and __fish_seen_subcommand_from {verb}" if verb else "")
        if not verb:
            lines.append(
                f"complete -c manage.py -n __fish_use_subcommand -a {command} -d {_quoted(about['text'][:80])}"
            )
        if about["verbs"]:
            lines.append(f"complete -c manage.py -n {_quoted(seen)} -a {_quoted(' '.join(about['verbs']))}")
        for words in about["values"]:
            if words != "@file":
                lines.append(f"complete -c manage.py -n {_quoted(seen)} -a {_fish_words(words)}")
        for option, words in about["options"].items():
            value = f" -r -a {_fish_words(words)}" if words not in ("", "@file") else " -r -F" if words else ""
            text = f" -d {_quoted(about['help'][option])}" if about["help"].get(option) else ""
            lines.append(f"complete -c manage.py -n {_quoted(seen)} -l {option[2:]}{value}{text}")
    return "\n".join(lines)


def _fish_words(words: str) -> str:
    return _quoted(f"(python manage.py completion words {words[1:]})" if words.startswith("@") else words)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''").replace("\n", " ") + "'"
