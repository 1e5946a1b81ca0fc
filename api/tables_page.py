"""Tables as pages: which there are; and one, with its columns, its rows page by page, filters, counts and downloads."""

from __future__ import annotations

import datetime as dt
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from rest_framework.request import Request

from api import tables_query as query
from api.parts import iso
from api.tables_query import Address
from api.views import number
from api.views_tables import MOST_FACETS, MOST_ROWS, PAGED, USUAL_ROWS, asked, theirs
from dispatch.models import Run
from dispatch.results import reading_pages as pages
from dispatch.results import saver
from dispatch.results.base import Store
from dispatch.results.datasets import LINEAGE
from dispatch.results.formats import plain
from nodes import executors
from nodes.executors.base import shown
from nodes.protocol import CascadeError, FieldError, NotFound

CHARTS = {
    "kline": gettext_noop("Candles"),
    "analysis": gettext_noop("Candles"),
    "backtest": gettext_noop("Equity and trades"),
    "optimization": gettext_noop("Trials"),
    "articles": gettext_noop("Read"),
}
"""Tables that have a page beside the one of their rows, and its name."""
FORMATS = ("csv", "json", "parquet", "arrow")
LIMITS = (20, USUAL_ROWS, 500, MOST_ROWS)
CELL = 200
"""Characters of a value that are shown; files have them all."""
COUNTED_UNASKED = 2
"""Columns of the key whose values are counted without having been chosen."""
VALUES = 10
NUMBERS = ("int64", "float64")
LINKED = 1_000
"""Longest value that a link filters by."""
STATEMENT = 4_000
"""Longest statement that goes into an address."""


@dataclass(frozen=True)
class Cell:
    """``whole``: the value as files have it, where ``text`` is less."""

    column: str
    text: str
    kind: str = ""
    whole: str = ""
    link: str = ""

    @property
    def td(self) -> SafeString:
        """As HTML. Not by a template: a page has thousands, and a template takes ten times as long for them."""
        text: str = escape(self.text)
        if self.link:
            text = f'<a href="{escape(self.link)}">{text}</a>'
        elif self.kind == "text":
            text = f'<bdi class="clip">{text}</bdi>'
        else:
            text = f"<span>{text}</span>"
        whole = f' title="{escape(self.whole)}"' if self.whole else ""
        label = escape(self.column)
        return mark_safe(f'<td role="cell" data-label="{label}" class="{self.kind}"{whole}>{text}</td>')


