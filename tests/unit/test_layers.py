"""What a process must not load: seen in fresh interpreters, because in this one Django is long there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.executors import EXECUTORS
from nodes.providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[2]
DJANGO = {"django", "rest_framework", "channels", "daphne", "asgiref"}
ROWS = {"pandas", "pyarrow", "duckdb", "numpy"}
SHARED = ["nodes.protocol", "nodes.signing", "nodes.executors", "nodes.providers"]
AGENT = sorted(
    f"nodes.agent.{file.stem}" for file in (ROOT / "nodes" / "agent").glob("*.py") if not file.stem.startswith("__")
)
PLUGINS = sorted({path.partition(":")[0] for path in [*EXECUTORS.values(), *PROVIDERS.values()]})


def loaded_by(statement: str, env: dict[str, str] | None = None) -> set[str]:
    """Top-level packages in sys.modules after ``statement`` in a fresh interpreter."""
    script = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    # No settings: an agent's machine has none.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**clean, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_there_is_an_agent_to_look_at() -> None:
    assert {"nodes.agent.loop", "nodes.agent.pool"} <= set(AGENT)


@pytest.mark.parametrize("module", [*SHARED, "nodes.agent", *AGENT, *PLUGINS])
def test_what_a_child_imports_loads_neither_django_nor_a_table_library(module: str) -> None:
    assert not loaded_by(f"import {module}") & (DJANGO | ROWS)


def test_looking_up_every_executor_and_provider_loads_neither_django_nor_a_table_library() -> None:
    statement = (
        "from nodes import executors, providers\n"
        "for name in executors.EXECUTORS: executors.get(name)\n"
        "for name in providers.PROVIDERS: providers.get(name)"
    )
    assert not loaded_by(statement) & (DJANGO | ROWS)


def test_the_web_process_starts_without_pandas_and_pyarrow() -> None:
    loaded = loaded_by("import cascade.asgi", {"DJANGO_SETTINGS_MODULE": "cascade.settings"})
    assert not loaded & {"pandas", "pyarrow", "numpy"}
    assert "django" in loaded


def test_a_parent_of_one_process_loads_no_driver_of_the_servers_that_several_have() -> None:
    statement = "import cascade.asgi\nfrom cascade import roles\nroles.leaders()"
    loaded = loaded_by(statement, {"DJANGO_SETTINGS_MODULE": "cascade.settings"})
    assert not loaded & {"psycopg", "redis", "channels_redis"}
