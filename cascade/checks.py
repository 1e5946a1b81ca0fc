"""What `manage.py check` looks at beside Django's own checks: whether these settings can work, on this machine.

Errors stop `runserver`; warnings are told. Ids: cascade.E… for errors, cascade.W… for warnings.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.utils import DatabaseError

from cascade import reach
from cascade.config import Config, current
from dispatch import balancers
from dispatch.results import opening
from nodes.protocol import CascadeError

BUILT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""No clock that is right shows a time before this."""
LEAST_FREE_MB = 200


@register("cascade")
def check_settings(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """Values that are right one by one, but not together."""
    settled: Config = settings.CASCADE
    return [*_balancers(settled), *_times(settled), *_exposure(settled), *_processes(settled)]


@register("cascade")
def check_machine(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """The folder, the clock, the keys."""
    return [*_folder(settings.CASCADE.data_dir), *_moved(settings.CASCADE), *_clock(), *_keys(settings.CASCADE)]


@register("cascade", Tags.database)
def check_database(app_configs: Any, databases: Sequence[str] | None = None, **kwargs: Any) -> Sequence[CheckMessage]:
    """The state database: reachable and up to date. Only where databases are asked for: `check --database default`."""
    if not databases or "default" not in databases or settings.CASCADE.role == "child":
        return []
    try:
        plan = MigrationExecutor(connection)
        behind = plan.migration_plan(plan.loader.graph.leaf_nodes())
        # Migrations that this version has never heard of are a newer version's.
        newer = [key for key in plan.loader.applied_migrations if key not in plan.loader.graph.nodes]
    except DatabaseError as error:
        return [Error(f"the database cannot be reached: {error}", id="cascade.E010")]
    own = {"nodes", "dispatch"}
    if unknown := sorted(f"{app}.{name}" for app, name in newer if app in own):
        return [
            Error(
                f"the database is of a newer version of this software: {', '.join(unknown)}",
                hint="Start that version, or take another data_dir.",
                id="cascade.E011",
            )
        ]
    # An empty embedded one is made by the first start.
    if behind and (plan.loader.applied_migrations or connection.vendor != "sqlite"):
        return [
            Warning(
                f"the database is behind this version by {len(behind)} migrations",
                hint="python manage.py migrate; an embedded one is brought up to date when the server starts.",
                id="cascade.W012",
            )
        ]
    return []


@register("cascade", Tags.database)
def check_results(app_configs: Any, databases: Sequence[str] | None = None, **kwargs: Any) -> Sequence[CheckMessage]:
    """The result database can be read by the DuckDB that is installed."""
    settled: Config = settings.CASCADE
    if not databases or settled.role == "child":
        return []
    if settled.in_lake and not settled.database_url:
        return [
            Error("result_store is lake, whose catalogue is in PostgreSQL: database_url is not set", id="cascade.E021")
        ]
    if settled.in_lake:
        return [*_opened(f"the lake {settled.lake}", "cascade.E022"), *_left_behind(settled)]
    if not settled.results.exists() or reach.server() is not None:
        return []  # a running server reads it all the time
    return _opened(f"the result database {settled.results}", "cascade.E020")


def _opened(what: str, id: str) -> list[CheckMessage]:
    import duckdb

    try:
        with opening.open_store() as store:
            store.tables()
    except (duckdb.Error, CascadeError) as error:
        return [
            Error(
                f"{what} cannot be opened: {str(error).splitlines()[0]}",
                hint=f"DuckDB {duckdb.__version__} is installed; what a newer version wrote needs that version.",
                id=id,
            )
        ]
    return []


def _left_behind(settled: Config) -> Iterator[CheckMessage]:
    if settled.results.exists() and not settled.moved.exists():
        yield Warning(
            f"results are in a lake; the rows in {settled.results} are not seen",
            hint="Bring them over before anything else is saved: python manage.py move --to, with the address in "
            "database_url. Or set result_store to file, for a parent that is one process.",
            id="cascade.W023",
        )


@register("cascade", Tags.database)
def check_ports(app_configs: Any, databases: Sequence[str] | None = None, **kwargs: Any) -> Sequence[CheckMessage]:
    """Whether the port is free; like the databases, not looked at by every command."""
    settled: Config = settings.CASCADE
    if not databases or reach.server() is not None:
        return []
    family = socket.AF_INET6 if ":" in settled.host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((settled.host, settled.listens_on))
        except OSError as error:
            return [
                Error(
                    f"cannot listen on {settled.host}, port {settled.listens_on}: {error.strerror}",
                    hint="Another program may be there; choose another with --port or CASCADE_PORT.",
                    id="cascade.E030",
                )
            ]
    return []


def _balancers(settled: Config) -> Iterator[CheckMessage]:
    for name in dict.fromkeys([*settled.balancers, settled.default_balancer]):
        own = name in balancers.names() or name in settled.balancers
        try:
            if own:
                balancers.get(name)
        except (CascadeError, ImportError, AttributeError) as error:
            yield Error(f"balancers: {error}", id="cascade.E001")
            continue
        if not own:
            known = ", ".join([*balancers.names(), *settled.balancers])
            origin = current().found.origin("default_balancer")
            yield Error(f"default_balancer: {name!r} is not one of: {known} ({origin})", id="cascade.E002")


def _times(settled: Config) -> Iterator[CheckMessage]:
    if settled.lease_seconds < 2 * settled.beat_seconds:
        yield Warning(
            f"lease_seconds, {settled.lease_seconds:g}, is below twice beat_seconds, {settled.beat_seconds:g}: one "
            "late beat, and work is taken from a node that does it",
            id="cascade.W003",
        )
    if settled.offline_seconds < 2 * settled.beat_seconds:
        yield Warning(
            f"offline_seconds, {settled.offline_seconds:g}, is below twice beat_seconds, {settled.beat_seconds:g}: one "
            "late beat, and a node counts as offline",
            id="cascade.W004",
        )


def _exposure(settled: Config) -> Iterator[CheckMessage]:
    reachable = not _is_loopback(settled.host) or any(not _is_loopback(host) for host in settled.allowed_hosts)
    if settled.debug and reachable:
        yield Error(
            f"debug is on, and this server is reachable: host {settled.host}, allowed_hosts "
            f"{', '.join(settled.allowed_hosts)}",
            hint="Debug pages show settings and source to whoever asks. Set debug to false.",
            id="cascade.E005",
        )
    if settled.role != "child" and not _is_loopback(settled.host) and all(map(_is_loopback, settled.allowed_hosts)):
        yield Warning(
            f"this server listens on {settled.host}, but answers only to: {', '.join(settled.allowed_hosts)}",
            hint="Add the names by which others reach it to allowed_hosts.",
            id="cascade.W006",
        )
    if settled.role != "parent" and not _is_loopback(settled.host) and not settled.node_api_key:
        yield Warning(
            f"whoever reaches {settled.host} can make this node work, and so read files of this machine with it: "
            "node_api_key is not set",
            hint="Set node_api_key; clients send it as X-API-Key.",
            id="cascade.W007",
        )


def _processes(settled: Config) -> Iterator[CheckMessage]:
    """What the processes of one parent must have in common."""
    if settled.role == "child":
        return
    if settled.dispatcher == "separate" and not settled.database_url:
        yield Error(
            "dispatcher is separate, which needs database_url: with SQLite there is one process, and nobody else "
            "would allocate and save",
            id="cascade.E017",
        )
    if settled.redis_url and not settled.database_url:
        yield Warning(
            "redis_url has no effect without database_url: with SQLite there is one process", id="cascade.W018"
        )
    if settled.database_url and not settled.django_key:
        yield Warning(
            "several processes may serve this database, and django_key is not set: those with another data_dir make "
            "a key of their own, and refuse each other's sign-ins",
            hint="Set django_key to the same 50 random characters for all of them.",
            id="cascade.W019",
        )


@register("cascade", Tags.security, deploy=True)
def check_production(app_configs: Any, **kwargs: Any) -> Sequence[CheckMessage]:
    """What `check --deploy` looks at beside Django's own: settings that are right on one machine only."""
    settled: Config = settings.CASCADE
    found: list[CheckMessage] = []
    if "*" in settled.allowed_hosts:
        found.append(
            Warning(
                "allowed_hosts has *: whatever name a request brings is put into links, and other sites' pages may "
                "open this server's sockets",
                hint="Name the hosts by which it is reached.",
                id="cascade.W040",
            )
        )
    if settled.plain_keys_unencrypted:
        found.append(
            Warning(
                "plain_keys_unencrypted is on: whoever listens on the way has the keys of nodes and devices",
                hint="Put TLS in front and set https, or let children sign their requests, as the agent does.",
                id="cascade.W041",
            )
        )
    return found


def _is_loopback(host: str) -> bool:
    if host in ("localhost", ".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _folder(folder: Path) -> Iterator[CheckMessage]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Error(f"data_dir: {folder} cannot be written: {there} does not let us", id="cascade.E008")
        return
    free = os.statvfs(there)
    megabytes = free.f_bavail * free.f_frsize // 2**20
    if megabytes < LEAST_FREE_MB:
        yield Warning(f"data_dir: only {megabytes} MB are free on the disk of {folder}", id="cascade.W009")


def _moved(settled: Config) -> Iterator[CheckMessage]:
    if settled.moved.exists() and not settled.database_url and settled.role != "child":
        yield Error(
            f"this parent was moved; {settled.moved} says where to",
            hint="Set database_url to that. Two servers with the same nodes and runs would both give out work; if the "
            f"other one is gone for good, remove {settled.moved}.",
            id="cascade.E024",
        )


def _clock() -> Iterator[CheckMessage]:
    now = dt.datetime.now(dt.UTC)
    newest = max((path.stat().st_mtime for path in _state_files() if path.exists()), default=0.0)
    if now < BUILT:
        yield Error(f"this machine's clock shows {now:%Y-%m-%d %H:%M} UTC, which cannot be", id="cascade.E013")
    elif newest > now.timestamp() + 3600:
        ahead = dt.datetime.fromtimestamp(newest, dt.UTC)
        yield Warning(
            f"this machine's clock shows {now:%Y-%m-%d %H:%M} UTC, but data_dir was written at {ahead:%Y-%m-%d %H:%M}",
            hint="Leases and schedules go by this clock: set it right before the server starts.",
            id="cascade.W014",
        )


def _state_files() -> list[Path]:
    settled: Config = settings.CASCADE
    return [settled.database, settled.database.with_name(settled.database.name + "-wal"), settled.results]


def _keys(settled: Config) -> Iterator[CheckMessage]:
    loaded = current()
    files = [settled.data_dir / "secret_key"]
    if path := loaded.agent.get("key_file"):
        files.append(Path(path).expanduser())
    for file in files:
        if file.exists() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Error(f"{file} can be read by others", hint=f"chmod 600 {file}", id="cascade.E015")
    for note in loaded.found.notes:
        if "can be read by others" in note:
            yield Warning(note, id="cascade.W016")
