"""The units of deploy/systemd: what they start exists, with enough time to end, as nobody special."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import pytest

from cascade.config import BASE_DIR
from nodes.agent.config import DRAIN_SECONDS

FOLDER = BASE_DIR / "deploy" / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))


def read(file: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file)
    return unit


def test_there_are_units_and_each_timer_has_its_service() -> None:
    assert {file.stem for file in SERVICES} >= {"cascade", "cascade-child", "cascade-dispatcher"}
    for timer in FOLDER.glob("*.timer"):
        assert timer.with_suffix(".service") in SERVICES


@pytest.mark.parametrize("file", SERVICES, ids=lambda file: file.stem)
def test_what_a_unit_starts_is_there_and_its_document_too(file: Path) -> None:
    unit = read(file)
    words = shlex.split(unit["Service"]["ExecStart"].replace("exec ", "").removeprefix("/bin/sh -c ").strip("'"))
    assert words[0].endswith(".venv/bin/python")
    if words[1] == "manage.py":
        assert (BASE_DIR / "cascade" / "management" / "commands" / f"{words[2]}.py").exists()
    else:
        assert words[1:3] == ["-m", "nodes.agent"]
    for document in unit["Unit"]["Documentation"].split():
        assert (BASE_DIR / document.removeprefix("file:///opt/cascade/")).exists()
    assert unit["Service"]["WorkingDirectory"] == "/opt/cascade"


@pytest.mark.parametrize("file", SERVICES, ids=lambda file: file.stem)
def test_a_unit_is_nobody_special_and_has_time_to_end(file: Path) -> None:
    service = read(file)["Service"]
    assert service["User"] == "cascade"
    assert service["UMask"] == "0077"
    if service.get("Type") != "oneshot":
        # The whole group told at once, an agent's workers would be gone before it has waited for them.
        assert service["KillMode"] == "mixed"
        assert float(service["TimeoutStopSec"]) > DRAIN_SECONDS + 10
        assert service["Restart"] == "always"
