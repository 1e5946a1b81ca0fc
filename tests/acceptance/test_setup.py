"""What runs once before a parent in containers starts, here on its own; and what it says without its database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cascade.config import BASE_DIR


def test_it_registers_each_child_once_and_makes_up_for_a_lost_key_file(tmp_path):
    keys = tmp_path / "keys"
    keys.mkdir()
    environment = {
        **os.environ,
        "CASCADE_DATA_DIR": str(tmp_path / "data"),
        "KEYS": str(keys),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def setup() -> None:
        subprocess.run(
            ["sh", "deploy/setup.sh", "child1"],
            cwd=BASE_DIR,
            env=environment,
            check=True,
            timeout=120,
            stdout=subprocess.DEVNULL,
        )

    def known() -> list[tuple[str, list[str]]]:
        asked = [sys.executable, "manage.py", "node", "list", "--json"]
        told = subprocess.run(asked, cwd=BASE_DIR, env=environment, check=True, timeout=120, capture_output=True).stdout
        return [(node["name"], node["keys"]) for node in json.loads(told)]

    setup()
    first = (keys / "child1").read_text().split()[0]
    setup()
    assert (keys / "child1").read_text().split()[0] == first

    (keys / "child1").unlink()
    setup()
    second = (keys / "child1").read_text().split()[0]
    ((name, valid),) = known()
    assert (name, set(valid)) == ("child1", {first, second})


@pytest.mark.parametrize("command", ["migrate", "runserver"])
def test_a_database_that_is_not_there_is_said_in_one_line(tmp_path, command):
    environment = {
        **os.environ,
        "CASCADE_DATA_DIR": str(tmp_path),
        "CASCADE_DATABASE_URL": "postgresql://cascade:not-to-be-told@127.0.0.1:1/cascade",
    }
    asked = [sys.executable, "manage.py", command, "--skip-checks"]
    ended = subprocess.run(asked, cwd=BASE_DIR, env=environment, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 5
    assert ended.stderr.startswith("error: the database: connection failed")
    assert len(ended.stderr.splitlines()) == 1
    assert "not-to-be-told" not in ended.stderr + ended.stdout
