"""What a shard prints is seen through the API while it still runs: by either carrier, and from the own worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.gates import Gated, gated
from tests.acceptance.trees import QUICK, allocations, label, until

CALLED = "talk=tests.acceptance.called:talk,die=tests.acceptance.called:die"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    env = {**QUICK, "CASCADE_CUSTOM": CALLED, "CASCADE_FALLBACK_WORKERS": "2"}
    with LocalTree(tmp_path_factory.mktemp("logs"), children=children, env=env) as tree:
        label(tree, "pusher", "puller")
        yield tree


@pytest.fixture
def server() -> Iterator[Gated]:
    with gated() as made:
        yield made


def submitted(tree: LocalTree, server: Gated, what: str, by: str, items: list[str]) -> int:
    who: dict[str, Any] = {"fallback": "required"} if by == "local" else {"labels": {"by": by}}
    params = {"callable": what, "arguments": {"base": server.url}}
    return tree.submit("custom", items, params=params, shard_size=1, max_attempts=1, **who)


def lines(tree: LocalTree, run: int, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tree.json("GET", f"/api/v1/runs/{run}/logs", params=query)["results"]
    return found


@pytest.mark.parametrize("by", ["pusher", "puller", "local"])
def test_a_line_is_there_while_its_shard_still_runs_and_the_rest_when_it_has_ended_each_once(tree, server, by):
    run = submitted(tree, server, "talk", by, ["held-1", "quick", "held-2"])
    began = until(lambda: [line for line in lines(tree, run) if "held" in line["text"]][1:], what="what both print")
    # Nobody has let them go on, so they still run.
    assert not server.gate.is_set()
    assert {line["text"] for line in lines(tree, run, search="HELD")} == {"held-1 begins", "held-2 begins"}
    assert {line["node_name"] for line in began} == {by}

    seen = max(line["number"] for line in began)
    server.gate.set()
    assert tree.wait(run)["state"] == "completed"
    every = lines(tree, run)
    said = [f"{item} {what}" for item in ("held-1", "held-2", "quick") for what in ("begins", "ends")]
    assert sorted(line["text"] for line in every) == said
    assert [line["number"] for line in every] == list(range(1, len(said) + 1))
    assert lines(tree, run, after=seen) == [line for line in every if line["number"] > seen]

    text = tree.request("GET", f"/api/v1/runs/{run}/logs", params={"format": "text"})
    assert sorted(line.split("\t")[-1] for line in text.text.splitlines()) == said
    shown = tree.manage("run", "logs", str(run), "--follow").stdout
    assert [line.partition(" | ")[2] for line in shown.splitlines()] == [line["text"] for line in every]


@pytest.mark.parametrize("by", ["pusher", "puller"])
def test_of_a_shard_whose_worker_dies_what_it_had_printed_is_kept(tree, server, by):
    run = submitted(tree, server, "die", by, ["held"])
    until(lambda: lines(tree, run), what="what it prints")
    server.gate.set()
    assert tree.wait(run)["state"] == "failed"
    assert [line["text"] for line in lines(tree, run)] == ["held is about to die"]
    # A shard that kills its worker is tried again, some times; the later ones die at once.
    first = min(each["id"] for each in allocations(tree, run))
    assert tree.json("GET", f"/api/v1/allocations/{first}")["log"] == "held is about to die\n"
