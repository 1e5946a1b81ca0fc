"""The page where runs are submitted, as the server sends it and does what its buttons ask for."""

from __future__ import annotations

import html as htmls
import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from api import submit_form, submit_page
from dispatch import lifecycle, queue, type_settings
from dispatch.items import Frozen, freeze
from dispatch.models import Run, Source, Task
from nodes import executors, registry
from tests.integration import records

pytestmark = pytest.mark.django_db

ODD = '<b>bold</b> "quoted" \U0001f600 \u05d0\u05d1 ' + "x" * 100


def said(answer: Any) -> list[str]:
    """What speaks against it."""
    return re.findall(r'role="alert">([^<]*)', answer.content.decode())


def send(browser: Client, do: str, status: int = 200, /, **fields: Any) -> str:
    answer = browser.post("/submit", {"do": do, **fields})
    assert answer.status_code == status, said(answer)
    return answer.content.decode()


def submitted(browser: Client, **fields: Any) -> Run:
    answer = browser.post("/submit", {"do": "run", **fields})
    assert answer.status_code == 302, said(answer)
    run = Run.objects.order_by("-pk")[0]
    assert answer["Location"] == f"/runs/{run.pk}"
    return run


def typed(page: str) -> dict[str, str]:
    """What a browser would send of the form on ``page``."""
    form = page[page.index('<form id="submission"') : page.rindex("</form>")]
    found = {}
    for tag in re.findall(r"<input[^>]*>", form):
        attributes = dict(re.findall(r'(\S+?)="([^"]*)"', tag))
        if attributes.get("type") != "radio" or " checked" in tag:
            found[attributes.get("name", "")] = htmls.unescape(attributes.get("value", ""))
    for name, text in re.findall(r'<textarea[^>]*name="([^"]+)"[^>]*>\n?(.*?)</textarea>', form, re.DOTALL):
        found[name] = htmls.unescape(text)
    for name, options in re.findall(r'<select[^>]*name="([^"]+)"[^>]*>(.*?)</select>', form, re.DOTALL):
        chosen = re.search(r'<option(?: value="([^"]*)")? selected>([^<]*)', options)
        found[name] = htmls.unescape((chosen[1] or chosen[2]) if chosen else "")
    found.pop("csrfmiddlewaretoken", None)
    return found


# ---- the form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", executors.names())
def test_each_type_has_a_form_of_what_it_declares(browser: Client, name: str) -> None:
    html = browser.get(f"/submit?type={name}").content.decode()
    executor = executors.get(name)
    assert htmls.escape(executor.title) in html
    hidden = {variant.within for variant in submit_form.chosen(executor, {})}
    for param in executor.params:
        assert (f'name="p.{param.name}"' in html) is (param.name not in hidden)


def test_a_source_brings_its_own_parameters(browser: Client) -> None:
    html = browser.get("/submit?type=data_import").content.decode()
    assert 'name="p.adjust"' not in html
    html = send(browser, "draw", type="data_import", **{"p.source": "akshare", "items": "AAPL\nIBM"})
    assert "With source akshare" in html
    assert 'name="p.adjust"' in html
    assert "AAPL\nIBM" in html
    html = send(browser, "draw", type="backtest", **{"p.strategy": "ma_cross"})
    assert 'name="w.strategy_params.fast"' in html


def test_nothing_is_chosen_yet(browser: Client) -> None:
    html = browser.get("/submit").content.decode()
    assert "echo" in html
    assert 'id="items"' not in html
    assert browser.get("/submit?type=no").status_code == 200


def test_it_is_for_staff_and_needs_its_token(client: Client, staff: User) -> None:
    assert client.get("/submit").status_code == 302
    assert client.post("/submit", {"do": "run"}).status_code == 302
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(staff)
    assert strict.post("/submit", {"do": "run", "type": "echo", "items": "x"}).status_code == 403
    assert not Run.objects.exists()


# ---- run now -----------------------------------------------------------------------------------------------------


def test_a_form_becomes_a_run(browser: Client, staff: User) -> None:
    run = submitted(
        browser,
        type="echo",
        items='a\n\n {"key": "b", "n": 1}\r\nc',
        name=ODD,
        priority="9",
        timeout="12.5",
        shard_size="2",
        labels="region=eu\nzone=1",
        affinity='{"disk, or so": "a=b"}',
        **{"p.seconds": "0.5"},
    )
    assert Frozen(bytes(run.items)).all() == ["a", {"key": "b", "n": 1}, "c"]
    assert run.params == executors.get("echo").check({"seconds": 0.5})
    assert (run.name, run.priority, run.timeout, run.shard_size) == (ODD, 9, 12.5, 2)
    assert run.labels == {"region": "eu", "zone": "1"}
    assert run.affinity == {"disk, or so": "a=b"}
    assert run.submitted_by == staff.get_username()


