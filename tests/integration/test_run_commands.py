"""``manage.py runs | run | explain | export | status``: what they print, and how they end."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from dispatch.models import Allocation, Run
from dispatch.states import RunState
from nodes.agent import direct
from tests.integration.agents import NO_ROW
from tests.integration.factory import child, dispatch, done, failure, partly, save, saver, submit

pytestmark = pytest.mark.django_db


def command(*arguments: str) -> str:
    """What it prints; as bytes underneath, which rows are."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    call_command(*arguments, stdout=out, stderr=io.StringIO())
    out.seek(0)
    return out.read()


def told(*arguments: str) -> Any:
    return json.loads(command(*arguments, "--json"))


def ended(status: int, *arguments: str) -> str:
    """What a command says that ends with ``status``."""
    with pytest.raises(CommandError) as raised:
        command(*arguments)
    assert raised.value.returncode == status
    return str(raised.value)


@pytest.fixture
def finished(folder: Path) -> Run:
    """Three items of echo: two saved, one failed."""
    run = submit(3, max_attempts=1, name="nightly", shard_size=3)
    node = child("north")
    (work,) = node.works()
    node.report(partly(work, 1))
    with saver() as made:
        save(made)
    return Run.objects.get(pk=run.pk)


# runs


def test_runs_are_listed_newest_first_and_filtered(finished):
    other = submit(2, name="later")
    assert [run["run"] for run in told("runs")] == [other.pk, finished.pk]
    assert [run["run"] for run in told("runs", "--limit", "1")] == [other.pk]
    assert [run["run"] for run in told("runs", "--state", "partial", "--state", "failed")] == [finished.pk]
    assert [run["run"] for run in told("runs", "--name", "NIGHT")] == [finished.pk]
    assert told("runs", "--type", "data_import") == []
    Run.objects.filter(pk=finished.pk).update(created_at=timezone.now() - dt.timedelta(hours=3))
    assert [run["run"] for run in told("runs", "--since", "2h")] == [other.pk]
    assert len(told("runs", "--since", "4h")) == 2
    assert len(told("runs", "--since", "2020-01-01T00:00:00Z")) == 2
    lines = command("runs").splitlines()
    assert lines[0].split() == ["RUN", "NAME", "TYPE", "STATE", "DONE", "FAILED", "ROWS", "SUBMITTED", "ENDED"]
    assert re.match(rf"{finished.pk}  +nightly  +echo  +partial  +3/3  +1  +2  ", lines[2])


def test_times_for_scripts_are_iso_and_zoned(finished):
    (run,) = told("runs")
    assert run["created_at"].endswith("Z")
    assert dt.datetime.fromisoformat(run["created_at"]) == finished.created_at
    assert run["ended_at"] is not None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("runs", "--since", "yesterday"), "--since: 'yesterday'"),
        (("runs", "--limit", "0"), "--limit: 0"),
        (("explain",), "run: is needed"),
        (("explain", "1", "--allocation", "2"), "run: is needed"),
        (("export",), "table: is needed"),
        (("export", "echo", "--out", "x.docx"), "--out: 'x.docx' does not end in one of: .csv"),
        (("export", "echo", "--where", "item"), "--where: 'item' is not like"),
        (("export", "echo", "--limit", "-1"), "--limit: -1"),
        (("submit", "echo", "--item", "a", "--balancer", "dice"), "balancer: 'dice'"),
        (("node", "add", "x", "--carrier", "http"), "--api-url: is needed"),
        (("node", "add", "x", "--max-cpu", "101"), "max_cpu: 101"),
        (("node", "add", "x", "--capacity", "0"), "capacity: 0"),
    ],
)
def test_a_wrong_value_ends_with_2_and_is_named(arguments, says, folder):
    assert says in ended(2, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "show", str(NO_ROW)),
        ("run", "cancel", str(NO_ROW)),
        ("run", "retry", str(NO_ROW)),
        ("run", "results", str(NO_ROW)),
        ("explain", str(NO_ROW)),
        ("explain", "--allocation", str(NO_ROW)),
        ("export", "--run", str(NO_ROW)),
        ("export", "nothing"),
        ("node", "drain", "nobody"),
        ("signin", "nobody"),
    ],
)
def test_what_is_not_there_ends_with_3(arguments, folder):
    assert ended(3, *arguments)


# run


def test_show_tells_progress_nodes_and_failed_items_and_ends_with_1_for_a_run_that_ended_badly(finished, capsys):
    out = io.StringIO()
    with pytest.raises(CommandError) as raised:
        call_command("run", "show", str(finished.pk), stdout=out)
    assert raised.value.returncode == 1
    text = out.getvalue()
    assert re.search(r"state +partial", text)
    assert re.search(r"items +2 saved, 1 failed", text)
    assert re.search(r"north +1 +3 +2 ", text)
    assert re.search(r"1 +i1 +failed +north +1 +no luck with i1", text)
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("run", "show", str(finished.pk), "--json", stdout=out)
    shown = json.loads(out.getvalue())
    assert (shown["run"], shown["state"], shown["saved"], shown["rows"]) == (finished.pk, "partial", 2, 2)
    assert [each["node"] for each in shown["nodes"]] == ["north"]
    assert [each["item"] for each in shown["failed_items"]] == ["i1"]


