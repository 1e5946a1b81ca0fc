"""What tables, their pages and facets, the SQL box and the charts say, for the schema; and what the SQL box is sent."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from api.serializers import ColumnSerializer


class KeyColumn(ColumnSerializer):
    key = serializers.BooleanField(help_text="Is it a part of the natural key?")


class RowCount(serializers.Serializer[Any]):
    rows = serializers.IntegerField(allow_null=True, help_text="null: unknown.")
    exact = serializers.BooleanField(
        help_text="false: counting was not finished within `count_seconds`, and there are at most so many."
    )


class AboutTable(serializers.Serializer[Any]):
    name = serializers.CharField()
    of = serializers.CharField(allow_null=True, help_text="Of a view: its table.")
    columns = KeyColumn(many=True)
    key = serializers.ListField(child=serializers.CharField())
    lineage = ColumnSerializer(many=True, help_text="Where a row came from: with `raw`.")
    views = serializers.ListField(child=serializers.CharField())
    rows = RowCount(help_text="The newest row of each fact.")
    saved_rows = serializers.IntegerField(allow_null=True, help_text="Replaced ones, too. A view has none of its own.")
    runs = serializers.IntegerField(allow_null=True, help_text="That saved rows. null: not finished, or a view.")
    last_saved = serializers.DateTimeField(allow_null=True, help_text="UTC.")


class TablePage(serializers.Serializer[Any]):
    columns = serializers.ListField(child=serializers.CharField())
    rows = serializers.ListField(
        child=serializers.ListField(child=serializers.JSONField()), help_text="Values in the order of `columns`."
    )
    next = serializers.CharField(allow_null=True, help_text="For `after`; null: this is the last page.")
    count = RowCount(allow_null=True, help_text="Of all rows that the filters leave.")
    took = serializers.FloatField(help_text="Milliseconds, counting apart.")
    sql = serializers.CharField(help_text="The same as a statement for the SQL box.")


class FacetValue(serializers.Serializer[Any]):
    value = serializers.JSONField()
    rows = serializers.IntegerField()


class Facet(serializers.Serializer[Any]):
    column = serializers.CharField()
    values = FacetValue(many=True, help_text="The most frequent first.")
    more = serializers.BooleanField(help_text="There are further values.")
    finished = serializers.BooleanField(help_text="false: counting took longer than `facet_seconds`; no values then.")
    seconds = serializers.FloatField()


class SqlStatement(serializers.Serializer[Any]):
    query = serializers.CharField(help_text="One SELECT.")
    limit = serializers.IntegerField(
        required=False, help_text="At most so many rows: `sql_rows`, with `format` `sql_download_rows`."
    )
    format = serializers.ChoiceField(
        ["parquet", "arrow", "csv", "json", "jsonl"], required=False, help_text="For a file; without it, an object."
    )


class SqlAnswer(serializers.Serializer[Any]):
    columns = ColumnSerializer(many=True)
    rows = serializers.ListField(child=serializers.ListField(child=serializers.JSONField()))
    took = serializers.FloatField(help_text="Milliseconds.")
    truncated = serializers.BooleanField(help_text="There were more rows than `limit`.")


class SqlTable(serializers.Serializer[Any]):
    name = serializers.CharField()
    columns = ColumnSerializer(many=True, help_text="Types as SQL has them.")


class Grid(serializers.Serializer[Any]):
    columns = serializers.ListField(child=serializers.CharField())
    rows = serializers.ListField(child=serializers.ListField(child=serializers.JSONField()))


class Signal(serializers.Serializer[Any]):
    datetime = serializers.CharField()
    signal = serializers.CharField()


class Candles(Grid):
    symbol = serializers.CharField()
    freq = serializers.CharField()
    table = serializers.CharField(help_text="kline; or analysis, which has closes only.")
    period = serializers.CharField(help_text="What a bar here stands for.")
    bars = serializers.IntegerField(help_text="Saved ones in the range.")
    first = serializers.CharField(allow_null=True)
    last = serializers.CharField(allow_null=True)
    truncated = serializers.BooleanField(help_text="Older bars of the range are not here.")
    indicators = serializers.ListField(child=serializers.CharField(), help_text="That may be asked for.")
    signals = Signal(many=True, required=False)
    more_signals = serializers.BooleanField(required=False)


class BacktestChart(serializers.Serializer[Any]):
    key = serializers.DictField()
    numbers = serializers.DictField(help_text="Metrics, and `params`.")
    points = serializers.IntegerField(help_text="Of the whole curve.")
    equity = Grid()
    trades = serializers.ListField(child=serializers.DictField())
    more_trades = serializers.BooleanField()


class Parameter(serializers.Serializer[Any]):
    name = serializers.CharField()
    values = serializers.IntegerField()


class Axis(serializers.Serializer[Any]):
    name = serializers.CharField()
    ranges = serializers.BooleanField(help_text="Ticks are where ranges begin.")
    ticks = serializers.ListField(child=serializers.JSONField())


class Heat(Grid):
    x = Axis()
    y = Axis()


class OptimizationChart(serializers.Serializer[Any]):
    study = serializers.CharField()
    setup = serializers.CharField()
    strategy = serializers.CharField()
    objective = serializers.CharField()
    direction = serializers.CharField()
    trials = serializers.IntegerField()
    truncated = serializers.BooleanField()
    best = serializers.DictField(allow_null=True)
    parameters = Parameter(many=True)
    history = Grid()
    heat = Heat(allow_null=True)


class ArticleHead(serializers.Serializer[Any]):
    feed = serializers.CharField()
    id = serializers.CharField()
    title = serializers.CharField(allow_null=True)
    author = serializers.CharField(allow_null=True)
    url = serializers.CharField(allow_null=True)
    published = serializers.CharField(allow_null=True, help_text="UTC.")
    image = serializers.CharField(allow_null=True)
    summary = serializers.CharField(allow_null=True)
    saved_at = serializers.CharField(help_text="UTC.")


class Articles(serializers.Serializer[Any]):
    results = ArticleHead(many=True)
    next = serializers.CharField(allow_null=True)


class Article(ArticleHead):
    text = serializers.CharField(allow_null=True)