def test_a_form_that_comes_twice_is_one_run(browser: Client) -> None:
    form = typed(browser.get("/submit?type=echo").content.decode())
    run = submitted(browser, **{**form, "items": "a"})
    html = send(browser, "run", 400, **{**form, "items": "a"})
    assert f"became run {run.pk}" in html
    assert Run.objects.count() == 1
    submitted(browser, **typed(html))
    assert Run.objects.count() == 2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"p.seconds": "soon"}, "params.seconds: 'soon' is not a finite number"),
        ({"priority": "12"}, "priority: "),
        ({"priority": "high"}, "priority: 'high' is not a whole number"),
        ({"items": ""}, "items: "),
        ({"items": "[1, 2"}, "items: begin with [ and so are JSON, which they are not"),
        ({"items": '{"key": }'}, "items: line 1, "),
        ({"items": "[true]"}, "items[0]: True is not a text, a number or an object"),
        ({"labels": "eu"}, "labels: 'eu' is not name=value"),
        ({"origin": "items_column", "items_column": "kline"}, "items_column: 'kline' is not TABLE.COLUMN"),
        ({"origin": "source_kind", "source_kind": "feed"}, "source_kind: there is no active source of kind 'feed'"),
        ({"origin": "source_kind"}, "source_kind: is empty"),
        ({"split": "year"}, "split: 'year': echo items cannot be split"),
        ({"type": "no"}, "type: 'no' is not one of: analysis"),
        ({"mode": "json", "params": "{"}, "params: is not JSON"),
        ({"mode": "json", "params": '{"no": 1}'}, "params.no: 'no' is not a parameter; known are: "),
        ({"balancer": "best"}, "balancer: 'best' is not one of: "),
        ({"rate_key": "no"}, "rate_key: "),
    ],
)
def test_what_is_wrong_is_named_and_what_was_typed_stays(browser: Client, fields: dict[str, str], said: str) -> None:
    form = {"type": "echo", "items": "kept", "name": "also kept", **fields}
    html = htmls.unescape(send(browser, "run", 400, **form))
    assert said in html
    for name, text in form.items():
        assert text in html or form["type"] == "no" or name == "origin"
    assert not Run.objects.exists()


def test_items_may_come_from_sources(browser: Client) -> None:
    Source.objects.create(kind="symbol", key="AAPL")
    run = submitted(browser, type="echo", origin="source_kind", source_kind="symbol")
    assert Frozen(bytes(run.items)).all() == ["AAPL"]


def test_items_may_be_every_symbol_of_a_source(browser: Client) -> None:
    run = submitted(browser, type="data_import", origin="all", **{"p.source": "sample"})
    assert "AAPL" in Frozen(bytes(run.items)).all()
    page = htmls.unescape(send(browser, "run", 400, type="backtest", origin="all", **{"p.strategy": "buy_and_hold"}))
    assert "all: source 'store' cannot list its symbols" in page
    page = htmls.unescape(send(browser, "run", 400, type="echo", origin="all"))
    assert "all: echo has no source that lists its items" in page


# ---- as JSON -----------------------------------------------------------------------------------------------------


def test_form_and_json_say_the_same_to_and_fro(browser: Client) -> None:
    html = send(browser, "json", type="backtest", **{"p.strategy": "ma_cross", "w.strategy_params.fast": "7"})
    params = json.loads(typed(html)["params"])
    assert params == {"strategy": "ma_cross", "strategy_params": {"fast": 7}}
    form = typed(html) | {"params": json.dumps({**params, "cash": 5, "freq": "W"})}
    fields = typed(send(browser, "form", **form))
    assert fields["mode"] == "form"
    assert fields["w.strategy_params.fast"] == "7"
    assert fields["p.cash"] == "5"
    assert fields["p.freq"] == "W"


def test_json_that_the_form_cannot_say_stays_json(browser: Client) -> None:
    html = send(browser, "form", 400, type="echo", mode="json", params='{"odd": 1}')
    assert "no field for" in html
    assert typed(html)["params"] == '{"odd": 1}'


# ---- the preview -------------------------------------------------------------------------------------------------


def beating(name: str, *types: str, **fields: Any) -> None:
    node, _ = registry.add_node(name, **fields)
    registry.record_beat(node.pk, at=timezone.now(), executors=list(types))


