"""The pages of tables: what there is, a table with its filters in the address, and the charts that tables have."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from dispatch.results import saver
from dispatch.results.base import Store
from dispatch.results.store import ResultStore
from nodes.executors.analysis import Analysis
from nodes.executors.backtest import Backtest
from nodes.executors.data_import import DataImport
from nodes.executors.feed_update import FeedUpdate
from tests.integration import records
from tests.integration.test_charts import bring, trials
from tests.integration.test_table_pages import LOOSE, limit, points, save

__all__ = ["points"]

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]
MARK = "<script>alert(1)</script>"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Store]:
    """A file; how a lake answers the same is test_table_pages' to say."""
    limit(settings, read_seconds=60, count_seconds=60, facet_seconds=60)
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        yield store


def page(browser: Client, path: str, status: int = 200) -> str:
    answer = browser.get(path)
    assert answer.status_code == status, answer.content.decode()
    return str(answer.content.decode())


def plain(text: str) -> str:
    """What is read, without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def rows(text: str) -> list[list[str]]:
    """Cells of the table of rows."""
    body = text.partition('class="rows"')[2].partition("<tbody")[2].partition("</tbody>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", each, re.S) for each in body.split("</tr>")[:-1]]


def links(text: str, words: str) -> list[str]:
    """Where the links with these words lead."""
    found = re.findall(r'<a\b([^>]*)href="([^"]*)"[^>]*>(.*?)</a>', text, re.S)
    return [html.unescape(href) for _, href, said in found if plain(said) == words]


def file(browser: Client, href: str) -> bytes:
    answer: Any = browser.get(href)
    assert answer.status_code == 200
    return b"".join(answer.streaming_content)


def test_without_rows_a_command_makes_some(store: Store, browser: Client) -> None:
    assert "manage.py submit data_import --item AAPL" in page(browser, "/tables")


def test_all_tables_with_views_rows_runs_and_when(points: Store, browser: Client) -> None:
    text = plain(page(browser, "/tables"))
    assert "points name, day, x, n, good, more 37 2 2024-01-02T00:00 –" in text
    assert "points_tags view of points name, tag 74" in text
    assert "loose text, n 7 1" in text


def test_a_filtered_page_says_its_filter_and_its_file_has_the_same_rows(points: Store, browser: Client) -> None:
    text = page(browser, "/tables/points?n__gte=2&name=p1&ordering=-n&columns=name,day,n")
    shown = rows(text)
    (href,) = links(text, "csv")
    told = list(csv.reader(io.StringIO(file(browser, href).decode())))
    assert told[0] == ["name", "day", "n"]
    assert len(told) - 1 == len(shown) > 3
    assert [row[2] for row in told[1:]] == [plain(row[2]) for row in shown]
    assert f"{len(shown)} rows of points where n is at least 2" in plain(text)
    assert f"Download {len(shown)} rows" in plain(text)


@pytest.mark.parametrize("format", ["json", "parquet", "arrow"])
def test_every_format_is_offered_beside_the_rows(points: Store, browser: Client, format: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    text = page(browser, "/tables/points?good=true")
    (href,) = links(text, format)
    body = file(browser, href)
    read = {
        "json": lambda: len(json.loads(body)),
        "parquet": lambda: pa.parquet.read_table(io.BytesIO(body)).num_rows,
        "arrow": lambda: pa.ipc.open_stream(body).read_all().num_rows,
    }
    assert read[format]() == len(rows(text)) == 19


def test_pages_meet_and_count_all_rows(points: Store, browser: Client) -> None:
    seen: list[str] = []
    path = "/tables/points?limit=10&ordering=x"
    for _ in range(4):
        text = page(browser, path)
        assert "37 rows of points" in plain(text)
        seen += [" ".join(map(plain, row[:2])) for row in rows(text)]
        found = links(text, "Next")
        if not found:
            break
        path = f"/tables/points{found[0]}"
    assert len(seen) == len(set(seen)) == 37
    assert links(text, "First page") == ["?ordering=x&limit=10"]


def test_the_form_leads_to_an_address_with_all_that_was_chosen(points: Store, browser: Client) -> None:
    query = {
        "good": "true",
        ".test.n": "gte",
        ".value.n": " 3 ",
        ".test.x": "notnull",
        ".test.name": "",
        ".value.name": "",
        ".column": ["name", "n"],
        ".order": "n",
        ".down": "1",
        "limit": "20",
    }
    answer = browser.get("/tables/points", query)
    assert answer.status_code == 302
    assert (
        answer["Location"] == "/tables/points?good=true&x__isnull=false&n__gte=3&limit=20&columns=name%2Cn&ordering=-n"
    )
    text = page(browser, answer["Location"])
    assert "where good is true , x has a value and n is at least 3" in plain(text).replace("✕ ", "")
    numbers = [int(plain(row[1])) for row in rows(text)]
    assert numbers == sorted(numbers, reverse=True)
    assert min(numbers) >= 3


def test_no_match_names_the_filter_and_offers_to_clear_it(points: Store, browser: Client) -> None:
    text = page(browser, "/tables/points?name=nobody&ordering=-day")
    assert "No row of points is there where name is nobody . Clear the filter" in plain(text)
    assert links(text, "Clear the filter") == ["?ordering=-day"]


def test_a_wrong_value_is_named_and_stays_to_be_mended(points: Store, browser: Client) -> None:
    text = page(browser, "/tables/points?x__gte=much&good=true", 400)
    assert "x__gte: 'much' is not a value of this column, which is float64" in plain(text)
    assert 'name=".value.x" value="much"' in text
    assert 'name="good" value="true"' in text
    assert 'name="x__gte"' not in text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?nothing=1", "nothing"),
        ("?after=nonsense", "after"),
        ("?limit=0", "limit"),
        ("?run=x", "run"),
        ("?columns=none", "columns"),
        ("?ordering=none", "ordering"),
        ("?facet=none", "column"),
        ("?name=a&name=b", "name"),
        ("?name=%00", "name"),
    ],
)
def test_nonsense_in_the_address_is_named(points: Store, browser: Client, query: str, said: str) -> None:
    text = page(browser, f"/tables/points{query}", 400)
    (problem,) = re.findall(r'role="alert"><bdi>([^<]*)', text)
    assert problem.startswith(f"{said}: ")
    assert links(text, "begin anew") == ["/tables/points"]


def test_values_are_counted_and_lead_to_their_rows(points: Store, browser: Client) -> None:
    text = page(browser, "/tables/points?facet=good&facet=x")
    assert "good ✕ true 19 false 18" in plain(text)
    (href,) = links(text, "no value")
    chosen = page(browser, f"/tables/points{href}")
    assert "where x has no value" in plain(chosen)
    assert len(rows(chosen)) == 7
    assert links(chosen, "no value") == ["?facet=good&facet=x"]


def test_raw_rows_lead_to_their_run_and_allocation(points: Store, browser: Client) -> None:
    (href,) = links(page(browser, "/tables/points?name=p0"), "All rows, with where they came from")
    text = page(browser, f"/tables/points{href}&ordering=-_run")
    first = rows(text)[0]
    assert 'href="/runs/2"' in first[0]
    assert 'href="/admin/dispatch/allocation/2/change/"' in first[2]
    assert plain(first[3]) == "north"


def test_a_run_leads_to_its_rows(store: Store, browser: Client) -> None:
    run = records.run(1, type="data_import")
    assert f'href="/runs/{run.pk}/rows"' in page(browser, f"/runs/{run.pk}")
    assert "has saved no rows yet" in page(browser, f"/runs/{run.pk}/rows")
    bring(store, DataImport, {}, ["AAPL"], run.pk)
    bring(store, DataImport, {}, ["IBM"], run.pk + 1)
    answer = browser.get(f"/runs/{run.pk}/rows")
    assert answer["Location"] == f"/tables/kline?run={run.pk}"
    text = plain(page(browser, answer["Location"]))
    assert f"3,270 rows of kline where saved by run {run.pk}" in text
    assert "IBM" not in text
    page(browser, "/runs/999999/rows", 404)


def test_the_statement_of_a_page_goes_to_the_box(points: Store, browser: Client) -> None:
    (href,) = links(page(browser, "/tables/points?x__gt=0.5&ordering=-x"), "View and edit SQL")
    text = page(browser, href)
    (statement,) = re.findall(r"<textarea[^>]*>(.*?)</textarea>", text, re.S)
    told = 'SELECT * FROM "points" WHERE "x" > 0.5 ORDER BY "x" DESC, "name", "day" LIMIT 100'
    assert " ".join(html.unescape(statement).split()) == told


def test_a_column_that_is_called_like_an_option_is_filtered(store: Store, browser: Client) -> None:
    from nodes.executors.base import Column, Dataset

    odd = Dataset("odd", (Column("limit", "int64"), Column("after", "string")), ("limit",))
    save(store, odd, 1, [[number, "x"] for number in range(9)])
    answer = browser.get("/tables/odd", {".test.limit": "gte", ".value.limit": "5"})
    text = page(browser, answer["Location"])
    assert "4 rows of odd where limit is at least 5" in plain(text)
    (href,) = links(text, "csv")
    assert len(file(browser, href).splitlines()) == 5


def test_what_is_in_rows_is_text(store: Store, browser: Client) -> None:
    save(store, LOOSE, 1, [[MARK, 1], ["x" * 5_000, 2], ["‮مرحبا", 3], ["", 4]])
    text = page(browser, "/tables/loose?facet=text")
    assert MARK not in text
    assert "5,000 characters; a file has them all" in text
    assert "x" * 300 not in text


def test_a_table_that_is_not_there_and_a_process_without_rows(
    points: Store, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    page(browser, "/tables/nothing", 404)
    page(browser, "/tables/points/chart", 404)
    page(browser, "/tables/kline/chart", 404)
    monkeypatch.setattr(saver, "_store", None)
    assert "does not hold the result store" in page(browser, "/tables", 409)


@pytest.mark.parametrize(
    "path", ["/tables", "/tables/points", "/tables/kline/chart", "/articles", "/sql", "/runs/1/rows"]
)
def test_only_staff_sees_rows(client: Client, path: str) -> None:
    assert client.get(path)["Location"].startswith("/admin/login/")


def test_a_page_costs_few_queries(points: Store, browser: Client, django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(4):
        page(browser, "/tables/points")
    with django_assert_max_num_queries(4):
        page(browser, "/tables")


# ---- charts ------------------------------------------------------------------------------------------------------


def data(text: str, name: str) -> Any:
    (found,) = re.findall(rf'<script id="{name}" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_candles_by_the_address_with_indicators_and_signals(store: Store, browser: Client) -> None:
    bring(store, DataImport, {}, ["AAPL", "IBM"], 1)
    bring(store, Analysis, {}, ["IBM"], 2)
    text = page(
        browser, "/tables/kline/chart?symbol=IBM&period=M&from=2005-01-01&to=2006-01-01&indicator=rsi&signals=1"
    )
    told = data(text, "bars")
    assert (told["symbol"], told["period"], len(told["rows"])) == ("IBM", "M", 12)
    assert told["columns"][-1] == "rsi"
    assert told["signals"]
    assert "TradingView" in plain(text)
    assert len(rows(text)) == 12
    assert data(page(browser, "/tables/kline/chart"), "bars")["symbol"] in ("AAPL", "IBM")
    empty = page(browser, "/tables/kline/chart?symbol=NONE")
    assert "No bars of NONE" in plain(empty)
    wrong = page(browser, "/tables/kline/chart?symbol=IBM&from=soon", 400)
    assert "from: 'soon'" in plain(wrong)
    assert 'value="soon"' in wrong
    for query in ("period=x", "indicator=x", "bars=x", "bars=99999"):
        page(browser, f"/tables/kline/chart?symbol=IBM&{query}", 400)


def test_a_backtest_with_its_curve_and_trades(store: Store, browser: Client) -> None:
    bring(store, Backtest, {"strategy": "ma_cross"}, ["AAPL", "IBM"], 1)
    both = page(browser, "/tables/backtest/chart")
    (href,) = links(both, "IBM")
    text = page(browser, f"/tables/backtest/chart{href}")
    assert len(data(text, "equity")["rows"]) > 100
    assert len(data(text, "trades")) == len(rows(text)) > 10
    assert "IBM · D · ma_cross" in plain(text)
    assert "No backtest is like that" in plain(page(browser, "/tables/backtest/chart?symbol=NONE"))
    (row, _) = rows(page(browser, "/tables/backtest"))
    (chart,) = links(row[0], "show")
    assert data(page(browser, chart), "trades")


def test_trials_as_a_map_and_the_best_of_them(store: Store, browser: Client) -> None:
    trials(store, {"fast": [5, 10, 20], "slow": [50, 80, 100]}, 1)
    text = page(browser, "/tables/optimization/chart")
    assert text.count("<title>slow") + text.count("<title>fast") == 9
    assert "Best trials" in text
    assert rows(text)
    page(browser, "/tables/optimization/chart?x=none", 400)


def article(browser: Client, store: Store) -> None:
    rows = [
        [
            f"a{n}",
            "paper" if n % 2 else "wire",
            f"{MARK} story {n}",
            "javascript:alert(1)" if n == 1 else f"https://x.org/{n}",
            "Ann",
            f"2024-01-{n + 1:02}T00:00:00",
            "short",
            f"First line of {n}.\nWhales.",
            None,
        ]
        for n in range(25)
    ]
    save(store, FeedUpdate.dataset, 1, rows)


def test_articles_are_read_newest_first_and_are_text(store: Store, browser: Client) -> None:
    assert "feed_update" in page(browser, "/articles")
    article(browser, store)
    text = page(browser, "/articles")
    assert MARK not in text
    assert [int(n) for n in re.findall(r"story (\d+)</bdi></a>", text)] == list(range(25))[::-1]
    assert 'href="https://x.org/3" rel="noopener noreferrer"' in text
    assert "javascript:" not in text
    few = page(browser, "/articles?feed=paper&search=line+11")
    assert re.findall(r"story (\d+)</bdi></a>", few) == ["11"]
    assert "No article of wire with “nobody”" in plain(page(browser, "/articles?feed=wire&search=nobody"))
    (href,) = links(few, f"{MARK} story 11") or re.findall(r'<h3><a href="([^"]+)"', few)
    whole = page(browser, html.unescape(href))
    assert "First line of 11." in whole
    assert MARK not in whole
    page(browser, "/articles/text?feed=x&id=y", 404)
