"""A parent that has lived in its own files goes on in PostgreSQL and a lake, after one command."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cascade.local import PARENT, Child, LocalTree
from dispatch.results.lake import LakeStore
from dispatch.results.lake_place import Place
from dispatch.results.store import ResultStore
from tests.integration.lake_writer import shard
from tests.servers import postgresql

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as url:
        yield url


def moved(tree: LocalTree, url: str) -> subprocess.CompletedProcess[str]:
    return tree.manage("move", "--to", url, "--json", check=False)


def items(tree: LocalTree, run: int) -> Counter[str]:
    """How often each item's row is in the result store, replaced ones included."""
    told = tree.manage("export", "--run", str(run), "--format", "json", "--raw").stdout
    return Counter(row["item"] for row in json.loads(told))


def test_everything_comes_over_and_the_run_goes_on(tmp_path: Path, server: str) -> None:
    first, second = [f"a{number}" for number in range(20)], [f"b{number}" for number in range(60)]
    children = [Child("one", capacity=2)]
    with LocalTree(tmp_path / "parent", children=children, env={"CASCADE_FALLBACK_WORKERS": "0"}) as tree:
        ended = tree.submit("echo", first, shard_size=5)
        tree.wait(ended)

        refused = moved(tree, server)
        assert (refused.returncode, "stop it first" in refused.stderr) == (4, True), refused.stderr

        # The parent dies when it is about to save: reports are in, and their rows are not.
        tree.terminate(PARENT)
        tree.env["CASCADE_FAILPOINTS"] = "store.rows=kill"
        tree.start_parent()
        running = tree.submit("echo", second, shard_size=2)
        tree._await(PARENT, lambda: not tree.alive(PARENT), "die")
        del tree.env["CASCADE_FAILPOINTS"]

        told = moved(tree, server)
        assert told.returncode == 0, told.stderr
        about = json.loads(told.stdout)
        assert about["rows"]["echo_rows"] == 20
        assert about["records"]["dispatch_run"] == 2
        assert about["records"]["nodes_node"] >= 1

        # A server on the old files would be a second parent of the same nodes.
        assert "moved" in tree.manage("check", "--database", "default", check=False).stderr
        again = moved(tree, server)
        assert (again.returncode, "parent's already" in again.stderr) == (4, True), again.stderr

        tree.env["CASCADE_DATABASE_URL"] = server
        tree.start_parent()
        tree.wait(running)  # by the child, whose key is known there, and from the spool
        assert items(tree, ended) == dict.fromkeys(first, 1)
        assert items(tree, running) == dict.fromkeys(second, 1)
        third = tree.submit("echo", ["c"], shard_size=1)  # with the operator's password and the next number
        assert third == running + 1
        tree.wait(third)


def test_a_move_that_was_cut_off_leaves_the_source_and_can_be_done_again(tmp_path: Path, server: str) -> None:
    with psycopg.connect(server, autocommit=True) as control:
        control.execute("CREATE DATABASE again")
    url = server.replace("/postgres?", "/again?")
    assert url != server
    tree = LocalTree(tmp_path)  # not started: its folder and its commands are enough
    tree.manage("migrate", "--verbosity", "0")
    tree.manage("submit", "echo", "--item", "a")
    with ResultStore(tmp_path / "results.duckdb") as store:
        store.append([shard(number) for number in range(3)])
    before = (tmp_path / "results.duckdb").read_bytes()

    tree.env["CASCADE_FAILPOINTS"] = "move.rows=kill"  # the lake is filled, the control database empty
    assert moved(tree, url).returncode == -9
    del tree.env["CASCADE_FAILPOINTS"]
    assert not (tmp_path / "moved.json").exists()

    told = moved(tree, url)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rows"] == {"pairs_rows": 6, "ledger": 3}
    assert (tmp_path / "results.duckdb").read_bytes() == before
    with LakeStore(Place(url, str(tmp_path / "lake")), writing=False) as lake:
        found = lake.select("pairs", raw=True, columns=["item", "value", "_start"]).read_all().to_pylist()
        assert [tuple(row.values()) for row in found] == [(f"i{n}", value, n) for n in range(3) for value in (1, 2)]
        assert lake.recorded([(1, 2, 3)]) == {(1, 2, 3): 1}
    assert "echo" in tree.manage("runs", "--set", f"database_url={url}").stdout


def test_rows_that_were_in_a_file_beside_postgresql_come_over_too(tmp_path: Path, server: str) -> None:
    with psycopg.connect(server, autocommit=True) as control:
        control.execute("CREATE DATABASE rows")
    url = server.replace("/postgres?", "/rows?")
    tree = LocalTree(tmp_path, env={"CASCADE_DATABASE_URL": url})  # not started
    with ResultStore(tmp_path / "results.duckdb") as store:
        store.append([shard(number) for number in range(3)])
    told = moved(tree, url)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rows"] == {"pairs_rows": 6, "ledger": 3}
    again = moved(tree, url)
    assert (again.returncode, "has rows already" in again.stderr) == (4, True), again.stderr
