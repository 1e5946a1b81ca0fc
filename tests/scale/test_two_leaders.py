"""Two dispatchers that both believe they lead: no committed moment has more than capacity, limits and rates allow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cascade.local import ROOT
from tests.servers import postgresql

pytestmark = pytest.mark.long

GRANTS = 300
PATIENCE = 200.0
RATE, BURST = 40, 5
"""Items a second, and at once after a pause."""
LIVE = "a.state IN ('pending', 'executing')"
OVER = {
    "capacity": f"""
        SELECT n.name, n.capacity, count(*) FROM dispatch_allocation a JOIN nodes_node n ON n.id = a.node_id
        WHERE {LIVE} GROUP BY n.id HAVING count(*) > n.capacity
    """,
    "limit": f"""
        SELECT n.name, q.item, q."limit", count(*) FROM dispatch_allocation a JOIN nodes_node n ON n.id = a.node_id
        JOIN nodes_quota q ON q.node_id = n.id AND q.task_type = a.type AND (q.item = '' OR q.item = a.item)
        WHERE {LIVE} AND q."limit" IS NOT NULL GROUP BY n.id, q.id HAVING count(*) > q."limit"
    """,
    "shard": f"SELECT a.shard_id, count(*) FROM dispatch_allocation a WHERE {LIVE} GROUP BY 1 HAVING count(*) > 1",
    "rate": f"""
        SELECT count(*), extract(epoch FROM clock_timestamp() - min(a.granted_at))
        FROM dispatch_allocation a JOIN dispatch_run r ON r.id = a.run_id WHERE r.rate_key = 'slow'
        HAVING count(*) > {BURST} + {RATE} * extract(epoch FROM clock_timestamp() - min(a.granted_at))
    """,
}
"""What must be empty in every snapshot."""


@pytest.fixture
def url() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.mark.timeout(300)
def test_at_no_commit_is_more_granted_than_may_be(url: str, tmp_path: Path) -> None:
    own = {
        "CASCADE_DATABASE_URL": url,
        "CASCADE_DATA_DIR": str(tmp_path),
        "CASCADE_CONFIG": "",
        "CASCADE_LOOKAHEAD_SECONDS": "0",
        "CASCADE_DJANGO_KEY": "of no matter here",
    }

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True
        )

    assert start("manage.py", "migrate", "--verbosity", "0").wait(100) == 0
    assert start("-m", "tests.scale.forced", "prepare", str(RATE), str(BURST)).wait(60) == 0
    ends = tmp_path / "ends"
    both = [start("-m", "tests.scale.forced", "dispatch", str(ends)) for _ in range(2)]
    fleet = start("-m", "tests.scale.forced", "fleet", str(ends))
    deadline = time.monotonic() + PATIENCE
    granted = 0
    with psycopg.connect(url, autocommit=True) as reader:
        while granted < GRANTS:
            for what, query in OVER.items():
                assert reader.execute(query).fetchall() == [], what
            ((granted,),) = reader.execute("SELECT count(*) FROM dispatch_allocation").fetchall()
            time.sleep(0.005)  # far shorter than what was granted is held, and the others need the processor, too
            assert time.monotonic() < deadline, f"{granted} grants in {PATIENCE} s"
            assert all(process.poll() is None for process in [*both, fleet])
    ends.touch()
    passes = [int(process.communicate(timeout=30)[0]) for process in both]
    assert fleet.wait(30) == 0
    assert all(passes), "one of the two did nothing"
