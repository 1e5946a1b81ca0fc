"""``custom``: what may be called, what it is given, and what becomes of what it returns."""

from __future__ import annotations

import datetime as dt
import json
import sys

import numpy as np
import pytest

from nodes import executors, surroundings
from nodes.agent import offline, runner
from nodes.executors import custom
from nodes.executors.base import ItemFailed
from nodes.executors.custom import GROUP, Custom
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings
from tests.unit.test_agent_offline import TASK, configure

MODULE = """
import math

class Tools:
    @staticmethod
    def size(item):
        return len(item)

def echo(item, **arguments):
    return {"item": item, **arguments}

def nothing(item):
    return None

def rows(item, count=2):
    return [{"n": n, "item": item} for n in range(count)]

def odd(item):
    return {"nan": math.nan, "object": object(), "set": {1}, "deep": None}[item]

def breaks(item):
    if item == "bad":
        raise ZeroDivisionError("by nothing")
    return 1

async def later(item):
    return 1

three = 3
"""


@pytest.fixture
def allow(tmp_path, monkeypatch):
    """Settles what may be called, out of a module of this test's own."""
    (tmp_path / "their_module.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("their_module", "broken_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = surroundings.current()

    def settle(**paths):
        custom._loaded.cache_clear()
        surroundings.settle(Surroundings(custom=paths))

    yield settle
    surroundings.settle(before)
    custom._loaded.cache_clear()


def called(path, item="a", **arguments):
    """What is saved of calling ``path``."""
    surroundings.settle(Surroundings(custom={"it": f"their_module:{path}"}))
    custom._loaded.cache_clear()
    rows = Custom(Custom.check({"callable": "it", "arguments": arguments})).run(item)
    return None if rows is None else [(name, key, number, json.loads(data)) for name, key, number, data in rows]


def test_it_is_registered_and_nobody_runs_it_twice_at_a_time():
    assert executors.get("custom") is Custom
    assert "custom" in executors.ONCE
    assert not Custom.waits
    assert Custom.dataset.key == ("callable", "item", "number")


def test_nothing_is_allowed_by_default():
    assert surroundings.Surroundings().custom == {}
    with pytest.raises(FieldError) as refusal:
        Custom.check({"callable": "os.system"})
    assert refusal.value.field == "params.callable"
    assert "the setting custom allows: nothing" in refusal.value.message


@pytest.mark.parametrize("name", ["other", "their_module:echo", "os:system", "", "it.echo"])
def test_a_name_that_is_not_on_the_list_is_refused_with_those_that_are(allow, name):
    allow(it="their_module:echo", again="their_module:rows")
    with pytest.raises(FieldError, match="the setting custom allows: again, it") as refusal:
        Custom.check({"callable": name})
    assert refusal.value.field == "params.callable"
    with pytest.raises(FieldError):
        Custom.check_settings({"callable": name})


def test_checking_imports_nothing(allow):
    allow(it="their_module:echo")
    assert Custom.check({"callable": "it"}) == {"callable": "it"}
    assert Custom.check_settings({}) == {}
    assert "their_module" not in sys.modules


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "params.callable"),
        ({"callable": 5}, "params.callable"),
        ({"callable": "it", "arguments": [1]}, "params.arguments"),
        ({"callable": "it", "more": 1}, "params.more"),
    ],
)
def test_bad_params_are_refused_by_name(allow, params, field):
    allow(it="their_module:echo")
    with pytest.raises(FieldError) as refusal:
        Custom.check(params)
    assert refusal.value.field == field


def test_a_node_that_does_not_allow_it_says_so_and_another_may(allow):
    allow(it="their_module:echo")
    executor = Custom(Custom.check({"callable": "it"}))
    allow()
    with pytest.raises(ItemFailed, match="'it' is not in this node's setting custom") as failure:
        executor.run("a")
    assert failure.value.retry


@pytest.mark.usefixtures("allow")
def test_it_is_called_with_the_item_and_the_arguments():
    assert called("echo", "a", year=2024) == [("it", "a", 0, {"item": "a", "year": 2024})]
    assert called("echo", 7) == [("it", "7", 0, {"item": 7})]
    assert called("Tools.size", "four") == [("it", "four", 0, 4)]


@pytest.mark.usefixtures("allow")
def test_none_is_no_row_and_a_list_is_a_row_each():
    assert called("nothing") is None
    assert called("rows", "a", count=0) == []
    assert called("rows", "a", count=3) == [("it", "a", n, {"n": n, "item": "a"}) for n in range(3)]


@pytest.mark.usefixtures("allow")
def test_items_that_differ_have_rows_that_differ():
    keys = {
        called("echo", item)[0][1]
        for item in ({"symbol": "A", "year": 1}, {"symbol": "A", "year": 2}, {"key": "k", "year": 3}, "A")
    }
    assert keys == {'{"symbol":"A","year":1}', '{"symbol":"A","year":2}', "k", "A"}


