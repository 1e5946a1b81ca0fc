"""Four processes on one SQLite file that allocate, claim, hand back and report for the same nodes, all at once.

Triggers in the database look at every row as it is written, so that no commit in between goes unseen. This module is
also the program that those processes run: ``python -m tests.integration.test_claimers <part> <folder> [<number>]``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESSES = 4
ITEMS = 360
SECONDS = 90

WATCH = """
CREATE TABLE violation (what TEXT);
CREATE TABLE delivery (allocation INTEGER);
CREATE TRIGGER watch_capacity AFTER INSERT ON dispatch_allocation WHEN
    (SELECT count(*) FROM dispatch_allocation WHERE node_id = NEW.node_id AND state IN ('pending', 'executing'))
    > (SELECT capacity FROM nodes_node WHERE id = NEW.node_id)
BEGIN INSERT INTO violation VALUES ('capacity of node ' || NEW.node_id); END;
CREATE TRIGGER watch_limit AFTER INSERT ON dispatch_allocation WHEN
    (SELECT count(*) FROM dispatch_allocation
     WHERE node_id = NEW.node_id AND type = NEW.type AND state IN ('pending', 'executing'))
    > (SELECT "limit" FROM nodes_quota WHERE node_id = NEW.node_id AND task_type = NEW.type AND item = '')
BEGIN INSERT INTO violation VALUES ('limit of node ' || NEW.node_id); END;
CREATE TRIGGER watch_item AFTER INSERT ON dispatch_allocation WHEN NEW.item <> '' AND
    (SELECT count(*) FROM dispatch_allocation
     WHERE node_id = NEW.node_id AND type = NEW.type AND item = NEW.item AND state IN ('pending', 'executing'))
    > (SELECT "limit" FROM nodes_quota WHERE node_id = NEW.node_id AND task_type = NEW.type AND item = NEW.item)
BEGIN INSERT INTO violation VALUES ('limit of item ' || NEW.item); END;
CREATE TRIGGER watch_shard AFTER INSERT ON dispatch_allocation WHEN
    (SELECT count(*) FROM dispatch_allocation WHERE shard_id = NEW.shard_id AND state IN ('pending', 'executing')) > 1
BEGIN INSERT INTO violation VALUES ('two allocations of shard ' || NEW.shard_id); END;
CREATE TRIGGER watch_executing AFTER UPDATE OF state ON dispatch_allocation WHEN NEW.state = 'executing' AND
    (SELECT count(*) FROM dispatch_allocation WHERE node_id = NEW.node_id AND state = 'executing')
    > (SELECT capacity FROM nodes_node WHERE id = NEW.node_id)
