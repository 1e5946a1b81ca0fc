"""Pages, filters, counts and facets of tables, in a file and in a lake."""

from __future__ import annotations

import csv
import datetime as dt
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from dispatch.results import datasets, saver
from dispatch.results.base import Part, Store
from dispatch.results.store import ResultStore
from nodes.executors.base import Column, Dataset
from tests.integration.lakes import emptied, server, shared
from tests.integration.native import Api

__all__ = ["emptied", "server", "shared"]

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]

SAVED = dt.datetime(2024, 1, 2)
POINTS = Dataset(
    "points",
    (
        Column("name", "string"),
        Column("day", "timestamp"),
        Column("x", "float64"),
        Column("n", "int64"),
        Column("good", "bool"),
        Column("more", "json"),
    ),
    ("name", "day"),
    (("points_tags", "SELECT name, unnest(from_json(more, '[\"VARCHAR\"]')) AS tag FROM {table}"),),
)
LOOSE = Dataset("loose", (Column("text", "string"), Column("n", "int64")), ())


def save(store: Store, dataset: Dataset, run: int, rows: list[list[Any]], allocation: int = 1) -> None:
    table = datasets.from_rows(dataset, rows)
    moment = SAVED + dt.timedelta(seconds=allocation)
    lined = datasets.with_lineage(table, run=run, start=0, allocation=allocation, node="north", saved_at=moment)
    store.append([Part(dataset, lined, [(run, allocation, allocation + 1, allocation, "0" * 64, len(rows))])])


def limit(settings: Any, **limits: float) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update=limits)


@pytest.fixture(params=["file", "lake"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "lake":
        store = request.getfixturevalue("emptied")
        monkeypatch.setattr(saver, "_store", store)
        yield store
        return
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        yield store


@pytest.fixture
def points(store: Store) -> Store:
    """37 points, with equal and missing values of everything but the key; and some that were replaced."""
    rows = []
    for number in range(37):
        x = None if number % 5 == 0 else (number % 4) / 2
        tags = json.dumps(["even" if number % 2 else "odd", f"t{number % 3}"])
        day = f"2024-01-{1 + number // 3:02}T00:00:00"
        rows.append([f"p{number % 3}", day, x, None if number % 7 == 0 else number % 6, number % 2 == 0, tags])
    save(store, POINTS, 1, rows)
    save(store, POINTS, 2, [[*row[:2], 9.5, *row[3:]] for row in rows[:2]], allocation=2)
    save(store, LOOSE, 3, [*[["same", 1]] * 5, ["100% sure, yes", 2], ["", 3]], allocation=3)
    return store


def paged(api: Api, table: str, limit: int, **query: Any) -> list[list[Any]]:
    """All rows, page by page."""
    rows: list[list[Any]] = []
    after: dict[str, str] = {}
    for _ in range(100):
        answer = api.get(f"tables/{table}/page?{urlencode({**query, **after, 'limit': limit})}")
        assert answer.status == 200, answer.body
        assert len(answer.body["rows"]) <= limit
        assert answer.body["count"]["exact"]
        rows += answer.body["rows"]
        if answer.body["next"] is None:
            assert len(rows) == answer.body["count"]["rows"]
            return rows
        after = {"after": answer.body["next"]}
    raise AssertionError("the pages have no end")


def lines(api: Api, path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(api.get(path).response.getvalue().decode())))


def sort_key(row: dict[str, Any], order: str) -> Any:
    keys = []
    for name in [*filter(None, order.split(",")), "name", "day"]:
        value = row[name.removeprefix("-")]
        number = 0 if value is None else value
        if name.startswith("-"):
            assert not isinstance(number, str)
            number = -number
        keys.append((value is None, number))
    return keys


def test_pages_have_each_row_once_in_the_order_asked_for_whatever_is_equal_or_missing(points: Store, api: Api) -> None:
    everything = points.select("points", order=["name", "day"]).read_all().to_pylist()
    whole = [{**row, "day": row["day"].isoformat()} for row in everything]
    assert len(whole) == 37
    for order, limit in itertools.product(["", "-x", "-n,x", "good,-x,n"], [7, 37]):
        expected = sorted(whole, key=lambda row, order=order: sort_key(row, order))  # type: ignore[misc]
        found = paged(api, "points", limit, ordering=order) if order else paged(api, "points", limit)
        assert found == [list(row.values()) for row in expected], (order, limit)


def test_rows_saved_meanwhile_move_no_row_to_another_page(points: Store, api: Api) -> None:
    first = api.get("tables/points/page?limit=10&ordering=name").body
    save(points, POINTS, 4, [["a", "2023-01-01T00:00:00", 1.0, 1, True, "[]"]] * 1, allocation=4)
    second = api.get(f"tables/points/page?limit=10&ordering=name&after={first['next']}").body
    assert second["rows"][0][:2] > first["rows"][-1][:2]
    assert not {tuple(row[:2]) for row in first["rows"]} & {tuple(row[:2]) for row in second["rows"]}


def test_raw_rows_views_and_tables_without_a_key_are_paged_too_and_equal_rows_are_not_lost(
    points: Store, api: Api
) -> None:
    raw = paged(api, "points", 5, raw="true")
    assert len(raw) == 39
    assert [row[-5] for row in raw] == [1] * 37 + [2] * 2
    assert sorted(paged(api, "loose", 2)) == [["", 3], ["100% sure, yes", 2], *[["same", 1]] * 5]
    tags = paged(api, "points_tags", 3, ordering="-tag")
    assert len(tags) == 74
    assert [tag for _, tag in tags] == sorted((tag for _, tag in tags), reverse=True)
    assert len(paged(api, "points_tags", 2, tag="odd", columns="tag")) == 19


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("query", "condition"),
    [
        ("x__gte=1", lambda row: row["x"] is not None and row["x"] >= 1),
        ("x__gt=0.5&x__lt=9", lambda row: row["x"] is not None and 0.5 < row["x"] < 9),
        ("n__lte=2", lambda row: row["n"] is not None and row["n"] <= 2),
        ("n__in=1,3", lambda row: row["n"] in (1, 3)),
        ("n__ne=1", lambda row: row["n"] != 1),
        ("n__isnull=true", lambda row: row["n"] is None),
        ("n__isnull=false&good=true", lambda row: row["n"] is not None and row["good"]),
        ("name__startswith=p&name__ne=p1", lambda row: row["name"] != "p1"),
        ("name__contains=P2", lambda row: row["name"] == "p2"),
        ("more__contains=EVEN", lambda row: "even" in row["more"]),
        ("day__gte=2024-01-05&day__lt=2024-01-07", lambda row: "2024-01-05" <= row["day"].isoformat() < "2024-01-07"),
        ("where.name__in=p0,p2&x__isnull=true", lambda row: row["name"] in ("p0", "p2") and row["x"] is None),
        ("x=9.5", lambda row: row["x"] == 9.5),
    ],
)
def test_a_filter_leaves_the_same_rows_on_pages_in_files_and_in_counts(
    points: Store, api: Api, query: str, condition: Any
) -> None:
    whole = points.select("points", order=["name", "day"]).read_all().to_pylist()
    expected = [[row["name"], row["day"].isoformat()] for row in whole if condition(row)]
    assert 0 < len(expected) < 37
    pages = paged(api, "points", 7, **dict(part.split("=") for part in query.split("&")))
    assert [row[:2] for row in pages] == expected
    file = lines(api, f"tables/points/rows?format=csv&ordering=name,day&{query}")
    assert [[row["name"], row["day"].replace(" ", "T")[:19]] for row in file] == expected


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_text_is_looked_for_as_it_is_typed(points: Store, api: Api) -> None:
    assert paged(api, "loose", 9, text__contains="% SURE") == [["100% sure, yes", 2]]
    assert paged(api, "loose", 9, text__contains="_") == []
    assert paged(api, "loose", 9, text__in='"100% sure, yes",nothing') == [["100% sure, yes", 2]]
    assert paged(api, "loose", 9, text="") == [["", 3]]


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("x__gte=high", "x__gte"),
        ("x__near=1", "x__near"),
        ("z__gte=1", "z__gte"),
        ("n__in=", "n__in"),
        ("n__in=1,b", "n__in"),
        ("n__isnull=perhaps", "n__isnull"),
        ("n__contains=1", "n__contains"),
        ("good__lt=true", "good__lt"),
        ("more__gt=1", "more__gt"),
        ("x=nan", "x"),
        ("day__lt=yesterday", "day__lt"),
        ("_run=1", "_run"),
        ("ordering=secret", "ordering"),
        ("columns=secret", "columns"),
        ("columns=", "columns"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("after=x", "after"),
        ("after=W10", "after"),
        ("after=" + "A" * 30_000, "after"),
        ("format=csv", "format"),
        ("offset=1", "offset"),
        ("count=maybe", "count"),
        ("run=x", "run"),
        ("n__in=" + "1," * 1500 + "1", "n__in"),
    ],
)
def test_what_cannot_be_is_refused_naming_it(points: Store, api: Api, query: str, field: str) -> None:
    answer = api.get(f"tables/points/page?{query}")
    assert (answer.status, answer.body["field"]) == (400, field), answer.body
    assert answer.body["detail"]


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_a_cursor_is_good_for_its_ordering_only_and_its_values_are_looked_at(points: Store, api: Api) -> None:
    import base64

    after = api.get("tables/points/page?limit=2&ordering=x").body["next"]
    assert api.get(f"tables/points/page?ordering=-x&after={after}").body["field"] == "after"
    for forged in ([["name", "day"], [1, 2], 0], [["name", "day"], ["a", "b"], 0], [["name", "day"], ["a"], -1], 7):
        cursor = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode()
        assert api.get(f"tables/points/page?after={cursor}").body["field"] == "after"


