"""What was set, and where: a file, the environment, arguments, in that rising order. For parent and agent; Django-free.

Here values are gathered under our own names; whether they can be is judged by who declares the settings:
``cascade.config`` and ``nodes.agent.config``.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes import aliases
from nodes.protocol import FieldError

ROOT = Path(__file__).resolve().parent.parent
"""The project's folder."""
FILES = ("cascade.toml", "cascade.json", "cascade.yaml", "cascade.yml")
SUFFIXES = (".toml", ".json", ".yaml", ".yml")
PREFIX = "CASCADE_"
ROLES = ("parent", "child", "relay", "standalone")
_SECRET = re.compile(r"(?:\A|_)(?:secret|password|token|api_key|api_secret|django_key)(?:\Z|_key\Z)")
_KEYS = re.compile(r"\bC[SR][A-Za-z0-9_-]{40,43}")
"""A secret key or a registration key, in whatever place it was put by mistake."""
_LONGEST = 120


@dataclass(frozen=True)
class Problem:
    """``name`` as it was written; ``message`` says what was given and what is allowed; ``origin`` says where."""

    name: str
    message: str
    origin: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message} ({self.origin})" if self.origin else f"{self.name}: {self.message}"


class SettingsError(FieldError):
    """All that is wrong with what was set; as text, a line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0].name, problems[0].message)
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


@dataclass(frozen=True)
class Given:
    """``name`` is ours; ``written`` is how it was called; ``origin`` says where, for people; ``place`` is 0 for a file,
    1 for the environment, 2 for arguments.
    """

    name: str
    value: Any
    origin: str
    written: str
    place: int


@dataclass
class Collected:
    """Everything that was set. ``given``: our name -> what holds; ``notes``: what is to be said once, at the start."""

    role: str = "parent"
    file: Path | None = None
    given: dict[str, Given] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def values(self, names: Collection[str]) -> dict[str, Any]:
        return {name: each.value for name, each in self.given.items() if name in names}

    def origin(self, name: str) -> str:
        return self.given[name].origin if name in self.given else "default"

    def wrong(self, name: str, message: str) -> None:
        """Adds a problem with the value of ``name``, under the name by which it was given."""
        each = self.given.get(name)
        self.problems.append(Problem(each.written if each else name, message, each.origin if each else ""))


@dataclass(frozen=True)
class _Written:
    """One name and value as they were found."""

    name: str
    value: Any
    origin: str


def is_secret(name: str) -> bool:
    """Whether a value of this name must never be shown."""
    return bool(_SECRET.search(name.rpartition(".")[2]))


def shown(name: str, value: Any) -> str:
    """``value`` for a message; nothing of a secret, which may be the right one with a slip."""
    if is_secret(name):
        return "this secret"
    text = repr(value) if not isinstance(value, Path) else repr(str(value))
    text = _KEYS.sub("***", unlocked(text))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def unlocked(text: str) -> str:
    """``text`` without names and passwords in addresses."""
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def collect(
    known: Collection[str],
    *,
    arguments: Sequence[tuple[str, Any, str]] = (),
    environ: Mapping[str, str] = os.environ,
    config: str | None = None,
    folder: Path = ROOT,
    role: str | None = None,
) -> Collected:
    """Everything that was set of the settings ``known``. ``arguments``: (name, value, the argument's name).

    ``config`` names the file; without it CASCADE_CONFIG does (empty: no file), else it is looked for in ``folder``.
    ``role`` is what the process is, whatever was set; without it, what was set decides.
    """
    found = Collected()
    found.file = _file(found, config, environ, folder)
    layers = [
        list(_from_file(found)),
        list(_from_environment(found, known, environ)),
        [_Written(name, value, origin) for name, value, origin in arguments],
    ]
    found.role = _role(found, layers, role)
    for place, layer in enumerate(layers):
        _settle(found, place, layer, known)
    _open_file(found)
    return found


def argument_pairs(texts: Sequence[str]) -> list[tuple[str, Any, str]]:
    """``NAME=VALUE`` of the arguments --set, as ``collect`` takes them. Raises SettingsError."""
    problems, pairs = [], []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            problems.append(Problem("--set", f"{text.partition('=')[0]!r} is not like lease_seconds=20", "arguments"))
        elif is_secret(name):
            problems.append(
                Problem(
                    name, "every user of this machine can read arguments; put it in a file or the environment", "--set"
                )
            )
        else:
            pairs.append((name, value, f"argument --set {name}"))
    if problems:
        raise SettingsError(problems)
    return pairs


# The three places


def _file(found: Collected, config: str | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    named, origin = (config, "argument --config") if config is not None else (environ.get("CASCADE_CONFIG"), "")
    if named is None:
        there = [folder / name for name in FILES if (folder / name).exists()]
        if len(there) > 1:
            both = " and ".join(path.name for path in there)
            found.problems.append(
                Problem("config", f"there are {both}; keep one of them, or name one with --config", str(folder))
            )
            return None
        return there[0] if there else None
    if not named:
        return None
    path = Path(named).expanduser()
    origin = origin or "environment variable CASCADE_CONFIG"
    if path.suffix.lower() not in SUFFIXES:
        found.problems.append(Problem("config", f"{named!r} does not end in one of: {', '.join(SUFFIXES)}", origin))
        return None
    if not path.is_file():
        found.problems.append(Problem("config", f"there is no file {named!r}", origin))
        return None
    return path.resolve()


def _from_file(found: Collected) -> Iterator[_Written]:
    if found.file is None:
        return
    try:
        content = parse(found.file)
    except FieldError as error:
        found.problems.append(Problem("config", error.message, str(found.file)))
        return
    for key, value in content.items():
        if key == "cascade" and isinstance(value, dict):
            for name, inner in value.items():
                yield _Written(f"cascade.{name}", inner, f"{found.file.name}, key cascade.{name}")
        else:
            yield _Written(str(key), value, f"{found.file.name}, key {key}")


def parse(file: Path) -> dict[str, Any]:
    """What a TOML, JSON or YAML file says, by its suffix. Raises FieldError with what cannot be read, and where."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".toml":
            import tomllib  # an agent without a file does without it

            content: Any = tomllib.loads(text)
        elif file.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_once)
        else:
            content = _yaml(text)
    except OSError as error:
        raise FieldError("config", f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FieldError("config", f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise FieldError("config", f"{file} is not {file.suffix[1:].upper()}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FieldError("config", f"{file} holds {type(content).__name__}, not names with values")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a name be given twice, and the last one win; a setting must not."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return made


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise FieldError(
            "config", "reading YAML needs the package PyYAML; install it, or write the file in TOML or JSON"
        ) from None

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if len(set(map(str, names))) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{twice!r} is given twice{node.start_mark}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _from_environment(found: Collected, known: Collection[str], environ: Mapping[str, str]) -> Iterator[_Written]:
    bare = {alias.environ: alias.name for alias in aliases.ALIASES if alias.environ}
    for variable in sorted(environ):
        value = environ[variable]
        if variable in ("CASCADE_CONFIG", "CASCADE_FAILPOINTS") or not value:
            continue  # an empty variable is none, as compose files write it
        origin = f"environment variable {variable}"
        if variable in bare:
            # Behind our own variables of this layer, even where both systems use one name.
            yield _Written(f"environ.{bare[variable]}", value, origin)
        elif variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name in known or name in aliases.names():
                yield _Written(name, value, origin)
            else:
                found.problems.append(Problem(variable, _unknown(name, known, PREFIX), "environment"))


# What it means


def _role(found: Collected, layers: Sequence[Sequence[_Written]], fixed: str | None) -> str:
    """What the process is. A value that is none is a problem, which is told of when the names are settled."""
    role, by = "parent", None
    for layer in layers:
        said = [(rank, value, each) for each in layer for rank, value in _says_role(each) if value in ROLES]
        for _, value, each in sorted(said, key=lambda one: -one[0]):
            role, by = value, each
    # Only of the last word: a file that is for several programs may be overruled for this one.
    if by is not None and fixed not in (None, role):
        found.problems.append(Problem(_plain(by.name), f"{by.value!r}: this program is a {fixed}", by.origin))
    return fixed or role


def _says_role(each: _Written) -> Iterator[tuple[int, Any]]:
    if _plain(each.name) == "role":
        yield 0, each.value
        return
    try:
        # No name means the role to one role and something else to another.
        alias = aliases.find(each.name, "parent", each.value)
        if alias is not None and alias.target == "role" and alias.convert is not None:
            yield alias.rank, alias.convert(each.value)[0]
    except ValueError:
        pass  # told of when the names are settled


def _settle(found: Collected, place: int, layer: Sequence[_Written], known: Collection[str]) -> None:
    """Puts one place's values over what lower ones gave. Our own name wins over an alias of the same place."""
    settled: dict[str, tuple[int, Given]] = {}
    for each in layer:
        if each.value is None:
            continue
        try:
            made = _meant(found, place, each, known)
        except ValueError as error:
            found.problems.append(
                Problem(_plain(each.name), f"{shown(each.name, each.value)} is not {error}", each.origin)
            )
            continue
        if made is None:
            continue
        rank, given = made
        earlier = settled.get(given.name)
        if earlier is None or rank < earlier[0] or (rank == earlier[0] == 0):
            settled[given.name] = (rank, given)
        elif rank == earlier[0] and earlier[1].value != given.value:
            found.problems.append(
                Problem(given.written, f"says something else than {earlier[1].written}; keep one of them", given.origin)
            )
    found.given |= {name: given for name, (_, given) in settled.items()}


def _meant(found: Collected, place: int, each: _Written, known: Collection[str]) -> tuple[int, Given] | None:
    """(0 for our own name, 1 for an alias, 2 for a variable of another system; what was given), or None for nothing.

    Raises ValueError with what is allowed.
    """
    foreign = each.name.startswith("environ.")
    inner = _plain(each.name)
    if each.name.startswith("cascade.") and (alias := aliases.find(each.name, found.role, each.value)):
        rank = alias.rank
    elif inner in known and not foreign:
        value = "" if inner == "node_id" and each.value == "auto-generated" else each.value
        return 0, Given(inner, value, each.origin, inner, place)
    else:
        alias = aliases.find(inner, found.role, each.value)
        rank = 2 if foreign else 1
    if alias is None:
        found.problems.append(Problem(inner, _unknown(inner, known), each.origin))
        return None
    if alias.note:
        found.notes.append(f"{_plain(alias.name)} ({each.origin}) {alias.note}")
    if not alias.target:
        return None
    if alias.target not in known:
        return None
    value, said = alias.convert(each.value) if alias.convert else (each.value, "")
    if said:
        found.notes.append(f"{inner} {shown(inner, each.value)} ({each.origin}): {said}")
    return rank, Given(alias.target, value, each.origin, inner, place)


def _open_file(found: Collected) -> None:
    if found.file is None or not any(
        is_secret(each.name) and each.value and not each.place for each in found.given.values()
    ):
        return
    if found.file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        found.notes.append(f"{found.file} holds a secret and can be read by others; run: chmod 600 {found.file}")


def _plain(name: str) -> str:
    return name.removeprefix("environ.").removeprefix("cascade.")


def _unknown(name: str, known: Collection[str], prefix: str = "") -> str:
    import difflib

    near = difflib.get_close_matches(name, sorted({*known, *map(_plain, aliases.names())}), 1, 0.6)
    spelled = f"{prefix}{near[0].upper()}" if near and prefix else near[0] if near else ""
    return "is not a setting" + (f"; did you mean {spelled}?" if spelled else "; `manage.py config` lists them")