def cell(column: str, kind: str, value: Any, link: str = "") -> Cell:
    """A value as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell(column, "–", "none number" if kind in NUMBERS else "none")
    if isinstance(value, bool):
        return Cell(column, "true" if value else "false")
    if isinstance(value, int):
        return Cell(column, str(value), "number", link=link)
    if isinstance(value, float):
        whole = repr(value)
        text = short(value)
        return Cell(column, text, "number", "" if text == whole.removesuffix(".0") else whole)
    text = moment(value) if isinstance(value, dt.date) else str(plain(value))
    if _MOMENT.fullmatch(text):
        text, kind = text.replace("T", " ").removesuffix(" 00:00:00"), "timestamp"
    if not text:
        return Cell(column, "“”", "none")
    if len(text) > CELL:
        whole = _("{n} characters; a file has them all").format(n=f"{len(text):,}")
        return Cell(column, f"{text[:CELL]}…", "text", whole, link)
    return Cell(column, text, "time" if kind == "timestamp" else "text", link=link)


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?")
"""A time as JSON has it."""


def short(value: float) -> str:
    """At most some six digits, those before the point all of them."""
    whole = repr(value).removesuffix(".0")
    if len(whole) <= 9 or not math.isfinite(value):
        return whole
    return f"{value:.2f}" if abs(value) >= 1000 else f"{value:.4f}" if abs(value) >= 1 else f"{value:.5g}"


def moment(value: dt.date) -> str:
    """As it was saved, without a zone."""
    if isinstance(value, dt.datetime) and (value.hour or value.minute or value.second or value.microsecond):
        return value.isoformat(" ")
    return value.isoformat()[:10]


def chart_name(table: str) -> str:
    """What the page beside that of the rows is called; empty for none."""
    return _(CHARTS[table]) if table in CHARTS else ""


def problem(request: HttpRequest, error: CascadeError) -> HttpResponse:
    """A page for what keeps results from being read, such as a process that does not have them."""
    return render(request, "tables.html", {**_still(), "problem": str(error)}, status=error.status)


def _still() -> dict[str, Any]:
    return {"now": int(timezone.now().timestamp() * 1000)}


# ---- all of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableView:
    name: str
    of: str
    columns: str
    key: str
    rows: str
    runs: str
    saved: str
    chart: str


def tables(request: HttpRequest) -> HttpResponse:
    """The datasets, each with its views. Counting takes ``count_seconds`` for all of them; the rest is not counted."""
    store = saver.results()
    with store.reader() as connection, store._errors():
        names = pages.names(connection)
    until = time.monotonic() + settings.CASCADE.count_seconds
    views = [_table_view(pages.about(store, name, max(0.02, until - time.monotonic()))) for name in names]
    whole = [view for view in views if not view.of]
    ordered = [each for view in whole for each in (view, *(other for other in views if other.of == view.name))]
    return render(request, "tables.html", {**_still(), "tables": ordered})


def _table_view(about: Mapping[str, Any]) -> TableView:
    saved = about["last_saved"]
    return TableView(
        about["name"],
        about["of"] or "",
        ", ".join(each["name"] for each in about["columns"]),
        ", ".join(about["key"]),
        amount(about["rows"]["rows"], about["rows"]["exact"]),
        "" if about["runs"] is None else f"{about['runs']:,}",
        iso(saved.replace(tzinfo=dt.UTC)) if saved else "",
        chart_name(about["name"]),
    )


def amount(rows: int | None, exact: bool) -> str:
    if rows is None:
        return _("not counted")
    return f"{rows:,}" if exact else _("at most {n}").format(n=f"{rows:,}")


# ---- one of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chip:
    """A part of what the address asks, in words, and the address without it."""

    words: str
    without: str


@dataclass(frozen=True)
class ColumnView:
    """``order``: ascending, descending or empty; ``turn`` the address that orders by it, the other way or no more."""

    name: str
    kind: str
    key: bool
    lineage: bool
    chosen: bool
    tests: tuple[tuple[str, str], ...]
    test: str
    value: str
    order: str
    turn: str
    count: str
    counted: bool


@dataclass(frozen=True)
class ValueView:
    text: str
    rows: str
    link: str
    chosen: bool


@dataclass(frozen=True)
class FacetView:
    column: str
    values: tuple[ValueView, ...]
    more: bool
    finished: bool
    away: str


@dataclass(frozen=True)
class Read:
    """What the address leaves of a table."""

    page: pages.Page
    count: pages.Count
    took: float
    facets: tuple[FacetView, ...]
    sql: str


def table(request: HttpRequest, name: str) -> HttpResponse:
    """The page of one table. What the address has wrong is said there, and stays. Raises NotFound, CascadeError where
    results cannot be read here.
    """
    store = saver.results()
    with store.reader() as connection, store._errors():
        shape = pages.found(connection, name)
    types = {**shape.types, **({} if shape.of else LINEAGE)}
    if query.is_form(request.GET):
        return redirect(f"{reverse('table', args=[name])}{query.of_form(request.GET, types)}")
    address = Address.read(request.GET)
    read: Read | None = None
    wrong: CascadeError | None = None
    try:
        read = _read(store, shape, Request(request), address)
    except FieldError as error:
        wrong = theirs(error)
    except CascadeError as error:
        wrong = error
    raw = address.options.get("raw", "").lower() in ("true", "1")
    columns = _columns(shape, address, raw, wrong)
    context = {
        **_still(),
        "shape": shape,
        "chart": chart_name(name),
        "address": address,
        "kept": _kept(address, wrong),
        "chips": _chips(address, types),
        "columns": columns,
        "raw": raw,
        "raw_link": str(address.but(raw="" if raw else "true")),
        "clear": str(address.unfiltered()),
        "problem": str(wrong) if wrong else "",
        "limits": LIMITS,
        "limit": address.options.get("limit", str(USUAL_ROWS)),
        "reset": reverse("table", args=[name]),
    }
    if read is not None:
        context |= _shown(shape, address, read, raw)
    return render(request, "table.html", context, status=wrong.status if wrong else 200)


def _read(store: Store, shape: pages.Shape, request: Request, address: Address) -> Read:
    config = settings.CASCADE
    limit = min(number(request, "limit", USUAL_ROWS, 1), MOST_ROWS)
    wanted = asked(request, shape, (*PAGED, query.FACET))
    began = time.perf_counter()
    with pages.within(store, config.read_seconds) as connection:
        page = pages.page(connection, shape, wanted, limit, request.query_params.get("after"))
    took = time.perf_counter() - began
    if page.next is None and "after" not in address.options:
        count = pages.Count(len(page.rows), True, 0.0)
    else:
        count = pages.count(store, shape, wanted, config.count_seconds)
    # Nobody waits for counts that nobody has asked for.
    quick = time.perf_counter() - began < config.facet_seconds
    unasked = [each for each in shape.key or shape.types if quick and shape.types[each] in ("string", "bool")]
    facets: list[FacetView] = []
    for column in (address.facets or unasked[:COUNTED_UNASKED])[:MOST_FACETS]:
        found = pages.facet(store, shape, wanted, column, VALUES, config.facet_seconds)
        if address.facets or (found["finished"] and any(each["rows"] > 1 for each in found["values"])):
            facets.append(_facet(found, address, [each.column for each in facets]))
    return Read(page, count, 1000 * took, tuple(facets), pages.as_sql(shape, wanted, limit))


def _facet(found: Mapping[str, Any], address: Address, others: Sequence[str]) -> FacetView:
    column = found["column"]
    values = []
    for each in found["values"]:
        empty = each["value"] is None
        name, value = (f"{column}__isnull", "true") if empty else (column, _written(each["value"]))
        chosen = address.tests.get(name) == value
        link = address.without(name) if chosen else address.having(name, value)
        text = _("no value") if empty else value or "“”"
        values.append(ValueView(text[:CELL], f"{each['rows']:,}", str(link) if len(value) <= LINKED else "", chosen))
    away = address.counting(each for each in (address.facets or others) if each != column)
    return FacetView(column, tuple(values), found["more"], found["finished"], str(away))


def _written(value: Any) -> str:
    """``value`` as a filter has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(plain(value))


