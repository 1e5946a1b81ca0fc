"""The table of defences: each names a text that is there once, so that taking it out takes out that defence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.defences import DEFENCES, Defence

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda each: each.name)
def test_what_would_be_taken_out_is_there_once(defence: Defence) -> None:
    assert (ROOT / defence.file).read_text().count(defence.old) == 1
    assert defence.new != defence.old
    for test in defence.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file()
        assert name.partition("[")[0] in (ROOT / file).read_text()
