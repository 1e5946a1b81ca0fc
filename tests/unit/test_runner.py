"""What a worker does with a bundle of shards, in this process: items' fates, rows, log."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nodes import executors, failpoints
from nodes.agent import runner
from nodes.executors.base import Column, Dataset, Executor, ItemFailed
from nodes.protocol import INLINE_ROWS, LOG_LIMIT

NOON = dt.datetime(2024, 1, 31, 12)
LARGE = INLINE_ROWS + 1


class Odd(Executor):
    """An item is the name of what it does."""

    type = "odd"
    title = "For these tests"
    dataset = Dataset(
        table="odd",
        columns=(Column("name", "string"), Column("number", "float64"), Column("at", "timestamp")),
        key=("name",),
    )

    def __init__(self, params):
        super().__init__(params)
        if params.get("cannot_begin"):
            raise RuntimeError("no licence")

    def run(self, item):
        return getattr(self, item)()

    def good(self):
        return [("good", 1.5, NOON)]

    def none(self):
        return None

    def empty(self):
        return []

    def numpy(self):
        return [("numpy", np.float64(2.5), NOON)]

    def missing(self):
        return [("missing", float("nan"), None)]

    def frame(self):
        return pd.DataFrame({"name": ["frame"] * LARGE, "number": range(LARGE), "at": NOON, "extra": 1})

    def table(self):
        return pa.table({"name": ["table"] * LARGE, "number": [1.0] * LARGE, "at": [NOON] * LARGE})

    def long_text(self):
        return [("x" * runner.INLINE_CHARACTERS, 1.0, None), ("y", 2.0, None)]

    def short_row(self):
        return [("short", 1.0)]

    def wrong_kind(self):
        return [("wrong", "no number", NOON)]

    def unstorable(self):
        return [("unstorable", object(), NOON)]

    def no_column(self):
        return pd.DataFrame({"name": ["no"] * LARGE})

    def text(self):
        return "text"

    def exits(self):
        sys.exit("out of here")

    def breaks(self):
        print("before the break")
        raise ZeroDivisionError("by nothing")

    def gone(self):
        raise ItemFailed("gone is unknown")

    def busy(self):
        raise ItemFailed("busy", retry=True)

    def talks(self):
        print("printed")
        print("to stderr", file=sys.stderr)
        logging.getLogger("anything").warning("logged")


@pytest.fixture(autouse=True)
def _odd(monkeypatch):
    get = executors.get
    monkeypatch.setattr(executors, "get", lambda name: Odd if name == "odd" else get(name))


def shard(*items, start=0, allocation=1, type="odd", **params):
    return {"allocation": allocation, "type": type, "params": params, "start": start, "items": list(items)}


def run_one(outbox: Path, *items, **more) -> dict:
    (entry,) = runner.run([shard(*items, **more)], str(outbox))
    return entry


def segment(outbox: Path, entry: dict) -> pa.Table:
    file = outbox / f"{entry['segment']}.arrow"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["segment"]
    return pa.ipc.open_file(pa.OSFile(str(file))).read_all()


def test_items_are_numbered_from_the_shards_start_and_done_ones_joined(tmp_path):
    entry = run_one(tmp_path, "good", "none", "good", start=10, allocation=7)
    assert entry["allocation"] == 7
    assert entry["ranges"] == [[10, 13, 2]]
    assert entry["errors"] == []
    assert entry["seconds"] >= 0


def test_small_results_ride_along_as_json_has_them(tmp_path):
    entry = run_one(tmp_path, "good", "numpy", "missing")
    assert entry["rows"] == [
        ["good", 1.5, "2024-01-31T12:00:00"],
        ["numpy", 2.5, "2024-01-31T12:00:00"],
        ["missing", None, None],
    ]
    assert type(entry["rows"][1][1]) is float
    assert "segment" not in entry
    assert list(tmp_path.iterdir()) == []


def test_an_item_without_rows_is_done(tmp_path):
    entry = run_one(tmp_path, "none", "empty")
    assert entry["ranges"] == [[0, 2, 0]]
    assert "rows" not in entry


@pytest.mark.parametrize("kind", ["frame", "table"])
def test_large_results_go_to_a_segment_in_the_datasets_columns(tmp_path, kind):
    entry = run_one(tmp_path, kind)
    assert "rows" not in entry
    assert entry["offset"] == 0
    table = segment(tmp_path, entry)
    assert table.column_names == ["name", "number", "at"]
    assert table.num_rows == LARGE
    assert table["at"][0].as_py() == NOON


def test_small_and_large_results_of_one_shard_travel_together_in_order(tmp_path):
    entry = run_one(tmp_path, "good", "frame", "none", "good")
    assert entry["ranges"] == [[0, 4, LARGE + 2]]
    names = segment(tmp_path, entry)["name"].to_pylist()
    assert names == ["good", *["frame"] * LARGE, "good"]


def test_many_small_items_leave_the_inline_limit_together(tmp_path):
    entry = run_one(tmp_path, *["good"] * INLINE_ROWS)
    assert len(entry["rows"]) == INLINE_ROWS
    entry = run_one(tmp_path, *["good"] * (INLINE_ROWS + 1))
    assert segment(tmp_path, entry).num_rows == INLINE_ROWS + 1


def test_long_texts_are_not_inline(tmp_path):
    assert segment(tmp_path, run_one(tmp_path, "long_text", "good")).num_rows == 3


def test_shards_of_a_bundle_share_a_segment_each_from_its_offset(tmp_path):
    bundle = [shard("frame", allocation=1), shard("good", allocation=2), shard("table", "none", allocation=3)]
    first, second, third = runner.run(bundle, str(tmp_path))
    assert [entry["allocation"] for entry in (first, second, third)] == [1, 2, 3]
    assert first["segment"] == third["segment"]
    assert (first["offset"], third["offset"]) == (0, LARGE)
    assert second["rows"]
    assert segment(tmp_path, third)["name"].to_pylist()[LARGE:] == ["table"] * LARGE
    assert [file.suffix for file in tmp_path.iterdir()] == [".arrow"]


def test_the_same_rows_again_are_the_same_segment(tmp_path):
    assert run_one(tmp_path, "frame")["segment"] == run_one(tmp_path, "frame")["segment"]


# What goes wrong


@pytest.mark.parametrize(
    ("item", "says", "retry"),
    [
        ("gone", "gone is unknown", False),
        ("busy", "busy", True),
        ("breaks", "ZeroDivisionError: by nothing", True),
        ("exits", "SystemExit: out of here", True),
        ("short_row", "has 2 values", False),
        ("wrong_kind", "'no number' is not a number", False),
        ("unstorable", "is not a number", False),
        ("no_column", "number, at is missing", False),
        ("text", "not a list of tuples", False),
    ],
)
def test_an_items_failure_costs_that_item(tmp_path, item, says, retry):
    entry = run_one(tmp_path, "good", item, "good", "good", start=5)
    assert entry["ranges"] == [[5, 6, 1], [7, 9, 2]]
    ((index, message, again),) = entry["errors"]
    assert index == 6
    assert says in message
    assert again is retry
    assert len(entry["rows"]) == 3
    assert "failure" not in entry


def test_rows_that_do_not_fit_cost_their_item_in_a_large_shard_too(tmp_path):
    entry = run_one(tmp_path, "frame", "wrong_kind", "good")
    assert entry["ranges"] == [[0, 1, LARGE], [2, 3, 1]]
    assert segment(tmp_path, entry).num_rows == LARGE + 1


def test_what_cannot_begin_costs_its_shard_and_no_other_of_the_bundle(tmp_path):
    bad, good = runner.run([shard("good", cannot_begin=True), shard("good", allocation=2)], str(tmp_path))
    assert bad["failure"] == {"kind": "error", "message": "RuntimeError: no licence"}
    assert "ranges" not in bad
    assert "no licence" in bad["log"]
    assert good["ranges"] == [[0, 1, 1]]


def test_an_unknown_task_type_is_a_failure_that_names_it(tmp_path):
    entry = run_one(tmp_path, "x", type="nothing")
    assert entry["failure"]["kind"] == "error"
    assert "'nothing' is not a task type" in entry["failure"]["message"]


def test_all_items_failed_is_still_a_report_item_by_item(tmp_path):
    entry = run_one(tmp_path, "gone", "busy")
    assert entry["ranges"] == []
    assert [error[0] for error in entry["errors"]] == [0, 1]


def test_a_shard_whose_rows_are_too_many_bytes_is_a_failure_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SEGMENT_BYTES_LIMIT", 100)
    entry = run_one(tmp_path, "frame")
    assert "use smaller shards" in entry["failure"]["message"]
    assert list(tmp_path.iterdir()) == []


# The log


def test_what_an_executor_prints_and_logs_is_its_shards_log(tmp_path, capsys):
    first, second = runner.run([shard("talks"), shard("breaks", allocation=2)], str(tmp_path))
    assert first["log"].splitlines() == ["printed", "to stderr", "logged"]
    assert second["log"].startswith("before the break\nTraceback")
    assert capsys.readouterr() == ("", "")


def test_a_silent_shard_has_no_log(tmp_path):
    assert "log" not in run_one(tmp_path, "good")


def test_of_a_long_log_the_end_is_kept(tmp_path):
    items = [f"i{number}" for number in range(3000)]
    entry = run_one(tmp_path, *items, type="echo", rows=0, log="0123456789", fail_items=["i2999"])
    assert len(entry["log"]) <= LOG_LIMIT
    assert entry["log"].startswith("[…]\n")
    assert entry["log"].endswith("0123456789\n")


def test_a_long_message_is_cut(tmp_path):
    entry = run_one(tmp_path, "x", type="echo", fail="e" * 10_000)
    assert len(entry["errors"][0][1]) == runner.MESSAGE_LIMIT


def test_a_full_disk_is_no_fault_of_the_items_and_leaves_nothing_half_written(tmp_path):
    def full(point: str) -> None:
        if point == "worker.written":
            raise OSError(errno.ENOSPC, "No space left on device")

    bundle = [shard("good"), shard("frame", allocation=2)]
    with failpoints.armed(full), pytest.raises(runner.NoRoom, match="No space left"):
        runner.run(bundle, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert runner.run(bundle, str(tmp_path))