def test_a_run_of_its_own_and_views(points: Store, api: Api) -> None:
    assert [row[2] for row in paged(api, "points", 9, run=2)] == [9.5, 9.5]
    assert len(paged(api, "points", 9, run=1)) == 37
    for query in ("run=1", "raw=true"):
        assert api.get(f"tables/points_tags/page?{query}").body["field"] == query.partition("=")[0]
    assert api.get("tables/ledger/page").status == 404
    assert api.get("tables/points_rows").status == 404


def test_a_table_tells_what_it_has(points: Store, api: Api) -> None:
    about = api.get("tables/points").body
    assert about["columns"][0] == {"name": "name", "type": "string", "key": True}
    assert about["columns"][2] == {"name": "x", "type": "float64", "key": False}
    assert (about["key"], about["views"], about["of"]) == (["name", "day"], ["points_tags"], None)
    assert (about["rows"], about["saved_rows"], about["runs"]) == ({"rows": 37, "exact": True}, 39, 2)
    assert about["last_saved"].startswith("2024-01-02T00:00:02")
    assert "_run" in [each["name"] for each in about["lineage"]]
    view = api.get("tables/points_tags").body
    assert (view["of"], view["rows"]["rows"], view["saved_rows"], view["runs"]) == ("points", 74, None, None)


def test_facets_count_values_within_the_filter(points: Store, api: Api) -> None:
    (names, tags) = api.get("tables/points/facets?column=name&column=n&limit=2&x__isnull=false").body
    assert names["values"] == [{"value": "p0", "rows": 11}, {"value": "p1", "rows": 10}]
    assert (names["more"], names["finished"], tags["column"]) == (True, True, "n")
    everything = points.select("points", columns=["name", "x"]).read_all().to_pylist()
    assert sum(1 for row in everything if row["x"] is not None and row["name"] == "p0") == 11
    (good,) = api.get("tables/points/facets?column=good").body
    assert {each["value"]: each["rows"] for each in good["values"]} == {True: 19, False: 18}
    assert not good["more"]
    for query, field in [("", "column"), ("column=z", "column"), ("column=x&ordering=x", "ordering")]:
        assert api.get(f"tables/points/facets?{query}").body["field"] == field


@pytest.fixture
def huge(store: Store) -> Store:
    """A table whose newest rows take more than a moment to find."""
    import pyarrow as pa

    rows = 400_000
    names, times = [f"p{n}" for n in range(rows)], pa.array([SAVED] * rows, pa.timestamp("us"))
    cells = [names, times, [1.5] * rows, range(rows), [True] * rows, ["[]"] * rows]
    table = pa.table(list(map(pa.array, cells)), schema=datasets.schema(POINTS))
    lined = datasets.with_lineage(table, run=1, start=0, allocation=1, node="north", saved_at=SAVED)
    store.append([Part(POINTS, lined, [(1, 0, 1, 1, "0" * 64, rows)])])
    return store


def test_what_takes_too_long_is_ended_and_said(huge: Store, api: Api, settings: Any) -> None:
    limit(settings, count_seconds=0.01, facet_seconds=0.01, read_seconds=0.02)
    assert api.get("tables/points").body["rows"] == {"rows": 400_000, "exact": False}
    (facet,) = api.get("tables/points/facets?column=more").body
    assert (facet["finished"], facet["values"]) == (False, [])
    answer = api.get("tables/points/page?ordering=more,-x")
    assert answer.status == 422
    assert "read_seconds" in answer.body["detail"]
    limit(settings, read_seconds=60)
    page = api.get("tables/points/page?ordering=more,-x&limit=3").body
    assert (len(page["rows"]), page["count"]) == (3, {"rows": 400_000, "exact": False})
    assert api.get("tables/points/page?limit=3&count=false").body["count"] is None
    assert not huge._reading
