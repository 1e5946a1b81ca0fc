"""Pages in the reader's language: which one that is, that nothing of them is left in English, and what stays so."""

from __future__ import annotations

import datetime as dt
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
from api.overview import Overview
from api.parts import Seen, Snapshot
from dispatch import events
from dispatch.models import Allocation, RateLimit, Run, Source, Task
from dispatch.results import saver
from dispatch.results.store import ResultStore
from dispatch.states import AllocationState, RunState, ShardState
from nodes import executors, keys
from nodes.executors.analysis import Analysis
from nodes.executors.backtest import Backtest
from nodes.executors.data_import import DataImport
from nodes.models import JournalEntry, Node, Quota
from nodes.sentences import said
from tests.integration import records
from tests.integration.test_charts import bring, trials
from tests.integration.test_live import Page
from tests.integration.test_table_pages import limit

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]
CHINESE: dict[str, Any] = {"HTTP_ACCEPT_LANGUAGE": "zh-CN,zh;q=0.9,en;q=0.5"}


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
KEY = re.compile(r"[0-9A-Za-z]{20,}")
WORD = re.compile(r"[A-Za-z_][A-Za-z_]+")
SMALL = re.compile(
    r"(?<![\w=./{\"'-])(the|an|of|is|are|to|and|or|for|with|not|no|in|by|its?|this|that|what|when)(?![\w=./-])"
)
"""Words of English that no name is: where one is left, a sentence is."""
NAMES = frozenset(
    word
    for line in (
        "Cascade SQL API UTC JSON CPU CSV HTTP ID URL SELECT DuckDB Ctrl Enter Cron Distribution Anna",
        "csv json parquet arrow webhook cron sha md5 region eu mars anna host symbol",
        "AAPL IBM ADX RSI MFI CCI OBV KDJ MACD Sharpe Sortino MiB MB",
        "pull push http string integer number boolean date object list false true False",
        "BIGINT BOOLEAN DOUBLE TIMESTAMP VARCHAR _allocation _node _run _saved_at _start",
        "most_free least_tasks round_robin weighted health earliest_finish allowed required never one skip",
        "side entry_date entry_price exit_date exit_price profit return year month study setup trial fold bars costs",
        "open train_from test_from last in_sample out_of_sample freq datetime close change trend score position",
        "volatility rsi macd_hist rsi_reading boll_reading summary signal variant start_date end_date equity drawdown",
        "size long adx",
    )
    for word in line.split()
)
"""Of things and of code: the same in all languages."""


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
        if KEY.fullmatch(each):
            continue
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
    relay = records.node(
        "узел-2", role=Node.Role.RELAY, subtree={"children": [], "more": 0} | _BELOW, subtree_at=timezone.now()
    )
    records.node("узел-3", last_beat_at=timezone.now() - dt.timedelta(hours=3), draining=True)
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
    for about, word in (("node", "offline"), ("run", "retried"), ("work", "failed"), ("key", "issued")):
        JournalEntry.objects.create(about=about, word=word, node=node.pk, name=node.name, run=run.pk, count=2)
    JournalEntry.objects.create(about="configuration", word="rolled back")
    RateLimit.objects.create(key="host:*", per_second=5, burst=1)
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        bring(store, DataImport, {}, ["AAPL"], 1)
        bring(store, Analysis, {}, ["AAPL"], 2)
        bring(store, Backtest, {"strategy": "ma_cross"}, ["AAPL"], 3)
        trials(store, {"fast": [5, 10], "slow": [50, 100]}, 4)
        yield [
            *(
                "/",
                "/journal",
                "/journal?about=node",
                "/journal?about=key&before=1",
                "/runs",
                "/runs?state=failed",
                f"/runs/{run.pk}",
                f"/runs/{ended.pk}",
                "/nothing",
            ),
            *(f"/runs/{run.pk}/items?index=7", f"/runs/{run.pk}/items?index=99", f"/runs/{ended.pk}/items?index=0"),
            *(
                f"/nodes/{node.pk}",
                f"/nodes/{relay.pk}",
                f"/allocations/{attempt.pk}",
                f"/allocations/{live.pk}",
            ),
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


_BELOW = {"nodes": 1, "online": 1, "capacity": 4, "used": 1, "queued": 0, "depth": 1, "leaves": 1}


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
    assert not english


def test_nothing_of_the_admin_is_left_in_english(chinese: Client, staff: User, filled: list[str]) -> None:
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
    kept = ("quota 1 of 1 for echo", "free capacity: .*", r"echo=1 \(limit 1\)", ".*5 a second", "Symbol AAPL", ": md5")
    stored = re.compile("|".join((r": \S+\*+", *kept)))
    for address in addresses:
        text = chinese.get(address, follow=True).content.decode()
        assert '<html lang="zh-hans"' in text, address
        if found := [each for each in left(text, known) if not stored.fullmatch(each)]:
            english[address] = found
    assert not english


@pytest.mark.django_db(transaction=True)
def test_a_branch_is_asked_for_beside_the_middlewares_and_is_in_the_language_all_the_same(chinese: Client) -> None:
    twig = {"name": "узел-5", "role": "child", "state": "online", "below": None, "used": 1, "queued": 0, "capacity": 4}
    relay = records.node("узел-4", role=Node.Role.RELAY, subtree={**_BELOW, "more": 0, "children": [twig]})
    Node.objects.filter(pk=relay.pk).update(last_beat_at=None)
    for address in (f"/nodes/{relay.pk}/below", f"/nodes/{relay.pk}/below?fragment"):
        text = chinese.get(address).content.decode()
        assert "它不在线" in text
        assert "在线" in text
        assert left(text, code() | NAMES) == []


# ---- which language, and where it ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-hans"),
        ("zh-TW", "zh-hans"),
        ("zh", "zh-hans"),
        ("en-GB,zh;q=0.5", "en"),
        ("de-DE,de;q=0.9", "en"),
        ("de,zh-CN;q=0.5", "zh-hans"),
        ("", "en"),
        ("zh-CN;q=x", "en"),
    ],
)
def test_the_browser_says_in_which_language_a_page_is(browser: Client, asked: str, language: str) -> None:
    answer = browser.get("/runs", HTTP_ACCEPT_LANGUAGE=asked)
    assert f'<html lang="{language}"' in answer.content.decode()
    assert answer["Content-Language"] == language
    assert "Accept-Language" in answer["Vary"]


