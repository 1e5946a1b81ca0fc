"""What the address of a table's page says, read and written: filters, columns, order, values that are counted.

The words are those of the API (``views_tables``), so that what a page shows is what its links download. No database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import urlencode

from django.http import QueryDict
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from api.views_tables import COUNTED, PAGED, PREFIX, STREAMED
from dispatch.results import reading_filters as filters

OPTIONS = ("columns", "ordering", "run", "raw", "limit", "after")
FACET = "facet"
RESERVED = frozenset({*STREAMED, *PAGED, *COUNTED, FACET})
"""Columns with such a name are written with PREFIX."""
FORM = "."
"""Fields of the page's own form begin with it; no column can."""
WORDS = {
    "": _("is"),
    "ne": _("is not"),
    "gte": _("is at least"),
    "lte": _("is at most"),
    "gt": _("is more than"),
    "lt": _("is less than"),
    "contains": _("contains"),
    "startswith": _("begins with"),
    "in": _("is one of"),
    "isnull": _("has no value"),
}
_TEXT = ("", "contains", "startswith", "in", "ne", "isnull", "notnull")
_ORDERED = ("", "gte", "lte", "gt", "lt", "in", "ne", "isnull", "notnull")
OFFERED = {
    "string": _TEXT,
    "json": _TEXT,
    "bool": ("", "ne", "isnull", "notnull"),
    "int64": _ORDERED,
    "float64": _ORDERED,
    "timestamp": _ORDERED,
}
"""What the form offers for a column of each kind; ``notnull`` is isnull=false."""
FORM_WORDS = {**WORDS, "notnull": _("has a value")}


@dataclass(frozen=True)
class Address:
    """``tests``: filters by the name they are written with, ``facets``: columns whose values are counted."""

    tests: Mapping[str, str]
    options: Mapping[str, str]
    facets: tuple[str, ...] = ()

    @classmethod
    def read(cls, query: QueryDict) -> Self:
        options = {name: value for name in OPTIONS if (value := query.get(name, ""))}
        others = (name for name in query if name not in OPTIONS and name != FACET and not name.startswith(FORM))
        tests = {name.removeprefix(PREFIX): str(query[name]) for name in others}
        return cls(tests, options, tuple(dict.fromkeys(query.getlist(FACET))))

    def pairs(self) -> list[tuple[str, str]]:
        tests = [(f"{PREFIX}{name}" if name in RESERVED else name, value) for name, value in self.tests.items()]
        return [*tests, *self.options.items(), *((FACET, each) for each in self.facets)]

    def __str__(self) -> str:
        return f"?{urlencode(self.pairs())}"

    def but(self, **options: str) -> Self:
        """With other options, an empty one left out; from the first page on."""
        changed = {**self.options, "after": "", **options}
        return replace(self, options={name: value for name, value in changed.items() if value})

    def having(self, name: str, value: str) -> Self:
        return replace(self.but(), tests={**self.tests, name: value})

    def without(self, name: str) -> Self:
        return replace(self.but(), tests={each: value for each, value in self.tests.items() if each != name})

    def unfiltered(self) -> Self:
        return replace(self.but(run=""), tests={})

    def counting(self, facets: Iterable[str]) -> Self:
        return replace(self, facets=tuple(facets))

    def file(self, format: str) -> str:
        """The query of a file with the same rows, for the API."""
        kept = {name: value for name, value in self.options.items() if name not in ("limit", "after")}
        return urlencode([*replace(self, options=kept, facets=()).pairs(), ("format", format)])


def is_form(query: QueryDict) -> bool:
    return any(name.startswith(FORM) for name in query)


def of_form(query: QueryDict, columns: Iterable[str]) -> Address:
    """The address that a sent form means: what it had, the columns that are ticked, and each test that has a value."""
    columns = list(columns)
    address = Address.read(query).but()
    tests = dict(address.tests)
    for column in columns:
        operator, value = query.get(f"{FORM}test.{column}", ""), query.get(f"{FORM}value.{column}", "")
        if operator in ("isnull", "notnull"):
            tests[f"{column}__isnull"] = "true" if operator == "isnull" else "false"
        elif value.strip():
            tests[f"{column}__{operator}" if operator in filters.OPERATORS else column] = value.strip()
    shown = [column for column in columns if column in query.getlist(f"{FORM}column")]
    order = query.get(f"{FORM}order", "")
    down = "-" if order and query.get(f"{FORM}down") else ""
    return replace(address, tests=tests).but(
        columns="" if shown in (columns, []) else ",".join(shown),
        ordering=down + order,
    )


def worded(name: str, value: str, columns: Mapping[str, str]) -> str:
    """A filter as part of a sentence: ``close is at least 5``."""
    column, operator = filters.split(name, columns) or (name, "")
    if operator == "isnull":
        return f"{column} {gettext(FORM_WORDS['isnull' if value.lower() in ('true', '1') else 'notnull'])}"
    return f"{column} {gettext(WORDS[operator])} {value or '“”'}"