def test_show_of_a_run_that_goes_on_ends_with_0():
    run = submit(2)
    assert told("run", "show", str(run.pk))["pending"] == 2


def test_cancel_and_retry_change_the_run_and_a_second_time_is_a_conflict(finished):
    run = submit(4)
    assert told("run", "cancel", str(run.pk))["cancelled"] == 4
    assert Run.objects.get(pk=run.pk).state == RunState.CANCELLED
    assert "has ended already" in ended(4, "run", "cancel", str(run.pk))
    assert "1 item opened again" in command("run", "retry", str(finished.pk))
    assert Run.objects.get(pk=finished.pk).state == RunState.RUNNING
    assert "still running" in ended(4, "run", "retry", str(finished.pk))


def test_some_items_are_tried_again_by_their_numbers(finished):
    pk = str(finished.pk)
    for wrong in ("x", "3-1", "", "0,,1", "-1"):
        assert "--items" in ended(2, "run", "retry", pk, f"--items={wrong}")
    assert "of the items that were asked for" in ended(4, "run", "retry", pk, "--items", "0,2")
    assert "1 item opened again" in command("run", "retry", pk, "--items", "0-1")


def test_the_rows_of_a_run_are_printed_in_each_format(finished):
    pk = str(finished.pk)
    lines = command("run", "results", pk, "--order", "item").splitlines()
    assert lines[0] == '"item","number","value"'
    assert lines[1:] == ['"i0",0,"i0:0"', '"i2",0,"i2:0"']
    rows = [{"item": item, "number": 0, "value": f"{item}:0"} for item in ("i0", "i2")]
    assert json.loads(command("run", "results", pk, "--format", "json", "--order", "item")) == rows
    printed = command("run", "results", pk, "--format", "jsonl", "--order=-item").splitlines()
    assert [json.loads(line) for line in printed] == rows[::-1]
    assert json.loads(command("run", "results", pk, "--format", "json", "--where", "item=i2")) == rows[1:]
    columns = json.loads(command("run", "results", pk, "--format", "json", "--columns", "item", "--limit", "1"))
    assert [list(row) for row in columns] == [["item"]]
    assert "_run" in json.loads(command("run", "results", pk, "--format", "json", "--raw"))[0]


def test_a_column_that_is_not_there_is_named(finished):
    assert "colour" in ended(2, "run", "results", str(finished.pk), "--where", "colour=red")


def test_a_file_is_written_whole_and_never_over_another(finished, tmp_path):
    file = tmp_path / "rows.parquet"
    command("run", "results", str(finished.pk), "--out", str(file))
    assert pyarrow.parquet.read_table(file).num_rows == 2
    assert "--force" in ended(4, "run", "results", str(finished.pk), "--out", str(file))
    command("export", "echo", "--out", str(file), "--force", "--format", "jsonl", "--where", "item=i0")
    assert json.loads(file.read_text())["item"] == "i0"
    assert ended(5, "export", "echo", "--out", str(tmp_path / "none" / "rows.csv"))
    assert ended(2, "export", "echo", "--out", str(tmp_path / "half.csv"), "--columns", "colour")
    assert sorted(path.name for path in tmp_path.iterdir() if "half" in path.name) == []


