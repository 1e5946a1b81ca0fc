"""Every setting of the agent: from a file, the environment, or arguments (the later one wins), else the default.

Secrets never come from arguments, which every user of a machine can read in its process list.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nodes.given import Collected, Given, Problem, SettingsError, argument_pairs, collect, shown
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

_ACCESS_KEY = re.compile(r"\ACN[0-9a-zA-Z]{8,38}\Z")
_SECRET_KEY = re.compile(r"\ACS[0-9A-Za-z_-]{43}\Z")
_CALLABLE = re.compile(r"(?P<name>[A-Za-z_][\w.-]{0,99})(?:=(?P<path>[A-Za-z_][\w.]*:[A-Za-z_][\w.]*))?\Z")
CARRIERS = ("auto", "push", "pull")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DRAIN_SECONDS = 20.0


@dataclass(frozen=True)
class Setting:
    """One setting: ``allowed`` completes "… is not", and ``read`` gives the value or raises ValueError or TypeError."""

    name: str
    default: Any
    description: str
    allowed: str
    read: Callable[[Any], Any]

    def settled(self, value: Any) -> Any:
        """Raises FieldError with what was given and what is allowed."""
        try:
            return self.read(value)
        except (TypeError, ValueError):
            raise FieldError(self.name, f"{shown(self.name, value)} is not {self.allowed}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).isprintable():
        raise TypeError
    return str(value)


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.match(value):
            raise ValueError
        return value

    return read


def _secret(value: Any) -> str:
    from nodes import signing  # loads cryptography

    secret = _matching(_SECRET_KEY)(value)
    try:
        signing.public_key_of(secret)
    except FieldError:
        raise ValueError from None
    return secret


def _one_of(allowed: Sequence[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return read


def _number(least: float, most: float, kind: Callable[[Any], float] = float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not least <= (number := kind(value)) <= most or number != float(value):
            raise ValueError
        return number

    return read


def _listed(value: Any) -> list[str]:
    """A list of texts, or one text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise TypeError
    return [part.strip() for part in parts if part.strip()]


def read_networks(value: Any) -> tuple[str, ...]:
    """CIDR networks. Raises ValueError, TypeError."""
    return tuple(str(ipaddress.ip_network(part)) for part in _listed(value))


def read_callables(value: Any) -> dict[str, str]:
    """``NAME=module:callable``, or the NAME of an entry point alone; name -> path, "" for the latter.

    Raises ValueError, TypeError.
    """
    found: dict[str, str] = {}
    for part in _listed(value):
        match = _CALLABLE.match(part)
        if match is None or match["name"] in found:
            raise ValueError
        found[match["name"]] = match["path"] or ""
    return found


def _path(value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value).strip() or "\x00" in str(value):
        raise ValueError
    return str(value)


def _address(value: Any) -> str:
    if not isinstance(value, str) or not _is_address(value):
        raise ValueError
    return value.rstrip("/")


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        # The port is read when it is asked for, and may be wrong, too.
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        return False
    return bool(good) and "@" not in url.netloc and not url.query and not url.fragment and text.isprintable()


SETTINGS: tuple[Setting, ...] = (
    Setting("parent", "", "The parent's address.", "an address like http://parent.example:8000", _address),
    Setting(
        "access_key",
        "",
        "Names this child to its parent.",
        "an access key, which starts with CN",
        _matching(_ACCESS_KEY),
    ),
    Setting(
        "secret_key",
        "",
        "Signs what this child sends.",
        "a secret key, which is CS and 43 characters more",
        _secret,
    ),
    Setting("key_file", "", "A file with both keys, one a line, instead of them.", "the path of a file", _path),
    Setting(
        "carrier",
        "auto",
        "How work comes; auto: push while it works, else pull.",
        f"one of: {', '.join(CARRIERS)}",
        _one_of(CARRIERS),
    ),
    Setting(
        "agent_dir",
        "",
        "Where finished work waits for its receipt. Empty: in data_dir, or else in ~/.cascade.",
        "the path of a folder",
        _path,
    ),
    Setting("data_dir", "", "See the server's; agent_dir is in it.", "the path of a folder", _path),
    Setting(
        "drain_seconds",
        DRAIN_SECONDS,
        "How long a stop waits for running shards before it hands them back.",
        "a number from 0 to 86400, in seconds",
        _number(0, 86_400),
    ),
    Setting(
        "workers",
        0,
        "Worker processes at most, whatever the parent grants; without a parent: how many. 0: as many as the parent "
        "grants, or the machine has cores.",
        "a whole number from 0 to 10000",
        _number(0, 10_000, int),
    ),
    Setting("node_id", "", "What programs that drive this node know it by. Empty: the node's name.", "a text", _text),
    Setting("node_name", "", "What people call this node. Empty: what its parent calls it.", "a text", _text),
    Setting(
        "max_memory_mb",
        0,
        "Memory of this node's processes, in MB, above which it is overloaded. 0: no limit.",
        "a whole number from 0 to 100000000",
        _number(0, 100_000_000, int),
    ),
    Setting(
        "allowed_networks",
        (),
        "Networks that are not public and may be fetched from all the same, by feeds, crawls and files by address.",
        "a list of networks like 10.1.0.0/16",
        read_networks,
    ),
    Setting(
        "custom",
        {},
        "What work of type custom may call here: NAME=package.module:callable, or the NAME of an entry point in the "
        "group cascade.custom. Empty: nothing. What is called has all rights of this process.",
        "a list of NAME=package.module:callable or NAME",
        read_callables,
    ),
    Setting("log_level", "INFO", "How much is logged.", f"one of: {', '.join(LEVELS)}", _one_of(LEVELS)),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}

