"""The page of the SQL box: what was typed stays, an answer stands below it or is a file, a limit is named."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from dispatch.results import saver, sql
from dispatch.results.base import Store
from dispatch.results.store import ResultStore
from tests.integration.test_table_pages import limit, points
from tests.integration.test_tables_page import plain, rows

__all__ = ["points"]

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Store]:
    limit(settings, read_seconds=60, sql_seconds=30)
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        yield store


@pytest.fixture(autouse=True, scope="module")
def _no_process_stays() -> Iterator[None]:
    yield
    for _ in range(sql.PROCESSES):
        if (process := sql._free.get_nowait()) is not None:
            process.close()
        sql._free.put(None)


def asked(browser: Client, query: str, status: int = 200, **more: str) -> str:
    answer = browser.post("/sql", {"query": query, **more})
    assert answer.status_code == status, answer.content.decode()
    return str(answer.content.decode())


def typed(text: str) -> str:
    (found,) = re.findall(r"<textarea[^>]*>(.*?)</textarea>", text, re.S)
    return html.unescape(found)


def test_tables_stand_beside_an_empty_box_and_nothing_is_run(points: Store, browser: Client) -> None:
    text = browser.get("/sql?query=SELECT+nonsense").content.decode()
    assert typed(text) == "SELECT nonsense"
    assert 'role="alert"' not in text
    names = re.findall(r"<summary><code>(\w+)</code>", text)
    assert names == ["loose", "points", "points_tags", "loose_rows", "points_rows"]
    assert "name VARCHAR day TIMESTAMP x DOUBLE" in plain(text)


def test_an_answer_stands_below_the_statement(points: Store, browser: Client) -> None:
    query = "SELECT name, count(*) AS n,\n max(day) AS last, [1, 2] AS several FROM points GROUP BY name ORDER BY name"
    text = asked(browser, query)
    assert typed(text) == query
    assert [list(map(plain, row)) for row in rows(text)] == [
        ["p0", "13", "2024-01-13", "[1, 2]"],
        ["p1", "12", "2024-01-12", "[1, 2]"],
        ["p2", "12", "2024-01-12", "[1, 2]"],
    ]
    assert re.search(r"3 rows took [\d.]+ ms", plain(text))
    (link,) = re.findall(r'href="(\?query=[^"]+)"', text)
    assert typed(browser.get(f"/sql{html.unescape(link)}").content.decode()) == query


def test_the_answer_as_a_file(points: Store, browser: Client) -> None:
    answer = browser.post("/sql", {"query": "SELECT name, day FROM points", "format": "csv"})
    assert answer["Content-Disposition"] == 'attachment; filename="query.csv"'
    assert len(list(csv.reader(io.StringIO(answer.content.decode())))) == 38
    assert "'x' is not one of" in html.unescape(asked(browser, "SELECT 1", 400, format="x"))


def test_more_rows_than_are_shown_are_said_with_the_setting(points: Store, browser: Client, settings: Any) -> None:
    limit(settings, sql_rows=5)
    text = asked(browser, "SELECT * FROM points")
    assert len(rows(text)) == 5
    assert "the setting sql_rows is 5" in plain(text)


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("SELECT nothing FROM points", 400, "nothing"),
        ("SELECT * FROM nowhere", 400, "there is no table 'nowhere'"),
        ("DELETE FROM points", 400, ""),
        ("   ", 400, "is empty"),
        ("SELECT '\x00'", 400, "NUL"),
        ("SELECT error('</textarea><b>')", 422, "</textarea><b>"),
    ],
)
def test_an_error_keeps_what_was_typed(points: Store, browser: Client, query: str, status: int, said: str) -> None:
    text = asked(browser, query, status)
    (problem,) = re.findall(r'id="problem"><bdi>(.*?)</bdi>', text, re.S)
    assert said in html.unescape(problem)
    assert typed(text).strip() == query.strip()
    assert "<b>" not in text.partition("<textarea")[2].partition("</form>")[0]


def test_a_time_out_keeps_the_text_and_names_the_setting(points: Store, browser: Client, settings: Any) -> None:
    limit(settings, sql_seconds=0.2)
    query = "SELECT count(*) FROM range(100000000) a, range(100000000) b"
    for more in ({}, {"format": "csv"}):
        text = asked(browser, query, 422, **more)
        assert "the setting sql_seconds is 0.2" in plain(text)
        assert typed(text) == query


def test_an_address_from_elsewhere_runs_nothing(points: Store, staff: Any) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(staff)
    assert strict.post("/sql", {"query": "SELECT 1"}).status_code == 403