def _kept(address: Address, wrong: CascadeError | None) -> list[tuple[str, str]]:
    """What the form sends along. A filter that is wrong is in its fields instead, to be mended."""
    kept = address.but()
    if isinstance(wrong, FieldError) and wrong.field in address.tests:
        kept = kept.without(wrong.field)
    return [pair for pair in kept.pairs() if pair[0] not in ("columns", "ordering", "limit")]


def _chips(address: Address, types: Mapping[str, str]) -> list[Chip]:
    chips = [
        Chip(query.worded(name, value, types), str(address.without(name))) for name, value in address.tests.items()
    ]
    if run := address.options.get("run"):
        chips.append(Chip(_("saved by run {n}").format(n=run), str(address.but(run=""))))
    return chips


def _columns(shape: pages.Shape, address: Address, raw: bool, wrong: CascadeError | None) -> list[ColumnView]:
    chosen = [name.strip() for name in address.options.get("columns", "").split(",") if name.strip()]
    order = [name.strip() for name in address.options.get("ordering", "").split(",")]
    found = []
    for name, kind in {**shape.types, **(LINEAGE if raw and not shape.of else {})}.items():
        now = "descending" if f"-{name}" in order else "ascending" if name in order else ""
        turned = {"": name, "ascending": f"-{name}", "descending": ""}[now]
        test, value = _typed(name, address, wrong)
        offered = query.OFFERED.get(kind, query.OFFERED["string"])
        found.append(
            ColumnView(
                name,
                kind,
                name in shape.key,
                name in LINEAGE,
                not chosen or name in chosen,
                tuple((each, _(query.FORM_WORDS[each])) for each in offered),
                test,
                value,
                now,
                str(address.but(ordering=turned)),
                str(address.counting([*(each for each in address.facets if each != name), name])),
                name in address.facets,
            )
        )
    return found


