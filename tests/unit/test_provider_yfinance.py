"""``yfinance``: the package itself asks a server on loopback, which answers as Yahoo's chart API does."""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest

from nodes import providers, surroundings
from nodes.executors.base import ItemFailed, check_params
from nodes.executors.data_import import DataImport
from nodes.protocol import FieldError
from nodes.providers.yfinance import PACKAGE, YFinance
from nodes.surroundings import Surroundings

ZONES = {"AAPL": "America/New_York", "AIR.NZ": "Pacific/Auckland", "^GSPC": "America/New_York"}
RANGES = ["1d", "5d", "1mo", "3mo", "6mo", "1y", "2y", "5y", "10y", "ytd", "max"]
STEPS = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "1d": 86_400, "1wk": 7 * 86_400, "1mo": 30 * 86_400}
# open, high, low, close, adjusted close, volume; Yahoo has a bar without anything now and then
Bar = tuple[float | None, float | None, float | None, float | None, float | None, int | None]
MISSING: Bar = (None, None, None, None, None, None)


def at(zone: str, *moment: int) -> int:
    return int(dt.datetime(*moment, tzinfo=ZoneInfo(zone)).timestamp())  # type: ignore[misc,arg-type]


def bar(number: int) -> Bar:
    return (10.0 + number, 10.5 + number, 9.5 + number, 10.25 + number, (10.25 + number) / 2, 1000 + number)


def daily(zone: str, *days: tuple[int, int, int]) -> dict[int, Bar]:
    """Yahoo dates a day by the beginning of trade."""
    return {at(zone, *day, 9, 30): bar(number) for number, day in enumerate(days)}


HISTORY: dict[tuple[str, str], dict[int, Bar]] = {
    ("AAPL", "1d"): daily(
        "America/New_York", (2020, 8, 27), (2020, 8, 28), (2020, 8, 31), (2020, 11, 6), (2020, 11, 9)
    ),
    # The day begins on the day before in UTC.
    ("AIR.NZ", "1d"): daily("Pacific/Auckland", (2024, 1, 3), (2024, 1, 4)),
    ("AAPL", "1wk"): {at("America/New_York", 2020, 8, 24 + 7 * n): bar(n) for n in range(2)},
    ("AAPL", "1mo"): {at("America/New_York", 2020, 8 + n, 1): bar(n) for n in range(3)},
    ("AAPL", "5m"): {at("America/New_York", 2020, 8, 27, 9, 30 + 5 * n): bar(n) for n in range(4)},
    ("AAPL", "15m"): {at("America/New_York", 2020, 8, 27, 9, 30) + 900 * n: bar(n) for n in range(4)},
}
EVENTS = {
    "dividends": {"1604673000": {"amount": 0.205, "date": 1604673000}},
    "splits": {"1598880600": {"date": 1598880600, "numerator": 4.0, "denominator": 1.0, "splitRatio": "4:1"}},
}


