"""``data_import``: what may be asked, how histories are cut, and which rows are kept out."""

from __future__ import annotations

import calendar
import datetime as dt
import re
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import executors
from nodes.executors import data_import
from nodes.executors.base import ItemFailed
from nodes.executors.data_import import DataImport
from nodes.executors.rows import to_table
from nodes.protocol import FieldError

SAMPLE = {"source": "sample"}
HEADER = "date,open,high,low,close,volume\n"
GOOD = "2020-01-02,10,12,9,11,100\n"


def importer(folder, **params):
    return DataImport(DataImport.check({"source": "files", "path": str(folder)} | params))


def imported(folder, text, capsys, item="A", **params):
    (folder / "A.csv").write_text(HEADER + text)
    rows = importer(folder, **params).run(item)
    return rows, capsys.readouterr().out


def test_it_is_registered_with_its_table():
    assert executors.get("data_import") is DataImport
    assert DataImport.dataset.table == "kline"
    assert DataImport.dataset.key == ("symbol", "freq", "datetime")
    assert set(DataImport.dataset.key) <= set(DataImport.dataset.names)


# Params


def test_checked_params_have_defaults_and_the_source_s_own():
    assert DataImport.check(SAMPLE) == {"source": "sample", "freq": "D"}
    checked = DataImport.check({"source": "files", "path": "/x", "start_date": "20200101", "end_date": "2020-01-01"})
    assert checked["path"] == "/x"
    assert checked["start_date"] == checked["end_date"] == "2020-01-01"
    assert DataImport.check(checked) == checked


@pytest.mark.parametrize(
    ("params", "field", "message"),
    [
        ({}, "params.source", "is required"),
        ({"source": "nope"}, "params.source", "'nope' is not one of: akshare, files, sample"),
        ({"source": ["sample"]}, "params.source", "is not a text"),
        (SAMPLE | {"freq": "5min"}, "params.freq", "'5min' is not offered by sample: D"),
        (SAMPLE | {"freq": ""}, "params.freq", "'' is not offered"),
        (SAMPLE | {"path": "/x"}, "params.path", "is not a parameter"),
        (SAMPLE | {"colour": 1}, "params.colour", "end_date, freq, source, start_date"),
        ({"source": "files"}, "params.path", "is required"),
        (SAMPLE | {"start_date": "yesterday"}, "params.start_date", "a date like 2024-01-31"),
        (SAMPLE | {"start_date": 20200101}, "params.start_date", "a date like 2024-01-31"),
        (
            SAMPLE | {"start_date": "2020-01-02", "end_date": "2020-01-01"},
            "params.end_date",
            "2020-01-01 is before start_date, 2020-01-02",
        ),
        ([], "params", "is not an object"),
    ],
)
def test_bad_params_are_refused_by_name(params, field, message):
    with pytest.raises(FieldError) as refusal:
        DataImport.check(params)
    assert refusal.value.field == field
    assert message in refusal.value.message


# Items