def _typed(column: str, address: Address, wrong: CascadeError | None) -> tuple[str, str]:
    """Operator and value of the filter that is wrong, if it is of this column."""
    if isinstance(wrong, FieldError) and wrong.field in address.tests:
        name, _, operator = wrong.field.partition("__") if wrong.field != column else (column, "", "")
        if name == column:
            return operator, address.tests[wrong.field]
    return "", ""


def _shown(shape: pages.Shape, address: Address, read: Read, raw: bool) -> dict[str, Any]:
    types = {**shape.types, **LINEAGE}
    # Where a row came from is why it is asked for, so it comes first.
    places = sorted(range(len(read.page.columns)), key=lambda at: read.page.columns[at] not in LINEAGE)
    names = [read.page.columns[at] for at in places]
    ordered = [[row[at] for at in places] for row in read.page.rows]
    rows = [
        [cell(name, types[name], value, _lineage(name, value)) for name, value in zip(names, row, strict=True)]
        for row in ordered
    ]
    chart = [_chart(shape.name, dict(zip(names, row, strict=True))) for row in ordered]
    statement = urlencode({"query": read.sql})
    heads = {each.name: each for each in _columns(shape, address, raw, None)}
    return {
        "read": read,
        "rows": list(zip(rows, chart, strict=True)),
        "charts": any(chart),
        "heads": [heads[name] for name in names],
        "took": f"{read.took:.3g}" if read.took < 100 else f"{read.took:,.0f}",
        "amount": amount(read.count.rows, read.count.exact),
        "one": read.count.rows == 1 and read.count.exact,
        "files": [(format, f"/api/v1/tables/{shape.name}/rows?{address.file(format)}") for format in FORMATS],
        "next": str(Address(address.tests, {**address.options, "after": read.page.next}, address.facets))
        if read.page.next
        else "",
        "first": str(address.but()) if "after" in address.options else "",
        "sql_link": f"{reverse('sql')}?{statement}" if len(statement) < STATEMENT else "",
        "facets": read.facets,
    }


def _lineage(column: str, value: Any) -> str:
    if value is None or column not in ("_run", "_allocation"):
        return ""
    return (
        reverse("run", args=[value]) if column == "_run" else reverse("admin:dispatch_allocation_change", args=[value])
    )


_CHART_OF = {
    "backtest": ("symbol", "freq", "strategy", "variant", "start_date", "end_date"),
    "optimization": ("study", "setup"),
}


def _chart(table: str, row: Mapping[str, Any]) -> str:
    """The chart of what a row is about, where its columns say which."""
    if table == "articles" and {"feed", "id"} <= row.keys():
        return f"{reverse('article')}?{urlencode({'feed': row['feed'], 'id': row['id']})}"
    if table not in _CHART_OF or not row.keys() >= set(_CHART_OF[table]):
        return ""
    told = {name: row[name] for name in _CHART_OF[table] if row[name] is not None}
    return f"{reverse('chart', args=[table])}?{urlencode(told)}"


def of_run(request: HttpRequest, pk: int) -> HttpResponse:
    """To the rows of a run. Raises NotFound."""
    kind = Run.objects.filter(pk=pk).values_list("type", flat=True).first()
    if kind is None:
        raise NotFound(f"there is no run {pk}")
    name = executors.get(kind).dataset.table
    store = saver.results()
    with store.reader() as connection, store._errors():
        known = pages.table(connection, name) is not None
    if not known:
        told = _("run {n} has saved no rows yet; when it has, they are in the table {table}")
        message = told.format(n=pk, table=shown(name))
        return render(request, "tables.html", {**_still(), "problem": message, "run": pk})
    return redirect(f"{reverse('table', args=[name])}?run={pk}")
