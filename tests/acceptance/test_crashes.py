"""kill -9 where a crash could lose a row or double one; a full disk; clocks that jump. Each item is accounted for.

The full matrix, kills at random moments and much else: ``make chaos``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.acceptance.trees import until
from tests.chaos import crashes, disks
from tests.chaos.trees import PARENT, UNHURRIED, ChaosTree, Child

MOMENTS = (
    ("parent", "spool.synced", "parent"),
    ("parent", "report.committed", "parent"),
    ("parent", "store.committed", "everything at once"),
    ("agent", "agent.uploaded", "agent"),
    ("agent", "agent.receipt", "agent"),
    ("worker", "worker.kept", "worker"),
)
CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosTree]:
    folder = tmp_path_factory.mktemp("crashes")
    small = disks.small_disk(folder / "spool", 8) if disks.can_mount() else nullcontext()
    with small, ChaosTree(folder, name="item", children=CHILDREN, env=UNHURRIED) as tree:
        yield tree


@pytest.mark.parametrize(("owner", "point", "victim"), MOMENTS, ids=[point for _, point, _ in MOMENTS])
def test_work_goes_on_after_a_kill_at_this_moment(tree, owner, point, victim):
    crashes.crash(tree, owner, point, victim, "pusher")


@pytest.mark.skipif(not disks.can_mount(), reason=disks.NEEDS_ROOT)
def test_a_full_spool_refuses_acknowledges_nothing_and_heals_by_itself(tree):
    tree.settle()
    disks.without_room(tree, tree.data_dir / "spool")


def test_no_lease_ends_because_a_clock_is_wrong(tree):
    before = tree.expired()
    tree.items(24, shard_size=1, seconds=0.3)
    tree.shift("puller", 600)
    until(lambda: "clock is" in tree.log("puller").read_text(), what="a signature refused for its time")
    tree.shift(PARENT, 3600)
    tree.items(8, shard_size=1, seconds=0.3)
    tree.settle()
    assert tree.expired() == before


def test_in_the_end_each_item_is_saved_once(tree):
    """After all of the above; it ends the tree."""
    tree.settle()
    items = tree.account()
    assert items.submitted == items.attempted == items.saved.keys()
    assert not items.lost
    assert not items.duplicated
    assert len(items.acknowledged) > len(items.submitted) / 2
