"""Rows over the native API: by table and by run, in each format. The result store is a real one."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, Client

from api import views_tables
from dispatch.lifecycle import submit
from dispatch.models import Run
from dispatch.results import datasets, saver
from dispatch.results.store import Part, ResultStore
from nodes.executors.base import Dataset
from nodes.executors.data_import import DataImport
from nodes.executors.echo import Echo
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

DAY = dt.datetime(2024, 1, 2)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ResultStore]:
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        yield store


def save(store: ResultStore, dataset: Dataset, run: int, allocation: int, rows: list[list[Any]]) -> None:
    table = datasets.with_lineage(
        datasets.from_rows(dataset, rows),
        run=run,
        start=0,
        allocation=allocation,
        node="north",
        saved_at=DAY + dt.timedelta(seconds=allocation),
    )
    entry = (run, allocation, allocation + 1, allocation, "0" * 64, len(rows))
    store.append([Part(dataset, table, [entry])])


@pytest.fixture
def run(store: ResultStore) -> Run:
    """Two runs imported the same two bars of A; the second one corrected a price, and brought one bar of B."""
    first, second = (submit(type="data_import", items=["A"], params={"source": "sample"}) for _ in range(2))

    def bar(symbol: str, day: str, close: float) -> list[Any]:
        return [symbol, f"2024-01-{day}T00:00:00", "D", 1.0, 9.0, 0.5, close, 100.0, "sample"]

    save(store, DataImport.dataset, first.pk, 1, [bar("A", "02", 2.0), bar("A", "03", 3.0)])
    save(store, DataImport.dataset, second.pk, 2, [bar("A", "02", 2.5), bar("A", "03", 3.0), bar("B", "02", 7.0)])
    return first


def rows(api: Api, path: str) -> list[dict[str, Any]]:
    answer = api.get(path)
    assert answer.status == 200, answer.body
    loaded: list[dict[str, Any]] = json.loads(answer.response.getvalue())
    return loaded


def closes(api: Api, query: str) -> list[float]:
    return [row["close"] for row in rows(api, f"tables/kline/rows?ordering=symbol,datetime&{query}")]


def test_tables_are_listed_with_columns_key_and_rows(api: Api, store: ResultStore, run: Run) -> None:
    answer = api.get("tables")
    assert answer.status == 200
    (kline,) = answer.body
    assert (kline["name"], kline["rows"], kline["key"]) == ("kline", 5, ["symbol", "freq", "datetime"])
    assert {"name": "datetime", "type": "timestamp"} in kline["columns"]


def test_a_table_shows_each_fact_once_the_newest(api: Api, run: Run) -> None:
    assert closes(api, "") == [2.5, 3.0, 7.0]
    (bar,) = rows(api, "tables/kline/rows?symbol=B")
    assert (bar["symbol"], bar["datetime"], bar["data_source"]) == ("B", "2024-01-02T00:00:00", "sample")


def test_rows_are_filtered_ordered_and_cut_as_asked(api: Api, run: Run) -> None:
    assert closes(api, "symbol=A") == [2.5, 3.0]
    assert closes(api, "symbol=A&datetime=2024-01-03T00:00:00") == [3.0]
    assert closes(api, "close=7") == [7.0]
    assert closes(api, "where.symbol=B") == [7.0]
    assert closes(api, "limit=1&offset=1") == [3.0]
    assert closes(api, "limit=0") == []
    assert [row["close"] for row in rows(api, "tables/kline/rows?ordering=-close&limit=2")] == [7.0, 3.0]
    assert rows(api, "tables/kline/rows?columns=close,symbol&symbol=B") == [{"close": 7.0, "symbol": "B"}]


def test_rows_of_one_run_are_those_it_saved(api: Api, run: Run) -> None:
    assert closes(api, f"run={run.pk}") == [2.0, 3.0]
    by_run = rows(api, f"runs/{run.pk}/results?ordering=datetime")
    assert [row["close"] for row in by_run] == [2.0, 3.0]


def test_raw_rows_are_all_rows_with_where_they_came_from(api: Api, run: Run) -> None:
    found = rows(api, "tables/kline/rows?raw=true&symbol=A&datetime=2024-01-02T00:00:00&ordering=_allocation")
    assert [(row["close"], row["_run"], row["_allocation"], row["_node"]) for row in found] == [
        (2.0, run.pk, 1, "north"),
        (2.5, run.pk + 1, 2, "north"),
    ]


@pytest.mark.parametrize(
    "path", ["tables/kline/rows?ordering=symbol,datetime&", "runs/{run}/results?ordering=datetime&"]
)
def test_each_format_holds_the_same_rows(api: Api, run: Run, path: str) -> None:
    path = path.format(run=run.pk)
    expected = rows(api, path)
    assert len(expected) >= 2

    def fetched(format: str, content_type: str) -> bytes:
        answer = api.get(f"{path}format={format}")
        assert answer.status == 200
        assert answer.response["Content-Type"].startswith(content_type)
        assert f'filename="kline.{format}"' in answer.response["Content-Disposition"]
        content: bytes = answer.response.getvalue()
        return content

    parquet = pyarrow.parquet.read_table(pa.BufferReader(fetched("parquet", "application/vnd.apache.parquet")))
    arrow = pyarrow.ipc.open_stream(fetched("arrow", "application/vnd.apache.arrow.stream")).read_all()
    lines = list(csv.DictReader(io.StringIO(fetched("csv", "text/csv").decode())))
    assert parquet.equals(arrow)
    assert [row["datetime"].isoformat() for row in arrow.to_pylist()] == [row["datetime"] for row in expected]
    for found in (arrow.to_pylist(), lines):
        assert [float(row["close"]) for row in found] == [row["close"] for row in expected]
        assert [row["symbol"] for row in found] == [row["symbol"] for row in expected]


def test_a_runs_files_have_exactly_its_rows_whatever_others_saved_since(api: Api, run: Run, store: ResultStore) -> None:
    second = run.pk + 1
    expected = {run.pk: [2.0, 3.0], second: [2.5, 3.0, 7.0]}
    for pk, closes_of_it in expected.items():
        path = f"runs/{pk}/results?ordering=symbol,datetime"
        read = pyarrow.parquet.read_table(pa.BufferReader(api.get(f"{path}&format=parquet").response.getvalue()))
        lines = list(csv.DictReader(io.StringIO(api.get(f"{path}&format=csv").response.getvalue().decode())))
        assert read["close"].to_pylist() == closes_of_it
        assert [float(line["close"]) for line in lines] == closes_of_it
        assert [row["close"] for row in rows(api, path)] == closes_of_it
        assert {row["_run"] for row in rows(api, f"{path}&raw=true")} == {pk}
        assert api.get(f"tables/kline/page?run={pk}").body["count"] == {"rows": len(closes_of_it), "exact": True}
    assert [row["close"] for row in rows(api, f"runs/{second}/results?close__gte=3&symbol=B")] == [7.0]
    assert api.get(f"runs/{second}/results?close__gte=x").body["field"] == "close__gte"


def test_a_run_that_saved_nothing_yet_has_no_rows_in_any_format(api: Api, store: ResultStore) -> None:
    run = submit(type="echo", items=["a"])
    assert rows(api, f"runs/{run.pk}/results") == []
    content = api.get(f"runs/{run.pk}/results?format=parquet").response.getvalue()
    table = pyarrow.parquet.read_table(pa.BufferReader(content))
    assert (table.num_rows, table.column_names) == (0, list(Echo.dataset.names))


def test_rows_that_json_cannot_say_are_null(api: Api, store: ResultStore, run: Run) -> None:
    nan = [["C", "2024-01-02T00:00:00", "D", 1.0, 9.0, 0.5, None, 100.0, "sample"]]
    save(store, DataImport.dataset, run.pk, 3, nan)
    assert closes(api, "symbol=C") == [None]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("format=xlsx", "format"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("offset=99999999999999999999", "offset"),
        ("columns=symbol,secret", "columns"),
        ("columns=", "columns"),
        ("columns=close;drop", "columns"),
        ("ordering=secret", "ordering"),
        ("ordering=_run", "ordering"),
        ("symbl=A", "symbl"),
        ("_node=north", "_node"),
        ("close=high", "close"),
        ("datetime=yesterday", "datetime"),
        ("symbol=A&symbol=B", "symbol"),
        ("symbol=%00", "symbol"),
        ("run=x", "run"),
        ("raw=perhaps", "raw"),
    ],
)
def test_a_bad_question_is_refused_naming_the_parameter(api: Api, run: Run, query: str, field: str) -> None:
    answer = api.get(f"tables/kline/rows?{query}")
    assert (answer.status, answer.body["field"]) == (400, field)
    assert answer.body["detail"]


def test_a_name_that_is_no_table_is_a_404_whatever_it_says(api: Api, run: Run) -> None:
    for name in ("none", "ledger", "kline_rows", "duckdb_tables", 'kline"; drop table kline_rows; --', "%00", "../x"):
        assert api.get(f"tables/{name}/rows").status == 404
    assert api.get("tables").body[0]["rows"] == 5


def test_a_process_that_holds_no_results_says_so(api: Api) -> None:
    run = submit(type="echo", items=["a"])
    for path in ("tables", "tables/kline/rows", f"runs/{run.pk}/results"):
        answer = api.get(path)
        assert answer.status == 409
        assert "result store" in answer.body["detail"]


def test_rows_are_for_staff(client: Client, run: Run) -> None:
    for path in ("tables", "tables/kline/rows", f"runs/{run.pk}/results"):
        assert Api(client).get(path).status == 401


@pytest.fixture
def many(store: ResultStore) -> int:
    count = 200_000
    table = pa.table(
        [pa.array(["x"] * count), pa.array(range(count)), pa.array(["y" * 50] * count)],
        schema=datasets.schema(Echo.dataset),
    )
    lined = datasets.with_lineage(table, run=1, start=0, allocation=1, node="north", saved_at=DAY)
    store.append([Part(Echo.dataset, lined, [(1, 0, 1, 1, "0" * 64, count)])])
    return count


def test_rows_are_sent_while_they_are_read(api: Api, many: int) -> None:
    answer = api.get("tables/echo/rows?format=csv")
    pieces = iter(answer.response)
    first = next(pieces)
    assert len(first) < 50 * many / 2
    assert sum(piece.count(b"\n") for piece in pieces) + first.count(b"\n") == many + 1


def row_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("rows")}


@pytest.mark.django_db(transaction=True)
def test_a_server_of_asgi_sends_pieces_and_a_client_that_leaves_frees_the_reader(
    many: int, store: ResultStore, admin_user: User
) -> None:
    async def leave_early() -> Any:
        client = AsyncClient()
        await client.aforce_login(admin_user)
        response: Any = await client.get("/api/v1/tables/echo/rows?format=csv")
        assert response.status_code == 200
        assert response.is_async
        pieces = aiter(response)
        first = await anext(pieces)
        response.close()
        return first

    before = row_threads()
    first = asyncio.run(leave_early())
    assert 0 < first.count(b"\n") < many
    for thread in row_threads() - before:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert not store._reading


@pytest.mark.django_db(transaction=True)
def test_a_server_of_asgi_sends_all_rows(many: int, admin_user: User) -> None:
    async def read() -> int:
        client = AsyncClient()
        await client.aforce_login(admin_user)
        response: Any = await client.get("/api/v1/tables/echo/rows?format=csv")
        return sum([piece.count(b"\n") async for piece in response])

    assert asyncio.run(read()) == many + 1


def test_an_error_before_the_first_piece_leaves_no_thread_behind() -> None:
    def fails() -> Any:
        raise ValueError("no")

    before = row_threads()
    with pytest.raises(ValueError, match="no"):
        views_tables.Sync(fails)
    for thread in row_threads() - before:
        thread.join(timeout=10)
        assert not thread.is_alive()