def test_a_preview_says_how_it_is_cut_and_where_it_would_start_and_why(browser: Client) -> None:
    beating("east", "echo", capacity=2)
    beating("west", "echo", capacity=1)
    beating("north", "crawl", capacity=1)
    html = send(browser, "preview", type="echo", items="\n".join(map(str, range(25))), shard_size="10")
    assert "<b>25</b> items, in 3 shards of 10 items, the last one of 5" in html
    assert html.count("free capacity") == 3
    assert "[0, 10)" in html
    assert "[20, 25)" in html
    assert not Run.objects.exists()


def test_a_preview_is_what_then_happens(browser: Client) -> None:
    beating("east", "echo", capacity=2)
    beating("west", "echo", capacity=3)
    records.run(1, type="echo", priority=9)
    form = {"type": "echo", "items": "a\nb\nc\nd\ne\nf\ng", "shard_size": "2"}
    html = send(browser, "preview", **form)
    foreseen = re.findall(r"\[(\d+), (\d+)\).*?<bdi class=\"clip\">(\w+)</bdi>", html)
    run = submitted(browser, **form)
    queue.allocate_now()
    given = run.allocations.order_by("pk").values_list("start", "stop", "node__name")
    assert foreseen == [(str(start), str(stop), name) for start, stop, name in given]
    assert len(foreseen) == 4


def test_a_preview_knows_splits_and_items_with_quotas_and_rates(browser: Client) -> None:
    beating("east", "data_import", "crawl", capacity=4)
    html = send(browser, "preview", type="data_import", items="AAPL", split="year", **{"p.source": "sample"})
    items = int(re.findall(r"<b>(\d+)</b> items", html)[0])
    assert items > 5
    html = send(browser, "preview", type="crawl", items="http://a.example/\nhttp://b.example/")
    assert "<b>2</b> items" in html
    assert not Run.objects.exists()


def test_a_preview_without_a_node_says_so(browser: Client) -> None:
    html = send(browser, "preview", type="echo", items="a", labels="only=nobody")
    assert "Nothing of it would start at once" in html
    assert "there is no node" in html
    beating("east", "echo")
    html = send(browser, "preview", type="echo", items="a", labels="only=nobody")
    assert "label only=nobody: 1 node" in html


# ---- a schedule --------------------------------------------------------------------------------------------------

CRON = {"type": "echo", "items": "a\nb", "task_name": "nightly", "cron": "30 3 * * *", "time_zone": "Europe/Berlin"}


def test_fire_times_are_looked_at_before_a_schedule_is_saved(browser: Client) -> None:
    html = send(browser, "schedule", **CRON)
    assert html.count("03:30 CE") == 5
    assert not Task.objects.exists()
    answer = browser.post("/submit", {**typed(html), "do": "schedule", "priority": "7"})
    task = Task.objects.get()
    assert answer["Location"] == f"/submit?scheduled={task.pk}"
    assert (task.name, task.cron, task.time_zone, task.priority) == ("nightly", "30 3 * * *", "Europe/Berlin", 7)
    assert task.items == ["a", "b"]
    assert task.next_fire_at is not None
    assert "nightly" in browser.get(answer["Location"]).content.decode()


def test_a_schedule_that_was_changed_after_the_look_is_looked_at_again(browser: Client) -> None:
    form = typed(send(browser, "fires", **CRON)) | {"cron": "0 4 * * *"}
    assert "04:00 CE" in send(browser, "schedule", **form)
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cron": ""}, "cron: is empty"),
        ({"cron": "61 * * * *"}, "cron: '61 * * * *'"),
        ({"time_zone": "Mars/Base"}, "time_zone: 'Mars/Base' is not a time zone"),
        ({"task_name": ""}, "task_name: "),
        ({"task_name": "taken"}, "task_name: a task called 'taken' exists already"),
        ({"p.seconds": "soon"}, "params.seconds: 'soon'"),
        ({"split": "year"}, "split: cannot be kept with a schedule"),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_what_is_wrong_with_a_schedule_is_named(browser: Client, fields: dict[str, str], said: str) -> None:
    Task.objects.create(name="taken", type="echo")
    form = {**CRON, **fields}
    html = htmls.unescape(send(browser, "schedule", 400, **form, seen=f"{form['cron']} {form['time_zone']}"))
    assert said in html
    assert Task.objects.count() == 1


# ---- a run again -------------------------------------------------------------------------------------------------