def test_dates_and_numpy_s_numbers_have_a_form_in_json():
    value = {"date": dt.date(2024, 1, 31), "at": dt.datetime(2024, 1, 31, 12), "n": np.int64(3), "x": np.float32(0.5)}
    text = Custom({"callable": "it"})._json(value)
    assert json.loads(text) == {"date": "2024-01-31", "at": "2024-01-31T12:00:00", "n": 3, "x": 0.5}


@pytest.mark.parametrize("item", ["nan", "object", "set"])
@pytest.mark.usefixtures("allow")
def test_what_is_not_json_fails_that_item_for_good(item):
    with pytest.raises(ItemFailed, match=r"it returned .* which is not plain JSON") as failure:
        called("odd", item)
    assert not failure.value.retry


@pytest.mark.usefixtures("allow")
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_coroutine_is_no_result():
    with pytest.raises(ItemFailed, match="a coroutine has no form in JSON"):
        called("later")


@pytest.mark.usefixtures("allow")
def test_more_rows_than_one_item_may_have_are_refused():
    with pytest.raises(ItemFailed, match="100,001 rows; at most 100,000"):
        called("rows", "a", count=100_001)


@pytest.mark.parametrize(
    ("path", "message", "retry"),
    [
        ("no_such_module:f", "it (no_such_module:f) cannot be loaded: ModuleNotFoundError", True),
        ("their_module:f", "cannot be loaded: AttributeError", True),
        ("broken_module:f", "cannot be loaded: RuntimeError: no licence", True),
        ("their_module:three", "is 3, which cannot be called", False),
        ("", f"no package on this node offers 'it' as an entry point in {GROUP}", True),
    ],
)
def test_what_cannot_be_loaded_is_named_with_its_path(allow, path, message, retry):
    allow(it=path)
    with pytest.raises(ItemFailed) as failure:
        Custom({"callable": "it"}).run("a")
    assert message in str(failure.value)
    assert failure.value.retry is retry


def package(folder, name, points):
    """An installed package, as far as importlib.metadata looks."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


def test_an_entry_point_is_called_only_where_its_name_is_on_the_list(allow, tmp_path):
    package(tmp_path, "theirs", "offered = their_module:echo\nunasked = their_module:rows")
    allow(offered="")
    assert Custom(Custom.check({"callable": "offered"})).run("a") == [("offered", "a", 0, '{"item": "a"}')]
    with pytest.raises(FieldError):
        Custom.check({"callable": "unasked"})
    with pytest.raises(ItemFailed, match="not in this node's setting"):
        Custom({"callable": "unasked"}).run("a")


def test_a_path_on_the_list_wins_over_a_package_that_offers_the_same_name(allow, tmp_path):
    package(tmp_path, "theirs", "it = their_module:rows")
    allow(it="their_module:nothing")
    assert Custom({"callable": "it"}).run("a") is None


def test_a_name_that_two_packages_offer_is_nobody_s(allow, tmp_path):
    package(tmp_path, "one", "it = their_module:echo")
    package(tmp_path, "two", "it = their_module:rows")
    allow(it="")
    with pytest.raises(ItemFailed, match=r"several packages: their_module:echo, their_module:rows; allow one by its"):
        Custom({"callable": "it"}).run("a")


def test_what_it_raises_costs_that_item_and_is_in_the_log(allow, tmp_path):
    allow(it="their_module:breaks")
    shard = {"allocation": 1, "type": "custom", "params": {"callable": "it"}, "start": 0, "items": ["a", "bad", "b"]}
    (entry,) = runner.run([shard], str(tmp_path))
    assert [each[:2] for each in entry["ranges"]] == [[0, 1], [2, 3]]
    ((index, message, retry),) = entry["errors"]
    assert (index, retry) == (1, True)
    assert "ZeroDivisionError" in message
    assert "by nothing" in entry["log"]


def test_arguments_that_it_does_not_take_cost_the_items(allow, tmp_path):
    allow(it="their_module:nothing")
    params = {"callable": "it", "arguments": {"colour": "red"}}
    shard = {"allocation": 1, "type": "custom", "params": params, "start": 0, "items": ["a"]}
    (entry,) = runner.run([shard], str(tmp_path))
    assert "colour" in entry["errors"][0][1]


def test_a_node_asks_for_such_work_only_where_its_setting_names_something():
    assert "custom" not in executors.offered(Surroundings())
    assert executors.offered(Surroundings(custom={"it": ""})) == executors.runnable()


def test_a_task_of_the_last_configuration_may_call_what_this_machine_allows(allow, tmp_path, monkeypatch, capsys):
    allow()
    task = {**TASK, "name": "words", "type": "custom", "params": {"callable": "dumps"}}
    configure(tmp_path, task)
    command = ["run", "words", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--workers", "1", "--json"]
    assert offline.main(command) != 0
    assert "the setting custom allows: nothing" in capsys.readouterr().err
    monkeypatch.setenv("CASCADE_CUSTOM", "dumps=json:dumps")
    assert offline.main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["rows"]) == (3, 3)