def test_what_somebody_chose_holds_before_what_the_browser_asks_for(browser: Client) -> None:
    page = browser.get("/runs?state=failed", **CHINESE).content.decode()
    assert '<button class="plain" name="language" value="en" lang="en">English</button>' in page
    assert '<input type="hidden" name="next" value="/runs?state=failed">' in page
    answer = browser.post("/language", {"language": "en", "next": "/runs?state=failed"}, **CHINESE)
    assert (answer.status_code, answer["Location"]) == (302, "/runs?state=failed")
    assert '<html lang="en"' in browser.get("/runs", **CHINESE).content.decode()
    elsewhere = browser.post("/language", {"language": "zh-hans", "next": "https://evil.example/"})
    assert elsewhere["Location"] == "/"
    assert '<html lang="zh-hans"' in browser.get("/runs").content.decode()


def test_the_switch_is_no_address_for_other_sites(staff: User) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(staff)
    assert strict.post("/language", {"language": "zh-hans"}).status_code == 403


def test_the_api_speaks_english_to_everybody(chinese: Client) -> None:
    for path, detail in (
        ("/api/v1/runs/99999999", "No Run matches the given query."),
        ("/api/v1/runs?state=x", "state"),
        ("/api/nothing", "/api/nothing does not exist; /api/docs lists what does"),
    ):
        answer = chinese.get(path)
        assert answer.status_code in (400, 404)
        assert not HAN.search(answer.content.decode())
        assert detail in answer.content.decode() or answer.status_code == 404
        assert "Content-Language" not in answer
    wrong = chinese.post("/api/v1/runs", {"type": "echo", "items": "x"}, content_type="application/json")
    assert wrong.status_code == 400
    assert not HAN.search(wrong.content.decode())


def test_strangers_are_told_in_their_language(client: Client) -> None:
    assert "登录" in client.get("/admin/login/", **CHINESE).content.decode()
    link = client.get("/sign-in/MQ/abc-def/", **CHINESE)
    assert "此登录链接已失效" in link.content.decode()
    assert link.status_code == 403


