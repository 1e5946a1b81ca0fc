"""Django and this project, once for all worlds of a process; and the database as it is at the beginning of each."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from tests.sim import clock

folder = Path()
"""Of this process, in memory where there is a file system there."""
_pristine: sqlite3.Connection | None = None
USED = ("duckdb", "nodes.agent.pool", "pandas", "pyarrow.dataset")
"""What production loads when it first needs it. Each world is a fork: it would load them again, which takes as long as
everything else of it."""


def set_up() -> None:
    """Idempotent. After it this process can do nothing but simulate."""
    global folder, _pristine
    if _pristine is not None:
        return
    for name in [name for name in os.environ if name.startswith("CASCADE_")]:
        del os.environ[name]
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cascade-sim-", dir=shared if os.access(shared, os.W_OK) else None))
    atexit.register(_remove, folder, os.getpid())
    os.environ["CASCADE_DATA_DIR"] = str(folder)
    os.environ["CASCADE_CONFIG"] = ""
    os.environ["DJANGO_SETTINGS_MODULE"] = "cascade.settings"
    clock.install()
    from django.conf import settings

    settings.DATABASES["default"] |= {"NAME": ":memory:", "OPTIONS": {}}
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    logging.disable(logging.CRITICAL)
    _pristine = sqlite3.connect(":memory:")
    database().backup(_pristine)
    _adapt()
    for name in USED:
        importlib.import_module(name)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def end(status: int) -> NoReturn:
    """Ends this process. Not as others end: the interpreter would take apart what dead worlds have left behind, threads
    that stand in the middle of something among it."""
    sys.stdout.flush()
    _remove(folder, os.getpid())
    os._exit(status)


def database() -> sqlite3.Connection:
    """Of the server whose code runs now."""
    from django.db import connection

    connection.ensure_connection()
    assert connection.connection is not None
    raw: sqlite3.Connection = connection.connection
    return raw


def fresh() -> sqlite3.Connection:
    """A database as after the migrations, for one more server."""
    from django.db import connection

    assert _pristine is not None
    raw: sqlite3.Connection = connection.get_new_connection(connection.get_connection_params())
    _pristine.backup(raw)
    raw.isolation_level = None
    return raw


def restore() -> sqlite3.Connection:
    """The first server's database, as after its migrations."""
    from django.db import connection

    raw = database()
    if raw.in_transaction:
        raw.rollback()
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.needs_rollback = False
    connection.run_on_commit = []
    connection.atomic_blocks = []
    assert _pristine is not None
    _pristine.backup(raw)
    return raw


def _replace(name: str, theirs: Any, made: Any) -> None:
    """Wherever it was imported to."""
    for module in [module for path, module in sys.modules.items() if path.startswith(("api.", "dispatch."))]:
        if getattr(module, name, None) is theirs:
            setattr(module, name, made)


def _adapt() -> None:
    """What in production would leave the virtual world: threads, measurements of this machine, who signs."""
    import channels.consumer
    import channels.generic.websocket

    from api import agent as rest
    from api import authentication, revoked, sockets  # noqa: F401  (sockets has names of rest's)
    from dispatch.lifecycle import kept
    from dispatch.results import datasets, decoding
    from nodes import executors
    from nodes.agent import loop
    from tests.sim import children, machine, parent

    async def nothing() -> None:
        """There is one connection, and it stays."""

    channels.consumer.aclose_old_connections = channels.generic.websocket.aclose_old_connections = nothing
    for name, made in (("in_thread", clock.in_thread), ("perform", parent.perform)):
        _replace(name, getattr(rest, name), made)
    for name, each in machine.KEPT.items():
        _replace(name, getattr(kept, name), each)
    authentication.request_parts = authentication.scope_parts = lambda _: ("", "", [])  # type: ignore[assignment]
    authentication.client_address = lambda _: ""  # type: ignore[assignment]
    authentication.authenticate = lambda *_, **__: parent.authenticated()
    authentication.check_body = lambda *_: None
    loop.Vitals = children.Vitals  # type: ignore[assignment,misc]
    loop.Sampler = children.Sampler  # type: ignore[assignment,misc]
    loop.WATCH_SECONDS = 1e6
    revoked.LOOK_SECONDS = 10.0
    children.connect_by_the_network()
    # In production a process with limits does that, since it may be a bomb.
    decoding.rows = lambda path, dataset: datasets.decode(path, dataset).num_rows
    executors.EXECUTORS |= {"sim": "tests.sim.work:Sim", "sim_finds": "tests.sim.work:Finds"}