@pytest.mark.parametrize(
    "item",
    [
        "AAPL",
        "000001.SZ",
        "BRK B",
        "贵州茅台",
        {"symbol": "AAPL"},
        {"symbol": "AAPL", "start_date": "2020-01-01"},
        {"symbol": "AAPL", "start_date": None, "end_date": "2020-01-01"},
        {"symbol": "AAPL", "start_date": "2020-01-01", "end_date": "2020-01-01"},
    ],
)
def test_a_symbol_with_or_without_a_range_is_an_item(item):
    DataImport.check_item(item)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, "5 is not a symbol such as 'AAPL'"),
        ("", "printable"),
        (" AAPL", "no space"),
        ("A\nB", "printable"),
        ("A\x00", "printable"),
        ("\ud800", "printable"),
        ("A" * 101, "1 to 100"),
        ({}, "is not a symbol"),
        ({"symbol": 5}, "is not a symbol"),
        ({"symbol": "A", "from": "2020-01-01"}, "start_date"),
        ({"symbol": "A", "start_date": "soon"}, "start_date of A: 'soon' is not a date like 2024-01-31"),
        ({"symbol": "A", "end_date": 20200101}, "end_date of A"),
        ({"symbol": "A", "start_date": "2020-01-02", "end_date": "2020-01-01"}, "before its start_date"),
    ],
)
def test_what_can_never_be_imported_is_refused_with_a_hint(item, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        DataImport.check_item(item)
    assert str(refusal.value).isprintable()


# Splitting

DATES = st.dates(dt.date(1950, 1, 1), dt.date(2100, 12, 31))


def days(item):
    start, end = dt.date.fromisoformat(item["start_date"]), dt.date.fromisoformat(item["end_date"])
    return [start + dt.timedelta(days=number) for number in range((end - start).days + 1)]


@given(st.tuples(DATES, DATES).map(sorted), st.sampled_from(["year", "month"]), st.booleans())
def test_pieces_cover_every_day_of_the_range_exactly_once(ends, split, own):
    dates = {"start_date": ends[0].isoformat(), "end_date": ends[1].isoformat()}
    item = {"symbol": "AAPL", **dates} if own else "AAPL"
    pieces: list = DataImport.expand([item], SAMPLE if own else SAMPLE | dates, split)
    covered = [day for piece in pieces for day in days(piece)]
    assert covered == days(dates)
    assert {piece["symbol"] for piece in pieces} == {"AAPL"}
    for piece in pieces:
        DataImport.check_item(piece)
        span = days(piece)
        assert len({(day.year, day.month if split == "month" else 0) for day in span}) == 1
    for earlier, later in pairwise(pieces):
        last, first = days(earlier)[-1], days(later)[0]
        assert first.day == 1
        assert last.day == calendar.monthrange(last.year, last.month)[1]


def test_the_ends_of_the_calendar_can_be_split():
    pieces = DataImport.expand(["AAPL"], SAMPLE | {"start_date": "0001-01-01", "end_date": "9999-12-31"}, "year")
    assert len(pieces) == 9999
    assert pieces[-1] == {"symbol": "AAPL", "start_date": "9999-01-01", "end_date": "9999-12-31"}


def test_what_the_source_knows_of_a_symbol_is_its_range():
    assert DataImport.expand(["FB"], SAMPLE, "year") == [
        {"symbol": "FB", "start_date": "2012-05-18", "end_date": "2012-12-31"},
        {"symbol": "FB", "start_date": "2013-01-01", "end_date": "2013-03-01"},
    ]


def test_an_item_s_own_dates_go_before_those_of_params_and_params_before_the_source_s():
    items: list = ["FB", {"symbol": "FB", "start_date": "2013-02-01"}]
    assert DataImport.expand(items, SAMPLE | {"start_date": "2013-01-15"}, "month") == [
        {"symbol": "FB", "start_date": "2013-01-15", "end_date": "2013-01-31"},
        {"symbol": "FB", "start_date": "2013-02-01", "end_date": "2013-02-28"},
        {"symbol": "FB", "start_date": "2013-03-01", "end_date": "2013-03-01"},
        {"symbol": "FB", "start_date": "2013-02-01", "end_date": "2013-02-28"},
        {"symbol": "FB", "start_date": "2013-03-01", "end_date": "2013-03-01"},
    ]


@pytest.mark.parametrize(
    ("item", "params"),
    [
        ("NOPE", SAMPLE),
        ("NOPE", SAMPLE | {"start_date": "2000-01-01", "end_date": "2010-01-01"}),
        ("FB", SAMPLE | {"start_date": "2020-01-01"}),
    ],
)
def test_an_item_the_source_has_nothing_for_stays_whole_so_that_its_run_says_so(item, params):
    assert DataImport.expand([item], params, "year") == [item]


def test_an_unknown_range_is_refused_with_what_to_give(tmp_path):
    (tmp_path / "A.csv").write_text(HEADER + GOOD)
    params = {"source": "files", "path": str(tmp_path), "start_date": "2020-01-01"}
    with pytest.raises(FieldError, match=r"'A' cannot be split .*params\.start_date and params\.end_date") as refusal:
        DataImport.expand(["A"], params, "year")
    assert refusal.value.field == "split"
    assert len(DataImport.expand(["A"], params | {"end_date": "2021-01-01"}, "year")) == 2


@pytest.mark.parametrize("split", ["", "week", "\ud800"])
def test_an_unknown_split_is_refused_with_the_known_ones(split):
    with pytest.raises(FieldError, match="year, month"):
        DataImport.expand(["AAPL"], SAMPLE, split)


def test_a_range_of_item_and_params_together_that_is_empty_is_refused():
    item = {"symbol": "AAPL", "start_date": "2020-01-01"}
    params = DataImport.check(SAMPLE | {"end_date": "2019-01-01"})
    with pytest.raises(FieldError, match=r"items\[1\]: the range of AAPL"):
        DataImport.expand(["FB", item], params, "year")
    with pytest.raises(ItemFailed, match="the range of AAPL") as failure:
        DataImport(params).run(item)
    assert not failure.value.retry


def test_a_split_into_more_items_than_memory_should_hold_is_refused(monkeypatch):
    monkeypatch.setattr(data_import, "PIECES_LIMIT", 12)
    params = SAMPLE | {"start_date": "2010-01-01", "end_date": "2010-12-31"}
    assert len(DataImport.expand(["AAPL"], params, "month")) == 12
    with pytest.raises(FieldError, match="'month' would make more than 12 items"):
        DataImport.expand(["AAPL", "IBM"], params, "month")


# Rows


def test_rows_have_the_dataset_s_columns_and_types(tmp_path, capsys):
    rows, log = imported(tmp_path, GOOD, capsys)
    assert list(rows.columns) == list(DataImport.dataset.names)
    assert to_table(DataImport.dataset, rows).to_pylist() == [
        {
            "symbol": "A",
            "datetime": dt.datetime(2020, 1, 2),
            "freq": "D",
            "open": 10.0,
            "high": 12.0,
            "low": 9.0,
            "close": 11.0,
            "volume": 100.0,
            "data_source": "files",
        }
    ]
    assert log == ""


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("2020-01-03,10,9,12,10,1", "high below low"),
        ("2020-01-03,12.01,12,9,11,1", "open outside low to high"),
        ("2020-01-03,8.99,12,9,11,1", "open outside low to high"),
        ("2020-01-03,10,12,9,12.000000001,1", "close outside low to high"),
        ("2020-01-03,10,12,9,8,1", "close outside low to high"),
        ("2020-01-03,10,12,9,11,-1", "negative volume"),
        ("2020-01-03,10,12,9,11,inf", "a volume that is missing or not finite"),
        ("2020-01-03,10,12,9,11,many", "a volume that is missing or not finite"),
        ("2020-01-03,,12,9,11,1", "a price that is missing or not finite"),
        ("2020-01-03,10,inf,9,11,1", "a price that is missing or not finite"),
        ("2020-01-03,10,12,-inf,11,1", "a price that is missing or not finite"),
        ("2020-01-03,10,12,9,eleven,1", "a price that is missing or not finite"),
    ],
)
def test_a_row_that_cannot_be_a_bar_is_kept_out_counted_and_named(tmp_path, capsys, row, fault):
    rows, log = imported(tmp_path, GOOD + row + "\n", capsys)
    assert [str(date) for date in rows["datetime"]] == ["2020-01-02 00:00:00"]
    assert log == f"A: kept out 1 with {fault}: 2020-01-03\n"


