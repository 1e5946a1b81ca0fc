"""A rate limit holds over processes that grant at the same time, each with a connection of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
from dispatch import buckets, lifecycle
from nodes import registry
from django.core.management import call_command
call_command("migrate", verbosity=0)
buckets.set_limit("feeds", 0.001, 40)
for name in "ab":
    registry.record_beat(registry.add_node(name, capacity=500)[0].pk, at=timezone.now(), executors=["echo"])
for _ in range(3):
    lifecycle.submit(type="echo", items=[f"i{number}" for number in range(100)], shard_size=1, rate_key="feeds")
"""
GRANT = """
from dispatch import queue
print("ready", flush=True)
input()
for _ in range(15):
    queue.allocate_now()
"""


def script(body: str, folder: Path) -> subprocess.Popen[str]:
    begin = (
        "import os, django\nos.environ['DJANGO_SETTINGS_MODULE'] = 'cascade.settings'\ndjango.setup()\n"
        "from django.utils import timezone\n"
    )
    (folder / "cascade.toml").touch()
    env = {**os.environ, "CASCADE_DATA_DIR": str(folder), "CASCADE_CONFIG": str(folder / "cascade.toml")}
    return subprocess.Popen(
        [sys.executable, "-c", begin + body],
        cwd=ROOT,
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[str], say: str = "") -> str:
    out, errors = process.communicate(say, timeout=60)
    assert process.returncode == 0, errors
    return out


def test_processes_that_grant_at_once_draw_no_token_twice(tmp_path: Path) -> None:
    finished(script(PREPARE, tmp_path))
    granting = [script(GRANT, tmp_path) for _ in range(2)]
    for each in granting:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in granting:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in granting:
        finished(each)
    # A thousandth of a token a second: however long it took, no further one came.
    with closing(sqlite3.connect(tmp_path / "cascade.sqlite3")) as database:
        (granted,) = database.execute("SELECT count(*) FROM dispatch_allocation").fetchone()
    assert granted == 40
