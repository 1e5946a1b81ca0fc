"""``echo``: the example executor, and the one that fails on request."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import executors
from nodes.executors.base import ItemFailed
from nodes.executors.echo import Echo
from nodes.executors.rows import to_table
from nodes.protocol import FieldError


def echo(**params):
    return Echo(Echo.check(params))


def test_it_is_registered():
    assert executors.get("echo") is Echo


@pytest.mark.parametrize(
    ("item", "text"), [("AAPL", "AAPL"), (7, "7"), (2.5, "2.5"), ({"symbol": "A", "n": 1}, '{"symbol":"A","n":1}')]
)
def test_an_item_comes_back_as_one_row(item, text):
    assert echo().run(item) == [(text, 0, f"{text}:0")]


@given(st.integers(0, 50), st.text(min_size=1) | st.integers() | st.dictionaries(st.text(), st.integers(), max_size=3))
def test_rows_are_numbered_and_each_is_known_by_its_key(rows, item):
    result = echo(rows=rows).run(item)
    assert [row[1] for row in result] == list(range(rows))
    assert len({(row[0], row[1]) for row in result}) == rows
    assert all(value == f"{text}:{number}" for text, number, value in result)


def test_objects_with_one_key_and_other_values_stay_apart():
    executor = echo()
    assert executor.run({"symbol": "A", "n": 1}) != executor.run({"symbol": "A", "n": 2})


def test_its_rows_fit_its_dataset():
    table = to_table(Echo.dataset, echo(rows=3).run("a"))
    assert table.to_pydict() == {"item": ["a"] * 3, "number": [0, 1, 2], "value": ["a:0", "a:1", "a:2"]}


def test_fail_fails_every_item_with_the_message_and_another_attempt_may_follow():
    with pytest.raises(ItemFailed, match="out of luck") as failure:
        echo(fail="out of luck").run("a")
    assert failure.value.retry


@pytest.mark.parametrize("item", ["b", {"symbol": "b", "n": 1}])
def test_fail_items_fail_for_good_and_the_others_do_not(item):
    executor = echo(fail_items=["b", 5])
    assert executor.run("a")
    for each in (item, 5):
        with pytest.raises(ItemFailed) as failure:
            executor.run(each)
        assert not failure.value.retry


def test_crash_items_end_their_process_at_once():
    code = """
from nodes.executors.echo import Echo
executor = Echo(Echo.check({"crash_items": ["b"]}))
print(len(executor.run("a")), flush=True)
try:
    executor.run("b")
finally:
    print("cleaned up", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (70, "1\n")


def test_it_sleeps_as_long_as_told():
    began = time.monotonic()
    echo(seconds=0.05).run("a")
    assert time.monotonic() - began >= 0.05


def test_log_is_printed_for_each_item(capsys):
    executor = echo(log="working")
    executor.run("a")
    executor.run("b")
    assert capsys.readouterr().out == "working\nworking\n"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"seconds": -1}, "params.seconds"),
        ({"seconds": "soon"}, "params.seconds"),
        ({"rows": -1}, "params.rows"),
        ({"rows": 100_001}, "params.rows"),
        ({"fail_items": 5}, "params.fail_items"),
        ({"crash": ["a"]}, "params.crash"),
    ],
)
def test_bad_params_are_refused_by_name(params, field):
    with pytest.raises(FieldError) as refusal:
        Echo.check(params)
    assert refusal.value.field == field


def test_it_cannot_be_split():
    with pytest.raises(FieldError, match="echo items cannot be split"):
        Echo.expand(["a"], {}, "year")


def test_a_worker_that_echoes_loads_no_heavy_library():
    code = """
import sys
from nodes.executors import get
get("echo")({}).run("a")
print([name for name in ("django", "numpy", "pandas", "pyarrow", "requests") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr
