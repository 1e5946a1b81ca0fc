"""Every setting of a server, typed, with its default and its unit. The agent's own are in ``nodes/agent/config.py``.

Read from a file (``cascade.toml``, .json or .yaml, or the one that --config or CASCADE_CONFIG names), then from the
environment (CASCADE_<NAME>), then from arguments: the later one wins. ``nodes.given`` gathers them, and
``nodes.aliases`` has the names that other systems have for them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from nodes.agent import config as agent
from nodes.given import Collected, SettingsError, argument_pairs, collect, shown
from nodes.surroundings import Surroundings

BASE_DIR = Path(__file__).resolve().parent.parent


class Config(BaseModel):
    """What this process is and within which limits it works."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    role: Literal["parent", "child", "relay", "standalone"] = Field("parent", description="What `runserver` starts as.")
    data_dir: Path = Field(BASE_DIR / "data", description="Databases, spool and secret key live here.")
    debug: bool = Field(False, description="Django's debug pages; never on a reachable address.")
    django_key: str = Field("", repr=False, description="Django's secret key; empty: made once and kept in data_dir.")
    allowed_hosts: list[str] = Field(
        ["localhost", "127.0.0.1", "[::1]"], description="Host names this server answers to."
    )
    csrf_trusted_origins: list[str] = Field(
        [], description="Origins, with scheme, that may post from a proxy's address."
    )
    https: bool = Field(False, description="Served behind TLS: secure cookies, HSTS, redirects to https.")
    time_zone: str = Field("UTC", description="Time zone of pages and logs.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="How much is logged."
    )
    host: str = Field("127.0.0.1", description="Address `runserver` listens on; 0.0.0.0: all of this machine's.")
    port: int = Field(0, ge=0, le=65_535, description="Port it listens on; 0: 8000, or 8900 for a child.")

    max_depth: int = Field(8, ge=1, le=64, description="Levels that the tree may have, this one included.")
    node_id: str = Field("", description="What programs that drive this node know it by; empty: the node's name.")
    node_name: str = Field("", description="What people call this node; empty: what its parent calls it.")
    node_api_key: str = Field(
        "", repr=False, description="Programs that drive this node send it as X-API-Key; empty: none asked."
    )
    healthy_word: str = Field(
        "healthy", min_length=1, max_length=30, description="What a node that takes work calls itself in its health."
    )
    workers: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Worker processes of a child, whatever its parent grants; without a parent: how many. 0: as many "
        "as the parent grants, or the machine has cores.",
    )

    database_url: str = Field(
        "",
        repr=False,
        description="PostgreSQL instead of SQLite, with requirements-scale.txt: postgresql://user:password@host/name.",
    )
    redis_url: str = Field(
        "",
        repr=False,
        description="Redis for the wake-ups between several server processes, which PostgreSQL carries otherwise: "
        "redis://host:6379/0; needs requirements-scale.txt.",
    )
    dispatcher: Literal["embedded", "separate"] = Field(
        "embedded",
        description="With PostgreSQL: whether `runserver` may lead, too, and then allocates and saves; or leaves that "
        "to `manage.py dispatcher`.",
    )
    spool_path: str = Field(
        "",
        description="Folder of what has been received and not saved yet; the processes of a parent share it. Empty: "
        "data_dir/spool.",
    )
    result_store: Literal["auto", "file", "lake"] = Field(
        "auto",
        description="Where rows of results are: a DuckDB file of the one process that saves, or a lake that every "
        "process reads, with its catalogue in the PostgreSQL of database_url. auto: the lake with PostgreSQL, else "
        "the file.",
    )
    lake_path: str = Field(
        "",
        description="Where the lake's Parquet files are: a folder that all processes share, or s3://bucket/prefix. "
        "Empty: data_dir/lake.",
    )
    lake_endpoint: str = Field(
        "", description="Address of an S3 that is not Amazon's, like http://127.0.0.1:9000; for lake_path on S3."
    )
    lake_region: str = Field("us-east-1", min_length=1, max_length=100, description="Region of the S3 of lake_path.")
    lake_access_key: str = Field("", description="Access key for the S3 of lake_path.")
    lake_secret_key: str = Field("", description="Secret key for the S3 of lake_path.")
    lake_merge_seconds: float = Field(
        300, ge=1, le=86_400, description="How often the lake's small files are merged while rows are saved."
    )
    lake_keep_seconds: float = Field(
        3600,
        ge=600,
        le=30 * 86_400,
        description="How long the lake keeps what was replaced or never finished: the longest that reading may take.",
    )

    beat_seconds: float = Field(5, ge=0.1, le=60, description="How often a child beats.")
    lease_seconds: float = Field(30, ge=0.5, le=3600, description="An allocation without a beat for so long expires.")
    offer_seconds: float = Field(
        15, ge=0.5, le=300, description="Work that a node does not fetch in this time goes back."
    )
    offline_seconds: float = Field(45, ge=1, le=180, description="Without a beat for so long a node is offline.")
    long_poll_seconds: float = Field(30, ge=0, le=120, description="How long a claim may wait for work.")
    target_seconds: float = Field(
        1.0, ge=0.01, le=3600, description="How long an automatically sized shard should run."
    )
    lookahead_seconds: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Work a node may hold beyond its capacity, in seconds, while its shards are short.",
    )
    lookahead_limit: int = Field(
        400, ge=0, le=10_000, description="Most allocations a node may hold beyond its capacity."
    )
    balancers: list[str] = Field([], description="Dotted paths of functions that runs may name as their balancer.")
    second_copies: bool = Field(
        True, description="Late shards at the end of a run are given to an idle node, too; the first report counts."
    )
    worker_deaths: int = Field(3, ge=1, le=10, description="Workers a shard may kill before it is cut in half.")
    fallback_seconds: float = Field(
        10, ge=0, le=86_400, description="With no node for a run for so long, this parent runs it itself."
    )
    fallback_workers: int = Field(
        2, ge=0, le=1000, description="Worker processes of this parent's own worker; 0: it never runs anything itself."
    )
    max_cpu: float = Field(100, ge=1, le=100, description="A node whose CPU is above this percentage gets no new work.")
    max_memory: float = Field(
        100, ge=1, le=100, description="A node whose memory is above this percentage gets no new work."
    )
    max_memory_mb: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Memory of a child's processes, in MB, above which it is overloaded; 0: no limit.",
    )
    allowed_networks: list[str] = Field(
        [],
        description="Networks that are not public and may be fetched from all the same, by feeds, crawls, files by "
        "address and webhooks: 10.1.0.0/16, say.",
    )
    custom: list[str] = Field(
        [],
        description="What runs of type custom may call: NAME=package.module:callable, or the NAME of an entry point in "
        "the group cascade.custom. Empty: nothing. What is called has all rights of the process.",
    )
    patient_seconds: float = Field(
        180, ge=1, le=180, description="offer_seconds and offline_seconds for clients that poll rarely."
    )
    default_priority: int = Field(5, ge=1, le=10, description="Of runs that name none; higher goes first.")
    default_timeout: float = Field(
        300, ge=0.1, le=7 * 86_400, description="Seconds one shard may run, of runs that name no time-out."
    )
    default_max_attempts: int = Field(3, ge=1, le=100, description="Attempts at a shard, of runs that name none.")
    default_balancer: str = Field(
        "most_free", min_length=1, max_length=200, description="Chooses the node, for runs that name no balancer."
    )
    webhook_attempts: int = Field(8, ge=1, le=50, description="Tries to bring a webhook to its address.")
    shard_log_limit: int = Field(
        64_000,
        ge=0,
        le=100_000_000,
        description="Characters of what one attempt at a shard prints that are kept while it runs, the newest ones; "
        "its report brings 16000. 0: nothing is taken before the report.",
    )
    run_days: float = Field(90, ge=0.01, description="Ended runs, with their allocations, are kept so long.")
    log_days: float = Field(14, ge=0.01, description="The sync log and the journal are kept so long.")
    heartbeat_days: float = Field(7, ge=0.01, description="Heartbeat history is kept so long.")
    max_items: int = Field(1_000_000, ge=1, description="Items a run may have.")
    upload_limit: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest request body of the native API, in bytes."
    )
    receive_limit: int = Field(
        512 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes of request bodies that may be under way at once; what does not fit is sent again later.",
    )
    receive_seconds: float = Field(
        15, ge=0.5, le=600, description="How long a request's head may take to arrive; a body needs 4 KB a second."
    )
    spool_limit: int = Field(
        4 * 1024**3,
        ge=64 * 1024,
        description="Bytes of results that may wait to be saved; beyond, children are asked to keep theirs a while.",
    )
    relay_keeps_rows: bool = Field(
        False, description="Whether a relay saves the rows that pass through it in a result store of its own, too."
    )
    relay_inputs_limit: int = Field(
        2 * 1024**3,
        ge=0,
        description="Bytes of rows of its parent's tables that a relay keeps for the work it has; beyond, what was not "
        "used for longest goes, and is fetched again when it is needed.",
    )
    disk_reserve: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="Bytes of the disk of data_dir that results leave free: nothing is taken beyond.",
    )
    allow_plain_keys: bool = Field(
        True, description="Accept 'Authorization: AK-SK ak:sk' where the node allows it, too."
    )
    plain_keys_unencrypted: bool = Field(
        False,
        description="Accept plain keys, and keys with which devices register, also over connections that others can "
        "read: neither https nor from this machine.",
    )
    key_requests: float = Field(
        500, ge=1, le=100_000, description="Requests and socket messages a second that one key may send a process."
    )
    key_megabytes: float = Field(200, ge=0.1, le=100_000, description="Megabytes a second that one key may send.")
    key_concurrent: int = Field(
        200, ge=4, le=10_000, description="Requests of one key, open sockets included, that are answered at once."
    )
    metrics_token: str = Field(
        "",
        repr=False,
        description="What a program must send as a bearer token to read /metrics, from wherever it asks; empty: none "
        "is asked, but only this machine may read it.",
    )
    metrics_nodes: int = Field(
        500,
        ge=0,
        le=100_000,
        description="With more nodes than this, /metrics has sums only, and no numbers of each node by its name.",
    )
    dispatcher_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port on which `manage.py dispatcher` answers /metrics, /healthz and /readyz, at the address host; "
        "0: none.",
    )
    signature_seconds: float = Field(300, ge=5, le=3600, description="A signature older or newer than this is refused.")
    duckdb_memory: str = Field("1GB", description="Memory limit of the result database.")
    sql_seconds: float = Field(1, ge=0.1, le=600, description="Longest that a statement of the SQL box may take.")
    sql_rows: int = Field(1000, ge=1, le=100_000, description="Most rows of an answer of the SQL box.")
    sql_download_rows: int = Field(
        100_000, ge=1, le=100_000_000, description="Most rows of a file that a statement of the SQL box makes."
    )
    sql_megabytes: int = Field(
        512, ge=64, le=1_000_000, description="Memory of a statement of the SQL box, with the rows that it reads."
    )
    read_seconds: float = Field(
        10, ge=0.1, le=600, description="Longest that a page of rows, a chart or a list of articles may take."
    )
    count_seconds: float = Field(
        1, ge=0.01, le=600, description="Longest that the rows of a table are counted for a page; then it says so."
    )
    facet_seconds: float = Field(
        0.2, ge=0.01, le=600, description="Longest that the values of one column are counted; then it says so."
    )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            raise ValueError("a time zone like Europe/Berlin or UTC") from None
        return value

    @field_validator("allowed_networks")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        return list(agent.read_networks(value))

    @field_validator("custom")
    @classmethod
    def _callables(cls, value: list[str]) -> list[str]:
        agent.read_callables(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in ("postgresql", "postgres") or not urlsplit(value).path.strip("/")):
            raise ValueError("an address like postgresql://user:password@host:5432/name")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("an address like redis://host:6379/0")
        return value

    @field_validator("lake_path")
    @classmethod
    def _lake(cls, value: str) -> str:
        # DuckDB would take the first of these for patterns of names.
        if any(each in value for each in "*?[]'\"\\\n") or ("://" in value and not re.fullmatch("s3://[^/]+.*", value)):
            raise ValueError("the path of a folder, or an address like s3://bucket/prefix")
        return value

    @field_validator("lake_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("an address like http://127.0.0.1:9000")
        return value

    @property
    def listens_on(self) -> int:
        """The port, settled."""
        return self.port or (8900 if self.role == "child" else 8000)

    @property
    def called(self) -> str:
        """What people call this server."""
        return self.node_name or platform.node() or self.role

    @property
    def hosts(self) -> list[str]:
        """``allowed_hosts``, settled: a child has no pages and no cookies, and is driven by whatever name it has."""
        return ["*"] if self.role == "child" and "allowed_hosts" not in self.model_fields_set else self.allowed_hosts

    @property
    def surroundings(self) -> Surroundings:
        """What executors find around them in this process, and in those of its own worker."""
        return Surroundings(tuple(self.allowed_networks), agent.read_callables(self.custom))

    @property
    def database(self) -> Path:
        return self.data_dir / "cascade.sqlite3"

    @property
    def results(self) -> Path:
        return self.data_dir / "results.duckdb"

    @property
    def moved(self) -> Path:
        """Where it says that this parent lives in PostgreSQL now, if it does."""
        return self.data_dir / "moved.json"

    @property
    def in_lake(self) -> bool:
        """Whether rows of results are in a lake."""
        return self.result_store == "lake" or (self.result_store == "auto" and bool(self.database_url))

    @property
    def lake(self) -> str:
        """``lake_path``, settled."""
        return self.lake_path or str(self.data_dir / "lake")

    @property
    def identity_folder(self) -> Path:
        """Where the id of this server is, which all processes of it share."""
        return self.spool if self.database_url and self.spool_path else self.data_dir

    @property
    def spool(self) -> Path:
        return Path(self.spool_path).expanduser().resolve() if self.spool_path else self.data_dir / "spool"


# Reading


@dataclass(frozen=True)
class Loaded:
    """The configuration, the agent's own settings as far as they were given, and where everything came from."""

    config: Config
    agent: Mapping[str, Any]
    found: Collected


_arguments: list[tuple[str, Any, str]] = []
_file: str | None = None
FLAGS = {
    "role": "what this process is: parent, child, relay or standalone",
    "host": "address to listen on",
    "port": "port to listen on",
    "data_dir": "folder for databases, spool and secret key; of a child: for finished work, too",
    "log_level": "how much is logged",
    "node_name": "what people call this node",
    "node_id": "what programs that drive this node know it by",
    "workers": "worker processes of a child",
    "parent": "the parent's address, like http://127.0.0.1:8000",
    "carrier": "how work comes to a child: auto, push or pull",
    "key_file": "file with a child's access key and secret key, one a line",
    "drain_seconds": "how long a child's stop waits for running shards",
}
"""Settings with an argument of their own; --set takes any."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that ``take_arguments`` has read before Django did."""
    agent.common_arguments(parser)
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"{text} (CASCADE_{name.upper()})")


def take_arguments(argv: Sequence[str]) -> list[str]:
    """Notes what the command line sets, before Django reads its settings, and gives the rest.

    Every command takes --config and --set; ``runserver`` takes the flags, too, and keeps all of it for its own parser.
    Raises SettingsError.
    """
    global _file
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    serves = len(argv) > 1 and argv[1] == "runserver"
    (add_arguments if serves else agent.common_arguments)(parser)
    try:
        options, rest = parser.parse_known_args(list(argv[1:]))
    except argparse.ArgumentError:
        return list(argv)  # the command's own parser says it better
    _file = options.config
    _arguments[:] = argument_pairs(options.set)
    for name in FLAGS if serves else ():
        if (value := getattr(options, name)) is not None:
            _arguments.append((name, value, f"argument --{name.replace('_', '-')}"))
    current.cache_clear()
    return list(argv) if serves else [argv[0], *rest]


def names() -> frozenset[str]:
    """Every setting of a server and of its agent."""
    return frozenset(Config.model_fields) | agent.BY_NAME.keys()


def load(
    *,
    arguments: Sequence[tuple[str, Any, str]] = (),
    environ: Mapping[str, str] | None = None,
    file: str | None = None,
    folder: Path = BASE_DIR,
) -> Loaded:
    """Raises SettingsError naming everything that is wrong."""
    environ = os.environ if environ is None else environ
    found = collect(names(), arguments=arguments, config=file, folder=folder, environ=environ)
    values = {
        name: _from_text(Config.model_fields[name], value) for name, value in found.values(Config.model_fields).items()
    }
    made: Config | None = None
    try:
        made = Config(**values)
    except ValidationError as errors:
        for name in dict.fromkeys(str(error["loc"][0]) for error in errors.errors()):
            found.wrong(name, f"{shown(name, found.given[name].value)} is not {allowed(name)}")
    told = {problem.name for problem in found.problems}
    own = Collected(given={name: each for name, each in found.given.items() if each.written not in told})
    settled = agent.check(own)
    found.problems += own.problems
    if found.problems or made is None:
        raise SettingsError(found.problems)
    return Loaded(made, settled, found)


@cache
def current() -> Loaded:
    """The configuration of this process, read once. Raises SettingsError."""
    return load(arguments=_arguments, file=_file)


def _from_text(field: FieldInfo, value: Any) -> Any:
    """Lists come from the environment and from arguments as JSON, or with commas."""
    if not isinstance(value, str) or get_origin(field.annotation) is not list:
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return [part.strip() for part in value.split(",") if part.strip()]


# What is allowed, in words

_BOUNDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("ge", lambda bound: f"from {bound:,}".replace(",", "")),
    ("gt", lambda bound: f"above {bound}"),
    ("le", lambda bound: f"to {bound:,}".replace(",", "")),
    ("lt", lambda bound: f"below {bound}"),
)
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "the path of a folder",
}
_WORDS = {
    "allowed_networks": "a list of networks like 10.1.0.0/16",
    "custom": "a list of NAME=package.module:callable or NAME",
    "time_zone": "a time zone like Europe/Berlin or UTC",
    "database_url": "an address like postgresql://user:password@host:5432/name",
    "redis_url": "an address like redis://host:6379/0",
    "lake_path": "the path of a folder without any of * ? [ ], or an address like s3://bucket/prefix",
    "lake_endpoint": "an address like http://127.0.0.1:9000",
}


def allowed(name: str) -> str:
    """What a setting may be: "a number from 0.1 to 60"."""
    if name not in Config.model_fields:
        return agent.BY_NAME[name].allowed
    if name in _WORDS:
        return _WORDS[name]
    field = Config.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return f"one of: {', '.join(map(str, get_args(field.annotation)))}"
    if get_origin(field.annotation) is list:
        return "a list of texts"
    bounds = [
        word(getattr(each, bound))
        for bound, word in _BOUNDS
        for each in field.metadata
        if getattr(each, bound, None) is not None
    ]
    unit = ", in seconds" if name.endswith("_seconds") else ", in days" if name.endswith("_days") else ""
    return " ".join([_KINDS.get(field.annotation, "right"), *bounds]) + unit
