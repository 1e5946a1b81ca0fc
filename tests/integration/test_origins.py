"""Where items come from when they are not given: sources of a kind, a column of a table, a file."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from dispatch import sources
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run, Task
from dispatch.results import datasets, saver
from dispatch.results.store import Part, ResultStore
from nodes import executors
from nodes.executors.base import Column, Dataset
from tests.integration.kinds import Planned
from tests.integration.native import Api

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("kinds")]
SYMBOLS = ("MSFT", "AAPL", "IBM")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two bars of each symbol."""
    dataset = executors.get("data_import").dataset
    day = dt.datetime(2024, 1, 1)
    rows = [[symbol, day + dt.timedelta(n), "D", *[1.0] * 5, "test"] for symbol in SYMBOLS for n in range(2)]
    table = datasets.with_lineage(
        datasets.from_rows(dataset, rows), run=1, start=0, allocation=1, node="n", saved_at=day
    )
    with ResultStore(folder / "results.duckdb") as made:
        made.append([Part(dataset, table, [(1, 0, 1, 1, "0" * 64, len(rows))])])
        monkeypatch.setattr(saver, "_store", made)
        yield made


def items_of(run_id: int) -> list[Any]:
    frozen.cache_clear()
    return frozen(run_id).all()


def test_a_run_goes_through_the_values_of_a_column_each_once(api: Api, store: Any) -> None:
    run = api.post("runs", {"type": "echo", "items_column": "kline.symbol"})
    assert run.status == 201, run
    assert items_of(run.body["id"]) == ["AAPL", "IBM", "MSFT"]


def test_a_task_goes_through_them_as_they_are_when_it_runs(api: Api, store: Any) -> None:
    made = api.post("tasks", {"name": "all", "type": "echo", "items_column": "kline.symbol"})
    assert made.status == 201, made
    assert made.body["items_column"] == "kline.symbol"
    run = api.post(f"tasks/{made.body['id']}/run", {})
    assert items_of(run.body["id"]) == ["AAPL", "IBM", "MSFT"]
    # What is given with the run comes first.
    sources.add("symbol", "TSLA")
    run = api.post(f"tasks/{made.body['id']}/run", {"source_kind": "symbol"})
    assert items_of(run.body["id"]) == ["TSLA"]
    run = api.post(f"tasks/{made.body['id']}/run", {"items": ["x"]})
    assert items_of(run.body["id"]) == ["x"]


def test_values_that_are_nothing_are_no_items_and_truths_are_refused(api: Api, folder: Path, monkeypatch: Any) -> None:
    columns = (Column("name", "string"), Column("good", "bool"))
    dataset = Dataset("facts", columns, ("name",))
    rows: list[list[Any]] = [["a", True], ["", False], [None, None]]
    table = datasets.with_lineage(
        datasets.from_rows(dataset, rows), run=1, start=0, allocation=1, node="n", saved_at=dt.datetime(2024, 1, 1)
    )
    with ResultStore(folder / "results.duckdb") as made:
        made.append([Part(dataset, table, [(1, 0, 1, 1, "0" * 64, len(rows))])])
        monkeypatch.setattr(saver, "_store", made)
        assert items_of(api.post("runs", {"type": "echo", "items_column": "facts.name"}).body["id"]) == ["a"]
        refused = api.post("runs", {"type": "echo", "items_column": "facts.good"})
    assert (refused.status, "holds bool" in str(refused.body)) == (400, True)


def test_only_active_sources_of_the_kind_that_is_named_are_gone_through(api: Api, store: Any) -> None:
    sources.add("symbol", "TSLA")
    sources.update(sources.add("symbol", "GONE").pk, active=False)
    sources.add("feed", "news", address="https://example.org/feed")
    run = api.post("runs", {"type": "echo", "source_kind": "symbol"})
    assert items_of(run.body["id"]) == ["TSLA"]


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"items_column": "kline"}, "items_column", "TABLE.COLUMN"),
        ({"items_column": "kline.nothing"}, "items_column", "no column"),
        ({"items_column": "nothing.symbol"}, None, "no table"),
        ({"items_column": "kline.datetime"}, "items_column", "cannot be an item"),
        ({"items_column": "kline.symbol", "source_kind": "feed"}, "items_column", "beside source_kind"),
        ({"items_column": "kline.symbol", "items": ["a"]}, "items_column", "beside items"),
        ({"source_kind": "feed"}, "source_kind", "no active source"),
        ({"source_kind": "nothing"}, "source_kind", "not a valid choice"),
        ({}, "items", "is required"),
    ],
)
def test_what_names_no_items_is_refused_with_its_field(
    api: Api, store: Any, given: dict[str, Any], field: str | None, says: str
) -> None:
    answer = api.post("runs", {"type": "echo", **given})
    assert answer.status == (404 if field is None else 400), answer
    assert says in str(answer.body), answer.body
    assert field is None or field in str(answer.body)
    assert not Run.objects.exists()


def test_a_type_that_makes_its_own_items_needs_none(api: Api) -> None:
    run = api.post("runs", {"type": "planned"})
    assert run.status == 201, run
    assert (run.body["count"], run.body["expected"], run.body["growing"]) == (2, 6, True)


def test_a_type_that_makes_no_items_or_too_many_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"max_items": 1})
    assert "make 2 items; 1 to 1" in str(api.post("runs", {"type": "planned"}).body)
    monkeypatch.setattr(Planned, "begin", classmethod(lambda *_: []))
    answer = api.post("runs", {"type": "planned"})
    assert (answer.status, answer.body["field"]) == (400, "params")
    assert not Run.objects.exists()


def test_the_command_line_reads_them_from_a_csv_a_column_and_sources(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "symbols.csv"
    file.write_text("\ufeffname,ticker\nApple,AAPL\nNobody,\nIBM, IBM \n", encoding="utf-8")
    call_command("submit", "echo", items_file=str(file), file_column="ticker")
    assert items_of(Run.objects.latest("pk").pk) == ["AAPL", "IBM"]
    with pytest.raises(CommandError, match=r"ticket.*name, ticker"):
        call_command("submit", "echo", items_file=str(file), file_column="ticket")
    sources.add("symbol", "TSLA")
    call_command("submit", "echo", source_kind="symbol")
    assert items_of(Run.objects.latest("pk").pk) == ["TSLA"]
    store.close()  # no server runs: the command opens the file itself
    call_command("submit", "echo", items_column="kline.symbol")
    assert items_of(Run.objects.latest("pk").pk) == ["AAPL", "IBM", "MSFT"]


def test_a_task_cannot_be_stored_with_both(api: Api) -> None:
    both = {"name": "both", "type": "echo", "items_column": "kline.symbol", "source_kind": "feed"}
    assert api.post("tasks", both).status == 400
    assert not Task.objects.exists()
