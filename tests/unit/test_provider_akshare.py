"""``akshare``: the package itself asks a server on loopback, which answers as Eastmoney does."""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from nodes import providers
from nodes.executors.base import ItemFailed, check_params
from nodes.executors.data_import import DataImport
from nodes.protocol import FieldError
from nodes.providers.akshare import AkShare

HOST = "https://push2his.eastmoney.com"
DAYS = [dt.date(2024, 1, day) for day in (2, 3, 4, 5, 8, 9)] + [dt.date(2024, 2, 1)]
KLT = {"101": "D", "102": "W", "103": "M"}


class Eastmoney(ThreadingHTTPServer):
    """Knows one code, 1.600000; ``raw`` is answered instead of JSON where it is given."""

    raw: tuple[int, bytes] | None = None
    asked: list[dict[str, str]] = []

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        self.asked.append({"path": path, **query})
        if self.raw is not None:
            return self.raw
        if query["secid"] != "1.600000":
            return 200, json.dumps({"rc": 100, "rt": 17, "svr": 181669437, "lt": 1, "full": 0, "data": None}).encode()
        data = {"code": "600000", "market": 1, "name": "浦发银行", "decimal": 2, "preKPrice": 6.62}
        if path.endswith("/trends2/get"):
            data["trends"] = [f"2024-01-09 09:3{n},6.6{n},6.6{n},6.6{n},6.5{n},{n}11,7326.00,6.600" for n in (1, 2)]
        elif len(query["klt"]) < 3:
            data["klines"] = [
                f"2024-01-0{n} 10:30,6.60,6.61,6.65,6.57,{n}00,162890.00,1.2,0.15,0.01,0.08" for n in (8, 9)
            ]
        else:
            data["klines"] = self.days(query)
        # The fields in which klines are, so that a package that asks for others would read something else.
        assert query["fields2"].startswith("f51,f52,f53,f54,f55,f56,f57")
        return 200, json.dumps({"rc": 0, "rt": 17, "data": data}, ensure_ascii=False).encode()

    def days(self, query: dict[str, str]) -> list[str]:
        """date, open, close, high, low, lots, yuan, amplitude, change %, change, turnover"""
        more = {"0": 0.0, "1": -1.0, "2": 10.0}[query["fqt"]]
        prices = ",".join(f"{price + more:.2f}" for price in (6.6, 6.61, 6.65, 6.57))
        return [
            f"{day},{prices},{246771 + n},162890000.00,1.21,0.15,0.01,0.08"
            for n, day in enumerate(DAYS)
            if query["beg"] <= f"{day:%Y%m%d}" <= query["end"]
        ]


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, body = running.answer(parts.path, query)
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = Eastmoney(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def eastmoney(server, monkeypatch):
    """The package's requests go to loopback; all else of it is as shipped."""
    import akshare.stock_feature.stock_hist_em as shipped

    def get(url, **options):
        assert url.startswith(f"{HOST}/")
        return requests.get(url.replace(HOST, f"http://127.0.0.1:{server.server_port}"), **options)

    monkeypatch.setattr(shipped, "requests", SimpleNamespace(get=get))
    monkeypatch.setattr(server, "raw", None)
    monkeypatch.setattr(server, "asked", [])
    return server


def bars(symbol="600000.SH", freq="D", start=None, end=None, **params):
    checked = check_params(AkShare.params, params)
    AkShare.check({"freq": freq, **checked})
    return AkShare(checked).bars(symbol, freq, start, end)


def tuples(frame):
    return [(str(row.datetime), row.open, row.high, row.low, row.close, row.volume) for row in frame.itertuples()]


def refusal(*args, **params):
    with pytest.raises(ItemFailed) as failure:
        bars(*args, **params)
    return failure.value


def test_it_is_registered():
    assert providers.get("akshare") is AkShare


def test_days_are_eastmoney_s_and_volume_is_in_shares(eastmoney):
    found = bars()
    assert tuples(found)[0] == ("2024-01-02 00:00:00", 6.6, 6.65, 6.57, 6.61, 24_677_100.0)
    assert [str(date)[:10] for date in found["datetime"]] == [str(day) for day in DAYS]
    assert {str(kind) for kind in found.dtypes} == {"datetime64[us]", "float64"}
    (asked,) = eastmoney.asked
    assert (asked["klt"], asked["fqt"], asked["secid"]) == ("101", "0", "1.600000")


@pytest.mark.parametrize("symbol", ["600000.SH", "600000.sh", "SH600000", "sh600000", "600000"])
@pytest.mark.usefixtures("eastmoney")
def test_a_symbol_may_be_written_in_each_usual_way(symbol):
    assert len(bars(symbol)) == len(DAYS)


def test_a_range_is_asked_for_and_has_both_ends(eastmoney):
    found = bars(start=DAYS[1], end=DAYS[3])
    assert [str(date)[:10] for date in found["datetime"]] == [str(day) for day in DAYS[1:4]]
    assert (eastmoney.asked[0]["beg"], eastmoney.asked[0]["end"]) == ("20240103", "20240105")


@pytest.mark.parametrize(("adjust", "opening"), [("", 6.6), ("qfq", 5.6), ("hfq", 16.6)])
@pytest.mark.usefixtures("eastmoney")
def test_prices_are_adjusted_as_asked(adjust, opening):
    assert bars(adjust=adjust)["open"].iloc[0] == opening


@pytest.mark.parametrize("freq", ["5min", "15min", "30min", "60min"])
def test_minutes_are_named_in_the_exchange_s_time(eastmoney, freq):
    assert tuples(bars(freq=freq)) == [
        ("2024-01-08 10:30:00", 6.6, 6.65, 6.57, 6.61, 80_000.0),
        ("2024-01-09 10:30:00", 6.6, 6.65, 6.57, 6.61, 90_000.0),
    ]
    assert eastmoney.asked[0]["klt"] == freq.removesuffix("min")
    assert len(bars(freq=freq, start=DAYS[5])) == 1
    assert bars(freq=freq, end=DAYS[0]).empty


def test_single_minutes_come_from_where_eastmoney_has_them(eastmoney):
    assert tuples(bars(freq="1min"))[1] == ("2024-01-09 09:32:00", 6.62, 6.62, 6.52, 6.62, 21_100.0)
    assert eastmoney.asked[0]["path"].endswith("/trends2/get")


def test_weeks_are_made_of_whole_weeks_of_days(eastmoney):
    volume = [24_677_100.0 + 100 * n for n in range(len(DAYS))]
    expected = [("2024-01-01", sum(volume[:4])), ("2024-01-08", sum(volume[4:6])), ("2024-01-29", volume[6])]
    assert [(row[0][:10], row[5]) for row in tuples(bars(freq="W"))] == expected
    cut = bars(freq="W", start=dt.date(2024, 1, 1), end=dt.date(2024, 1, 8))
    assert [(row[0][:10], row[5]) for row in tuples(cut)] == expected[:2]
    assert eastmoney.asked[-1]["end"] == "20240114"
    assert eastmoney.asked[-1]["klt"] == "101"
    assert [row[0][:10] for row in tuples(bars(freq="M", end=dt.date(2024, 1, 1)))] == ["2024-01-01"]
    assert eastmoney.asked[-1]["end"] == "20240131"


def test_nothing_in_a_range_is_told_from_an_unknown_code(eastmoney):
    assert bars(start=dt.date(2023, 1, 1), end=dt.date(2023, 6, 1)).empty
    error = refusal("600001.SH", start=dt.date(2023, 1, 1))
    assert "'600001.SH' is not known to Eastmoney" in str(error)
    assert not error.retry
    assert len(eastmoney.asked) == 4


@pytest.mark.parametrize("freq", ["1min", "5min"])
@pytest.mark.usefixtures("eastmoney")
def test_minutes_of_an_unknown_code_fail_for_good(freq):
    error = refusal("000001.SZ", freq)
    assert "is not known to Eastmoney" in str(error)
    assert not error.retry


@pytest.mark.parametrize("freq", ["1min", "5min"])
def test_minutes_where_there_are_none_are_no_error(eastmoney, freq):
    empty = {"code": "600000", "market": 1, "klines": [], "trends": []}
    eastmoney.raw = 200, json.dumps({"rc": 0, "data": empty}).encode()
    assert bars(freq=freq).empty


@pytest.mark.parametrize("freq", ["1min", "5min", "D", "W"])
@pytest.mark.parametrize(
    "raw",
    [
        (502, b"<html>Bad Gateway</html>"),
        (200, b""),
        (200, b'{"rc": 102}'),
        (200, b'{"rc": 0, "data": {"code": "600000"}}'),
        (200, b'{"rc": 0, "data": {"klines": ["2024-01-02,6.6"], "trends": ["2024-01-02 09:31,6.6"]}}'),
        (200, b"[]"),
    ],
)
def test_an_answer_in_another_form_may_be_better_next_time(eastmoney, raw, freq):
    eastmoney.raw = raw
    error = refusal(freq=freq)
    assert error.retry
    assert "600000.SH" in str(error)
    assert "Eastmoney" in str(error)


@pytest.mark.usefixtures("eastmoney")
def test_a_server_that_is_away_may_come_back(monkeypatch):
    import akshare.stock_feature.stock_hist_em as shipped

    def get(url, **options):
        return requests.get("http://127.0.0.1:9/", timeout=options["timeout"])

    monkeypatch.setattr(shipped, "requests", SimpleNamespace(get=get))
    error = refusal()
    assert error.retry
    assert "Connection refused" in str(error)
    assert "Max retries" not in str(error)


def test_a_price_that_is_none_is_kept_out_and_counted(eastmoney, capsys):
    lines = ["2024-01-02,-,6.61,6.65,6.57,1,1,1,1,1,1", "2024-01-03,6.60,6.61,6.65,6.57,1,1,1,1,1,1"]
    eastmoney.raw = 200, json.dumps({"rc": 0, "data": {"klines": lines}}).encode()
    rows = DataImport(DataImport.check({"source": "akshare"})).run("600000.SH")
    assert (len(rows), set(rows["data_source"])) == (1, {"akshare"})
    assert "kept out 1 with a price that is missing" in capsys.readouterr().out


@pytest.mark.parametrize("symbol", ["AAPL", "60000", "600000.NY", "6OOOOO"])
def test_what_is_no_symbol_is_refused_before_anything_is_asked(eastmoney, symbol):
    assert "is not a symbol such as 600000.SH" in str(refusal(symbol))
    assert not eastmoney.asked


@pytest.mark.parametrize("symbol", ["000001.SH", "510300.SH", "900901", "600000.SZ", "399001.SZ", "110059"])
def test_what_the_package_would_mistake_for_another_is_refused(eastmoney, symbol):
    error = refusal(symbol)
    assert "is not an A share; their codes begin with SH: 60, 68" in str(error)
    assert not error.retry
    assert not eastmoney.asked


@pytest.mark.parametrize("params", [{"adjust": "both"}, {"freq": "1min", "adjust": "qfq"}])
def test_an_adjustment_that_there_is_not_is_refused_by_name(params):
    with pytest.raises(FieldError) as failure:
        DataImport.check({"source": "akshare"} | params)
    assert failure.value.field == "params.adjust"


def test_a_missing_package_is_named_with_the_command_and_another_node_may_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "akshare", None)  # Python's own way to make a module missing
    error = refusal()
    assert "pip install 'akshare==1.19.5'" in str(error)
    assert error.retry


def test_the_package_is_the_one_that_was_tested():
    import akshare

    from nodes.providers.akshare import PACKAGE

    assert f"akshare=={akshare.__version__}" == PACKAGE
