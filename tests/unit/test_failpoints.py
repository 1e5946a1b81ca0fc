"""Fail-points: named, inert unless asked for, and a spelling mistake is no silent one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nodes import failpoints
from tests.chaos import crashes


def _process(plan: str, *names: str) -> subprocess.CompletedProcess[str]:
    code = "from nodes import failpoints\n" + "\n".join(f"failpoints.reach({name!r}); print('past')" for name in names)
    environ = {**os.environ, "CASCADE_FAILPOINTS": plan}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)


def test_nothing_happens_where_none_is_named():
    assert _process("", *failpoints.POINTS).stdout.count("past") == len(failpoints.POINTS)


def test_a_kill_ends_the_process_at_once():
    ended = _process("outbox.kept=kill", "outbox.written", "outbox.kept")
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.count("past") < 2


def test_an_action_waits_for_its_turn_and_comes_once():
    ended = _process("outbox.kept=error@2", "outbox.kept", "outbox.kept")
    assert ended.stdout.count("past") == 1
    assert "Injected" in ended.stderr
    assert failpoints.read("spool.synced=full@3, effect=timeout") == {
        "spool.synced": ("full", 3),
        "effect": ("timeout", 1),
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [("spool.sinked=kill", "'spool.sinked'"), ("spool.synced=maim", "'maim'"), ("spool.synced=kill@0", "kill@0")],
)
def test_what_is_not_known_is_said_at_the_start(text, named):
    with pytest.raises(ValueError, match=named):
        failpoints.read(text)


def test_a_hook_hears_every_point_while_it_is_armed():
    heard: list[str] = []
    with failpoints.armed(heard.append):
        failpoints.reach("effect")
    failpoints.reach("effect")
    assert heard == ["effect"]


def test_each_point_is_in_the_code_and_is_one_that_the_chaos_kills_at():
    source = "".join(
        file.read_text()
        for floor in ("cascade", "api", "dispatch", "nodes")
        for file in (Path(failpoints.__file__).parent.parent / floor).rglob("*.py")
    )
    placed = set(re.findall(r'failpoints\.reach\("([^"]+)"\)', source))
    assert placed == set(failpoints.POINTS)
    killed_at = {point for points in crashes.OWNERS.values() for point in points}
    # Those of commands have tests of their own, and relays are killed at theirs in tests/acceptance/test_relays.py.
    others = ("rotate.", "move.", "relay.")
    assert killed_at == {point for point in failpoints.POINTS if not point.startswith(others)}
