"""docs/reliability.md names tests for what it says; they are there, under these names."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.__main__ import PARTS
from tests.chaos.report import BEGIN, END

TESTS = Path(__file__).parent.parent
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text()


def test_each_test_that_it_names_is_there():
    named = [cell for line in TEXT.splitlines() if line.startswith("| ") for cell in re.findall(r"`([^`]+)`", line)]
    file, missing, seen = "", [], 0
    for name in named:
        path, _, function = name.partition("::")
        if path.endswith(".py"):
            file = path
        elif path:
            continue  # not a test
        seen += 1
        there = (TESTS / file).exists()
        if not there or (function and f"def {function}(" not in (TESTS / file).read_text()):
            missing.append(name)
    assert missing == []
    assert seen > 50


def test_each_part_of_the_chaos_is_described_and_there_is_a_place_for_the_table():
    assert [name for name in PARTS if f"| `{name}` |" not in TEXT] == []
    assert TEXT.index(BEGIN) < TEXT.index(END)
