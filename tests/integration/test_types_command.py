"""``manage.py types``, ``submit --params`` and ``submit --all``: what a type declares, for people and for scripts."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from dispatch.items import Frozen
from dispatch.models import Run, TypeSettings
from nodes import executors
from nodes.executors.described import described

pytestmark = pytest.mark.django_db


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def ended(status: int, *arguments: str) -> str:
    """What a command says that ends with ``status``."""
    with pytest.raises(CommandError) as raised:
        command(*arguments)
    assert raised.value.returncode == status
    return str(raised.value)


def cells(text: str, first: str) -> list[str]:
    """The line that begins with ``first``, by columns."""
    line = next(line for line in text.splitlines() if line.startswith(f"{first} "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_all_types_are_listed_with_how_they_run_and_where_rows_go() -> None:
    text = command("types")
    for name in executors.names():
        assert executors.get(name).title in text
    assert cells(text, "echo")[-2:] == ["computes", "echo"]
    assert cells(text, "feed_update")[-2:] == ["waits", "articles"]
    assert cells(text, "external")[-2:] == ["elsewhere", "external"]


@pytest.mark.parametrize("name", executors.names())
def test_each_type_shows_every_parameter_and_column(name: str) -> None:
    text = command("types", name)
    executor = executors.get(name)
    lines = {line.partition(" ")[0] for line in text.splitlines()}
    assert {param.name for param in executor.params} <= lines
    assert set(executor.dataset.names) <= lines
    for view, _ in executor.dataset.views:
        assert view in text
    for reduction in executor.reductions:
        assert reduction in text


def test_a_parameter_has_its_kind_default_bounds_and_meaning() -> None:
    text = command("types", "echo")
    assert cells(text, "rows") == ["rows", "integer", "1", "0 to 100,000", "Rows per item."]
    assert cells(text, "item") == ["item", "string", "yes"]
    assert cells(command("types", "data_import"), "source")[:3] == ["source", "string", "required"]


def test_parameters_of_sources_come_with_the_source_or_of_one_alone() -> None:
    text = command("types", "data_import")
    assert "With source=yfinance; freq: 1min, 5min" in text
    assert "With source=sample; freq: D\nNo further parameters." in text
    one = command("types", "data_import", "--source", "tdx")
    assert "With source=tdx" in one
    assert "yfinance;" not in one
    assert "With strategy=ma_cross, in the object strategy_params" in command("types", "backtest", "--source", "sample")


def test_scripts_get_what_the_api_gives() -> None:
    assert json.loads(command("types", "--json")) == json.loads(
        json.dumps([described(executors.get(name)) for name in executors.names()])
    )
    one = json.loads(command("types", "backtest", "--source", "tdx", "--json"))
    assert one["type"] == "backtest"
    assert {each["value"] for each in one["variants"] if each["by"] == "source"} == {"tdx"}
    assert {each["value"] for each in one["variants"] if each["by"] == "strategy"} >= {"ma_cross"}


def test_what_there_is_not_ends_with_its_own_status() -> None:
    assert "there is no task type 'nonsense'; there are: analysis" in ended(3, "types", "nonsense")
    assert "'x' is not a source of echo: it takes none" in ended(2, "types", "echo", "--source", "x")
    assert "'store' is not a source of data_import: akshare" in ended(2, "types", "data_import", "--source", "store")
    assert "belongs to a type" in ended(2, "types", "--source", "files")
    assert "there is no task type" in ended(3, "submit", "nonsense", "--params")


def test_submit_prints_parameters_and_submits_nothing() -> None:
    text = command("submit", "backtest", "--params")
    assert cells(text, "strategy")[:3] == ["strategy", "string", "required"]
    assert "With source=files" in text
    assert not Run.objects.exists()


# submit --all


def vipdoc(root: Path) -> Path:
    for name in ("sh600000", "sz000001"):
        file = root / name[:2] / "lday" / f"{name}.day"
        file.parent.mkdir(parents=True)
        file.write_bytes(struct.pack("<IIIIIfII", 20240102, 660, 665, 657, 661, 1e6, 100, 0))
    return root


@pytest.mark.parametrize("task_type", ["data_import", "analysis"])
def test_all_symbols_of_a_source_become_items(tmp_path: Path, task_type: str) -> None:
    path = f"path={vipdoc(tmp_path)}"
    command("submit", task_type, "--all", "--param", "source=tdx", "--param", path)
    assert Frozen(bytes(Run.objects.get().items)).all() == ["000001.SZ", "600000.SH"]


def test_the_source_may_come_from_the_type_s_settings(tmp_path: Path) -> None:
    TypeSettings.objects.create(type="data_import", params={"source": "tdx", "path": str(vipdoc(tmp_path))})
    command("submit", "data_import", "--all")
    assert Run.objects.get().count == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["echo"], "echo has no source that lists its items"),
        (["data_import"], "params.source: is required"),
        (["data_import", "--param", "source=files"], "params.path: is required"),
        (["data_import", "--param", "source=yfinance"], "source 'yfinance' cannot list its symbols"),
        (["analysis"], "source 'store' cannot list its symbols; --items-column kline.symbol can"),
    ],
)
def test_where_there_is_nothing_to_list_it_says_why(arguments: list[str], message: str) -> None:
    assert message in ended(2, "submit", *arguments, "--all")
    assert not Run.objects.exists()