def test_what_is_wrong_with_a_form_is_said_in_the_language_and_what_was_typed_stays(chinese: Client) -> None:
    sent = {"type": "echo", "do": "run", "items": "", "priority": "99", "p.rows": "-1"}
    text = chinese.post("/submit", sent).content.decode()
    assert "params.rows：" in text or "确保" in text or "为空" in text
    assert 'value="99"' in text
    node = records.node("узел")
    refused = chinese.post(f"/nodes/{node.pk}/limits", {"capacity": "viele", "quotas": ""}).content.decode()
    assert "capacity：&#x27;viele&#x27; 不是大于等于 1 的整数" in refused
    assert 'value="viele"' in refused


# ---- sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("no free slot: 4 of 4 in use on 1 node; offline: 3 nodes", "没有空闲槽位：1 个节点上占用 4/4；离线：3 个节点"),
        ("quota limit 1 of 1 for echo[a; b]", "echo[a; b] 达到配额上限 1/1"),
        ("no node can take it: does not offer crawl: 3 nodes", "没有节点能接收：不支持 crawl：3 个节点"),
        ("params.days: 'x' is not a whole number", "params.days：'x' 不是整数"),
        ("3 shards of 1 item, 1 shard of 4 items", "3 个 1 条目的分片、1 个 4 条目的分片"),
        ("AAPL: boom; bar", "AAPL: boom; bar"),
        ("<b>offline</b>", "<b>offline</b>"),
        ("", ""),
    ],
)
def test_a_sentence_is_known_by_its_pattern_and_anything_else_stays(english: str, chinese: str) -> None:
    assert said(english) == english
    with override("zh-hans"):
        assert said(english) == chinese


def test_a_value_with_markup_or_braces_is_only_a_value() -> None:
    with override("zh-hans"):
        assert said("'{n} <b>' is not a whole number") == "'{n} <b>' 不是整数"


# ---- live pages --------------------------------------------------------------------------------------------------


class Reader(Page):
    """A page that says its language, as scripts do, or leaves that to the browser's header."""

    def __init__(self, client: Client, path: str = "/ws/live", accept: str = "en") -> None:
        super().__init__(client, path=path)
        self.socket.scope["headers"].append((b"accept-language", accept.encode()))


def _watched(overview: Overview, monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """What is drawn from now on, by a renderer that remembers nothing of other tests."""
    monkeypatch.setattr(live, "shared", live.Renderers())
    drawn: list[Seen] = []
    draw = overview.draw

    def noted(seen: Seen) -> Snapshot:
        drawn.append(seen)
        return draw(seen)

    monkeypatch.setattr(overview, "draw", noted)
    return drawn


@pytest.mark.django_db(transaction=True)
async def test_two_languages_are_drawn_of_one_reading(
    overview: Overview, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = _watched(overview, monkeypatch)
    pages = [Reader(browser), Reader(browser, "/ws/live?language=zh-hans"), Reader(browser, accept="zh-CN")]
    for page in pages:
        assert await page.open() == (True, None)
        await page.frame()
    await sync_to_async(records.node)("узел")
    events.changed()

    def has_it(frame: dict[str, Any]) -> bool:
        return any("узел" in html for html in frame["parts"].values())

    english, *chinese = [await page.until(has_it) for page in pages]
    part = next(name for name in english["parts"] if name.startswith("node-"))
    assert "online" in english["parts"][part]
    assert "在线" not in english["parts"][part]
    for frame in chinese:
        assert "在线" in frame["parts"][part]
        assert "online" not in frame["parts"][part]
    for page in pages:
        await page.socket.disconnect()
    # The last that all three had was drawn twice, for three pages; each reading is of one query of all nodes.
    assert {2} <= {sum(each is seen for each in drawn) for seen in drawn} <= {1, 2}
    assert len(live.shared) == 0


@pytest.mark.django_db(transaction=True)
async def test_one_language_is_drawn_once(overview: Overview, browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _watched(overview, monkeypatch)
    pages = [Reader(browser), Reader(browser)]
    for page in pages:
        assert await page.open() == (True, None)
        await page.frame()
    events.changed()
    for page in pages:
        await page.frame()
        await page.socket.disconnect()
    assert len(drawn) == len({id(seen) for seen in drawn})
