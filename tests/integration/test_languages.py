"""Pages in the reader's language: which one that is, that nothing of them is left in English, and what stays English."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from django.utils.translation import override

from api import live
from api import overview as overviews
from api.overview import Overview
from api.parts import Seen
from cascade.asgi import application
from dispatch import events
from dispatch.models import Allocation, LogPiece, RateLimit, Run, Source, Task
from dispatch.results import saver
from dispatch.results.store import ResultStore
from dispatch.states import AllocationState, RunState, ShardState
from nodes import executors, keys
from nodes.executors.analysis import Analysis
from nodes.executors.backtest import Backtest
from nodes.executors.data_import import DataImport
from nodes.models import Node, Quota
from nodes.sentences import said
from tests.integration import records
from tests.integration.test_charts import bring, trials
from tests.integration.test_live import PATIENCE, Page
from tests.integration.test_table_pages import limit

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]
CHINESE = {"HTTP_ACCEPT_LANGUAGE": "zh-CN,zh;q=0.9,en;q=0.5"}


# ---- what is looked at -------------------------------------------------------------------------------------------


class Reading(HTMLParser):
    """Texts of a page that somebody reads or hears: of its elements, and of attributes that are shown."""

    SHOWN = frozenset({"title", "aria-label", "placeholder", "data-label", "data-empty", "alt"})
    NOT_SAID = frozenset({"script", "style", "code", "kbd", "pre", "textarea"})
    """Of programs, not of a language."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "hr", "rect", "path", "line", "col", "source", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._open: list[tuple[str, bool]] = []

    @property
    def _quiet(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        foreign = tag != "html" and given.get("lang", "").startswith("en")
        quiet = self._quiet or tag in self.NOT_SAID or foreign or "material-symbols" in given.get("class", "")
        if not quiet:
            self.texts += [value for name, value in given.items() if name in self.SHOWN and value]
            if tag == "input" and given.get("type") == "submit":
                self.texts.append(given.get("value", ""))
        if tag not in self.VOID:
            self._open.append((tag, quiet))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """It has nothing in it."""

    def handle_endtag(self, tag: str) -> None:
        for at in range(len(self._open) - 1, -1, -1):
            if self._open[at][0] == tag:
                del self._open[at:]
                return

    def handle_data(self, data: str) -> None:
        if not self._quiet and data.strip():
            self.texts.append(data.strip())


HAN = re.compile(r"[\u4e00-\u9fff]")
WORD = re.compile(r"[A-Za-z][A-Za-z_]+")
SMALL = re.compile(
    r"(?<![\w=./{\"'-])(the|an|of|is|are|to|and|or|for|with|not|no|in|by|its?|this|that|what|when)(?![\w=./-])"
)
"""Words of English that no name is: where one is left, a sentence is."""
NAMES = frozenset(
    "Cascade SQL API UTC JSON CPU CSV HTTP ID URL Ctrl Select SELECT DuckDB webhook cron tpe sha"
    " csv json parquet arrow echo kline AAPL IBM region eu mars manage py submit USERNAME anna"
    " FLAT sample pull push http string integer number boolean date object list int float timestamp bool"
    " MiB MB min ms AK ak sk K D W M KDJ MACD Sharpe Sortino Wilder ADX RSI MFI CCI OBV Markdown"
    " open high low close volume Chrome Unfold Django localhost testserver Europe Berlin Asia Shanghai".split()
)


def code() -> set[str]:
    """Names that task types bring: they are the same in every language."""
    from nodes.executors import described

    found: set[str] = set()

    def take(told: Any) -> None:
        if isinstance(told, dict):
            for name, value in told.items():
                if name not in ("help", "title", "items", "select"):
                    take(value)
        elif isinstance(told, list | tuple):
            for each in told:
                take(each)
        elif isinstance(told, str):
            found.update(WORD.findall(told))

    for name in executors.names():
        take(described.described(executors.get(name)))
    return found


def left(text: str, known: set[str]) -> list[str]:
    """What of a page is English still."""
    reading = Reading()
    reading.feed(text)
    found = []
    for each in dict.fromkeys(reading.texts):
        if HAN.search(each):
            if SMALL.search(each):
                found.append(each)
        elif set(WORD.findall(each)) - known:
            found.append(each)
    return found


@pytest.fixture
def chinese(browser: Client) -> Client:
    browser.defaults |= CHINESE
    return browser


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, overview: Overview) -> Iterator[list[str]]:
    """Something of everything, with names that are no English; the addresses of all pages that show it."""
    limit(settings, read_seconds=60, count_seconds=60, facet_seconds=60)
    node = records.node("узел", version="0.1.0", cpu=50, memory=20, labels={"region": "eu"}, speeds={"echo": 0.5})
    relay = records.node("узел-2", role=Node.Role.RELAY, subtree={"children": [], "more": 0} | _BELOW)
    records.node("узел-3", last_beat_at=timezone.now() - timezone.timedelta(hours=3), draining=True)
    Quota.objects.create(node=node, task_type="echo", slots=1, limit=1)
    keys.issue(node.pk)
    run = records.run(20, type="echo", name="прогон", submitted_by="anna", labels={"region": "mars"})
    ended = records.run(4, type="echo", name="прогон", state=RunState.PARTIAL, ended_at=timezone.now(), failed=1)
    Run.objects.filter(pk=ended.pk).update(cut=4, saved=3)
    bad = records.cut(ended, 0, 1, ShardState.FAILED, attempts=1, error="0: ошибка")
    attempt = records.tried(bad, node, AllocationState.FAILED, error="ошибка", finished_at=timezone.now(), seconds=3)
    live = records.allocation(run, node, 0, 5, reason="quota 1 of 1 for echo", granted_at=timezone.now())
    Allocation.objects.filter(pk=attempt.pk).update(reason="free capacity: 3 of 4 slots free, by most_free")
    Task.objects.create(name="задача", type="echo", cron="0 3 * * *", items=[])
    Source.objects.create(kind="symbol", key="AAPL", name="яблоко")
    RateLimit.objects.create(key="host:*", per_second=5, burst=1)
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        bring(store, DataImport, {}, ["AAPL"], 1)
        bring(store, Analysis, {}, ["AAPL"], 2)
        bring(store, Backtest, {"strategy": "ma_cross"}, ["AAPL"], 3)
        trials(store, {"fast": [5, 10], "slow": [50, 100]}, 4)
        yield [
            *("/", "/runs", "/runs?state=failed", f"/runs/{run.pk}", f"/runs/{ended.pk}", "/nothing"),
            *(f"/runs/{run.pk}/items?index=7", f"/runs/{run.pk}/items?index=99", f"/runs/{ended.pk}/items?index=0"),
            *(f"/nodes/{node.pk}", f"/nodes/{relay.pk}", f"/allocations/{attempt.pk}", f"/allocations/{live.pk}"),
            *("/submit", *(f"/submit?type={kind}" for kind in executors.names()), f"/submit?again={ended.pk}"),
            *("/what-if", f"/what-if?run={run.pk}&r{run.pk}.priority=9&n{node.pk}.capacity=9"),
            *("/what-if?add.capacity=x&add.name=y", "/what-if?add.capacity=7"),
            *(
                "/tables",
                "/tables/kline?close__gte=5&ordering=-close",
                "/tables/kline?close__gte=x",
                "/tables/kline?raw=true",
            ),
            *(
                "/tables/kline?close__gte=5000000",
                "/tables/kline/chart",
                "/tables/kline/chart?symbol=X",
                "/sql",
                "/articles",
            ),
            *("/tables/backtest/chart", "/tables/backtest/chart?symbol=AAPL", "/tables/optimization/chart"),
        ]