BEGIN INSERT INTO violation VALUES ('executing on node ' || NEW.node_id); END;
CREATE TRIGGER watch_delivery AFTER UPDATE OF delivered ON dispatch_allocation WHEN NEW.delivered AND NOT OLD.delivered
BEGIN INSERT INTO delivery VALUES (NEW.id); END;
"""


def start(part: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "DJANGO_"))}
    environment |= {
        "CASCADE_DATA_DIR": str(folder),
        "CASCADE_CONFIG": "",
        # Capacity alone is what is watched here.
        "CASCADE_LOOKAHEAD_LIMIT": "0",
        "DJANGO_SETTINGS_MODULE": "cascade.settings",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.test_claimers", part, str(folder), *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> Any:
    out, errors = process.communicate(timeout=SECONDS + 30)
    assert process.returncode == 0, errors
    assert "locked" not in errors
    return json.loads(out.splitlines()[-1])


def test_four_processes_never_share_an_allocation_exceed_a_slot_or_meet_a_locked_database(tmp_path: Path) -> None:
    tried = finished(start("prepare", tmp_path))
    assert tried == [
        "capacity of node",
        "executing on node",
        "limit of item",
        "limit of node",
        "two allocations of shard",
    ]
    claimers = [start("claim", tmp_path, str(number)) for number in range(PROCESSES)]
    try:
        for claimer in claimers:
            assert claimer.stdout is not None
            assert claimer.stdout.readline() == "ready\n", claimer.communicate()[1]
        for claimer in claimers:
            assert claimer.stdin is not None
            claimer.stdin.write("go\n")
            claimer.stdin.flush()
        seen = [finished(claimer) for claimer in claimers]
    finally:
        for claimer in claimers:
            claimer.kill()
            claimer.wait()
    delivered = [allocation for each in seen for allocation in each["delivered"]]
    assert Counter(delivered).most_common(1)[0][1] == 1
    assert all(each["statuses"].keys() <= {"200"} for each in seen)
    # Otherwise they did not meet at all.
    assert sum(bool(each["delivered"]) for each in seen) >= 2
    checked = finished(start("check", tmp_path))
    assert checked["violations"] == []
    assert sorted(checked["delivered"]) == sorted(delivered)
    assert checked["state"] == "partial"
    assert checked["items"] == {f"i{number}": 1 for number in range(ITEMS) if number % 40}
    assert checked["failed"] == ITEMS // 40


# The parts that run in processes of their own


def prepare() -> Any:
    """The database with three nodes, the watch and a run; returns what the watch saw when it was tried."""
    from django.core.management import call_command
    from django.db import connection, transaction

    from dispatch.models import Allocation
    from tests.integration.factory import child, dispatch, submit

    call_command("migrate", verbosity=0)
    child("a", 3, "echo=1"), child("b", 4, "echo=2/2"), child("c", 3, "echo[i7]=1/1")
    with connection.cursor() as cursor:
        cursor.connection.executescript(WATCH)
    with transaction.atomic(), connection.cursor() as cursor:
        submit(20)
        dispatch()
        columns = ", ".join(f'"{field.column}"' for field in Allocation._meta.local_fields if not field.primary_key)
        cursor.execute(f"INSERT INTO dispatch_allocation ({columns}) SELECT {columns} FROM dispatch_allocation")
        Allocation.objects.update(state="executing")
        cursor.execute("SELECT what FROM violation")
        tried = {what.rpartition(" ")[0] for (what,) in cursor.fetchall()}
        transaction.set_rollback(True)
    submit(ITEMS, shard_size=2)
    return sorted(tried)


def claim(number: int) -> Any:
    """One of the processes: until nothing is left, does by chance what a parent's web process or dispatcher does."""
    import datetime as dt

    from django.utils import timezone

    from dispatch import lifecycle, queue
    from dispatch.models import Run
    from nodes.keys import Caller
    from nodes.models import Node
    from tests.integration.factory import Child, Work, done, partly

    children = [
        Child(node.pk, Caller(node.pk, key.pk, key.access_key))
        for node in Node.objects.all()
        for key in node.keys.all()
    ]
    dice = random.Random(number)
    delivered: list[int] = []
    statuses: Counter[int] = Counter()

    def entry(work: Work) -> dict[str, Any]:
        failed = [index for index in range(work.start, work.stop) if index % 40 == 0]
        return {**partly(work, *failed), "seconds": 2.0} if failed else done(work)

    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        left = lifecycle.progress(Run.objects.get())
        if left["pending"] + left["in_flight"] == 0:
            break
        queue.allocate_now()
        child = dice.choice(children)
        works = child.claim(slots=dice.randint(1, 4))
        delivered += [work.allocation for work in works]
        chance = dice.random()
        if chance < 0.1:
            child.release(*[work.allocation for work in works])
            continue
        if chance < 0.3:
            # Offers that another process is just about to fetch end; leases do not.
            lifecycle.expire(timezone.now() + dt.timedelta(seconds=20))
        child.beat(held=[work.allocation for work in works], running=[work.allocation for work in works])
        statuses.update(child.statuses(*[entry(work) for work in works]) if works else [])
    return {"delivered": delivered, "statuses": statuses}


def check() -> Any:
    """What the database and the result store say when all is over."""
    from django.db import connection

    from dispatch.models import Run
    from tests.integration.factory import assert_partition, save, saver, stored

    run = Run.objects.get()
    assert_partition(run)
    with saver() as made:
        save(made)
        items = stored(made).items
    assert_partition(run)
    run.refresh_from_db()
    with connection.cursor() as cursor:
        violations = cursor.execute("SELECT what FROM violation").fetchall()
        delivered = [allocation for (allocation,) in cursor.execute("SELECT allocation FROM delivery").fetchall()]
    return {
        "violations": violations,
        "delivered": delivered,
        "state": run.state,
        "items": items,
        "failed": run.failed,
    }


if __name__ == "__main__":
    import django

    django.setup()
    part, _, *rest = sys.argv[1:]
    parts: dict[str, Callable[..., Any]] = {"prepare": prepare, "claim": claim, "check": check}
    print(json.dumps(parts[part](*map(int, rest))))
