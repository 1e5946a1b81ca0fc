"""Rows of the parent's tables that come with a shard: those that it is about, to whoever holds it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from django.conf import settings

from dispatch.models import Allocation, Run
from dispatch.results import datasets, inputs, saver
from dispatch.results.store import Part, ResultStore
from nodes import executors
from nodes.protocol import Conflict, NotFound, TooLarge
from tests.integration.factory import Child, child, dispatch
from tests.integration.factory import submit as submit_echo

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("kinds")]
DAYS = [dt.datetime(2024, 1, day) for day in (1, 2, 3)]


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Bars of A and B at three days, A's second one imported twice, and weekly ones."""
    with ResultStore(settings.CASCADE.results) as made:
        monkeypatch.setattr(saver, "_store", made)
        bars = [(symbol, day, "D", 1.0) for symbol in "AB" for day in DAYS]
        _append(made, [*bars, ("A", DAYS[0], "W", 5.0)], 1)
        _append(made, [("A", DAYS[1], "D", 2.0)], 2)
        yield made


def _append(store: ResultStore, bars: list[tuple[str, dt.datetime, str, float]], number: int) -> None:
    dataset = executors.get("data_import").dataset
    rows = [[symbol, day, freq, close, close, close, close, 1.0, "test"] for symbol, day, freq, close in bars]
    table = datasets.with_lineage(
        datasets.from_rows(dataset, rows), run=number, start=0, allocation=number, node="n", saved_at=DAYS[number]
    )
    store.append([Part(dataset, table, [(number, 0, 1, number, "0" * 64, len(rows))])])


def submit(*symbols: str) -> Run:
    return submit_echo(list(symbols), type="reads", shard_size=1)


def fetched(node: Child, allocation: int, folder: Path) -> list[dict[str, Any]]:
    inputs.write(node.caller, allocation, folder / "rows.arrow")
    with pa.OSFile(str(folder / "rows.arrow")) as file:
        rows: list[dict[str, Any]] = pa.ipc.open_file(file).read_all().to_pylist()
    return rows


def test_a_claim_names_what_needs_input_and_its_holder_gets_the_rows(store: Any, tmp_path: Path) -> None:
    node = child(types=["reads"])
    assert submit("A").hands == "line"
    dispatch()
    reply = node.claimed()
    (work,) = reply["work"]
    assert reply["inputs"] == [work[0]]
    assert fetched(node, work[0], tmp_path) == [
        {"symbol": "A", "datetime": DAYS[0], "close": 1.0},
        {"symbol": "A", "datetime": DAYS[1], "close": 2.0},  # the newest row of a fact, up to "until"
    ]


def test_symbols_without_rows_and_a_table_that_is_not_there_give_no_rows(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = child(types=["reads"])
    submit("nothing")
    assert fetched(node, node.works()[0].allocation, tmp_path) == []
    with ResultStore(tmp_path / "empty.duckdb") as empty:
        monkeypatch.setattr(saver, "_store", empty)
        assert fetched(node, Allocation.objects.get().pk, tmp_path) == []


def test_nobody_else_gets_them_and_nobody_whose_lease_was_lost(store: Any, tmp_path: Path) -> None:
    node, other = child("a", types=["reads"]), child("b", types=["echo"])
    submit("A")
    (work,) = node.works()
    with pytest.raises(NotFound):
        inputs.write(other.caller, work.allocation, tmp_path / "stolen")
    node.release(work.allocation)
    with pytest.raises(Conflict, match="lease"):
        inputs.write(node.caller, work.allocation, tmp_path / "late")
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path / "late").exists()


def test_a_shard_brings_its_own_rows_and_not_those_of_the_run(store: Any, tmp_path: Path) -> None:
    node = child(types=["reads"])
    submit("A", "B")
    for work in node.works():
        assert {row["symbol"] for row in fetched(node, work.allocation, tmp_path)} == set(work.items)


def test_more_than_may_travel_is_refused(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = child(types=["reads"])
    submit("A")
    monkeypatch.setattr(inputs, "SEGMENT_BYTES_LIMIT", 10)
    with pytest.raises(TooLarge, match="smaller shards"):
        inputs.write(node.caller, node.works()[0].allocation, tmp_path / "large")


def test_work_that_needs_nothing_has_no_input(store: Any, tmp_path: Path) -> None:
    node = child()
    submit_echo(1)
    dispatch()
    reply = node.claimed()
    assert "inputs" not in reply
    with pytest.raises(NotFound, match="needs no rows"):
        inputs.write(node.caller, reply["work"][0][0], tmp_path / "none")
