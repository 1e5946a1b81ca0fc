"""``tdx``: a terminal's files, byte for byte; which code is of which market and unit; what a broken file gives."""

from __future__ import annotations

import datetime as dt
import struct

import pytest

from nodes import providers
from nodes.executors.base import ItemFailed, check_params
from nodes.executors.data_import import DataImport
from nodes.protocol import FieldError
from nodes.providers.tdx import Tdx

MARKET_DAYS = [dt.date(2024, 1, day) for day in (2, 3, 4, 5, 8, 9, 10, 11, 12, 15)] + [dt.date(2024, 2, 1)]


def day_record(date, opening, high, low, close, volume=100, amount=1e6):
    """As the terminal writes a day: prices as whole numbers."""
    number = date if isinstance(date, int) else date.year * 10_000 + date.month * 100 + date.day
    return struct.pack("<IIIIIfII", number, opening, high, low, close, amount, volume, 0)


def minute_record(moment, opening, high, low, close, volume=100):
    day = (moment.year - 2004) * 2048 + moment.month * 100 + moment.day
    return struct.pack(
        "<HHfffffII", day, moment.hour * 60 + moment.minute, opening, high, low, close, 1e6, volume, 65536
    )


def write(root, symbol, records, folder="lday", suffix=".day"):
    file = root / symbol[:2] / folder / f"{symbol}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(records))


def provider(root, **params):
    checked = check_params(Tdx.params, {"path": str(root)} | params)
    return Tdx({"freq": "D", **checked})


def bars(root, symbol="600000.SH", freq="D", start=None, end=None, **params):
    return provider(root, **params).bars(symbol, freq, start, end)


def tuples(frame):
    return [(str(row.datetime), row.open, row.high, row.low, row.close, row.volume) for row in frame.itertuples()]


@pytest.fixture
def root(tmp_path):
    """Ten days of January 2024 and one of February: closes of 10.00, 10.01 and so on."""
    records = [
        day_record(date, 1000 + n, 1010 + n, 990 + n, 1000 + n, volume=100 + n) for n, date in enumerate(MARKET_DAYS)
    ]
    write(tmp_path, "sh600000", records)
    return tmp_path


def test_it_is_registered():
    assert providers.get("tdx") is Tdx


def test_a_day_s_bytes_become_its_bar(tmp_path):
    # 2024-01-02, 6.63, 6.65, 6.57, 6.60, 24,677,132 shares: little-endian, as in a hex dump
    content = bytes.fromhex("e6d63401 97020000 99020000 91020000 94020000 6a761b4d 0c8b7801 00000000".replace(" ", ""))
    write(tmp_path, "sh600000", [content])
    assert tuples(bars(tmp_path)) == [("2024-01-02 00:00:00", 6.63, 6.65, 6.57, 6.6, 24677132.0)]


def test_types_are_those_of_every_source(root):
    kinds = {name: str(kind) for name, kind in bars(root).dtypes.items()}
    assert kinds == {
        "datetime": "datetime64[us]",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "float64"),
    }


@pytest.mark.parametrize("symbol", ["600000.SH", "600000.sh", "SH600000", "sh600000", "600000"])
def test_a_symbol_may_be_written_in_each_usual_way(root, symbol):
    assert len(bars(root, symbol)) == len(MARKET_DAYS)


@pytest.mark.parametrize(
    ("code", "file", "unit"),
    [
        ("600519", "sh600519", 100),
        ("688981", "sh688981", 100),
        ("510300", "sh510300", 1000),
        ("588000", "sh588000", 1000),
        ("900901", "sh900901", 1000),
        ("113050", "sh113050", 1000),
        ("204001", "sh204001", 1000),
        ("019547", "sh019547", 1000),
        ("999999", "sh999999", 100),
        ("880001", "sh880001", 100),
        ("000001.SH", "sh000001", 100),
        ("000001", "sz000001", 100),
        ("300750", "sz300750", 100),
        ("399001", "sz399001", 100),
        ("200725", "sz200725", 100),
        ("159915", "sz159915", 1000),
        ("184721", "sz184721", 1000),
        ("123001", "sz123001", 1000),
        ("131810", "sz131810", 1000),
        ("430047", "bj430047", 100),
        ("830799", "bj830799", 100),
        ("920001", "bj920001", 100),
    ],
)
def test_a_code_tells_its_market_and_the_unit_of_its_prices(tmp_path, code, file, unit):
    write(tmp_path, file, [day_record(MARKET_DAYS[0], 1234, 1240, 1230, 1236)])
    assert tuples(bars(tmp_path, code))[0][1:5] == tuple(price / unit for price in (1234, 1240, 1230, 1236))


def test_the_unit_can_be_said_where_the_rules_are_wrong(root):
    assert bars(root, divisor=1000)["close"].iloc[0] == 1.0


