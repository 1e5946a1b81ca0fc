"""What charts read, of rows that the executors themselves made, in a file and in a lake."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.test import Client

from dispatch.results import datasets
from dispatch.results.base import Part, Store
from nodes.executors import rows as made_rows
from nodes.executors.analysis import Analysis
from nodes.executors.backtest import Backtest
from nodes.executors.base import Executor
from nodes.executors.data_import import DataImport
from nodes.executors.feed_update import FeedUpdate
from nodes.executors.optimization import Optimization
from nodes.optimizing.searching import Search
from tests.integration.lakes import emptied, server, shared
from tests.integration.native import Api
from tests.integration.test_table_pages import SAVED, limit, save, store

__all__ = ["emptied", "server", "shared", "store"]

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]
IN_FILE = pytest.mark.parametrize("store", ["file"], indirect=True)


@pytest.fixture(autouse=True)
def _patient(settings: Any) -> None:
    limit(settings, read_seconds=60)


def bring(store: Store, kind: type[Executor], params: dict[str, Any], items: list[Any], run: int) -> None:
    """Saves what the executor makes of ``items``."""
    checked = kind.check({"source": "sample", **params})
    executor = kind(checked)
    for number, item in enumerate(kind.begin(items, checked)):
        table = made_rows.to_table(kind.dataset, executor.run(item))
        lined = datasets.with_lineage(table, run=run, start=number, allocation=run, node="n", saved_at=SAVED)
        store.append([Part(kind.dataset, lined, [(run, number, number + 1, run, "0" * 64, table.num_rows)])])


def get(api: Api, path: str) -> Any:
    answer = api.get(path)
    assert answer.status == 200, answer.body
    return answer.body


def test_candles_are_few_enough_and_add_up(store: Store, api: Api) -> None:
    bring(store, DataImport, {}, ["AAPL", "IBM"], 1)
    whole = store.select("kline", where={"symbol": "AAPL"}, order=["datetime"]).read_all().to_pylist()
    few = get(api, "charts/candles?symbol=AAPL&bars=200")
    assert (few["period"], few["bars"], few["truncated"]) == ("M", len(whole), False)
    assert 100 < len(few["rows"]) <= 200
    columns = {name: [row[at] for row in few["rows"]] for at, name in enumerate(few["columns"])}
    assert columns["datetime"] == sorted(columns["datetime"])
    assert sum(columns["bars"]) == len(whole)
    assert sum(columns["volume"]) == pytest.approx(sum(row["volume"] for row in whole))
    assert max(columns["high"]) == max(row["high"] for row in whole)
    assert min(columns["low"]) == min(row["low"] for row in whole)
    assert (columns["open"][0], columns["close"][-1]) == (whole[0]["open"], whole[-1]["close"])
    assert columns["datetime"][0] == whole[0]["datetime"].isoformat() == few["first"]
    month = [row for row in whole if row["datetime"].isoformat()[:7] == columns["datetime"][5][:7]]
    assert columns["close"][5] == month[-1]["close"]


def test_a_range_of_bars_as_they_are_and_the_newest_of_too_many(store: Store, api: Api) -> None:
    bring(store, DataImport, {}, ["IBM"], 1)
    some = get(api, "charts/candles?symbol=IBM&from=2005-03-01&to=2005-04-01")
    assert some["period"] == "bar"
    assert some["rows"][0][0] == "2005-03-01T00:00:00"
    assert all("2005-03" in row[0] for row in some["rows"])
    assert len(some["rows"]) == some["bars"] == 22
    cut = get(api, "charts/candles?symbol=IBM&period=W&bars=10")
    assert (len(cut["rows"]), cut["truncated"]) == (10, True)
    assert cut["rows"][-1][4] == get(api, "charts/candles?symbol=IBM&bars=1")["rows"][-1][4]
    assert get(api, "charts/candles?symbol=NONE")["rows"] == []


def test_indicators_and_signals_stand_beside_their_bars(store: Store, api: Api) -> None:
    bring(store, DataImport, {}, ["IBM"], 1)
    bring(store, Analysis, {"extra": ["trix_15"], "engine": "pandas"}, ["IBM"], 2)
    path = "charts/candles?symbol=IBM&from=2008-01-01&to=2009-01-01&signals=true&indicators=rsi,trix_15"
    told = get(api, path)
    assert {"rsi", "sma_fast", "trix_15"} <= set(told["indicators"])
    rows = store.select("analysis", where={"symbol": "IBM"}, order=["datetime"]).read_all().to_pylist()
    rsi = {row["datetime"].isoformat(): row["rsi"] for row in rows}
    at = told["columns"].index("rsi")
    assert len(told["rows"]) > 200
    assert all(row[at] == rsi[row[0]] and row[at + 1] is not None for row in told["rows"])
    wanted = [row for row in rows if row["signals"] and row["datetime"].year == 2008]
    assert {each["datetime"] for each in told["signals"]} == {row["datetime"].isoformat() for row in wanted}
    assert not told["more_signals"]
    monthly = get(api, f"{path}&period=M")
    assert len(monthly["rows"]) == 12
    assert monthly["rows"][-1][at] == told["rows"][-1][at]


@IN_FILE
def test_without_bars_an_analysis_has_closes(store: Store, api: Api) -> None:
    assert api.get("charts/candles?symbol=IBM").status == 404
    bring(store, Analysis, {"engine": "pandas"}, ["IBM"], 2)
    told = get(api, "charts/candles?symbol=IBM&bars=50&indicators=sma_slow")
    assert (told["table"], told["rows"][0][1]) == ("analysis", None)
    assert told["rows"][-1][4] > 0


@IN_FILE
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "symbol"),
        ("symbol=A&symbol=B", "symbol"),
        ("symbol=A&bars=0", "bars"),
        ("symbol=A&bars=100000", "bars"),
        ("symbol=A&period=hour", "period"),
        ("symbol=A&from=yesterday", "from"),
        ("symbol=A&to=x", "to"),
        ("symbol=A&signals=x", "signals"),
        ("symbol=A&indicators=nope", "indicators"),
        ("symbol=A&indicators=rsi'", "indicators"),
        ("symbol=A&colour=red", "colour"),
    ],
)
def test_what_cannot_be_drawn_is_refused_naming_it(store: Store, api: Api, query: str, field: str) -> None:
    bring(store, DataImport, {}, ["IBM"], 1)
    answer = api.get(f"charts/candles?{query}")
    assert (answer.status, answer.body["field"]) == (400, field), answer.body


def test_a_backtest_is_its_curve_its_trades_and_its_numbers(store: Store, api: Api) -> None:
    bring(store, Backtest, {"strategy": "ma_cross"}, ["AAPL", "IBM"], 1)
    told = get(api, "charts/backtest?symbol=AAPL&points=300")
    (row,) = store.select("backtest", where={"symbol": "AAPL"}).read_all().to_pylist()
    curve = told["equity"]["rows"]
    assert told["numbers"]["sharpe"] == row["sharpe"]
    assert told["numbers"]["params"]["strategy_params"]["fast"] == 10
    assert told["points"] == 2000
    assert 250 < len(curve) <= 300
    assert curve[0][:2] == [curve[0][0], 100_000]
    assert curve[-1][1] == pytest.approx(row["final_equity"])
    assert [point[0] for point in curve] == sorted({point[0] for point in curve})
    view = store.select("backtest_equity", where={"symbol": "AAPL"}).read_all().to_pylist()
    drawdown = {each["datetime"].isoformat(): each["drawdown"] for each in view}
    assert all(point[2] == pytest.approx(drawdown[dt.datetime.fromisoformat(point[0]).isoformat()]) for point in curve)
    assert max(point[2] for point in curve) == pytest.approx(max(drawdown.values()))
    assert len(told["trades"]) == row["trades"]
    assert not told["more_trades"]
    assert {"side", "entry_date", "profit"} <= set(told["trades"][0])


@IN_FILE
def test_where_several_fit_it_says_what_would_decide(store: Store, api: Api) -> None:
    assert api.get("charts/backtest").status == 404
    items = [{"symbol": "IBM", "params": {"fast": fast}} for fast in (5, 6)]
    bring(store, Backtest, {"strategy": "ma_cross"}, [*items, "AAPL"], 1)
    answer = api.get("charts/backtest")
    assert (answer.status, answer.body["field"]) == (400, "symbol")
    assert "'AAPL', 'IBM'" in answer.body["detail"]
    assert api.get("charts/backtest?symbol=IBM").body["field"] == "variant"
    assert api.get("charts/backtest?symbol=MSFT").status == 404
    assert api.get("charts/backtest?symbol=IBM&points=5").body["field"] == "points"
    assert get(api, "charts/backtest?symbol=AAPL&run=1")["key"]["symbol"] == "AAPL"
    assert api.get("charts/backtest?symbol=AAPL&run=2").status == 404


def trials(store: Store, space: dict[str, Any], run: int, **params: Any) -> None:
    given = {"strategy": "ma_cross", "symbols": ["IBM"], "space": space, "source": "sample", **params}
    checked = Optimization.check(given)
    search = Search.of(checked)
    chosen = [dict(zip(("fast", "slow"), (f, s), strict=True)) for f in space["fast"] for s in space["slow"]]
    assert search.space
    items = [{"key": f"t{number}", "trial": number, "params": each} for number, each in enumerate(chosen)]
    bring(store, Optimization, given, items, run)


def test_a_search_is_its_best_its_history_and_a_heat_map(store: Store, api: Api) -> None:
    trials(store, {"fast": [5, 10, 20], "slow": [50, 100]}, 1)
    told = get(api, "charts/optimization")
    rows = store.select("optimization", order=["trial"]).read_all().to_pylist()
    best = max((row for row in rows if row["feasible"]), key=lambda row: row["value"])
    assert (told["trials"], told["best"]["trial"], told["best"]["value"]) == (6, best["trial"], best["value"])
    assert told["best"]["strategy_params"]["kind"] == "sma"
    assert told["parameters"] == [{"name": "fast", "values": 3}, {"name": "slow", "values": 2}]
    assert [row[1] for row in told["history"]["rows"]] == [row["value"] for row in rows]
    so_far = [row[3] for row in told["history"]["rows"] if row[3] is not None]
    assert so_far == sorted(so_far)
    assert so_far[-1] == best["value"]
    heat = told["heat"]
    assert (heat["x"]["ticks"], heat["y"]["ticks"]) == ([5, 10, 20], [50, 100])
    cells = {(heat["x"]["ticks"][x], heat["y"]["ticks"][y]): value for x, y, value, *_ in heat["rows"]}
    assert cells[5, 100] == rows[1]["value"]
    assert len(cells) == 6
    turned = get(api, "charts/optimization?x=slow")["heat"]
    assert (turned["x"]["name"], turned["y"]["name"]) == ("slow", "fast")
    for query, field in [("x=no", "x"), ("x=fast&y=fast", "y"), ("z=1", "z")]:
        assert api.get(f"charts/optimization?{query}").body["field"] == field


@IN_FILE
def test_many_values_of_a_parameter_become_ranges_and_two_searches_are_told_apart(store: Store, api: Api) -> None:
    trials(store, {"fast": list(range(2, 52)), "slow": [100]}, 1, study="wide")
    heat = get(api, "charts/optimization?study=wide")["heat"]
    assert heat["x"]["ranges"]
    assert len(heat["x"]["ticks"]) == 40
    assert sum(row[4] for row in heat["rows"]) == 50
    assert {row[0] for row in heat["rows"]} <= set(range(40))
    trials(store, {"fast": [5], "slow": [50]}, 2, study="small")
    answer = api.get("charts/optimization")
    assert (answer.status, answer.body["field"]) == (400, "study")
    assert get(api, "charts/optimization?study=small")["trials"] == 1


def test_articles_come_newest_first_page_by_page_and_are_searched(store: Store, api: Api) -> None:
    def article(number: int, **more: Any) -> list[Any]:
        known = {
            "id": f"a{number:02}",
            "feed": "f1" if number % 2 else "f2",
            "title": f"Title {number}",
            "url": "http://x/",
        }
        known |= {
            "author": "Ann",
            "published": f"2023-05-{1 + number // 2:02}T00:00:00",
            "summary": "",
            "text": "A long text",
        }
        return [(known | more).get(name) for name in FeedUpdate.dataset.names]

    rows = [article(number) for number in range(20)]
    rows += [article(30, published=None, title="Ünkown time"), article(31, published=None, text="Only HERE a whale")]
    save(store, FeedUpdate.dataset, 1, rows)
    found, after = [], ""
    for _ in range(10):
        page = get(api, f"articles?limit=5{after}")
        found += [(each["published"] or each["saved_at"], each["feed"], each["id"]) for each in page["results"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert len(found) == len(set(found)) == 22
    assert [moment for moment, *_ in found] == sorted((moment for moment, *_ in found), reverse=True)
    assert {each["id"] for each in get(api, "articles?search=whale%20only")["results"]} == {"a31"}
    assert get(api, "articles?search=whale&feed=f2")["results"] == []
    assert len(get(api, "articles?feed=f2&limit=200")["results"]) == 11
    (short,) = get(api, "articles?search=whale")["results"]
    assert (short["summary"], "text" in short) == ("Only HERE a whale", False)
    assert get(api, "articles/text?feed=f1&id=a31")["text"] == "Only HERE a whale"
    assert api.get("articles/text?feed=f1&id=none").status == 404
    for query, field in [("search=" + "a+" * 11, "search"), ("after=x", "after"), ("limit=x", "limit"), ("q=1", "q")]:
        assert api.get(f"articles?{query}").body["field"] == field
    assert api.get("articles/text?feed=f1").body["field"] == "id"


@IN_FILE
def test_charts_are_for_staff(store: Store, client: Client) -> None:
    for path in ("charts/candles?symbol=A", "charts/backtest", "charts/optimization", "articles", "articles/text"):
        assert Api(client).get(path).status == 401
