"""What charts of backtests and searches show: a curve with its trades; trials, the best so far, and a heat map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dispatch.results import reading
from dispatch.results import reading_pages as pages
from dispatch.results.formats import plain
from dispatch.results.reading_filters import quoted
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotFound

if TYPE_CHECKING:
    import duckdb

POINTS = 1_000
MOST_POINTS = 5_000
MOST_TRADES = 1_000
MOST_NAMED = 20
"""Values that an error lists."""
MOST_TRIALS = 5_000
BINS = 40
"""Of a parameter with more values than this, cells stand for ranges."""


def backtest(
    connection: duckdb.DuckDBPyConnection, where: Mapping[str, str], run: int | None, points: int
) -> dict[str, Any]:
    """The one backtest that ``where``, columns of its key, leaves: its numbers and parameters, the curve of equity with
    draw-downs (``points`` at most; of each stretch the highest and the lowest), and its trades.

    Raises NotFound where there is none, FieldError with what would decide where there are several.
    """
    shape, row = _one(connection, "backtest", where, run)
    curve, trades = (json.loads(row.pop(name) or "null") for name in ("equity_curve", "trade_list"))
    row["params"] = json.loads(row["params"] or "null")
    equity = _drawn_down((curve or {}).get("dates", []), (curve or {}).get("values", []))
    return {
        "key": {name: row[name] for name in shape.key},
        "numbers": {name: value for name, value in row.items() if name not in shape.key},
        "points": len(equity),
        "equity": {"columns": ["datetime", "equity", "drawdown"], "rows": _thinned(equity, points)},
        "trades": (trades or [])[:MOST_TRADES],
        "more_trades": len(trades or []) > MOST_TRADES,
    }


def _drawn_down(dates: list[str], values: list[float | None]) -> list[tuple[str, float | None, float | None]]:
    top = float("-inf")
    told: list[tuple[str, float | None, float | None]] = []
    for date, value in zip(dates, values, strict=False):
        if value is None:
            told.append((date, None, None))
            continue
        top = max(top, value)
        told.append((date, value, 1 - value / top if top > 0 else 0.0))
    return told


def _thinned(rows: list[tuple[str, float | None, float | None]], most: int) -> list[tuple[Any, ...]]:
    """At most ``most`` of the rows: first and last, and of each stretch the lowest and the highest."""
    if len(rows) <= most:
        return list(rows)
    stretches = max(1, (most - 2) // 2)
    inner, kept = rows[1:-1], {0, len(rows) - 1}
    for number in range(stretches):
        begin, end = number * len(inner) // stretches, (number + 1) * len(inner) // stretches
        there = [at for at in range(begin, end) if inner[at][1] is not None]
        if there:
            values = {at: inner[at][1] or 0.0 for at in there}
            kept |= {1 + min(there, key=values.__getitem__), 1 + max(there, key=values.__getitem__)}
    return [rows[at] for at in sorted(kept)]


def optimization(
    connection: duckdb.DuckDBPyConnection, where: Mapping[str, str], run: int | None, x: str | None, y: str | None
) -> dict[str, Any]:
    """Of the one search that ``where`` (study, setup) leaves: the best trial, all trials in their order with the best
    so far, its parameters, and for the two parameters ``x`` and ``y`` the best and mean value of each pair.

    Without ``x`` and ``y`` those with the most values. Raises NotFound, FieldError.
    """
    shape = pages.found(connection, "optimization")
    made = pages.source(shape, pages.Asked(run=run, where=where))
    groups = connection.execute(
        f"SELECT DISTINCT study, setup FROM {made.sql} {made.where} ORDER BY ALL LIMIT {MOST_NAMED + 1}",
        list(made.values),
    ).fetchall()
    _settle([dict(zip(("study", "setup"), row, strict=True)) for row in groups], "searches")
    rows = connection.execute(
        "SELECT trial, params, value, feasible, violation, in_sample, out_of_sample, direction, strategy, "
        f"strategy_params, objective FROM {made.sql} {made.where} ORDER BY trial LIMIT {MOST_TRIALS + 1}",
        list(made.values),
    ).fetchall()
    direction = rows[0][7]
    trials = [{**dict(zip(_TRIAL, row[:7], strict=True)), "params": json.loads(row[1] or "{}")} for row in rows]
    cut = len(trials) > MOST_TRIALS
    trials = trials[:MOST_TRIALS]
    best, so_far = None, []
    for number, trial in enumerate(trials):
        if (
            trial["feasible"]
            and trial["value"] is not None
            and (best is None or _better(trial, trials[best], direction))
        ):
            best = number
        so_far.append(None if best is None else trials[best]["value"])
    values = _values(trials)
    chosen = _pair(values, x, y)
    return {
        "study": groups[0][0],
        "setup": groups[0][1],
        "strategy": rows[0][8],
        "objective": rows[0][10],
        "direction": direction,
        "trials": len(trials),
        "truncated": cut,
        "best": None if best is None else {**trials[best], "strategy_params": json.loads(rows[best][9] or "{}")},
        "parameters": [{"name": name, "values": len(there)} for name, there in values.items()],
        "history": {
            "columns": ["trial", "value", "feasible", "best"],
            "rows": [
                [t["trial"], plain(t["value"]), t["feasible"], plain(b)] for t, b in zip(trials, so_far, strict=True)
            ],
        },
        "heat": _heat(trials, values, chosen, direction) if chosen else None,
    }


_TRIAL = ("trial", "params", "value", "feasible", "violation", "in_sample", "out_of_sample")


def _better(one: Mapping[str, Any], other: Mapping[str, Any], direction: str) -> bool:
    return bool(one["value"] < other["value"] if direction == "minimize" else one["value"] > other["value"])


def _values(trials: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Parameter -> its values, numbers in their order and then texts."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name, value in trial["params"].items():
            found.setdefault(name, {})[json.dumps(value)] = value
    return {name: sorted(there.values(), key=_rank) for name, there in found.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rank(value: Any) -> tuple[bool, float, str]:
    return (False, float(value), "") if _number(value) else (True, 0.0, json.dumps(value))


def _pair(values: Mapping[str, list[Any]], x: str | None, y: str | None) -> tuple[str, str] | None:
    for field, name in (("x", x), ("y", y)):
        if name is not None and name not in values:
            raise FieldError(field, f"{shown(name)} is no parameter of this search; there are: {', '.join(values)}")
    if x is not None and x == y:
        raise FieldError("y", f"{shown(y)} is x already")
    wide = sorted((name for name in values if name not in (x, y)), key=lambda name: (-len(values[name]), name))
    chosen = [x if x is not None else None, y if y is not None else None]
    for place in (0, 1):
        if chosen[place] is None:
            if not wide:
                return None
            chosen[place] = wide.pop(0)
    return str(chosen[0]), str(chosen[1])


def _heat(
    trials: list[dict[str, Any]], values: Mapping[str, list[Any]], pair: tuple[str, str], direction: str
) -> dict[str, Any]:
    axes = [_axis(name, values[name]) for name in pair]
    cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for trial in trials:
        if trial["value"] is None or any(name not in trial["params"] for name in pair):
            continue
        places = [axis["place"](trial["params"][name]) for axis, name in zip(axes, pair, strict=True)]
        cells.setdefault((places[0], places[1]), []).append(trial)
    rows = []
    for (at, to), there in sorted(cells.items()):
        good = [trial["value"] for trial in there if trial["feasible"]]
        best = (min if direction == "minimize" else max)(good) if good else None
        mean = sum(trial["value"] for trial in there) / len(there)
        rows.append([at, to, plain(best), plain(mean), len(there)])
    told = [{name: value for name, value in axis.items() if name != "place"} for axis in axes]
    return {"x": told[0], "y": told[1], "columns": ["x", "y", "best", "mean", "trials"], "rows": rows}


def _axis(name: str, values: list[Any]) -> dict[str, Any]:
    """``ticks``: the values themselves, or where each range begins."""
    if len(values) > BINS and all(map(_number, values)):
        low, high = float(values[0]), float(values[-1])
        ticks = [low + (high - low) * number / BINS for number in range(BINS)]
        return {
            "name": name,
            "ranges": True,
            "ticks": ticks,
            "place": lambda value: min(BINS - 1, int((value - low) / (high - low) * BINS)),
        }
    places = {json.dumps(value): at for at, value in enumerate(values)}
    kept = values[:BINS]
    return {
        "name": name,
        "ranges": False,
        "ticks": kept,
        "place": lambda value: min(BINS - 1, places[json.dumps(value)]),
    }


def _one(
    connection: duckdb.DuckDBPyConnection, table: str, where: Mapping[str, str], run: int | None
) -> tuple[pages.Shape, dict[str, Any]]:
    shape = pages.found(connection, table)
    made = pages.source(shape, pages.Asked(run=run, where=where))
    key = ", ".join(map(quoted, shape.key))
    found = connection.execute(
        f"SELECT {key} FROM {made.sql} {made.where} ORDER BY {key} LIMIT {MOST_NAMED + 1}", list(made.values)
    ).fetchall()
    _settle([dict(zip(shape.key, row, strict=True)) for row in found], f"{table}s")
    names = list(shape.types)
    whole, tests, values = reading.matching(table, shape.types, shape.key, run, where, False)
    sql = f"SELECT {', '.join(map(quoted, names))} FROM {whole}"
    row = connection.execute(sql + (f" WHERE {' AND '.join(tests)}" if tests else ""), values).fetchone()
    assert row is not None
    return shape, {
        name: value if isinstance(value, str) else plain(value) for name, value in zip(names, row, strict=True)
    }


def _settle(found: list[dict[str, Any]], what: str) -> None:
    """Raises NotFound for none, FieldError for several, with the first column in which they differ."""
    if not found:
        raise NotFound(f"no {what} fit")
    if len(found) == 1:
        return
    for name in found[0]:
        values = list(dict.fromkeys(each[name] for each in found))
        if len(values) > 1:
            more = f" and more of {what}" if len(found) > MOST_NAMED else ""
            raise FieldError(name, f"is needed, as several {what} fit: {', '.join(map(shown, values))}{more}")
