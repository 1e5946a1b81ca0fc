"""What an item brings beside its rows: from the executor through the worker into a report's entry, and read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import executors, messages
from nodes.agent import runner
from nodes.executors.base import FOUND_LIMIT, MEMORY_LIMIT, Column, Dataset, Executor, Item, ItemFailed, Outcome, Rows
from nodes.protocol import FieldError

OUTCOMES: dict[str, Outcome | None] = {
    "rows": Outcome([("rows", 1)]),
    "all": Outcome([("all", 1)], found=["x", {"key": "y"}], memory={"etag": "1"}, status="fine", counts={"new": 1}),
    "nothing": None,
    "silent": Outcome(memory={}),
    "greedy": Outcome(found=["x"] * (FOUND_LIMIT + 1)),
    "hoarder": Outcome(memory={"text": "x" * MEMORY_LIMIT}),
    "nan": Outcome(memory={"number": float("nan")}),
    "misfit": Outcome([("only one",)], found=["never"]),
}


class Tells(Executor):
    type = "tells"
    title = "Tells"
    dataset = Dataset("tells", (Column("item", "string"), Column("number", "int64")), ("item",))

    def run(self, item: Item) -> Rows | Outcome:
        if item == "asks":
            return [(self.memory["asks"]["word"], 1), (Path(self.input).read_text(), 2)]
        if item == "fails":
            raise ItemFailed("no luck")
        return OUTCOMES[str(item)]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(executors.EXECUTORS, "tells", f"{__name__}:Tells")
    yield
    executors.get.cache_clear()


def run(*items: str, **more: Any) -> dict[str, Any]:
    shard = {"allocation": 1, "type": "tells", "params": {}, "start": 10, "items": list(items), **more}
    return runner.run([shard], "")[0]


def test_outcomes_travel_with_the_entry_and_are_read_as_they_were(tmp_path: Path) -> None:
    entry = run("rows", "all", "nothing", "silent", "fails")
    assert entry["rows"] == [["rows", 1], ["all", 1]]
    assert entry["outcomes"] == [
        [11, {"found": ["x", {"key": "y"}], "memory": {"etag": "1"}, "status": "fine", "counts": {"new": 1}}],
        [13, {"memory": {}}],
    ]
    (read,) = messages.read_report({"reports": [entry]})
    first, second = read.outcomes
    assert (first.index, first.found, first.memory) == (11, ("x", {"key": "y"}), {"etag": "1"})
    assert (first.status, first.counts) == ("fine", {"new": 1})
    assert (second.index, second.found, second.memory) == (13, (), {})


def test_an_entry_without_outcomes_is_what_it_always_was() -> None:
    assert "outcomes" not in run("rows", "nothing")


@pytest.mark.parametrize(("item", "says"), [("greedy", "found 2001"), ("hoarder", "remember"), ("nan", "ValueError")])
def test_an_outcome_that_cannot_travel_fails_its_item_alone(item: str, says: str) -> None:
    entry = run("rows", item, "rows")
    ((index, message, _),) = entry["errors"]
    assert index == 11
    assert says in message
    assert entry["ranges"] == [[10, 11, 1], [12, 13, 1]]


def test_an_item_whose_rows_do_not_fit_finds_nothing_either() -> None:
    entry = run("misfit")
    assert entry["errors"]
    assert "outcomes" not in entry


def test_memory_and_input_are_there_for_the_executor(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text("from a file")
    entry = run("asks", memory={"asks": {"word": "remembered"}}, input=str(file))
    assert entry["rows"] == [["remembered", 1], ["from a file", 2]]


def test_other_outcomes_are_another_report() -> None:
    one, other = (dict(run("all")), dict(run("all")))
    assert messages.read_report({"reports": [one]})[0].digest == messages.read_report({"reports": [other]})[0].digest
    other["outcomes"] = [[10, {"found": ["z"]}]]
    assert messages.read_report({"reports": [one]})[0].digest != messages.read_report({"reports": [other]})[0].digest


@pytest.mark.parametrize(
    "outcomes",
    [
        "text",
        [[10]],
        [["ten", {}]],
        [[10, []]],
        [[10, {"found": "x"}]],
        [[10, {"memory": "x"}]],
        [[10, {"counts": {"new": -1}}]],
        [[10, {"counts": {"new": "many"}}]],
        [[10, {"counts": {str(n): 1 for n in range(21)}}]],
        [[10, {"status": 5}]],
        [[99, {"found": []}]],
    ],
)
def test_nonsense_is_refused_with_the_field(outcomes: Any) -> None:
    entry = {**run("rows"), "outcomes": outcomes}
    with pytest.raises(FieldError, match=r"outcomes"):
        messages.read_report({"reports": [entry]})
