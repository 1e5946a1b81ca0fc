"""What some tables are read for, as pages: bars as candles, a backtest's curve, a search's trials, articles.

Each page has its choice in the address, and beside a drawing the same as a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from api.tables_page import Cell, cell, chart_name, short
from api.views_charts import BACKTEST_KEY, SEARCH_KEY
from dispatch.results import charts, charts_articles, charts_results, saver
from dispatch.results import reading_pages as pages
from dispatch.results.base import Store
from nodes.executors.base import shown
from nodes.protocol import CascadeError, FieldError, NotFound

SYMBOLS = 500
"""That a page offers by name; others may be typed."""
CHOICES = 100
"""Backtests and searches that a page lists."""
BARS_LISTED = 100
PERIOD_WORDS = {
    "auto": gettext_noop("as fits"),
    "bar": gettext_noop("each bar"),
    "D": gettext_noop("day"),
    "W": gettext_noop("week"),
    "M": gettext_noop("month"),
    "Q": gettext_noop("quarter"),
    "Y": gettext_noop("year"),
}
BEST = 20
FIGURES = (
    *("total_return", "cagr", "sharpe", "sortino", "max_drawdown", "volatility", "trades", "win_rate"),
    *("profit_factor", "first_bar", "last_bar", "bars", "data_source"),
)
"""Of a backtest, shown first; others on demand."""


def chart(request: HttpRequest, name: str) -> HttpResponse:
    """The chart of table ``name``. Raises NotFound where it has none, or there are no rows for it yet."""
    if name not in _PAGES:
        raise NotFound(f"{shown(name)} has no chart; these have: {', '.join(_PAGES)}")
    return _PAGES[name](request)


def _given(request: HttpRequest, names: Sequence[str]) -> dict[str, str]:
    """What the address says of ``names``; a field of a form that was left empty says nothing."""
    return {name: value for name in names if (value := request.GET.get(name, "").replace("\x00", "").strip())}


def _page(
    request: HttpRequest, template: str, name: str, context: Mapping[str, Any], wrong: CascadeError | None
) -> HttpResponse:
    return render(
        request,
        template,
        {
            **context,
            "now": int(timezone.now().timestamp() * 1000),
            "name": name,
            "chart": chart_name(name),
            "problem": str(wrong) if wrong else "",
        },
        status=wrong.status if wrong else 200,
    )


# ---- candles -----------------------------------------------------------------------------------------------------


def candles(request: HttpRequest, name: str) -> HttpResponse:
    """Bars of a symbol with volume, indicators and signals."""
    store = saver.results()
    given = _given(request, ("symbol", "freq", "from", "to", "period", "bars"))
    symbols = _values(store, name, "symbol", {}, SYMBOLS)
    symbol = given.get("symbol") or (symbols[0] if symbols else "")
    freqs = _values(store, name, "freq", {"symbol": symbol}, 20) if symbol else []
    freq = given.get("freq") or ("D" if "D" in freqs or not freqs else freqs[0])
    asked = [each for each in request.GET.getlist("indicator") if each]
    answer: dict[str, Any] | None = None
    wrong: CascadeError | None = None
    if symbol:
        try:
            with pages.within(store, settings.CASCADE.read_seconds) as connection:
                answer = charts.candles(
                    connection,
                    symbol=symbol,
                    freq=freq,
                    since=given.get("from"),
                    until=given.get("to"),
                    period=given.get("period", "auto"),
                    most=_bars(given.get("bars")),
                    indicators=asked,
                    signals="signals" in request.GET,
                )
        except NotFound:
            raise
        except CascadeError as error:
            wrong = error
    context: dict[str, Any] = {
        "symbols": sorted(symbols),
        "symbol": symbol,
        "freqs": sorted({*freqs, freq}),
        "freq": freq,
        "given": {"since": given.get("from", ""), "until": given.get("to", "")},
        "period": given.get("period", "auto"),
        "periods": [(each, _(PERIOD_WORDS.get(each, each))) for each in ("auto", *charts.PERIODS)],
        "put_together": _(PERIOD_WORDS.get(answer["period"], answer["period"])) if answer else "",
        "asked": asked,
        "signals": "signals" in request.GET,
        "indicators": answer["indicators"] if answer else asked,
        "answer": answer,
        "rows_link": f"{reverse('table', args=[name])}?{urlencode({'symbol': symbol, 'freq': freq})}",
    }
    if answer:
        context |= {
            "from_closes": answer["rows"] and answer["table"] == "analysis",
            "bars": [
                [cell(n, "", v) for n, v in zip(answer["columns"], row, strict=True)] for row in answer["rows"][::-1]
            ][:BARS_LISTED],
        }
    return _page(request, "candles.html", name, context, wrong)


def _bars(given: str | None) -> int:
    if given is None:
        return charts.BARS
    if not (given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= charts.MOST_BARS):
        raise FieldError("bars", f"{shown(given)} is not a whole number from 1 to {charts.MOST_BARS}")
    return int(given)


def _values(store: Store, table: str, column: str, where: Mapping[str, str], most: int) -> list[str]:
    """The most frequent values of a column of texts; none where counting them takes too long, or there is no table."""
    with store.reader() as connection, store._errors():
        shape = pages.found(connection, table)
    # Over all rows that were saved: which value is there does not depend on which row is the newest.
    wanted = pages.Asked(where=where, raw=not shape.of)
    told = pages.facet(store, shape, wanted, column, most, settings.CASCADE.facet_seconds)
    return [str(each["value"]) for each in told["values"] if each["value"]]


# ---- a backtest --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    link: str
    cells: tuple[Cell, ...]
    chosen: bool


def backtest(request: HttpRequest) -> HttpResponse:
    """One backtest: curve, draw-downs, trades; and which others there are."""
    store = saver.results()
    given = _given(request, BACKTEST_KEY)
    shown_columns = (*BACKTEST_KEY, "total_return", "sharpe", "max_drawdown", "trades")
    answer: dict[str, Any] | None = None
    wrong: CascadeError | None = None
    choices: list[Choice] = []
    more = False
    try:
        with pages.within(store, settings.CASCADE.read_seconds) as connection:
            choices, rows, more = _choices(connection, "backtest", shown_columns, BACKTEST_KEY, given)
            if len(rows) == 1:
                wanted = {name: str(rows[0][name]) for name in BACKTEST_KEY if rows[0][name] is not None}
                answer = charts_results.backtest(connection, wanted, None, charts_results.POINTS)
    except NotFound:
        raise
    except CascadeError as error:
        wrong = error
    context: dict[str, Any] = {
        "given": given,
        "filters": [(each, given.get(each, "")) for each in BACKTEST_KEY],
        "choices": choices,
        "columns": shown_columns,
        "more": more,
        "answer": answer,
    }
    if answer:
        numbers = answer["numbers"]
        figures = [(each, cell(each, "", numbers[each])) for each in FIGURES if each in numbers]
        context |= {
            "title": " · ".join(str(value) for value in answer["key"].values() if value),
            "figures": figures,
            "others": [(n, cell(n, "", v)) for n, v in numbers.items() if n not in FIGURES and n != "params"],
            "params": [(n, str(v)) for n, v in (numbers.get("params") or {}).items()],
            "trades": [[cell(n, "", v) for n, v in each.items()] for each in answer["trades"]],
            "trades_link": f"{reverse('table', args=['backtest_trades'])}?"
            + urlencode({n: v for n, v in answer["key"].items() if v is not None}),
        }
    return _page(request, "backtest.html", "backtest", context, wrong)


def _choices(
    connection: Any, table: str, columns: Sequence[str], key: Sequence[str], given: Mapping[str, str]
) -> tuple[list[Choice], list[dict[str, Any]], bool]:
    """Links to what ``given`` leaves, its rows, and whether there is more of it."""
    shape = pages.found(connection, table)
    found = pages.page(connection, shape, pages.Asked(where=given, columns=columns), CHOICES, None)
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    choices = []
    for row in rows:
        told = {name: row[name] for name in key if row[name] is not None}
        cells = tuple(cell(name, shape.types[name], value) for name, value in row.items())
        choices.append(Choice(f"?{urlencode(told)}", cells, len(rows) == 1))
    return choices, rows, found.next is not None


# ---- a search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeatCell:
    """A rectangle in units of cells. ``level``: 0 to 8, the better the higher."""

    x: int
    y: int
    level: int
    title: str


@dataclass(frozen=True)
class Heat:
    x: str
    y: str
    wide: int
    high: int
    cells: tuple[HeatCell, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    low: str
    top: str


LEVELS = 9


def optimization(request: HttpRequest) -> HttpResponse:
    """One search: heat map of two parameters, best trials, the best so far; and which others there are."""
    store = saver.results()
    given = _given(request, SEARCH_KEY)
    pair = _given(request, ("x", "y"))
    answer: dict[str, Any] | None = None
    wrong: CascadeError | None = None
    searches: list[tuple[str, str, str, int, bool]] = []
    best: list[list[Cell]] = []
    try:
        with pages.within(store, settings.CASCADE.read_seconds) as connection:
            shape = pages.found(connection, "optimization")
            made = pages.source(shape, pages.Asked())
            found = connection.execute(
                f"SELECT study, setup, count(*) FROM {made.sql} GROUP BY ALL ORDER BY ALL LIMIT {CHOICES}"
            ).fetchall()
            if not given and found:
                given = dict(zip(SEARCH_KEY, map(str, found[0][:2]), strict=True))
            for study, setup, trials in found:
                link = f"?{urlencode({'study': study, 'setup': setup})}"
                searches.append((link, study, setup, trials, given == {"study": study, "setup": setup}))
            answer = charts_results.optimization(connection, given, None, pair.get("x"), pair.get("y"))
            best = _best(connection, shape, answer)
    except NotFound:
        raise
    except CascadeError as error:
        wrong = error
    context: dict[str, Any] = {"given": given, "pair": pair, "searches": searches, "answer": answer, "best": best}
    if answer:
        context |= {
            "heat": _heat(answer["heat"], answer["direction"]) if answer["heat"] else None,
            "history": _history(answer["history"]["rows"]),
            "best_params": [(n, str(v)) for n, v in ((answer["best"] or {}).get("params") or {}).items()],
            "best_value": short(answer["best"]["value"]) if answer["best"] else "",
            "rows_link": f"{reverse('table', args=['optimization'])}?"
            + urlencode({"study": answer["study"], "setup": answer["setup"], "ordering": "trial"}),
        }
    return _page(request, "optimization.html", "optimization", context, wrong)


def _best(connection: Any, shape: pages.Shape, answer: Mapping[str, Any]) -> list[list[Cell]]:
    """The best feasible trials, a column for each parameter."""
    wanted = pages.Asked(
        where={"study": answer["study"], "setup": answer["setup"], "feasible": "true"},
        columns=("trial", "value", "in_sample", "out_of_sample", "params"),
        order=("value" if answer["direction"] == "minimize" else "-value",),
    )
    rows = pages.page(connection, shape, wanted, BEST, None).rows
    names = [each["name"] for each in answer["parameters"]]
    told = []
    for trial, value, inside, outside, params in rows:
        has = json.loads(params or "{}")
        numbers = {"trial": trial, "value": value, "in_sample": inside, "out_of_sample": outside}
        told.append([cell(n, "", v) for n, v in {**numbers, **{n: has.get(n) for n in names}}.items()])
    return told


def _heat(heat: Mapping[str, Any], direction: str) -> Heat:
    values = [row[2] for row in heat["rows"] if row[2] is not None]
    low, top = (min(values), max(values)) if values else (0.0, 0.0)
    cells = []
    x, y = heat["x"], heat["y"]
    high = len(y["ticks"])
    for at, to, best, mean, trials in heat["rows"]:
        if best is None:
            level = -1
        else:
            part = (best - low) / (top - low) if top > low else 1.0
            level = round((1 - part if direction == "minimize" else part) * (LEVELS - 1))
        if best is None:
            said = _("no feasible trial")
        else:
            said = _("best {best}, mean {mean}").format(best=short(best), mean=short(mean))
        place = f"{x['name']} {_tick(x, at)}, {y['name']} {_tick(y, to)}"
        title = _("{place}: {said}, trials: {n}").format(place=place, said=said, n=trials)
        cells.append(HeatCell(at, high - 1 - to, level, title))
    return Heat(
        x["name"],
        y["name"],
        len(x["ticks"]),
        high,
        tuple(cells),
        tuple((100 * (at + 0.5) / len(x["ticks"]), _tick(x, at)) for at in _some(len(x["ticks"]))),
        tuple((100 * (high - to - 0.5) / high, _tick(y, to)) for to in _some(high)),
        short(float(low)),
        short(float(top)),
    )


def _tick(axis: Mapping[str, Any], at: int) -> str:
    value = axis["ticks"][at]
    text = short(value) if isinstance(value, float) else str(value)
    return f"{text}…" if axis["ranges"] else text


def _some(count: int, most: int = 8) -> list[int]:
    """At most so many of ``count`` places, evenly."""
    step = max(1, -(-count // most))
    return list(range(0, count, step))


@dataclass(frozen=True)
class History:
    """Trials as points and the best so far as steps, on 1000 by 200."""

    points: tuple[tuple[str, str, bool], ...]
    steps: str
    low: str
    top: str
    trials: int


def _history(rows: Sequence[Sequence[Any]]) -> History | None:
    values = [row[1] for row in rows if row[1] is not None]
    if not values:
        return None
    low, top = min(values), max(values)

    def place(number: int, value: float) -> tuple[str, str]:
        x = 1000 * (number + 0.5) / len(rows)
        return f"{x:.1f}", f"{200 - 190 * ((value - low) / (top - low) if top > low else 0.5) - 5:.1f}"

    every = max(1, len(rows) // 1000)
    points = [(*place(n, row[1]), bool(row[2])) for n, row in enumerate(rows) if row[1] is not None and n % every == 0]
    steps: list[str] = []
    last = None
    for number, row in enumerate(rows):
        if row[3] is None:
            continue
        x, y = place(number, row[3])
        if last is not None and y != last:
            steps.append(f"{x},{last}")
        if y != last or number == len(rows) - 1:
            steps.append(f"{x},{y}")
        last = y
    return History(tuple(points), " ".join(steps), short(low), short(top), len(rows))


# ---- articles ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArticleView:
    feed: str
    title: str
    author: str
    source: str
    """Its address, if a browser may go there."""
    at: str
    summary: str
    link: str


def articles(request: HttpRequest) -> HttpResponse:
    """Articles of feeds, the newest first; those of one feed, or with some words."""
    store = saver.results()
    given = _given(request, ("feed", "search"))
    after = request.GET.get("after") or None
    answer: dict[str, Any] = {"results": [], "next": None}
    wrong: CascadeError | None = None
    feeds: list[str] = []
    try:
        feeds = sorted(_values(store, "articles", "feed", {}, SYMBOLS))
        with pages.within(store, settings.CASCADE.read_seconds) as connection:
            answer = charts_articles.articles(
                connection, feed=given.get("feed"), search=given.get("search", ""), after=after
            )
    except NotFound:
        pass
    except CascadeError as error:
        wrong = error
    words = [_("of {feed}").format(feed=given["feed"])] if "feed" in given else []
    words += [_("with “{text}”").format(text=given["search"])] if "search" in given else []
    context = {
        "given": given,
        "feeds": sorted({*feeds, *([given["feed"]] if "feed" in given else [])}),
        "articles": [_article(each) for each in answer["results"]],
        "words": " ".join(words),
        "following": f"?{urlencode({**given, 'after': answer['next']})}" if answer["next"] else "",
        "first": f"?{urlencode(given)}" if after else "",
    }
    return _page(request, "articles.html", "articles", context, wrong)


def article(request: HttpRequest) -> HttpResponse:
    """One article with its text. Raises NotFound."""
    feed, id = (request.GET.get(name, "").replace("\x00", "") for name in ("feed", "id"))
    with pages.within(saver.results(), settings.CASCADE.read_seconds) as connection:
        found = charts_articles.article(connection, feed, id)
    if found is None:
        raise NotFound("there is no such article")
    text = [each for each in (found["text"] or found["summary"] or "").split("\n") if each.strip()]
    return _page(request, "article.html", "articles", {"article": _article(found), "text": text}, None)


def _article(found: Mapping[str, Any]) -> ArticleView:
    url = found["url"] or ""
    return ArticleView(
        found["feed"] or "",
        found["title"] or _("without a title"),
        found["author"] or "",
        url if url.lower().startswith(("http://", "https://")) else "",
        # Both are UTC, though they are saved without saying so.
        f"{found['published'] or found['saved_at']}Z",
        found["summary"] or "",
        f"{reverse('article')}?{urlencode({'feed': found['feed'] or '', 'id': found['id'] or ''})}",
    )


_PAGES = {
    "kline": lambda request: candles(request, "kline"),
    "analysis": lambda request: candles(request, "analysis"),
    "backtest": backtest,
    "optimization": optimization,
}
