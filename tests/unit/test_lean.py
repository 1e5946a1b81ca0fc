"""What a parent does not load to answer pages and agents: whatever libraries would load only because it is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOADED = """
import sys
import cascade.asgi, cascade.urls
print(*(name for name in sys.argv[1:] if name in sys.modules))
import requests, pygments
"""


def test_a_parent_loads_nothing_for_features_that_it_does_not_have(tmp_path: Path) -> None:
    names = ["coreapi", "jinja2", "markdown", "pygments", "requests", "pandas", "pyarrow", "duckdb", "optuna"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *names],
        env={"CASCADE_DATA_DIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