class Yahoo(ThreadingHTTPServer):
    """``raw`` is answered to whoever asks for a chart; ``asked``: the queries for charts."""

    raw: tuple[int, bytes] | None = None
    bars: dict[tuple[str, str], dict[int, Bar]] = HISTORY
    asked: list[dict[str, str]] = []

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        if path.endswith("/getcrumb"):
            return 200, b"a.Crumb"
        if "/quoteSummary/" in path:
            error = {"code": "Not Found", "description": f"Quote not found for symbol: {path.rpartition('/')[2]}"}
            return 404, json.dumps({"quoteSummary": {"result": None, "error": error}}).encode()
        if "/v8/finance/chart/" not in path:
            return 404, b""
        self.asked.append(query)
        if self.raw is not None and "period1" in query:
            return self.raw
        symbol = path.rpartition("/")[2].replace("%5E", "^")
        if symbol not in ZONES:
            return refused(404, "Not Found", "No data found, symbol may be delisted")
        return 200, json.dumps({"chart": {"result": [self.chart(symbol, query)], "error": None}}).encode()

    def chart(self, symbol: str, query: dict[str, str]) -> dict[str, Any]:
        interval, zone = query["interval"], ZONES[symbol]
        least, most = int(query.get("period1", 0)), int(query.get("period2", 2**40))
        found = {time: bar for time, bar in self.bars.get((symbol, interval), {}).items() if least <= time < most}
        if "range" in query:  # the package asks so for the zone
            found = {}
        trading = [
            [{"timezone": "EST", "start": at(zone, *day, 9, 30), "end": at(zone, *day, 16), "gmtoffset": -18000}]
            for day in ((2020, 8, 27), (2020, 8, 28))
        ]
        meta: dict[str, Any] = {
            "currency": "USD",
            "symbol": symbol,
            "exchangeName": "NMS",
            "instrumentType": "EQUITY",
            "firstTradeDate": 345479400,
            "regularMarketTime": 1604955602,
            "gmtoffset": -18000,
            "timezone": "EST",
            "exchangeTimezoneName": zone,
            "regularMarketPrice": 12.0,
            "priceHint": 2,
            "dataGranularity": interval,
            "range": query.get("range", ""),
            "validRanges": RANGES,
        }
        if interval.endswith(("m", "h")):
            meta["tradingPeriods"] = trading
        if not found:
            return {"meta": meta, "indicators": {"quote": [{}], "adjclose": [{}]}}
        names = ("open", "high", "low", "close", "adjclose", "volume")
        columns: dict[str, Any] = {name: [bar[n] for bar in found.values()] for n, name in enumerate(names)}
        adjusted = {"adjclose": columns.pop("adjclose")}
        indicators: dict[str, Any] = {"quote": [columns]}
        if not interval.endswith(("m", "h")):
            indicators["adjclose"] = [adjusted]
        return {"meta": meta, "timestamp": list(found), "events": EVENTS, "indicators": indicators}