_SERVER = """
    role debug django_key allowed_hosts csrf_trusted_origins https time_zone host port node_api_key healthy_word
    beat_seconds lease_seconds offer_seconds offline_seconds long_poll_seconds target_seconds lookahead_seconds
    lookahead_limit balancers worker_deaths fallback_seconds fallback_workers max_cpu max_memory patient_seconds
    webhook_attempts run_days log_days heartbeat_days max_items upload_limit allow_plain_keys signature_seconds
    receive_limit receive_seconds spool_limit disk_reserve shard_log_limit
    plain_keys_unencrypted duckdb_memory sql_seconds sql_rows sql_download_rows sql_megabytes read_seconds
    count_seconds facet_seconds default_priority default_timeout default_max_attempts
    key_requests key_megabytes key_concurrent default_balancer second_copies database_url redis_url dispatcher
    result_store lake_path lake_endpoint lake_region lake_access_key lake_secret_key lake_merge_seconds
    metrics_token metrics_nodes dispatcher_port
    lake_keep_seconds spool_path max_depth relay_inputs_limit relay_keeps_rows
"""
SERVER = frozenset(_SERVER.split())
"""What else a file may set: settings of the server around an agent, which one that runs alone need not look at."""


@dataclass(frozen=True)
class AgentConfig:
    """``parent`` is its base URL, empty for an agent that has none; ``carrier`` one of auto (push while it works, else
    pull), push, pull. ``workers`` 0: as many as the parent grants.
    """

    parent: str = ""
    access_key: str = ""
    secret_key: str = ""
    carrier: str = "auto"
    data_dir: Path = Path("agent")
    drain_seconds: float = DRAIN_SECONDS
    """How long a stop waits for running shards before it hands them back."""
    log_level: str = "INFO"
    node_id: str = ""
    node_name: str = ""
    workers: int = 0
    max_memory_mb: int = 0
    allowed_networks: tuple[str, ...] = ()
    custom: Mapping[str, str] = field(default_factory=dict)
    key_file: str = ""
    """Where both keys came from; empty where not from a file."""
    first_key: str = ""
    """The first access key of this child: its folder is called so, whatever key it has by now."""
    notes: tuple[str, ...] = ()
    """What is to be said of the settings, once, at the start."""

    def __post_init__(self) -> None:
        names = ["carrier", "drain_seconds", "log_level", "workers", "max_memory_mb"]
        for name in [*names, *(("parent", "access_key", "secret_key") if self.parent else ())]:
            BY_NAME[name].settled(getattr(self, name))

    @property
    def surroundings(self) -> Surroundings:
        """What its workers find around them."""
        return Surroundings(self.allowed_networks, self.custom, str(self.data_dir / "cache"))

    def __repr__(self) -> str:
        return f"AgentConfig(parent={self.parent!r}, access_key={self.access_key!r}, carrier={self.carrier!r})"


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what every program that reads settings takes."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="settings in TOML, JSON or YAML (CASCADE_CONFIG; default cascade.toml, .json, …)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, like lease_seconds=20; repeatable",
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the agent's arguments; ``manage.py runserver --role child`` takes the same."""
    parser.add_argument("--parent", help="the parent's address, like http://127.0.0.1:8000 (CASCADE_PARENT)")
    parser.add_argument("--carrier", help="how work comes: auto, push or pull (CASCADE_CARRIER; default auto)")
    parser.add_argument("--key-file", help="file with access key and secret key, one a line (CASCADE_KEY_FILE)")
    parser.add_argument("--data-dir", help="where finished work waits for its receipt (CASCADE_AGENT_DIR)")
    parser.add_argument("--drain-seconds", help="how long a stop waits for running shards (default 20)")


def given_arguments(options: argparse.Namespace) -> list[tuple[str, Any, str]]:
    """What of ``options`` sets the agent, as ``collect`` takes it. Raises SettingsError."""
    named = {"parent": "parent", "carrier": "carrier", "key_file": "key_file", "data_dir": "agent_dir"}
    named |= {
        "drain_seconds": "drain_seconds",
        "workers": "workers",
        "log_level": "log_level",
        "node_name": "node_name",
        "node_id": "node_id",
    }
    pairs = argument_pairs(getattr(options, "set", None) or [])
    for option, name in named.items():
        if (value := getattr(options, option, None)) is not None:
            pairs.append((name, value, f"argument --{option.replace('_', '-')}"))
    return pairs


