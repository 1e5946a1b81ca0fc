"""``files``: which file holds a symbol, what its columns and dates may look like, and how each failure reads."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import io
import os
import random
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pandas as pd
import pytest

from nodes import providers, surroundings
from nodes.executors.base import ItemFailed, check_params
from nodes.executors.data_import import DataImport
from nodes.protocol import FieldError
from nodes.providers.files import Files
from nodes.providers.tables import FIELDS, FREQS
from nodes.surroundings import Surroundings

HEADER = "date,open,high,low,close,volume\n"


def text_of(close, day=2):
    return f"{HEADER}2020-01-{day:02},1,{close},1,{close},5\n"


def provider(path, **params):
    checked = check_params(Files.params, {"path": str(path)} | params)
    Files.check(checked)
    return Files(checked)


def bars(path, symbol="A", freq="D", **params):
    return provider(path, **params).bars(symbol, freq, None, None)


def closes(path, symbol="A", **params):
    return list(bars(path, symbol, **params)["close"])


def dates(path, freq="D", **params):
    return [str(date) for date in bars(path, freq=freq, **params)["datetime"]]


def refusal(path, symbol="A", freq="D", **params):
    with pytest.raises(ItemFailed) as failure:
        bars(path, symbol, freq, **params)
    return failure.value


class Web(ThreadingHTTPServer):
    """A web server on loopback: ``answers`` maps a path to (status, headers, body); ``asked`` lists raw paths."""

    answers: dict[str, tuple[int, dict[str, str], bytes]]
    asked: list[str]
    heard: Callable[[BaseHTTPRequestHandler], None] = staticmethod(lambda request: None)
    url: str


@pytest.fixture
def loopback():
    """Its addresses may be fetched from."""
    before = surroundings.current()
    surroundings.settle(Surroundings(allowed_networks=("127.0.0.0/8", "::1/128")))
    yield
    surroundings.settle(before)


@pytest.fixture
def web(loopback):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            server.heard(self)
            status, headers, body = server.answers.get(unquote(self.path), (404, {}, b"none"))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader may have had enough
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = Web(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_is_registered():
    assert providers.get("files") is Files


# Which file


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_folder_has_one_file_for_each_symbol(tmp_path, suffix):
    for symbol, close in (("A", 3), ("B", 4)):
        file = tmp_path / f"{symbol}{suffix}"
        if suffix == ".parquet":
            pd.DataFrame(
                {"date": ["2020-01-02"], "open": [1], "high": [close], "low": [1], "close": [close], "volume": [5]}
            ).to_parquet(file)
        else:
            content = text_of(close).encode()
            file.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    source = provider(tmp_path)
    assert source.symbols() == ["A", "B"]
    for symbol, close in (("A", 3), ("B", 4)):
        frame = source.bars(symbol, "D", None, None)
        assert frame.to_dict("records") == [
            {"datetime": pd.Timestamp(2020, 1, 2), "open": 1, "high": close, "low": 1, "close": close, "volume": 5}
        ]
        assert tuple(frame.columns) == FIELDS
        assert str(frame["datetime"].dtype) == "datetime64[us]"
        assert set(frame.dtypes.astype(str)[1:]) == {"float64"}


def test_a_symbol_with_a_dot_keeps_it(tmp_path):
    (tmp_path / "000001.SZ.csv").write_text(text_of(3))
    assert provider(tmp_path).symbols() == ["000001.SZ"]
    assert closes(tmp_path, "000001.SZ") == closes(tmp_path / "*.csv", "000001.SZ") == [3.0]


def test_a_folder_with_two_files_for_one_symbol_is_not_guessed_about(tmp_path):
    (tmp_path / "A.csv").write_text(text_of(3))
    (tmp_path / "A.csv.gz").write_bytes(gzip.compress(text_of(4).encode()))
    assert "A.csv and A.csv.gz: give a glob" in str(refusal(tmp_path))
    assert closes(tmp_path / "*.csv") == [3.0]


def test_a_path_with_symbol_in_it_leads_to_the_file(tmp_path):
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "daily-A.txt").write_text(text_of(3))
    assert closes(tmp_path / "{symbol}" / "daily-{symbol}.txt") == [3.0]
    assert closes(tmp_path / "{symbol}" / "*.txt") == [3.0]
    (tmp_path / "x-B.csv").write_text(text_of(4))
    assert provider(tmp_path / "x-{symbol}.csv").symbols() == ["B"]


def test_a_glob_joins_all_files_of_a_symbol(tmp_path):
    for year, close in ((2020, 3), (2021, 4)):
        (tmp_path / str(year)).mkdir()
        (tmp_path / str(year) / "A.csv").write_text(text_of(close))
        (tmp_path / str(year) / f"B-{year}.csv").write_text(text_of(close + 2))
    assert closes(tmp_path / "**" / "*.csv") == [3.0, 4.0]
    assert closes(tmp_path / "*" / "{symbol}-*.csv", "B") == [5.0, 6.0]


def test_one_file_is_its_symbol_s(tmp_path):
    (tmp_path / "A.csv").write_text(text_of(3))
    assert closes(tmp_path / "A.csv") == [3.0]
    assert "no file for 'B'" in str(refusal(tmp_path / "A.csv", "B"))


@pytest.mark.parametrize("layout", ["data.csv", "*.csv", ""])
def test_a_column_may_name_the_symbol_whatever_its_letters(tmp_path, layout):
    (tmp_path / "data.csv").write_text(
        "Ticker,date,open,high,low,close,volume\n"
        "NA,2020-01-02,1,3,1,3,5\nBRK/B,2020-01-02,1,4,1,4,5\n007,2020-01-02,1,6,1,6,5\nNA,2020-01-03,1,5,1,5,5\n"
    )
    source = provider(tmp_path / layout, symbol_column="ticker")
    for symbol, expected in (("NA", [3.0, 5.0]), ("BRK/B", [4.0]), ("007", [6.0])):
        assert list(source.bars(symbol, "D", None, None)["close"]) == expected
    with pytest.raises(ItemFailed, match="'7' is not in column 'ticker'"):
        source.bars("7", "D", None, None)


def test_a_column_may_name_the_symbol_in_parquet(tmp_path):
    frame = pd.read_csv(io.StringIO(text_of(3) + "2020-01-03,1,4,1,4,5\n"))
    frame.assign(code=pd.Categorical(["A", "B"])).to_parquet(tmp_path / "all.parquet")
    assert closes(tmp_path / "all.parquet", "B", symbol_column="code") == [4.0]
    for codes, symbol in ((["A", None], "A"), ([7, None], "7")):
        frame.assign(code=pd.array(codes, dtype="Int64" if symbol == "7" else "str")).to_parquet(
            tmp_path / "all.parquet"
        )
        source = provider(tmp_path / "all.parquet", symbol_column="code")
        assert list(source.bars(symbol, "D", None, None)["close"]) == [3.0]
        for nobody in ("", "None", "nan", "<NA>"):
            with pytest.raises(ItemFailed, match="is not in column 'code'"):
                source.bars(nobody, "D", None, None)


@pytest.mark.parametrize("symbol", ["../A", "..", ".", "a/b", "a\\b", "/etc/passwd", "A\x00", "", "a..b"])
@pytest.mark.parametrize("layout", ["inner", "inner/*.csv", "inner/{symbol}.csv", "http://127.0.0.1:9/{symbol}"])
def test_a_symbol_never_leads_out_of_its_place(tmp_path, symbol, layout):
    (tmp_path / "inner").mkdir()
    (tmp_path / "A.csv").write_text(text_of(3))
    (tmp_path / "inner" / "B.csv").write_text(text_of(3))
    failure = refusal(layout if layout.startswith("http") else tmp_path / layout, symbol)
    assert "cannot be part of a path" in str(failure)
    assert not failure.retry


@pytest.mark.parametrize("symbol", ["*", "?", "[A]", "A*"])
@pytest.mark.parametrize("layout", ["", "*.csv", "{symbol}.csv", "*/{symbol}.csv"])
def test_a_symbol_is_no_pattern(tmp_path, symbol, layout):
    (tmp_path / "A.csv").write_text(text_of(3))
    assert f"no file for {symbol!r}" in str(refusal(tmp_path / layout, symbol))


@pytest.mark.parametrize("symbol", ["NOPE", "x" * 5000])
def test_a_missing_file_fails_for_good_and_says_where_it_was_looked_for(tmp_path, symbol):
    failure = refusal(tmp_path, symbol)
    assert str(tmp_path) in str(failure)
    assert not failure.retry


def test_a_missing_folder_is_named(tmp_path):
    failure = refusal(tmp_path / "nowhere")
    assert str(failure) == f"{tmp_path / 'nowhere'} is neither a file nor a folder on this node"
    assert not failure.retry


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "A.csv")
    assert "no file for 'A'" in str(refusal(tmp_path))
    assert "neither a file nor a folder" in str(refusal("/dev/zero", "zero"))


def test_a_file_is_read_again_once_it_changed(tmp_path):
    source = provider(tmp_path)
    for close in (3, 14, 5):
        (tmp_path / "A.csv").write_text(text_of(close))
        os.utime(tmp_path / "A.csv", (close, close))
        assert list(source.bars("A", "D", None, None)["close"]) == [close]


def test_one_file_is_parsed_once_in_a_process_for_all_its_symbols(tmp_path):
    file = tmp_path / "all.csv"
    text = "code," + HEADER + "A,2020-01-02,1,3,1,3,5\nB,2020-01-02,1,4,1,4,5\n"
    file.write_text(text)
    assert closes(file, "A", symbol_column="code") == [3.0]
    # Changed so that nobody can see it: whoever read it again would see it.
    stat = file.stat()
    file.write_text(text.replace(",4,5", ",2,5"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert closes(file, "B", symbol_column="code") == [4.0]


# Columns


@pytest.mark.parametrize(
    "header",
    [
        "Date,Open,High,Low,Close,Volume",
        "\ufeffTRADE_DATE,OPEN,HIGH,LOW,CLOSE,VOL",
        "<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>",
        " timestamp , o , h , l , c , v ",
        '"Trade Date","Open Price","High Price","Low Price","Close Price","Trade Volume"',
        "日期,开盘,最高,最低,收盘,成交量",
        ",open,high,low,close,volume",
    ],
)
def test_common_names_of_columns_are_understood(tmp_path, header):
    (tmp_path / "A.csv").write_text(f"{header}\n2020-01-02,2,4,1,3,5\n", encoding="utf-8")
    assert bars(tmp_path).iloc[0].tolist() == [pd.Timestamp(2020, 1, 2), 2, 4, 1, 3, 5]


def test_other_columns_and_their_order_do_not_matter(tmp_path):
    (tmp_path / "A.csv").write_text('Adj Close,Close,Low,High,Open,Volume,Name,Date\n9,3,1,4,2,5,"x, y",2020-01-02\n')
    assert bars(tmp_path).iloc[0].tolist() == [pd.Timestamp(2020, 1, 2), 2, 4, 1, 3, 5]


def test_columns_maps_our_names_to_the_file_s_before_any_guess(tmp_path):
    (tmp_path / "A.csv").write_text("Date,Open,High,Low,Close,Adj Close\n2020-01-02,2,4,1,3,2.5\n")
    assert closes(tmp_path, columns={"close": "adj close"}) == [2.5]
    assert closes(tmp_path, columns={"close": "Adj Close", "volume": "Open"}) == [2.5]


def test_of_two_names_that_would_do_the_better_one_is_taken(tmp_path):
    (tmp_path / "A.csv").write_text("time,datetime,c,Close,CLOSE,o,h,l\nx,2020-01-02,9,3,8,1,4,1\n")
    assert closes(tmp_path) == [3.0]
    assert dates(tmp_path) == ["2020-01-02 00:00:00"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_missing_columns_are_named_beside_those_that_are_there(tmp_path, suffix):
    frame = pd.DataFrame({"Date": ["2020-01-02"], "First": [1], "High": [2], "Final": [2], "Low": [1]})
    if suffix == ".csv":
        frame.to_csv(tmp_path / "A.csv", index=False)
    else:
        frame.to_parquet(tmp_path / "A.parquet")
    failure = refusal(tmp_path)
    assert "A" + suffix in str(failure)
    assert "lacks columns: open, close; it has: 'Date', 'First', 'High', 'Final', 'Low'." in str(failure)
    assert not failure.retry
    assert "lacks columns: Last;" in str(refusal(tmp_path, columns={"open": "First", "close": "Last"}))
    assert "lacks columns: open, close, Vol;" in str(refusal(tmp_path, columns={"volume": "Vol"}))
    assert closes(tmp_path, columns={"open": "First", "close": "Final"}) == [2.0]


def test_without_a_column_of_volume_it_counts_as_zero_and_the_log_says_so(tmp_path, capsys):
    (tmp_path / "A.csv").write_text("date,open,high,low,close\n2020-01-02,1,3,1,3\n2020-01-03,1,3,1,3\n")
    assert list(bars(tmp_path)["volume"]) == [0.0, 0.0]
    assert capsys.readouterr().out == "A: 2 of 2 rows have no volume in the file; taken as 0\n"


def test_a_blank_volume_counts_as_zero_and_one_that_is_no_number_does_not(tmp_path, capsys):
    (tmp_path / "A.csv").write_text(
        f"{HEADER}2020-01-02,1,3,1,3,\n2020-01-03,1,3,1,3,1.2M\n2020-01-06,1,3,1,3,NaN\n2020-01-07,1,3,1,3,7\n"
    )
    assert list(bars(tmp_path)["volume"]) == [0.0, float("inf"), 0.0, 7.0]
    assert "2 of 4 rows" in capsys.readouterr().out


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_first_line_or_given(tmp_path, delimiter):
    (tmp_path / "A.csv").write_text(text_of(3).replace(",", delimiter))
    assert closes(tmp_path) == closes(tmp_path, delimiter=delimiter) == [3.0]


def test_another_encoding_is_given_and_a_wrong_one_is_named(tmp_path):
    (tmp_path / "A.csv").write_text("日期,开盘,最高,最低,收盘\n2020-01-02,1,3,1,3\n", encoding="gb18030")
    assert closes(tmp_path, encoding="gb18030") == [3.0]
    assert "A.csv is not utf-8" in str(refusal(tmp_path))


def test_prices_keep_every_digit(tmp_path):
    random.seed(7)
    prices = [random.random() * 10 ** random.randint(-8, 9) for _ in range(5000)] + [0.1, 1 / 3, 5e-324, 1e308]
    (tmp_path / "A.csv").write_text(HEADER + "".join(f"2020-01-02,{p!r},{p!r},{p!r},{p!r},1\n" for p in prices))
    assert closes(tmp_path) == prices
    (tmp_path / "A.csv").write_text(HEADER + "".join(f"2020-01-02,{p!r},{p!r},{p!r},{p!r},x\n" for p in prices))
    assert closes(tmp_path) == prices


def test_every_price_a_bar_of_the_sample_has_survives_a_csv_and_a_parquet_file(tmp_path):
    rows = DataImport(DataImport.check({"source": "sample"})).run("IBM").drop(columns=["data_source", "freq", "symbol"])
    rows.to_csv(tmp_path / "IBM.csv", index=False)
    rows.set_index("datetime").to_parquet(tmp_path / "IBM.parquet")
    for pattern in ("*.csv", "*.parquet"):
        pd.testing.assert_frame_equal(bars(tmp_path / pattern, "IBM"), rows)


# Dates


@pytest.mark.parametrize(
    "text",
    [
        *("2020-01-02", "2020/01/02", "2020/1/2", "2020.01.02", "2020年1月2日", "20200102", "2020-01-02 00:00:00"),
        *("2020-01-02T00:00:00.000", "2020-01-02 00:00:00+08:00", "2020-01-02T00:00:00Z", "2020-01-02 00:00:00-05:00"),
        *("1577923200", "1577923200000", "1577923200000000", "1577923200.0"),
    ],
)
def test_a_day_may_be_written_in_many_ways(tmp_path, text):
    (tmp_path / "A.csv").write_text(f"{HEADER}{text},1,3,1,3,5\n")
    assert dates(tmp_path) == ["2020-01-02 00:00:00"]


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2020-01-02 09:30", "2020-01-02 09:30:00"),
        ("2020/01/02 09:30:15", "2020-01-02 09:30:15"),
        ("2020-01-02T09:30:00.250", "2020-01-02 09:30:00.250000"),
        ("2020-01-02 09:30:00-05:00", "2020-01-02 14:30:00"),
        ("2020-01-02 04:30:00+08:00", "2020-01-01 20:30:00"),
        ("2020-01-02T09:30:00Z", "2020-01-02 09:30:00"),
        ("202001020930", "2020-01-02 09:30:00"),
        ("20200102093015", "2020-01-02 09:30:15"),
        ("1577957400", "2020-01-02 09:30:00"),
        ("1577957400250", "2020-01-02 09:30:00.250000"),
    ],
)
def test_a_time_becomes_utc_without_a_zone(tmp_path, text, utc):
    (tmp_path / "A.csv").write_text(f"{HEADER}{text},1,3,1,3,5\n")
    assert dates(tmp_path, "1min") == [utc]


def test_offsets_that_change_with_the_season_are_read(tmp_path):
    (tmp_path / "A.csv").write_text(
        f"{HEADER}2020-03-06 16:00:00-05:00,1,3,1,3,5\n2020-03-09 16:00:00-04:00,1,3,1,3,5\n"
    )
    assert dates(tmp_path, "60min") == ["2020-03-06 21:00:00", "2020-03-09 20:00:00"]
    assert dates(tmp_path) == ["2020-03-06 16:00:00", "2020-03-09 16:00:00"]


@pytest.mark.parametrize(("day", "time"), [("2020.01.02", "09:30"), ("20200102", "09:30:00")])
def test_day_and_time_of_day_may_be_two_columns(tmp_path, day, time):
    (tmp_path / "A.csv").write_text(
        f"<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>\n{day},{time},1,3,1,3,5\n{day},09:31,1,3,1,3,5\n"
    )
    assert dates(tmp_path, "1min") == ["2020-01-02 09:30:00", "2020-01-02 09:31:00"]
    assert dates(tmp_path)[0] == "2020-01-02 00:00:00"


def test_a_date_format_says_which_is_the_day(tmp_path):
    (tmp_path / "A.csv").write_text(f"{HEADER}03/02/2020,1,3,1,3,5\nnever,1,3,1,3,5\n")
    assert dates(tmp_path, date_format="%d/%m/%Y") == ["2020-02-03 00:00:00", "NaT"]
    assert dates(tmp_path, date_format="%m/%d/%Y") == ["2020-03-02 00:00:00", "NaT"]
    assert "'03/02/2020' is not a date in ISO 8601; say with params.date_format" in str(refusal(tmp_path))


def test_a_date_that_cannot_be_read_among_others_is_none(tmp_path):
    (tmp_path / "A.csv").write_text(f"{HEADER}2020-01-02,1,3,1,3,5\n,1,3,1,3,5\n2020-02-31,1,3,1,3,5\n")
    assert dates(tmp_path) == ["2020-01-02 00:00:00", "NaT", "NaT"]


@pytest.mark.parametrize(
    ("stamps", "freq", "expected"),
    [
        ([dt.date(2020, 1, 2)], "D", "2020-01-02 00:00:00"),
        (pd.to_datetime(["2020-01-02 09:30"]).astype("datetime64[ns]"), "1min", "2020-01-02 09:30:00"),
        (pd.to_datetime(["2020-01-02"]).tz_localize("Asia/Shanghai"), "D", "2020-01-02 00:00:00"),
        (pd.to_datetime(["2020-01-02"]).tz_localize("Asia/Shanghai"), "60min", "2020-01-01 16:00:00"),
        (["2020-01-02"], "D", "2020-01-02 00:00:00"),
        (pd.Series(["2020-01-02"], dtype="category"), "D", "2020-01-02 00:00:00"),
        ([20200102], "D", "2020-01-02 00:00:00"),
        ([1577923200000], "D", "2020-01-02 00:00:00"),
    ],
)
def test_parquet_s_own_dates_times_texts_and_numbers_are_read(tmp_path, stamps, freq, expected):
    frame = pd.DataFrame({"Date": stamps, "Open": [1.0], "High": [3.0], "Low": [1.0], "Close": [3.0]})
    frame.to_parquet(tmp_path / "A.parquet")
    assert dates(tmp_path, freq) == [expected]


@pytest.mark.parametrize("name", ["Date", None])
def test_a_dataframe_s_index_in_parquet_is_the_date(tmp_path, name):
    index = pd.DatetimeIndex(["2020-01-02"], name=name)
    pd.DataFrame({"Open": [1], "High": [3], "Low": [1], "Close": [3]}, index=index).to_parquet(tmp_path / "A.parquet")
    assert dates(tmp_path) == ["2020-01-02 00:00:00"]


# Files that are not what they should be


@pytest.mark.parametrize("tail", [",", ",extra", ",,,"])
def test_rows_longer_than_the_first_line_keep_their_columns(tmp_path, tail):
    (tmp_path / "A.csv").write_text(f"{HEADER}2020-01-02,1,3,1,3,5{tail}\n2020-01-03,1,4,1,4,5{tail}\n")
    assert closes(tmp_path) == [3.0, 4.0]
    assert dates(tmp_path) == ["2020-01-02 00:00:00", "2020-01-03 00:00:00"]


def test_a_row_that_is_cut_short_has_no_price(tmp_path):
    (tmp_path / "A.csv").write_text(f"{HEADER}2020-01-02,1,3,1,3,5\n2020-01-03,1,4\n2020")
    frame = bars(tmp_path)
    assert frame["low"].isna().tolist() == [False, True, True]
    assert frame["close"].isna().tolist() == [False, True, True]


@pytest.mark.parametrize("content", [HEADER.encode(), (HEADER + "\n\n").encode()])
def test_a_file_without_rows_has_no_bars(tmp_path, content):
    (tmp_path / "A.csv").write_bytes(content)
    assert bars(tmp_path).empty


def test_a_parquet_file_without_rows_has_no_bars(tmp_path):
    pd.DataFrame(dict.fromkeys(("date", "open", "high", "low", "close"), pd.Series(dtype="float64"))).to_parquet(
        tmp_path / "A.parquet"
    )
    assert bars(tmp_path).empty


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("A.csv", b"", "lacks columns"),
        ("A.csv", b"<!doctype html><title>Sign in</title>", "it has: '<!doctype html>"),
        ("A.csv", b"\xff\xfe\x00garbage", "is not utf-8"),
        ("A.csv", HEADER.encode() + b'2020-01-02,"1,3,1,3,5\n', "cannot be read as CSV"),
        ("A.csv.gz", gzip.compress(HEADER.encode())[:-9], "is not a whole gzip file"),
        ("A.csv.gz", b"\x1f\x8bnonsense", "is not a whole gzip file"),
        ("A.parquet", b"PAR1 and nothing else PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_damaged_file_fails_for_good_with_its_name_and_the_cause(tmp_path, name, content, cause):
    (tmp_path / name).write_bytes(content)
    failure = refusal(tmp_path)
    assert str(tmp_path / name) in str(failure)
    assert cause in str(failure)
    assert not failure.retry


@pytest.mark.parametrize("name", ["A.csv", "A.csv.gz", "A.parquet"])
def test_a_file_above_the_limit_is_refused_also_when_it_is_small_until_unpacked(tmp_path, name):
    rows = 20_000
    frame = pd.DataFrame(
        {"date": ["2020-01-02"] * rows} | dict.fromkeys(("open", "high", "low", "close"), [1.5] * rows)
    )
    if name == "A.parquet":
        frame.to_parquet(tmp_path / name)
    else:
        frame.to_csv(tmp_path / name, index=False)
    if name != "A.csv":
        assert (tmp_path / name).stat().st_size < 10_000
    assert "more than 0.1 MiB, or unpacks to more: see params.max_mb" in str(refusal(tmp_path, max_mb=0.1))
    assert len(bars(tmp_path, max_mb=10)) == rows


def test_a_file_that_may_not_be_read_is_named_with_the_cause(tmp_path, monkeypatch):
    (tmp_path / "A.csv").write_text(text_of(3))

    def away(*_):
        raise OSError(code, os.strerror(code), "A.csv")

    monkeypatch.setattr("builtins.open", away)  # root may read everything, and no mounted disk goes away here
    for code, retry in ((13, False), (5, True)):
        failure = refusal(tmp_path)
        assert str(failure) == f"{tmp_path / 'A.csv'} cannot be read: {os.strerror(code)}"
        assert failure.retry is retry


# Addresses


@pytest.mark.parametrize("form", ["csv", "gzip", "parquet", "content-encoding"])
def test_an_address_brings_bars(web, form, tmp_path):
    body = text_of(3).encode()
    if form == "parquet":
        pd.read_csv(io.BytesIO(body)).to_parquet(tmp_path / "x")
        body = (tmp_path / "x").read_bytes()
    elif form != "csv":
        body = gzip.compress(body)
    headers = {"Content-Encoding": "gzip"} if form == "content-encoding" else {}
    web.answers["/d/A.dat?key=1"] = (200, headers, body)
    assert closes(f"{web.url}/d/{{symbol}}.dat?key=1") == [3.0]


def test_a_symbol_is_quoted_in_an_address(web):
    web.answers["/d?s=A&B=C#é ?"] = (200, {}, text_of(3).encode())
    assert closes(f"{web.url}/d?s={{symbol}}", "A&B=C#é ?") == [3.0]
    assert web.asked == ["/d?s=A%26B%3DC%23%C3%A9%20%3F"]


def test_one_address_may_hold_many_symbols(web):
    web.answers["/all"] = (200, {}, ("s," + HEADER + "A,2020-01-02,1,3,1,3,5\n").encode())
    assert closes(f"{web.url}/all", symbol_column="s") == [3.0]


def test_an_address_is_asked_once_in_a_shard_and_again_in_the_next(web):
    web.answers["/A"] = (200, {}, text_of(3).encode())
    source = provider(f"{web.url}/{{symbol}}")
    for year in (2019, 2020, 2021):
        source.bars("A", "D", dt.date(year, 1, 1), dt.date(year, 12, 31))
    assert len(web.asked) == 1
    assert closes(f"{web.url}/{{symbol}}") == [3.0]
    assert len(web.asked) == 2


@pytest.mark.parametrize(
    ("status", "retry"), [(404, False), (403, False), (204, False), (429, True), (500, True), (503, True)]
)
def test_an_answer_that_is_none_is_tried_again_only_where_it_may_heal(web, status, retry):
    web.answers["/A"] = (status, {}, b"")
    failure = refusal(f"{web.url}/{{symbol}}")
    assert f"{web.url}/A answered {status}" in str(failure)
    assert failure.retry is retry


def test_passwords_and_keys_in_an_address_stay_out_of_messages(web):
    web.answers["/A"] = (500, {}, b"")
    address = web.url.replace("//", "//user:hunter2@") + "/{symbol}?apikey=hunter2"
    assert "hunter2" not in str(refusal(address))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        failure = refusal(f"http://user:hunter2@127.0.0.1:{port}/{{symbol}}?apikey=hunter2")
    assert str(failure) == f"http://127.0.0.1:{port}/A cannot be fetched: Connection refused"
    assert failure.retry


def test_an_answer_that_breaks_off_is_tried_again(web):
    web.answers["/A"] = (200, {"Content-Length": "5000", "Connection": "close"}, text_of(3).encode())
    failure = refusal(f"{web.url}/{{symbol}}")
    assert "cannot be fetched" in str(failure)
    assert failure.retry


def test_an_answer_above_the_limit_is_cut_off(web):
    web.answers["/A"] = (200, {}, b"x" * 3_000_000)
    web.answers["/B"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"x" * 3_000_000))
    for symbol in "AB":
        failure = refusal(f"{web.url}/{{symbol}}", symbol, max_mb=1)
        assert "more than 1 MiB" in str(failure)
        assert not failure.retry


def test_redirects_are_followed_to_an_end_and_to_the_web_only(web):
    web.answers["/A"] = (302, {"Location": "/B"}, b"")
    web.answers["/B"] = (200, {}, text_of(3).encode())
    web.answers["/C"] = (302, {"Location": "/C"}, b"")
    web.answers["/D"] = (302, {"Location": "file:///etc/passwd"}, b"")
    web.answers |= {f"/E{hop}": (302, {"Location": f"/E{hop + 1}"}, b"") for hop in range(9)}
    assert closes(f"{web.url}/{{symbol}}") == [3.0]
    web.asked.clear()
    for symbol, said, asked in (
        ("C", "redirects in a circle", 1),
        ("D", "file is not http or https", 1),
        ("E0", "too many", 6),
    ):
        failure = refusal(f"{web.url}/{{symbol}}", symbol)
        assert said in str(failure)
        assert not failure.retry
        assert len(web.asked) == asked
        web.asked.clear()


def test_a_password_in_an_address_is_sent_as_a_header_to_its_host_only(web):
    seen = []
    web.heard = lambda request: seen.append((request.path, request.headers.get("Authorization")))
    elsewhere = web.url.replace("127.0.0.1", "localhost")
    web.answers["/A"] = (302, {"Location": "/B"}, b"")
    web.answers["/B"] = (302, {"Location": f"{elsewhere}/C"}, b"")
    web.answers["/C"] = (200, {}, text_of(3).encode())
    assert closes(web.url.replace("//", "//me:p%40ss@") + "/{symbol}") == [3.0]
    basic = "Basic bWU6cEBzcw=="
    assert seen == [("/A", basic), ("/B", basic), ("/C", None)]


def test_addresses_of_this_machine_are_refused_unless_the_setting_allows_them(web):
    web.answers["/A"] = (200, {}, text_of(3).encode())
    surroundings.settle(Surroundings())
    for host in ("127.0.0.1", "localhost"):
        failure = refusal(f"{web.url.replace('127.0.0.1', host)}/{{symbol}}")
        assert "is not a public address" in str(failure)
        assert "allowed_networks" in str(failure)
        assert not failure.retry
    assert web.asked == []
    surroundings.settle(Surroundings(allowed_networks=("127.0.0.0/8", "::1/128")))
    assert closes(f"{web.url}/{{symbol}}") == [3.0]


# Params


@pytest.mark.parametrize(
    ("params", "field", "message"),
    [
        ({"path": " "}, "params.path", "is empty"),
        ({"path": "ftp://x/{symbol}"}, "params.path", "neither a path nor an http or https address"),
        ({"path": "http://x/all.csv"}, "params.path", "has no {symbol} and no symbol_column"),
        ({"path": "http:///{symbol}"}, "params.path", "host of its own"),
        ({"path": "http://{symbol}.x/"}, "params.path", "host of its own"),
        ({"path": "http://[::1/{symbol}"}, "params.path", "host of its own"),
        ({"path": "http://x:99999/{symbol}"}, "params.path", "host of its own"),
        ({"path": "/x/{symbol}", "symbol_column": "s"}, "params.path", "one of the two"),
        ({"path": "/x", "columns": {"price": "Close"}}, "params.columns", "'price' is not one of: datetime, open"),
        ({"path": "/x", "columns": {"close": 5}}, "params.columns", "5, given for close,"),
        ({"path": "/x", "columns": ["close"]}, "params.columns", "an object"),
        ({"path": "/x", "delimiter": "::"}, "params.delimiter", "is not one character"),
        ({"path": "/x", "delimiter": ""}, "params.delimiter", "is not one character"),
        ({"path": "/x", "date_format": "day"}, "params.date_format", "'day' is not a format of dates"),
        ({"path": "/x", "date_format": "%m-%Y"}, "params.date_format", "is not a format of dates"),
        ({"path": "/x", "date_format": "%Q"}, "params.date_format", "is not a format of dates"),
        ({"path": "/x", "encoding": "klingon"}, "params.encoding", "utf-8, gb18030"),
        ({"path": "/x", "max_mb": 0}, "params.max_mb", "below the least allowed"),
        ({"path": "/x", "freq": "2min"}, "params.freq", ", ".join(FREQS)),
    ],
)
def test_bad_params_are_refused_by_name(params, field, message):
    with pytest.raises(FieldError) as refused:
        DataImport.check({"source": "files"} | params)
    assert refused.value.field == field
    assert message in refused.value.message


@pytest.mark.parametrize("freq", FREQS)
def test_bars_of_any_declared_length_are_imported(tmp_path, freq):
    (tmp_path / "A.csv").write_text(text_of(3))
    rows = DataImport(DataImport.check({"source": "files", "path": str(tmp_path), "freq": freq})).run("A")
    assert list(rows["freq"]) == [freq]


@pytest.mark.parametrize("path", ["/nowhere", "/nowhere/*.csv", "http://127.0.0.1:9/{symbol}", "/nowhere/{symbol}.csv"])
def test_where_symbols_cannot_be_listed_there_are_none(path):
    assert provider(path).symbols() == []
    assert provider(path).span("A") is None