def refused(status: int, code: str, reason: str) -> tuple[int, bytes]:
    error = {"code": code, "description": reason}
    return status, json.dumps({"chart": {"result": None, "error": error}}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The package's session has another host put into its addresses; all else of the package is as shipped."""
    import yfinance
    from curl_cffi import requests
    from yfinance.data import YfData

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, body = running.answer(parts.path, query)
            self.send_response(status)
            self.send_header("Content-Type", "application/json;charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Session(requests.Session):
        def request(self, method: Any, url: str, *args: Any, **options: Any) -> Any:
            parts = urlsplit(url)
            assert (parts.hostname or "").endswith("yahoo.com")
            here = parts._replace(scheme="http", netloc=f"127.0.0.1:{running.server_port}")
            return super().request(method, here.geturl(), *args, **options)

    running = Yahoo(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    before = surroundings.current()
    surroundings.settle(Surroundings(folder=str(tmp_path_factory.mktemp("cache"))))
    hidden = yfinance.config.debug.hide_exceptions
    YfData()._set_session(Session(impersonate="chrome"))
    yield running
    YfData()._set_session(requests.Session(impersonate="chrome"))
    yfinance.config.debug.hide_exceptions = hidden
    surroundings.settle(before)
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def yahoo(server, monkeypatch):
    from yfinance.data import YfData

    YfData.cache_get.cache_clear()
    monkeypatch.setattr(server, "raw", None)
    monkeypatch.setattr(server, "bars", HISTORY)
    monkeypatch.setattr(server, "asked", [])
    return server


def bars(symbol="AAPL", freq="D", start=None, end=None, **params):
    return YFinance(check_params(YFinance.params, params)).bars(symbol, freq, start, end)


def tuples(frame):
    return [(str(row.datetime), row.open, row.high, row.low, row.close, row.volume) for row in frame.itertuples()]


def dates(frame):
    return [str(date)[:10] for date in frame["datetime"]]


def refusal(*args, **params):
    with pytest.raises(ItemFailed) as failure:
        bars(*args, **params)
    return failure.value


def test_it_is_registered():
    assert providers.get("yfinance") is YFinance


def test_days_have_the_exchange_s_date_and_unadjusted_prices(yahoo):
    found = bars()
    assert tuples(found)[0] == ("2020-08-27 00:00:00", 10.0, 10.5, 9.5, 10.25, 1000.0)
    # In summer time and in winter time.
    assert dates(found) == ["2020-08-27", "2020-08-28", "2020-08-31", "2020-11-06", "2020-11-09"]
    assert {name: str(kind) for name, kind in found.dtypes.items()} == {
        "datetime": "datetime64[us]",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "float64"),
    }
    assert dates(bars("AIR.NZ")) == ["2024-01-03", "2024-01-04"]


@pytest.mark.usefixtures("yahoo")
def test_prices_can_be_adjusted_for_dividends():
    assert tuples(bars(auto_adjust=True))[0] == ("2020-08-27 00:00:00", 5.0, 5.25, 4.75, 5.125, 1000.0)


def test_a_range_is_asked_for_and_has_both_ends(yahoo):
    assert dates(bars(start=dt.date(2020, 8, 28), end=dt.date(2020, 11, 6))) == [
        "2020-08-28",
        "2020-08-31",
        "2020-11-06",
    ]
    asked = yahoo.asked[-1]
    zone = ZONES["AAPL"]
    assert (int(asked["period1"]), int(asked["period2"])) == (at(zone, 2020, 8, 28), at(zone, 2020, 11, 7))


@pytest.mark.usefixtures("yahoo")
def test_a_range_may_be_open_at_either_end():
    assert dates(bars(end=dt.date(2020, 8, 28))) == ["2020-08-27", "2020-08-28"]
    assert dates(bars(start=dt.date(2020, 11, 6))) == ["2020-11-06", "2020-11-09"]
    assert len(bars(start=dt.date.min, end=dt.date.max)) == 5


def test_a_bar_of_nulls_is_kept_out_and_counted(yahoo, capsys):
    days = dict(HISTORY["AAPL", "1d"])
    days[list(days)[1]] = MISSING
    yahoo.bars = {("AAPL", "1d"): days}
    rows = DataImport(DataImport.check({"source": "yfinance"})).run("AAPL")
    assert (len(rows), set(rows["data_source"])) == (4, {"yfinance"})
    assert "kept out 1 with a price that is missing or not finite: 2020-08-28" in capsys.readouterr().out


@pytest.mark.usefixtures("yahoo")
def test_minutes_are_named_by_their_beginning_in_utc():
    found = bars(freq="5min", start=dt.date(2020, 8, 27), end=dt.date(2020, 8, 27))
    assert [row[0] for row in tuples(found)] == [f"2020-08-27 13:{minute}:00" for minute in (30, 35, 40, 45)]
    assert tuples(found)[3][1:] == (13.0, 13.5, 12.5, 13.25, 1003.0)


@pytest.mark.usefixtures("yahoo")
def test_half_hours_are_made_of_quarters_by_the_package():
    found = bars(freq="30min", start=dt.date(2020, 8, 27), end=dt.date(2020, 8, 27))
    assert [row[0] for row in tuples(found)] == ["2020-08-27 13:30:00", "2020-08-27 14:00:00"]
    assert tuples(found)[1][1:] == (12.0, 13.5, 11.5, 13.25, 1002.0 + 1003.0)


def test_weeks_and_months_are_asked_for_whole(yahoo):
    zone = ZONES["AAPL"]
    # A Wednesday to a Wednesday: the week that begins within, whole.
    found = bars(freq="W", start=dt.date(2020, 8, 26), end=dt.date(2020, 9, 2))
    assert dates(found) == ["2020-08-31"]
    asked = yahoo.asked[-1]
    assert (int(asked["period1"]), int(asked["period2"])) == (at(zone, 2020, 8, 24), at(zone, 2020, 9, 7))
    assert dates(bars(freq="M", start=dt.date(2020, 8, 1), end=dt.date(2020, 9, 15))) == ["2020-08-01", "2020-09-01"]
    asked = yahoo.asked[-1]
    assert (int(asked["period1"]), int(asked["period2"])) == (at(zone, 2020, 8, 1), at(zone, 2020, 10, 1))


@pytest.mark.parametrize("freq", YFinance.freqs)
def test_every_freq_is_one_that_yahoo_has(yahoo, freq):
    assert bars("^GSPC", freq).empty
    # The package makes half hours of quarters.
    assert yahoo.asked[-1]["interval"] in STEPS


@pytest.mark.usefixtures("yahoo")
def test_nothing_in_a_range_is_no_error():
    assert bars(start=dt.date(2019, 1, 1), end=dt.date(2019, 2, 1)).empty


def test_nothing_before_the_first_bar_is_no_error_either(yahoo):
    yahoo.raw = refused(400, "Bad Request", "Data doesn't exist for startDate = 1, endDate = 2")
    assert bars(start=dt.date(1950, 1, 1), end=dt.date(1951, 1, 1)).empty


@pytest.mark.usefixtures("yahoo")
def test_unknown_symbols_fail_for_good():
    for number in range(4):  # the package looks elsewhere for the first two
        error = refusal(f"NOPE{number}")
        assert str(error) == f"'NOPE{number}' is not known to Yahoo, or no longer traded"
        assert not error.retry


def test_what_yahoo_says_of_a_range_it_does_not_give_is_passed_on(yahoo):
    reason = "1m data not available for startDate=1 and endDate=2. Only 8 days worth of 1m granularity data are allowed"
    yahoo.raw = refused(422, "Unprocessable Entity", reason)
    error = refusal(freq="1min", start=dt.date(2020, 1, 1))
    assert reason in str(error)
    assert not error.retry


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((429, b"Too Many Requests\r\n"), "takes no more requests from this node for now"),
        ((502, b"<html>Bad Gateway</html>"), "no bars from Yahoo"),
        ((200, b"Will be right back"), "YAHOO! FINANCE IS CURRENTLY DOWN"),
        (
            (200, b'{"chart": {"result": [{"meta": {}, "indicators": {"quote": [{"open": [1]}]}}], "error": null}}'),
            "KeyError",
        ),
        (refused(500, "internal-error", "Something went wrong"), "Yahoo says: Something went wrong"),
    ],
)
def test_trouble_passes_and_a_bad_answer_is_not_kept(yahoo, raw, message):
    ends = {"start": dt.date(2020, 8, 27), "end": dt.date(2020, 8, 28)}
    yahoo.raw = raw
    error = refusal(**ends)
    assert error.retry
    assert message in str(error)
    yahoo.raw = None
    assert len(bars(**ends)) == 2


def test_a_server_that_is_away_may_come_back(yahoo):
    bars()  # the zone is known now
    yahoo.raw = 200, b""
    error = refusal()
    assert error.retry


@pytest.mark.parametrize("symbol", ["AAPL/../x", "A?range=1d", "A B", "A#", "%41", "../x", "", "A" * 40, "苹果"])
def test_what_could_change_the_address_is_refused_before_anything_is_asked(yahoo, symbol):
    error = refusal(symbol)
    assert "is not a symbol of Yahoo's" in str(error)
    assert not error.retry
    assert not yahoo.asked


def test_parameters_are_checked_by_name():
    with pytest.raises(FieldError) as failure:
        DataImport.check({"source": "yfinance", "auto_adjust": "perhaps"})
    assert failure.value.field == "params.auto_adjust"
    assert DataImport.check({"source": "yfinance"})["auto_adjust"] is False


def test_the_package_keeps_what_it_knows_of_zones_in_the_node_s_folder(yahoo):
    bars()
    folder = surroundings.current().cache
    assert folder is not None
    assert list(folder.glob("yfinance/**/*.db"))


def test_a_missing_package_is_named_with_the_command_and_another_node_may_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "yfinance", None)  # Python's own way to make a module missing
    error = refusal()
    assert "pip install 'yfinance==1.7.0'" in str(error)
    assert error.retry


def test_the_package_is_the_one_that_was_tested():
    import yfinance

    assert f"yfinance=={yfinance.__version__}" == PACKAGE