@pytest.mark.parametrize("date", ["", "2020-13-01", "never", "2020-02-30"])
def test_a_row_without_a_date_is_kept_out_and_counted(tmp_path, capsys, date):
    rows, log = imported(tmp_path, f"{GOOD}{date},10,12,9,11,100\n", capsys)
    assert len(rows) == 1
    assert log == "A: kept out 1 with no date\n"


def test_a_row_without_a_date_is_named_by_one_piece_of_a_split_history_only(tmp_path, capsys):
    text = "2019-05-01,10,12,9,11,1\n,10,12,9,11,1\n2020-05-01,10,12,9,11,1\n2021-05-01,10,12,9,11,1\n"
    logs = []
    for year in (2018, 2019, 2020, 2021, 2022):
        item = {"symbol": "A", "start_date": f"{year}-01-01", "end_date": f"{year}-12-31"}
        logs.append(imported(tmp_path, text, capsys, item)[1])
    assert [year for year, log in enumerate(logs, 2018) if "no date" in log] == [2019]


def test_where_no_row_has_a_date_every_range_fails_and_says_so(tmp_path, capsys):
    item = {"symbol": "A", "start_date": "2020-01-01", "end_date": "2020-12-31"}
    with pytest.raises(ItemFailed, match="A: none of 2 rows is a bar: 2 with no date"):
        imported(tmp_path, ",10,12,9,11,1\n,10,12,9,11,1\n", capsys, item)