AGAIN: list[dict[str, Any]] = [
    {"type": "echo", "items": ["a", " b ", "[c]"], "params": {"seconds": 2}},
    {"type": "echo", "items": [1, 2.5, {"key": "k"}], "labels": {"a=b": "c, d"}, "affinity": {"x": "y"}},
    {
        "type": "echo",
        "items": ["a"],
        "priority": 1,
        "timeout": 77.5,
        "max_attempts": 9,
        "backoff": 0.0,
        "shard_size": 3,
    },
    {"type": "echo", "items": ["a"], "name": ODD, "balancer": "random", "fallback": "never", "island_seconds": 0.0},
    {"type": "data_import", "items": ["AAPL"], "params": {"source": "sample"}, "split": "year"},
    {
        "type": "data_import",
        "items": ["AAPL"],
        "params": {"source": "akshare", "adjust": "qfq", "end_date": "2020-01-02"},
    },
    {
        "type": "backtest",
        "items": ["AAPL"],
        "params": {"strategy": "ma_cross", "strategy_params": {"fast": 3, "slow": 9}},
    },
    {"type": "crawl", "items": ["http://a.example/", "http://b.example/?q=1"]},
    {
        "type": "optimization",
        "items": [],
        "params": {
            "symbols": ["AAPL"],
            "strategy": "ma_cross",
            "space": {"fast": {"low": 2, "high": 9}},
            "strategy_params": {"slow": 40},
            "trials": 40,
        },
    },
]
SAME = (*submit_form.OPTIONS, "type", "params", "count", "hands", "expected", "growing")


@pytest.mark.parametrize("wished", AGAIN, ids=[f"{number}-{each['type']}" for number, each in enumerate(AGAIN)])
def test_run_again_fills_in_everything_and_mixes_no_default_in(browser: Client, wished: Any) -> None:
    run = lifecycle.submit(**wished)
    # What holds by default has changed since.
    type_settings.put(run.type, _settings_that_differ(run))
    again = submitted(browser, **typed(browser.get(f"/submit?again={run.pk}").content.decode()))
    assert again.pk != run.pk
    assert {name: getattr(again, name) for name in SAME} == {name: getattr(run, name) for name in SAME}
    assert Frozen(bytes(again.items)).all() == Frozen(bytes(run.items)).all()


def _settings_that_differ(run: Run) -> dict[str, Any]:
    if run.type in ("data_import", "backtest", "optimization"):
        return {"start_date": "1999-01-01"}
    return {"seconds": 9.0} if run.type == "echo" else {}


def test_the_page_of_a_run_leads_there(browser: Client) -> None:
    run = records.run(2, type="echo")
    html = browser.get(f"/runs/{run.pk}").content.decode()
    assert f'href="/submit?again={run.pk}"' in html
    assert f'href="/runs/{run.pk}/items"' in html
    assert browser.get("/submit?again=77").status_code == 404
    assert browser.get("/submit?again=x").status_code == 404


def test_of_very_many_items_only_the_number_is_said_and_they_are_taken_from_the_run(browser: Client) -> None:
    run = lifecycle.submit(type="echo", items=[f"item {at}" for at in range(12_345)])
    html = browser.get(f"/submit?again={run.pk}").content.decode()
    assert "the 12345 items of" in html
    assert "item 77" not in html
    again = submitted(browser, **typed(html))
    assert Frozen(bytes(again.items)).all() == Frozen(bytes(run.items)).all()


def test_a_text_that_fields_cannot_say_is_said_as_json() -> None:
    executor = executors.get("data_import")
    params = {"source": "files", "path": "", "delimiter": ";"}
    assert not submit_form.says(executor, submit_form.fields_of(executor, params), params)
    run = Run(pk=1, type="data_import", params=params, items=freeze(["AAPL"]), count=1)
    assert json.loads(submit_page.typed_of(run)["params"]) == params


@pytest.mark.parametrize(
    "fields", [{"key": "\x00"}, {"again": "x"}, {"again": "9" * 30}, {"origin": "run", "items_run": "x"}]
)
def test_hidden_fields_that_were_tampered_with_are_no_fault_of_ours(browser: Client, fields: dict[str, str]) -> None:
    assert browser.post("/submit", {"do": "preview", "type": "echo", "items": "a", **fields}).status_code in (200, 400)
    assert browser.get("/submit?scheduled=" + "9" * 40).status_code == 200


def test_another_type_is_another_run(browser: Client) -> None:
    run = lifecycle.submit(type="echo", items=["a"])
    form = typed(browser.get(f"/submit?again={run.pk}").content.decode())
    html = send(browser, "draw", **{**form, "type": "data_import"})
    assert "again" not in typed(html)