def check(found: Collected) -> dict[str, Any]:
    """The agent's settings with their values, as far as they were given; what is wrong is added to ``found``."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        given = found.given.get(setting.name)
        if given is None or (given.value == "" and setting.default == ""):
            continue
        try:
            values[setting.name] = setting.settled(given.value)
        except FieldError as error:
            found.wrong(setting.name, error.message)
    return values


def load(
    options: argparse.Namespace, environ: Mapping[str, str] = os.environ, *, served: bool = False, role: str = "child"
) -> AgentConfig:
    """``served``: there is a server around the agent, so that it may be without a parent: programs drive it.

    Raises SettingsError, a FieldError, naming all that is missing or wrong.
    """
    found = collect(
        SERVER | BY_NAME.keys(),
        # What this process is, the server has settled by now, whatever a file says.
        arguments=[*given_arguments(options), *([("role", role, "argument --role")] if served else [])],
        environ=environ,
        config=getattr(options, "config", None),
        role=role,
    )
    values = check(found)
    access_key, secret_key, key_file, first_key = _keys(found, values, environ)
    if not values.get("parent") and (not served or access_key) and "parent" not in found.given:
        found.problems.append(Problem("parent", "is required: --parent http://…, CASCADE_PARENT or a file", ""))
    elif values.get("parent") and not (access_key and secret_key) and not found.problems:
        missing = "CASCADE_SECRET_KEY" if access_key else "CASCADE_ACCESS_KEY"
        found.problems.append(
            Problem(missing, "is not set; `manage.py node add NAME` on the parent prints both keys", "")
        )
    if found.problems:
        raise SettingsError(found.problems)
    folder = values.get("agent_dir") or _folder(values, first_key or access_key)
    return AgentConfig(
        parent=values.get("parent", ""),
        access_key=access_key,
        secret_key=secret_key,
        data_dir=Path(folder).expanduser().resolve(),
        **{name: values[name] for name in _PLAIN if name in values},
        key_file=key_file,
        first_key=first_key,
        notes=tuple(found.notes),
    )


_PLAIN = (
    *("carrier", "drain_seconds", "log_level", "node_id", "node_name", "workers", "max_memory_mb"),
    *("allowed_networks", "custom"),
)


def _folder(values: Mapping[str, Any], access_key: str) -> Path:
    """One for each agent, also where several share a data folder."""
    name = access_key or values.get("node_id") or values.get("node_name") or "alone"
    if base := values.get("data_dir"):
        return Path(base) / "agent" / name
    return Path.home() / ".cascade" / name


def _keys(found: Collected, values: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str, str, str, str]:
    """Both keys, or "" for one that is missing or wrong; their file, if they came from one, and the first access key
    that it names. A pair that was given nearer than a key file comes first.
    """
    file = found.given.get("key_file")
    pair = [found.given.get(name) for name in ("access_key", "secret_key")]
    if file is not None and "key_file" in values and not all(each and each.place > file.place for each in pair):
        return _read_keys(found, file)
    for name in ("access_key", "secret_key"):
        variable = f"CASCADE_{name.upper()}"
        if name not in found.given and environ.get(variable) == "":
            setting = BY_NAME[name]
            found.problems.append(Problem(name, f"{shown(name, '')} is not {setting.allowed}", variable))
    return values.get("access_key", ""), values.get("secret_key", ""), "", ""


def _read_keys(found: Collected, given: Given) -> tuple[str, str, str, str]:
    path = Path(str(given.value)).expanduser()
    try:
        access_key, secret_key, first_key = read_key_file(path)
        return access_key, secret_key, str(path), first_key
    except OSError as error:
        found.wrong("key_file", f"{path}: {error.strerror}")
    except FieldError as error:
        found.wrong("key_file", error.message)
    return "", "", "", ""


def read_key_file(path: str | Path) -> tuple[str, str, str]:
    """(access key, secret key, the child's first access key where it was rotated). Raises OSError, FieldError."""
    path = Path(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FieldError("key_file", f"{path} can be read by others; run: chmod 600 {path}")
    try:
        lines = path.read_text().split()
    except UnicodeDecodeError:
        lines = []
    if len(lines) not in (2, 3) or not all(map(_ACCESS_KEY.match, lines[2:])):
        raise FieldError("key_file", f"{path} must hold the access key and the secret key, one a line")
    access_key, secret_key = BY_NAME["access_key"].settled(lines[0]), BY_NAME["secret_key"].settled(lines[1])
    return access_key, secret_key, lines[2] if len(lines) == 3 else ""


def parser() -> argparse.ArgumentParser:
    """Of ``python -m nodes.agent``."""
    parser = argparse.ArgumentParser(prog="python -m nodes.agent", description="Takes work from a Cascade parent.")
    common_arguments(parser)
    arguments(parser)
    parser.add_argument("--workers", help="worker processes at most (default: as many as the parent grants)")
    parser.add_argument("--log-level", dest="log_level", help=f"one of: {', '.join(LEVELS)} (default INFO)")
    parser.add_argument(
        "--rotate", action="store_true", help="replace the key in --key-file by a new one, signed by the old, and end"
    )
    return parser


def parse(argv: Sequence[str] | None = None) -> AgentConfig:
    """The configuration of ``python -m nodes.agent``."""
    return load(parser().parse_args(argv))