def test_a_year_that_no_reader_could_show_costs_its_row_only(tmp_path, capsys):
    far = pa.array([0, 2**60], pa.timestamp("us"))
    prices = {name: [1.0, 1.0] for name in ("open", "high", "low", "close", "volume")}
    pq.write_table(pa.table({"date": far} | prices), tmp_path / "A.parquet")
    rows = importer(tmp_path).run("A")
    assert to_table(DataImport.dataset, rows)["datetime"].to_pylist() == [dt.datetime(1970, 1, 1)]
    assert "A: kept out 1 with a year outside 1 to 9999" in capsys.readouterr().out


def test_bars_at_the_very_edge_are_bars(tmp_path, capsys):
    text = "2020-01-02,5,5,5,5,0\n2020-01-03,-37.63,-30,-40,-40,1\n2020-01-06,9,12,9,12,1\n"
    rows, log = imported(tmp_path, text, capsys)
    assert (len(rows), log) == (3, "")


def test_each_reason_is_one_line_with_its_count_and_the_first_dates(tmp_path, capsys):
    text = GOOD + "".join(f"2020-02-{day:02},10,9,12,10,1\n" for day in range(1, 6)) + "2020-03-01,10,12,9,11,-5\n"
    rows, log = imported(tmp_path, text, capsys)
    assert len(rows) == 1
    assert log.splitlines() == [
        "A: kept out 5 with high below low: 2020-02-01, 2020-02-02, 2020-02-03, …",
        "A: kept out 1 with negative volume: 2020-03-01",
    ]


def test_where_no_row_is_a_bar_the_item_fails_and_says_why(tmp_path, capsys):
    text = "2020-01-02,10,9,12,10,1\n2020-01-03,10,12,9,11,-1\n"
    with pytest.raises(ItemFailed) as failure:
        imported(tmp_path, text, capsys)
    assert str(failure.value) == (
        "A: none of 2 rows is a bar: 1 with high below low: 2020-01-02; 1 with negative volume: 2020-01-03"
    )
    assert not failure.value.retry


def test_of_rows_with_one_datetime_the_last_is_kept_and_the_log_says_so(tmp_path, capsys):
    text = "2020-01-03,1,1,1,1,1\n2020-01-02,2,2,2,2,2\n2020-01-03,3,3,3,3,3\n"
    rows, log = imported(tmp_path, text, capsys)
    assert list(rows["close"]) == [2.0, 3.0]
    assert log == "A: 1 rows replaced by a later one with the same datetime: 2020-01-03\n"


def test_a_bad_row_does_not_replace_a_good_one_with_its_datetime(tmp_path, capsys):
    rows, _ = imported(tmp_path, GOOD + "2020-01-02,10,9,12,11,1\n", capsys)
    assert list(rows["close"]) == [11.0]


def test_rows_come_oldest_first_whatever_the_file_s_order(tmp_path, capsys):
    rows, _ = imported(tmp_path, "2020-01-06,1,1,1,1,1\n2020-01-03,1,1,1,1,1\n2020-01-02,1,1,1,1,1\n", capsys)
    assert rows["datetime"].is_monotonic_increasing
    assert list(rows.index) == [0, 1, 2]


def test_an_empty_range_gives_no_rows_and_a_line_in_the_log(tmp_path, capsys):
    item = {"symbol": "A", "start_date": "2021-01-01", "end_date": "2021-12-31"}
    assert imported(tmp_path, GOOD, capsys, item) == (None, "A: no bars from 2021-01-01 to 2021-12-31\n")


def test_the_range_of_params_bounds_an_item_without_its_own(tmp_path, capsys):
    text = "".join(f"2020-01-{day:02},1,1,1,1,1\n" for day in range(1, 11))
    rows, _ = imported(tmp_path, text, capsys, start_date="2020-01-03", end_date="2020-01-05")
    assert [date.day for date in rows["datetime"]] == [3, 4, 5]
    rows, _ = imported(tmp_path, text, capsys, {"symbol": "A", "start_date": "2020-01-05"}, start_date="2020-01-09")
    assert [date.day for date in rows["datetime"]] == [5, 6, 7, 8, 9, 10]


def test_the_last_day_of_a_range_is_whole_for_intraday_bars(tmp_path, capsys):
    text = "2020-01-02 15:59,1,1,1,1,1\n2020-01-03 00:00,1,1,1,1,1\n"
    item = {"symbol": "A", "end_date": "2020-01-02"}
    rows, _ = imported(tmp_path, text, capsys, item, freq="1min")
    assert [str(date) for date in rows["datetime"]] == ["2020-01-02 15:59:00"]
    assert set(rows["freq"]) == {"1min"}