def test_that_a_file_was_written_is_not_told_in_the_colour_of_errors(finished, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = Terminal()
    call_command("export", "echo", "--out", str(tmp_path / "rows.csv"), stderr=said, force_color=True)
    assert said.getvalue().startswith("Wrote ")


def test_what_would_be_in_force_for_another_role_is_not_passed_off_as_what_is():
    assert "role: parent" in command("config", "--show", "--role", "parent")
    assert "--show --set role=child" in ended(2, "config", "--show", "--role", "child")


def test_a_run_without_rows_and_a_table_without_any_are_empty_not_missing(folder):
    run = submit(["A"], type="data_import", params={"source": "sample"})
    assert command("run", "results", str(run.pk)).splitlines()[0].startswith('"symbol"')
    assert json.loads(command("export", "kline", "--format", "json")) == []
    assert json.loads(command("export", "--run", str(run.pk), "--format", "json")) == []


def test_the_table_of_a_run_is_its_types(finished):
    assert "is not the table of run" in ended(2, "export", "kline", "--run", str(finished.pk))


def test_rows_that_another_process_holds_end_with_5_and_say_who(finished, folder):
    with saver():
        said = ended(5, "export", "echo")
    assert str(folder) in said


def test_a_server_that_does_not_answer_is_named_with_what_to_do(finished, folder, admin_user):
    import os
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        about = {"url": url, "pid": os.getpid(), "host": socket.gethostname()}
        (folder / "server.json").write_text(json.dumps(about))
        said = ended(5, "export", "echo")
    assert url in said
    assert "server.json" in said
    # One that is gone is not asked.
    (folder / "server.json").write_text(json.dumps({**about, "pid": 2**22 + 1}))
    assert command("export", "echo")


# explain


def test_explain_says_for_each_node_why_it_takes_no_more(folder):
    run = submit(2, labels={"region": "eu"})
    child("north")
    answer = told("explain", str(run.pk))
    assert (answer["run"], answer["state"], answer["pending"]) == (run.pk, "running", 2)
    assert [(each["node"], each["code"]) for each in answer["refusals"]] == [("north", "label")]
    text = command("explain", str(run.pk))
    assert re.search(r"north +label +\S", text)
    assert f"run {run.pk} is running: 2 of 2 items wait" in text


def test_explain_says_why_an_allocation_went_where_it_did():
    node = child("north")
    submit(1)
    dispatch()
    allocation = Allocation.objects.get()
    answer = told("explain", "--allocation", str(allocation.pk))
    assert (answer["allocation"], answer["node"], answer["reason"]) == (allocation.pk, "north", allocation.reason)
    assert allocation.reason in command("explain", "--allocation", str(allocation.pk))
    assert node.live() == 1


# submit, status, node


def test_submit_takes_what_it_is_not_told_from_the_settings(settings):
    chosen = {"default_priority": 9, "default_timeout": 7, "default_max_attempts": 2, "default_balancer": "health"}
    settings.CASCADE = settings.CASCADE.model_copy(update=chosen)
    command("submit", "echo", "--item", "a")
    run = Run.objects.get()
    assert (run.priority, run.timeout, run.max_attempts, run.balancer) == (9, 7, 2, "health")
    command("submit", "echo", "--item", "a", "--priority", "1", "--balancer", "random", "--prefer", "rack=7")
    run = Run.objects.order_by("-pk")[0]
    assert (run.priority, run.balancer, run.affinity) == (1, "random", {"rack": "7"})


def test_a_task_defined_over_the_api_takes_what_it_is_not_told_from_the_settings(api, settings):
    settings.CASCADE = settings.CASCADE.model_copy(update={"default_balancer": "random", "default_max_attempts": 2})
    made = api.post("tasks", {"name": "nightly", "type": "echo", "items": ["a"]})
    assert (made.status, made.body["balancer"], made.body["max_attempts"]) == (201, "random", 2)
    changed = api.send("PATCH", f"tasks/{made.body['id']}", {"balancer": "health"})
    assert (changed.body["balancer"], changed.body["max_attempts"]) == ("health", 2)


def test_a_task_handed_to_a_node_without_a_time_out_has_the_settings():
    body = {"task_id": "t", "task_type": "echo", "task_data": {"items": ["a"]}}
    assert direct.read_order(body, 45).timeout == 45
    assert direct.read_order({**body, "timeout": 60}, 45).timeout == 60


def test_status_for_scripts_has_nodes_and_runs(finished):
    answer = told("status")
    assert [node["name"] for node in answer["nodes"]] == ["north"]
    assert [(run["run"], run["name"]) for run in answer["runs"]] == [(finished.pk, "nightly")]


def test_a_node_is_added_with_all_that_can_be_said_of_it(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the key\n"))
    command(
        "node", "add", "far", "--carrier", "http", "--api-url", "http://far:8900", "--api-key", "-",
        "--max-cpu", "80", "--max-memory", "90", "--dialect", "node", "--label", "region=eu",
    )  # fmt: skip
    from nodes.models import Node

    node = Node.objects.get()
    assert (node.carrier, node.api_url, node.api_key) == ("http", "http://far:8900", "the key")
    assert (node.max_cpu, node.max_memory, node.dialect, node.labels) == (80, 90, "node", {"region": "eu"})
    assert "the key" not in command("node", "list") + command("node", "list", "--json")


def test_a_failed_run_ends_submit_and_show_alike():
    run = submit(1, max_attempts=1)
    node = child("north")
    (work,) = node.works()
    node.report(failure(work, "error", "broken"))
    assert Run.objects.get(pk=run.pk).state == RunState.FAILED
    assert "ended failed" in ended(1, "run", "show", str(run.pk))


def test_a_run_all_saved_ends_show_with_0(folder):
    run = submit(1)
    node = child("north")
    (work,) = node.works()
    node.report(done(work))
    with saver() as made:
        save(made)
    assert told("run", "show", str(run.pk))["state"] == "completed"
