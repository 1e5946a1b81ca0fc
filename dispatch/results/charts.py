"""What charts of bars show: candles, made coarser until there are few enough, with indicators and signals beside them.

All times are as they were saved, naive. Every answer is bounded in rows; ``reading_pages.within`` bounds the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dispatch.results import reading
from dispatch.results import reading_pages as pages
from dispatch.results.formats import plain
from dispatch.results.reading_filters import quoted, valued
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotFound

if TYPE_CHECKING:
    import duckdb

BARS = 500
MOST_BARS = 5_000
MOST_SIGNALS = 2_000
MOST_INDICATORS = 20
PERIODS = {
    "bar": "datetime",
    "5min": "time_bucket(INTERVAL 5 MINUTE, datetime)",
    "15min": "time_bucket(INTERVAL 15 MINUTE, datetime)",
    "30min": "time_bucket(INTERVAL 30 MINUTE, datetime)",
    "1h": "time_bucket(INTERVAL 1 HOUR, datetime)",
    "4h": "time_bucket(INTERVAL 4 HOUR, datetime)",
    "D": "date_trunc('day', datetime)",
    "W": "date_trunc('week', datetime)",
    "M": "date_trunc('month', datetime)",
    "Q": "date_trunc('quarter', datetime)",
    "Y": "date_trunc('year', datetime)",
}
"""From the finest to the coarsest. ``bar``: bars as they are."""


def candles(
    connection: duckdb.DuckDBPyConnection,
    *,
    symbol: str,
    freq: str = "D",
    since: str | None = None,
    until: str | None = None,
    period: str = "auto",
    most: int = BARS,
    indicators: Sequence[str] = (),
    signals: bool = False,
) -> dict[str, Any]:
    """Bars of ``symbol`` from ``since`` up to before ``until``, ``most`` of them at most, the newest if there are more.

    ``period`` auto: the finest one with which there are few enough. Prices come from ``kline``; where it has none,
    from ``analysis``, which knows closes only. An indicator's value is that of the last bar. Raises FieldError, and
    NotFound where neither table is there.
    """
    kline, analysis = pages.table(connection, "kline"), pages.table(connection, "analysis")
    if kline is None and analysis is None:
        raise NotFound("there are no bars yet: neither a table kline nor a table analysis")
    if period != "auto" and period not in PERIODS:
        raise FieldError("period", f"{shown(period)} is not one of: auto, {', '.join(PERIODS)}")
    test, values = _range(symbol, freq, since, until)
    source = ""
    for shape in filter(None, (kline, analysis)):
        source = reading.newest(shape.name, shape.key, f"WHERE {test}")
        found = connection.execute(f"SELECT count(*), min(datetime), max(datetime) FROM ({source})", values).fetchone()
        assert found is not None
        table, (there, first, last) = shape.name, found
        if there:
            break
    used = _period(connection, source, values, most) if period == "auto" else period
    prices = ("open", "high", "low", "close", "volume")
    if table == "kline":
        columns = ["arg_min(open, datetime)", "max(high)", "min(low)", "arg_max(close, datetime)", "sum(volume)"]
    else:
        columns = ["NULL::DOUBLE", "NULL::DOUBLE", "NULL::DOUBLE", "arg_max(close, datetime)", "sum(volume)"]
    chosen, paths = _indicators(connection, analysis, test, values, indicators)
    told = f"""
        SELECT min(datetime) AS first, {", ".join(columns)}, count(*) AS bars, {PERIODS[used]} AS bucket
        FROM ({source}) GROUP BY bucket ORDER BY bucket DESC LIMIT {most + 1:d}
    """
    rows = connection.execute(told, values).fetchall()
    cut = len(rows) > most
    rows = rows[:most][::-1]
    beside: dict[Any, tuple[Any, ...]] = {}
    if chosen and analysis is not None:
        each = ", ".join(f"arg_max({sql}, datetime)" for sql in chosen.values())
        of_analysis = reading.newest(analysis.name, analysis.key, f"WHERE {test}")
        sql = f"SELECT {PERIODS[used]} AS bucket, {each} FROM ({of_analysis}) GROUP BY bucket"
        if rows:
            sql += " HAVING bucket >= ?"
        more = [rows[0][-1]] if rows else []
        beside = {row[0]: row[1:] for row in connection.execute(sql, [*paths, *values, *more]).fetchall()}
    none = (None,) * len(chosen)
    answer = {
        "symbol": symbol,
        "freq": freq,
        "table": table,
        "period": used,
        "bars": there,
        "first": plain(first),
        "last": plain(last),
        "truncated": cut,
        "columns": ["datetime", *prices, "bars", *chosen],
        "rows": [[plain(value) for value in (*row[:-1], *beside.get(row[-1], none))] for row in rows],
        "indicators": _known(connection, analysis, test, values),
    }
    if signals:
        from_ = rows[0][0] if rows else None
        answer |= _signals(connection, analysis, test, values, from_)
    return answer


def _range(symbol: str, freq: str, since: str | None, until: str | None) -> tuple[str, list[Any]]:
    tests, values = ["symbol = ?", "freq = ?"], [valued("symbol", "string", symbol), valued("freq", "string", freq)]
    for name, moment, operator in (("from", since, ">="), ("to", until, "<")):
        if moment is not None:
            tests.append(f"datetime {operator} ?")
            values.append(valued(name, "timestamp", moment))
    return " AND ".join(tests), values


def _period(connection: duckdb.DuckDBPyConnection, source: str, values: Sequence[Any], most: int) -> str:
    counts = ", ".join(f"count(DISTINCT {sql})" for sql in PERIODS.values())
    found = connection.execute(f"SELECT {counts} FROM ({source})", list(values)).fetchone()
    assert found is not None
    fitting = [name for name, count in zip(PERIODS, found, strict=True) if count <= most]
    return fitting[0] if fitting else list(PERIODS)[-1]


def _known(
    connection: duckdb.DuckDBPyConnection, analysis: pages.Shape | None, test: str, values: Sequence[Any]
) -> list[str]:
    """Indicators that there are of this symbol: columns, and what its newest row has beside them."""
    if analysis is None:
        return []
    newest = reading.newest(analysis.name, analysis.key, f"WHERE {test}")
    found = connection.execute(
        f"SELECT json_keys(extra) FROM ({newest}) WHERE extra IS NOT NULL ORDER BY datetime DESC LIMIT 1", list(values)
    ).fetchone()
    columns = [name for name, kind in analysis.types.items() if kind == "float64"]
    return [*columns, *(name for name in (found[0] if found else []) if name not in columns)]


def _indicators(
    connection: duckdb.DuckDBPyConnection,
    analysis: pages.Shape | None,
    test: str,
    values: Sequence[Any],
    asked: Sequence[str],
) -> tuple[dict[str, str], list[str]]:
    """Name -> SQL, and the values for its placeholders. Raises FieldError for one that there is not."""
    if not asked:
        return {}, []
    if len(asked) > MOST_INDICATORS:
        raise FieldError("indicators", f"names {len(asked)}; at most {MOST_INDICATORS} are allowed")
    known = _known(connection, analysis, test, values)
    made: dict[str, str] = {}
    paths: list[str] = []
    for name in dict.fromkeys(asked):
        if name not in known:
            raise FieldError("indicators", f"{shown(name)} is not one of: {', '.join(known) or 'none yet'}")
        if analysis is not None and name in analysis.types:
            made[name] = quoted(name)
        else:
            made[name] = "TRY_CAST(json_extract_string(extra, ?) AS DOUBLE)"
            paths.append(f'$."{name}"')
    return made, paths


def _signals(
    connection: duckdb.DuckDBPyConnection, analysis: pages.Shape | None, test: str, values: Sequence[Any], first: Any
) -> dict[str, Any]:
    """The newest signals, from the first bar that is shown on."""
    if analysis is None:
        return {"signals": [], "more_signals": False}
    newest = reading.newest(analysis.name, analysis.key, f"WHERE {test}")
    sql = f"""
        SELECT datetime, unnest(from_json(signals, '["VARCHAR"]')) AS signal FROM ({newest})
        WHERE signals IS NOT NULL AND datetime >= coalesce(?, datetime)
        ORDER BY datetime DESC, signal LIMIT {MOST_SIGNALS + 1:d}
    """
    rows = connection.execute(sql, [*values, first]).fetchall()
    found = [{"datetime": plain(moment), "signal": signal} for moment, signal in rows[:MOST_SIGNALS][::-1]]
    return {"signals": found, "more_signals": len(rows) > MOST_SIGNALS}