_BELOW = {"nodes": 1, "online": 1, "capacity": 4, "used": 1, "queued": 0, "depth": 1}


def test_nothing_of_a_page_is_left_in_english(chinese: Client, filled: list[str]) -> None:
    known = code() | NAMES
    english = {}
    for address in filled:
        answer = chinese.get(address)
        assert answer.status_code in (200, 400, 404), address
        text = answer.content.decode()
        assert '<html lang="zh-hans"' in text, address
        if found := left(text, known):
            english[address] = found
    assert not english, "\n".join(sorted({text for texts in english.values() for text in texts}))


def test_nothing_of_the_admin_is_left_in_english(chinese: Client, staff: User, filled: list[str]) -> None:
    from django.apps import apps
    from django.contrib import admin

    staff.is_superuser = True
    staff.save()
    assert filled
    known = code() | NAMES
    english = {}
    chinese.get("/admin/")
    addresses = ["/admin/"]
    for model in admin.site._registry:
        place = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        addresses.append(place)
        if (row := model._default_manager.first()) is not None:
            addresses.append(f"{place}{row.pk}/change/")
    addresses += [f"/admin/{name}/add/" for name in ("nodes/node", "dispatch/task", "dispatch/source")]
    assert apps.get_model("dispatch", "Run") in admin.site._registry
    for address in addresses:
        text = chinese.get(address, follow=True).content.decode()
        if found := left(text, known):
            english[address] = found
    assert not english, "\n".join(sorted({text for texts in english.values() for text in texts}))
