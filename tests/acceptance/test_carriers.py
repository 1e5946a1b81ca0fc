"""Push while it works, else pull, and back: over a proxy that refuses sockets or cuts connections, no shard is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, numbered, until
from tests.chaos.proxy import Proxy


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("carriers"), env={**QUICK, "CASCADE_OFFER_SECONDS": "5"}) as tree:
        yield tree


@pytest.fixture
def proxy(tree: LocalTree) -> Iterator[Proxy]:
    with Proxy(tree.port) as proxy:
        yield proxy


def child(tree: LocalTree, proxy: Proxy, name: str, carrier: str) -> None:
    """Starts a child that knows the parent by the proxy's address."""
    made = tree.json("POST", "/api/v1/nodes", json={"name": name, "capacity": 2, "labels": {"by": name}})
    argv = [tree.python, "-m", "nodes.agent", "--parent", proxy.url, "--carrier", carrier]
    env = {"CASCADE_ACCESS_KEY": made["access_key"], "CASCADE_SECRET_KEY": made["secret_key"]}
    tree.spawn(name, [*argv, "--data-dir", str(tree.folder(name))], env)


def carrier(tree: LocalTree, name: str) -> str | None:
    node = tree.nodes()[name]
    return node["carrier"] if node["state"] == "online" else None


def submitted(tree: LocalTree, by: str, items: list[str], **params: Any) -> int:
    return tree.submit("echo", items, params={"seconds": 0.05, **params}, shard_size=1, labels={"by": by})


def past(saved: int) -> Any:
    return lambda progress: progress["saved"] >= saved


def test_auto_falls_from_push_to_pull_and_comes_back_without_losing_or_repeating_a_shard(tree, proxy):
    proxy.faults.sockets = False
    child(tree, proxy, "auto", "auto")
    until(lambda: carrier(tree, "auto") == "pull")
    items = numbered(240)
    run = submitted(tree, "auto", items)
    tree.wait(run, until=past(20))
    assert carrier(tree, "auto") == "pull"

    proxy.faults.sockets = True
    until(lambda: carrier(tree, "auto") == "push")
    saved = tree.progress(run)["saved"]
    tree.wait(run, until=past(saved + 20))

    proxy.faults.sockets = False
    assert proxy.cut(sockets_only=True) == 1
    until(lambda: carrier(tree, "auto") == "pull")
    saved = tree.progress(run)["saved"]
    tree.wait(run, until=past(min(saved + 20, len(items))))

    proxy.faults.sockets = True
    until(lambda: carrier(tree, "auto") == "push")
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    # Whatever was on its way between the carriers was neither lost nor done twice.
    assert {each["state"] for each in allocations(tree, run)} == {"completed"}
    assert tree.terminate("auto") == 0


@pytest.mark.parametrize("by", ["push", "auto", "pull"])
def test_connections_that_are_cut_again_and_again_cost_no_shard(tree, proxy, by):
    name = f"cut-{by}"
    child(tree, proxy, name, by)
    until(lambda: carrier(tree, name))
    small, large = numbered(40, "s"), numbered(20, "l")
    runs = [submitted(tree, name, small), submitted(tree, name, large, rows=600)]
    for saved in (4, 12, 20, 28):
        tree.wait(runs[0], until=past(saved))
        proxy.cut()
    assert [tree.wait(run)["state"] for run in runs] == ["completed", "completed"]
    assert account(tree, runs[0], small) == EVEN
    assert account(tree, runs[1], large, rows_each=600) == EVEN
    assert by == "pull" or proxy.upgrades >= 2
    assert tree.terminate(name) == 0


def test_a_child_by_push_alone_without_a_socket_gets_no_work_and_works_when_it_has_one(tree, proxy):
    proxy.faults.sockets = False
    child(tree, proxy, "pushy", "push")
    until(lambda: "the upgrade is answered 403" in tree.tail("pushy"))
    items = numbered(4, "later")
    run = submitted(tree, "pushy", items)
    assert tree.nodes()["pushy"]["state"] == "offline"
    assert tree.progress(run)["pending"] == len(items)
    proxy.faults.sockets = True
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert {each["state"] for each in allocations(tree, run)} == {"completed"}


def test_a_child_started_before_its_parent_can_be_reached_waits_for_it(tree, proxy):
    proxy.faults.open = False
    for by in ("push", "pull"):
        child(tree, proxy, f"early-{by}", by)
    until(lambda: all(proxy.url in tree.tail(f"early-{by}") for by in ("push", "pull")))
    proxy.faults.open = True
    for by in ("push", "pull"):
        run = submitted(tree, f"early-{by}", ["x"])
        assert tree.wait(run)["state"] == "completed"
