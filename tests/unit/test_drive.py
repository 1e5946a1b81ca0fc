"""Work and results in the words of the ``node`` dialect, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import drive
from nodes.messages import read_report
from nodes.protocol import FieldError

symbols = st.sampled_from(["AAPL", "MSFT", "IBM", "GOOG", "000001.SZ"])
dates = st.sampled_from(["2012-01-03", "2012-06-30", "2013-01-02"])
items = st.lists(
    symbols | st.fixed_dictionaries({"symbol": symbols}, optional={"start_date": dates, "end_date": dates}),
    min_size=1,
    max_size=6,
)
params = st.fixed_dictionaries(
    {"source": st.just("sample"), "freq": st.sampled_from(["D", "W"])},
    optional={"start_date": dates, "end_date": dates},
)
prices = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(items, params)
def test_what_is_sent_is_understood_as_it_was_meant(items: list[Any], params: dict[str, Any]) -> None:
    body = json.loads(json.dumps(drive.execute_body("t", "data_import", params, items)))
    assert drive.work_of(body["task_type"], body["task_data"]) == ("data_import", params, items)


@given(
    st.lists(
        st.text() | st.integers() | st.floats(allow_nan=False) | st.dictionaries(st.text(), st.integers(), min_size=1),
        min_size=1,
    ),
    st.integers(0, 9),
)
def test_other_types_travel_as_they_are(items: list[Any], rows: int) -> None:
    body = drive.execute_body("t", "echo", {"rows": rows}, items)
    assert drive.work_of("echo", body["task_data"]) == ("echo", {"rows": rows}, items)


def test_a_foreign_node_finds_the_words_of_the_dialect() -> None:
    items: list[Any] = [
        {"symbol": "AAPL", "start_date": "2012-01-01", "end_date": "2012-01-31"},
        {"symbol": "AAPL", "start_date": "2012-02-01", "end_date": "2012-02-29"},
        {"symbol": "IBM", "start_date": "2012-01-01", "end_date": "2012-01-31"},
    ]
    body = drive.execute_body("t", "data_import", {"source": "sample", "freq": "D"}, items, priority=50, timeout=1.5)
    assert (body["priority"], body["timeout"]) == (10, 10)
    data = body["task_data"]
    assert data["symbols"] == ["AAPL", "IBM"]
    assert (data["data_source"], data["start_date"], data["end_date"]) == ("sample", "2012-01-01", "2012-02-29")


def test_an_open_end_of_one_item_leaves_the_end_of_the_task_open() -> None:
    items: list[Any] = [{"symbol": "AAPL", "end_date": "2012-01-31"}, "IBM"]
    data = drive.execute_body("t", "data_import", {"source": "sample"}, items)["task_data"]
    assert "end_date" not in data
    assert "start_date" not in data


def test_the_words_of_the_dialect_become_ours() -> None:
    data = {"symbols": ["AAPL"], "data_source": "sample", "start_date": "2012-01-03", "end_date": None, "zeal": 1}
    assert drive.work_of("data_import", data) == (
        "data_import",
        {"source": "sample", "start_date": "2012-01-03"},
        ["AAPL"],
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "task_data"),
        ({}, "task_data.symbols"),
        ({"symbols": []}, "task_data.symbols"),
        ({"symbols": [True], "data_source": "sample"}, "task_data.symbols[0]"),
        ({"symbols": ["A"]}, "task_data.data_source"),
        ({"symbols": ["A"], "data_source": "nowhere"}, "task_data.data_source"),
        ({"symbols": ["A"], "data_source": ["sample"]}, "task_data.data_source"),
        ({"items": ["A"], "params": 3}, "task_data.params"),
    ],
)
def test_nonsense_is_refused_by_name(data: Any, field: str) -> None:
    with pytest.raises(FieldError) as error:
        drive.work_of("data_import", data)
    assert error.value.field == field


@st.composite
def import_entries(draw: Any) -> tuple[list[Any], dict[str, Any], list[list[Any]]]:
    """Items, an entry for them with indexes from 0, and its rows."""
    chosen = draw(st.lists(symbols, min_size=1, max_size=5, unique=True))
    ranges: list[list[int]] = []
    errors: list[list[Any]] = []
    rows: list[list[Any]] = []
    for index, symbol in enumerate(chosen):
        if draw(st.booleans()):
            errors.append([index, draw(st.text(max_size=20)), draw(st.booleans())])
            continue
        own = [
            [symbol, f"2012-01-{day:02}T00:00:00", "W", *[draw(prices) for _ in range(5)], "sample"]
            for day in range(1, 1 + draw(st.integers(0, 3)))
        ]
        rows += own
        if ranges and ranges[-1][1] == index:
            ranges[-1][1:] = [index + 1, ranges[-1][2] + len(own)]
        else:
            ranges.append([index, index + 1, len(own)])
    return chosen, {"ranges": ranges, "errors": errors, "log": "said"}, rows


def told(result: dict[str, Any], state: str = "completed") -> dict[str, Any]:
    return json.loads(json.dumps({"status": state, "result": result, "execution_time": 2.5, "error": None}))


@given(import_entries(), st.integers(0, 10**6))
def test_a_result_comes_back_as_the_report_it_was(
    made: tuple[list[Any], dict[str, Any], list[list[Any]]], start: int
) -> None:
    chosen, entry, rows = made
    result = drive.result_of("data_import", {"source": "sample", "freq": "W"}, chosen, entry, rows)
    state = "completed" if entry["ranges"] else "failed"
    back = drive.entry_of(7, "data_import", start, chosen, told(result, state))
    assert back == {
        "allocation": 7,
        "seconds": 2.5,
        "log": "said",
        "ranges": [[start + first, start + last, count] for first, last, count in entry["ranges"]],
        "errors": [[start + index, message, retry] for index, message, retry in entry["errors"]],
        **({"rows": rows} if rows else {}),
    }
    assert read_report({"reports": [back]})[0].rows == len(rows)


@given(import_entries())
def test_a_result_in_pieces_is_the_same_result(made: tuple[list[Any], dict[str, Any], list[list[Any]]]) -> None:
    import tempfile

    chosen, entry, rows = made
    about = {"source": "sample", "freq": "W"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        assert drive.write_result(file, "data_import", about, chosen, entry, [rows[:1], [], rows[1:]]) == ""
        assert json.loads(file.read_text()) == drive.result_of("data_import", about, chosen, entry, rows)


def test_a_result_that_is_too_large_or_no_json_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"ranges": [[0, 1, 1]], "errors": []}
    assert "JSON" in drive.write_result(tmp_path / "a", "echo", {}, ["x"], entry, [[[float("inf")]]])
    monkeypatch.setattr(drive, "RESULT_LIMIT", 100)
    assert "100 bytes" in drive.write_result(tmp_path / "b", "echo", {}, ["x"], entry, [[["x" * 200]]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["crash", "timeout", "error"])
def test_a_failure_keeps_its_kind(kind: str) -> None:
    entry = {"failure": {"kind": kind, "message": "why"}}
    result = drive.result_of("echo", {}, ["a"], entry, [])
    back = drive.entry_of(1, "echo", 0, ["a"], told(result, "failed"))
    assert back == {"allocation": 1, "seconds": 2.5, **entry}


def test_a_foreign_result_is_cut_into_items() -> None:
    record = {"open": 1, "high": 2, "low": 1, "close": 2, "volume": 9}
    result = {
        "symbols_count": 3,
        "imported_count": 2,
        "kdata": [
            {"symbol": "B", "datetime": "2012-01-02 00:00:00", **record},
            {"symbol": "A", "datetime": "2012-02-03T00:00:00+01:00", **record},
            {"symbol": "A", "datetime": "2012-01-03T00:00:00", **record},
        ],
        "errors": {"C": "not found"},
    }
    items: list[Any] = [{"symbol": "A", "end_date": "2012-01-31"}, "B", "C", "D"]
    params = {"source": "far", "freq": "D"}
    entry = drive.entry_of(1, "data_import", 10, items, told(result), params)
    assert entry["ranges"] == [[10, 12, 2]]
    assert entry["errors"] == [[12, "not found", True], [13, "D: the node brought neither rows nor an error", True]]
    assert entry["rows"] == [
        ["A", "2012-01-03T00:00:00", "D", 1, 2, 1, 2, 9, "far"],
        ["B", "2012-01-02T00:00:00", "D", 1, 2, 1, 2, 9, "far"],
    ]


def test_a_symbol_without_rows_is_done_where_the_node_says_that_all_are() -> None:
    result = {"symbols_count": 1, "imported_count": 1, "kdata": []}
    assert drive.entry_of(1, "data_import", 0, ["A"], told(result))["ranges"] == [[0, 1, 0]]


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"status": "completed"},
        {"status": "completed", "result": []},
        {"status": "completed", "result": {"ranges": 3}},
        {"status": "completed", "result": {"kdata": [3]}},
        {"status": "completed", "result": {"ranges": [], "item_errors": [], "kdata": [{}]}},
        {"status": "failed", "error": "no"},
        {"status": "cancelled", "execution_time": None},
        {"status": "running"},
    ],
)
def test_whatever_a_node_says_there_is_an_entry_that_says_why(status: dict[str, Any]) -> None:
    entry = drive.entry_of(1, "data_import", 0, ["A"], status)
    assert entry["failure"]["message"]
    read_report({"reports": [entry]})