@pytest.mark.parametrize("symbol", ["AAPL", "60000", "600000.NY", "../600000", "sh60000x", "600000.SH.day", "６00000"])
def test_what_is_no_symbol_is_refused_with_an_example(root, symbol):
    with pytest.raises(ItemFailed, match=r"is not a symbol such as 600000\.SH") as failure:
        bars(root, symbol)
    assert not failure.value.retry


def test_a_code_that_may_be_of_any_market_asks_for_it(root):
    with pytest.raises(ItemFailed, match=r"may be of any market: say which, such as 330000\.SH"):
        bars(root, "330000")


def test_a_symbol_without_a_file_fails_for_good_and_names_the_file(root):
    with pytest.raises(ItemFailed, match=r"sh/lday/sh601398\.day is not there") as failure:
        bars(root, "601398")
    assert not failure.value.retry


def test_a_folder_that_this_node_lacks_may_be_on_another(tmp_path):
    with pytest.raises(ItemFailed, match="is not a folder on this node") as failure:
        bars(tmp_path / "nowhere")
    assert failure.value.retry


@pytest.mark.parametrize("path", ["", "  ", "a\nb"])
def test_a_path_that_is_none_is_refused_by_name(path):
    with pytest.raises(FieldError) as refusal:
        DataImport.check({"source": "tdx", "path": path})
    assert refusal.value.field == "params.path"


def test_a_range_has_both_its_ends(root):
    found = bars(root, start=MARKET_DAYS[2], end=MARKET_DAYS[4])
    assert [str(date)[:10] for date in found["datetime"]] == [str(date) for date in MARKET_DAYS[2:5]]


def test_symbols_are_listed_by_the_folder_of_the_freq(root):
    write(root, "sz000001", [], "fzline", ".lc5")
    write(root, "bj920001", [day_record(MARKET_DAYS[0], 1, 1, 1, 1)])
    (root / "sh" / "lday" / "notes.txt").write_text("no bars")
    assert provider(root).symbols() == ["600000.SH", "920001.BJ"]
    assert Tdx({"path": str(root), "freq": "30min"}).symbols() == ["000001.SZ"]
    assert Tdx({"path": str(root / "nowhere")}).symbols() == []
    assert Tdx({}).symbols() == []


def test_the_span_is_read_from_both_ends_of_the_file(root):
    assert provider(root).span("600000") == (MARKET_DAYS[0], MARKET_DAYS[-1])
    assert provider(root).span("601398") is None
    assert provider(root).span("AAPL") is None
    write(root, "sh600001", [b""])
    assert provider(root).span("600001") is None


def test_a_history_is_cut_by_its_span(root):
    params = DataImport.check({"source": "tdx", "path": str(root)})
    pieces: list = DataImport.expand(["600000.SH"], params, "month")
    assert [(piece["start_date"], piece["end_date"]) for piece in pieces] == [
        ("2024-01-02", "2024-01-31"),
        ("2024-02-01", "2024-02-01"),
    ]
    rows = [len(DataImport(params).run(piece)) for piece in pieces]
    assert rows == [10, 1]


# Broken files


def test_a_truncated_file_gives_its_whole_records_and_says_so(root, capsys):
    file = root / "sh" / "lday" / "sh600000.day"
    file.write_bytes(file.read_bytes()[:-5])
    assert len(bars(root)) == len(MARKET_DAYS) - 1
    assert "ends in the middle of a record; its last 27 bytes are left out" in capsys.readouterr().out


def test_an_empty_file_has_no_bars(tmp_path):
    write(tmp_path, "sh600000", [])
    found = bars(tmp_path)
    assert found.empty
    assert bars(tmp_path, freq="W").empty
    assert str(found["datetime"].dtype) == "datetime64[us]"


@pytest.mark.parametrize("date", [0, 20230230, 20241301, 4_294_967_295])
def test_a_record_without_a_date_is_kept_out_and_counted(root, date, capsys):
    file = root / "sh" / "lday" / "sh600000.day"
    file.write_bytes(file.read_bytes() + day_record(date, 0, 0, 0, 0, 0))
    executor = DataImport(DataImport.check({"source": "tdx", "path": str(root)}))
    assert len(executor.run("600000.SH")) == len(MARKET_DAYS)
    assert "kept out 1 with no date" in capsys.readouterr().out


def test_a_file_of_noise_gives_an_error_not_a_crash(tmp_path):
    write(tmp_path, "sh600000", [bytes(range(256)) * 4])
    write(tmp_path, "sh600000", [bytes(range(256)) * 4], "fzline", ".lc5")
    for freq in ("D", "W", "5min", "60min"):
        executor = DataImport(DataImport.check({"source": "tdx", "path": str(tmp_path), "freq": freq}))
        with pytest.raises(ItemFailed, match="none of 32 rows is a bar"):
            executor.run("600000.SH")


# Minutes


