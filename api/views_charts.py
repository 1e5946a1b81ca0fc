"""What charts show, read for them: bars, a backtest, a search; and articles. Bounded in size and in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers_tables import Article, Articles, BacktestChart, Candles, OptimizationChart
from api.views import LARGEST_ID, Native, flag, number, only_known
from dispatch.results import charts, charts_articles, charts_results, reading_pages, saver
from nodes.protocol import FieldError, NotFound

if TYPE_CHECKING:
    import duckdb

BACKTEST_KEY = ("symbol", "freq", "strategy", "variant", "start_date", "end_date")
SEARCH_KEY = ("study", "setup")
_RUN = OpenApiParameter("run", int, description="Only what the run with this id saved.")


@contextmanager
def _reading(request: Request, known: tuple[str, ...]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A reader that is ended after ``read_seconds``. Raises FieldError for a name in the query that nobody knows."""
    only_known(request, known)
    for name in request.query_params:
        if len(request.query_params.getlist(name)) > 1:
            raise FieldError(name, "is given twice")
        if "\x00" in request.query_params[name]:
            raise FieldError(name, "holds a NUL character")
    try:
        with reading_pages.within(saver.results(), settings.CASCADE.read_seconds) as connection:
            yield connection
    except FieldError as error:
        raise FieldError(error.field.removeprefix("where."), error.message) from None


def _given(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    return {name: request.query_params[name] for name in names if name in request.query_params}


def _run(request: Request) -> int | None:
    run = number(request, "run", -1, 0, LARGEST_ID)
    return None if run < 0 else run


def _text(name: str, description: str, **more: Any) -> OpenApiParameter:
    return OpenApiParameter(name, str, description=description, **more)


class CandleChart(Native):
    @extend_schema(
        operation_id="charts_candles",
        parameters=[
            _text("symbol", "Which one.", required=True),
            _text("freq", "Length of the bars that were saved. Default D."),
            _text("from", "ISO 8601, inclusive."),
            _text("to", "ISO 8601, exclusive."),
            _text(
                "period",
                "What a bar of the answer stands for; auto: the finest with which there are few enough.",
                enum=["auto", *charts.PERIODS],
            ),
            OpenApiParameter("bars", int, description=f"At most so many: {charts.BARS}, up to {charts.MOST_BARS}."),
            _text("indicators", "Names with commas, of those that `indicators` of the answer has."),
            OpenApiParameter("signals", bool, description="Tell signals, too."),
        ],
        responses=Candles,
    )
    def get(self, request: Request) -> Response:
        """Bars of a symbol, made coarser until there are few enough, with indicators and signals of its analysis."""
        names = ("symbol", "freq", "from", "to", "period", "bars", "indicators", "signals")
        with _reading(request, names) as connection:
            query = request.query_params
            if not query.get("symbol"):
                raise FieldError("symbol", "is needed")
            asked = query.get("indicators", "")
            return Response(
                charts.candles(
                    connection,
                    symbol=query["symbol"],
                    freq=query.get("freq", "D"),
                    since=query.get("from"),
                    until=query.get("to"),
                    period=query.get("period", "auto"),
                    most=number(request, "bars", charts.BARS, 1, charts.MOST_BARS),
                    indicators=[name.strip() for name in asked.split(",") if name.strip()],
                    signals=flag(request, "signals"),
                )
            )


class BacktestCurve(Native):
    @extend_schema(
        operation_id="charts_backtest",
        parameters=[
            *(_text(name, "Needed where several backtests fit.") for name in BACKTEST_KEY),
            _RUN,
            OpenApiParameter(
                "points",
                int,
                description=f"Of the curve, at most: {charts_results.POINTS}, up to {charts_results.MOST_POINTS}.",
            ),
        ],
        responses=BacktestChart,
    )
    def get(self, request: Request) -> Response:
        """One backtest: its numbers and parameters, equity with draw-downs, and its trades."""
        with _reading(request, (*BACKTEST_KEY, "run", "points")) as connection:
            points = number(request, "points", charts_results.POINTS, 10, charts_results.MOST_POINTS)
            return Response(charts_results.backtest(connection, _given(request, BACKTEST_KEY), _run(request), points))


class OptimizationTrials(Native):
    @extend_schema(
        operation_id="charts_optimization",
        parameters=[
            *(_text(name, "Needed where several searches fit.") for name in SEARCH_KEY),
            _RUN,
            _text("x", "A parameter; without it one of those with the most values."),
            _text("y", "Another one."),
        ],
        responses=OptimizationChart,
    )
    def get(self, request: Request) -> Response:
        """One search: the best trial, all trials with the best so far, and a heat map of two parameters."""
        with _reading(request, (*SEARCH_KEY, "run", "x", "y")) as connection:
            given = _given(request, SEARCH_KEY)
            x, y = request.query_params.get("x"), request.query_params.get("y")
            return Response(charts_results.optimization(connection, given, _run(request), x, y))


class ArticleList(Native):
    @extend_schema(
        operation_id="articles_list",
        parameters=[
            _text("feed", "Only of this feed."),
            _text("search", f"Only with all these words; {charts_articles.WORDS} at most."),
            OpenApiParameter(
                "limit",
                int,
                description=f"{charts_articles.ARTICLES}, at most {charts_articles.MOST_ARTICLES}.",
            ),
            _text("after", "The `next` of the list before."),
        ],
        responses=Articles,
    )
    def get(self, request: Request) -> Response:
        """Articles of feeds, the newest first, without their texts."""
        with _reading(request, ("feed", "search", "limit", "after")) as connection:
            return Response(
                charts_articles.articles(
                    connection,
                    feed=request.query_params.get("feed"),
                    search=request.query_params.get("search", ""),
                    limit=number(request, "limit", charts_articles.ARTICLES, 1, charts_articles.MOST_ARTICLES),
                    after=request.query_params.get("after"),
                )
            )


class ArticleText(Native):
    @extend_schema(
        operation_id="articles_read",
        parameters=[_text("feed", "Its feed.", required=True), _text("id", "Its id.", required=True)],
        responses=Article,
    )
    def get(self, request: Request) -> Response:
        """One article with its whole text."""
        with _reading(request, ("feed", "id")) as connection:
            for name in ("feed", "id"):
                if name not in request.query_params:
                    raise FieldError(name, "is needed")
            found = charts_articles.article(connection, request.query_params["feed"], request.query_params["id"])
        if found is None:
            raise NotFound("there is no such article")
        return Response(found)
