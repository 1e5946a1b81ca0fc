"""Backup and restore of a whole parent, with real processes: in the middle of a run, and when nothing runs."""

from __future__ import annotations

import gzip
import shutil
import stat
from collections.abc import Iterator

import pytest

from cascade.local import PARENT, Child, LocalTree
from tests.acceptance.commands import managed
from tests.acceptance.trees import EVEN, QUICK, account, numbered

ITEMS = numbered(60, "s")
LARGE = numbered(20, "l")
ALONE = {**QUICK, "CASCADE_LEASE_SECONDS": "10", "CASCADE_FALLBACK_WORKERS": "0"}
"""While the children stand still, nobody else does their work."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("backup"), children=children, env=ALONE) as tree:
        yield tree


def test_a_parent_restored_from_a_backup_in_mid_run_loses_nothing_that_it_had_and_doubles_nothing(tree, tmp_path):
    small = tree.submit("echo", ITEMS, params={"seconds": 0.15}, shard_size=1)
    large = tree.submit("echo", LARGE, params={"seconds": 0.15, "rows": 600}, shard_size=1)
    tree.wait(small, until=lambda progress: progress["saved"] >= 5)
    for child in tree.children:
        tree.pause(child)
    file, restored = tmp_path / "parent.backup", tmp_path / "restored"
    tree.manage("backup", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(tree.data_dir.glob("backup*"))
    assert tree.progress(small)["state"] == "running"
    # What comes after the backup is what a restore forgets: the runs go on and end, then the machine is lost.
    for child in tree.children:
        tree.resume(child)
    tree.wait(small)
    tree.wait(large)
    given_out = max(each["id"] for each in tree.json("GET", "/api/v1/allocations")["results"])
    tree.kill(PARENT)
    tree.manage("restore", str(file), "--data-dir", str(restored))
    tree.env["CASCADE_DATA_DIR"] = str(restored)
    tree.restart(PARENT)
    assert tree.progress(small)["state"] == "running"
    assert tree.wait(small)["state"] == tree.wait(large)["state"] == "completed"
    assert account(tree, small, ITEMS) == EVEN
    assert account(tree, large, LARGE, rows_each=600) == EVEN
    last = max(each["id"] for each in tree.json("GET", "/api/v1/allocations")["results"])
    assert last > given_out + 1_000_000, "ids of allocations that were given out may come again"


def test_a_backup_of_a_parent_that_does_not_run_is_the_parent(tree, tmp_path):
    run = tree.submit("echo", ["one", "two"], shard_size=1)
    tree.wait(run)
    tree.terminate(PARENT)
    file, restored = tmp_path / "parent.backup", tmp_path / "restored"
    tree.manage("backup", str(file))
    tree.manage("restore", str(file), "--data-dir", str(restored))
    tree.env["CASCADE_DATA_DIR"] = str(restored)
    tree.restart(PARENT)
    assert account(tree, run, ["one", "two"]) == EVEN
    again = tree.submit("echo", ["three"], shard_size=1)
    assert tree.wait(again)["state"] == "completed"


def test_what_is_in_the_way_or_not_whole_is_refused_and_nothing_is_left(tree, tmp_path):
    file = tmp_path / "parent.backup"
    made, again, over = managed(tree, [["backup", str(file)], ["backup", str(file)], ["restore", str(file)]])
    assert made.returncode == 0, made.stderr
    assert (again.returncode, "is there already" in again.stderr) == (4, True)
    assert (over.returncode, "a server runs on" in over.stderr) == (4, True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")

    whole = file.read_bytes()
    torn, flipped, other = tmp_path / "torn", tmp_path / "flipped", tmp_path / "other"
    torn.write_bytes(whole[: len(whole) // 2])
    plain = bytearray(gzip.decompress(whole))
    plain[len(plain) // 2] ^= 1
    flipped.write_bytes(gzip.compress(bytes(plain), 1))
    other.write_bytes(b"not a backup")
    bad = {source: source.with_name(f"into-{source.name}") for source in (torn, flipped, other)}
    tried = [["restore", str(source), "--data-dir", str(into)] for source, into in [(file, full), *bad.items()]]
    refused, *ended = managed(tree, tried)
    assert (refused.returncode, "it has notes.txt" in refused.stderr) == (4, True)
    for (source, into), done in zip(bad.items(), ended, strict=True):
        assert done.returncode == 2, (source, done.stderr)
        assert "Traceback" not in done.stderr
        assert list(into.iterdir()) == []
    shutil.rmtree(into)
    tree.manage("restore", str(file), "--data-dir", str(into))