def moments(minutes):
    """Ends of the bars of one day: 9:30 to 11:30 and 13:00 to 15:00."""
    morning = [dt.datetime(2024, 1, 2, 9, 30) + dt.timedelta(minutes=n) for n in range(minutes, 121, minutes)]
    return morning + [at + dt.timedelta(minutes=210) for at in morning]


@pytest.mark.parametrize(("freq", "folder", "suffix"), [("1min", "minline", ".lc1"), ("5min", "fzline", ".lc5")])
def test_minutes_are_read_as_the_terminal_names_them(tmp_path, freq, folder, suffix):
    at = dt.datetime(2024, 2, 29, 14, 55)
    write(tmp_path, "sz000001", [minute_record(at, 10.27, 10.31, 10.26, 10.3, 4200)], folder, suffix)
    # 10.27 as a float32 is 10.270000457763672: what comes back is the price.
    assert tuples(bars(tmp_path, "000001", freq)) == [("2024-02-29 14:55:00", 10.27, 10.31, 10.26, 10.3, 4200.0)]
    assert Tdx({"path": str(tmp_path), "freq": freq}).span("000001") == (at.date(), at.date())


def test_a_minute_beyond_midnight_is_no_time(tmp_path, capsys):
    good = minute_record(dt.datetime(2024, 1, 2, 9, 35), 1, 1, 1, 1)
    bad = good[:2] + struct.pack("<H", 1440) + good[4:]
    write(tmp_path, "sh600000", [good, bad], "fzline", ".lc5")
    executor = DataImport(DataImport.check({"source": "tdx", "path": str(tmp_path), "freq": "5min"}))
    assert len(executor.run("600000.SH")) == 1
    assert "1 with no date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("freq", "ends"),
    [
        ("60min", ["10:30", "11:30", "14:00", "15:00"]),
        ("30min", ["10:00", "10:30", "11:00", "11:30", "13:30", "14:00", "14:30", "15:00"]),
    ],
)
def test_longer_minutes_are_made_of_five_within_each_session(tmp_path, freq, ends):
    five = moments(5)
    assert (len(five), five[23].time(), five[24].time()) == (48, dt.time(11, 30), dt.time(13, 5))
    records = [minute_record(at, 10 + n, 10.5 + n, 9.5 + n, 10.25 + n, n) for n, at in enumerate(five)]
    write(tmp_path, "sh600000", records, "fzline", ".lc5")
    found = tuples(bars(tmp_path, freq=freq))
    assert [moment[11:16] for moment, *_ in found] == ends
    each = 48 // len(ends)
    for number, (_, opening, high, low, close, volume) in enumerate(found):
        first, last = number * each, number * each + each - 1
        assert (opening, high, low, close) == (10 + first, 10.5 + last, 9.5 + first, 10.25 + last)
        assert volume == sum(range(first, last + 1))


def test_fifteen_minutes_and_a_morning_that_ends_at_13_00(tmp_path):
    names = [at.replace(hour=13, minute=0) if (at.hour, at.minute) == (11, 30) else at for at in moments(5)]
    write(tmp_path, "sh600000", [minute_record(at, 1, 1, 1, 1, 1) for at in names], "fzline", ".lc5")
    found = tuples(bars(tmp_path, freq="15min"))
    assert [row[5] for row in found] == [3.0] * 16
    assert [row[0][11:16] for row in found][7:9] == ["11:30", "13:15"]


# Weeks and months


def test_weeks_begin_on_monday_and_months_on_the_first(root):
    # Tuesday to Friday; Monday to Friday; Monday; Thursday
    assert [(row[0][:10], row[1], row[4], row[5]) for row in tuples(bars(root, freq="W"))] == [
        ("2024-01-01", 10.0, 10.03, 100 + 101 + 102 + 103),
        ("2024-01-08", 10.04, 10.08, 104 + 105 + 106 + 107 + 108),
        ("2024-01-15", 10.09, 10.09, 109),
        ("2024-01-29", 10.1, 10.1, 110),
    ]
    assert [(row[0][:10], row[2], row[3]) for row in tuples(bars(root, freq="M"))] == [
        ("2024-01-01", 10.19, 9.9),
        ("2024-02-01", 10.2, 10.0),
    ]


def test_weeks_are_whole_wherever_a_range_is_cut(root):
    whole = tuples(bars(root, freq="W"))
    cut = dt.date(2024, 1, 10)
    parts = tuples(bars(root, freq="W", end=cut)) + tuples(bars(root, freq="W", start=cut + dt.timedelta(days=1)))
    assert parts == whole


def test_a_bad_day_does_not_spoil_its_week(root, capsys):
    file = root / "sh" / "lday" / "sh600000.day"
    file.write_bytes(day_record(dt.date(2024, 1, 1), 1000, 900, 9_999_999, 1000) + file.read_bytes())
    assert tuples(bars(root, freq="W"))[0][1:5] == (10.0, 10.13, 9.9, 10.03)
    assert "kept out 1 with high below low: 2024-01-01" in capsys.readouterr().out
