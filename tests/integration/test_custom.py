"""``custom`` from submission to saved row: what this server's list refuses, and a run of what it allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dispatch.models import Run
from dispatch.states import RunState
from nodes import surroundings
from nodes.agent import runner
from nodes.surroundings import Surroundings
from tests.integration.factory import assert_partition, child, save, saver
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

MODULE = """
def lengths(item, unit="letters"):
    if item == "bad":
        raise ValueError("no such word")
    return [{"length": len(item), "unit": unit}, {"first": item[0]}]
"""


@pytest.fixture
def allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    (tmp_path / "their_words.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = surroundings.current()
    yield lambda paths: surroundings.settle(Surroundings(custom=paths))
    surroundings.settle(before)


def work(name: str) -> dict[str, object]:
    return {"type": "custom", "items": ["one", "bad", "three"], "params": {"callable": name}, "max_attempts": 1}


@pytest.mark.parametrize("path", ["runs", "tasks"])
def test_what_is_not_allowed_is_a_400_that_names_the_field(api: Api, path: str) -> None:
    answer = api.post(path, {**work("os:system"), "name": "words"})
    assert answer.status == 400
    assert answer.body["field"] == "params.callable"
    assert "the setting custom allows: nothing" in answer.body["detail"]
    assert not Run.objects.exists()


def test_a_type_s_settings_cannot_allow_what_the_list_does_not(api: Api) -> None:
    answer = api.put("executors/custom/settings", {"callable": "os:system"})
    assert (answer.status, answer.body["field"]) == (400, "params.callable")


def test_what_is_allowed_is_called_on_the_node_and_its_rows_are_saved(
    api: Api, allow: Callable[[dict[str, str]], None], folder: Path
) -> None:
    allow({"words": "their_words:lengths"})
    body = {**work("words"), "shard_size": 3, "params": {"callable": "words", "arguments": {"unit": "cm"}}}
    answer = api.post("runs", body)
    assert answer.status == 201, answer.body
    run = Run.objects.get(pk=answer.body["id"])
    node = child("north", types=["custom"])
    (given,) = node.works()
    shard = {"allocation": given.allocation, "type": run.type, "params": run.params}
    (entry,) = runner.run([{**shard, "start": given.start, "items": given.items}], str(folder))
    assert node.statuses(entry) == [200]
    with saver() as made:
        save(made)
        with made.store.reader() as reading:
            rows = reading.execute("SELECT callable, item, number, data FROM custom ORDER BY item, number").fetchall()
    assert rows == [
        ("words", "one", 0, '{"length": 3, "unit": "cm"}'),
        ("words", "one", 1, '{"first": "o"}'),
        ("words", "three", 0, '{"length": 5, "unit": "cm"}'),
        ("words", "three", 1, '{"first": "t"}'),
    ]
    run.refresh_from_db()
    assert (run.state, run.saved, run.failed) == (RunState.PARTIAL, 2, 1)
    assert_partition(run)
    failed = api.get(f"runs/{run.pk}/items").body["results"]
    assert [each["item"] for each in failed] == ["bad"]
    assert "ValueError: no such word" in failed[0]["error"]
