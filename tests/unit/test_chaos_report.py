"""The account of the chaos: what it must not overlook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.report import BEGIN, END, Items, Report, write


def items(**changed: Any) -> Items:
    """Four items, all saved once; ``changed`` says what is otherwise."""
    names = frozenset("abcd")
    return replace(Items(names, names, names, dict.fromkeys(names, 1)), **changed)


@pytest.mark.parametrize(
    ("changed", "lost", "duplicated"),
    [
        ({}, set(), set()),
        ({"saved": {"a": 1, "b": 1, "c": 1}}, {"d"}, set()),
        # Said to have failed, but a receipt was given for it.
        ({"saved": {"a": 1, "b": 1, "c": 1}, "ended": frozenset("d")}, {"d"}, set()),
        ({"saved": {"a": 1, "b": 1, "c": 1}, "ended": frozenset("d"), "acknowledged": frozenset("abc")}, set(), set()),
        # Never acknowledged, and nowhere.
        ({"saved": {"a": 1, "b": 1}, "acknowledged": frozenset("a")}, {"c", "d"}, set()),
        ({"saved": {"a": 1, "b": 2, "c": 1, "d": 1}}, set(), {"b"}),
        ({"saved": {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}}, set(), {"e"}),
    ],
)
def test_what_is_lost_or_there_twice_is_named_and_breaks_the_report(changed, lost, duplicated):
    found, report = items(**changed), Report()
    report.items("a scenario", found)
    assert (found.lost, found.duplicated) == (lost, duplicated)
    assert report.broken == bool(lost or duplicated)
    assert (report.counts["lost"], report.counts["duplicated"]) == (len(lost), len(duplicated))
    assert ("Broken" in report.markdown()) == report.broken


def test_a_figure_that_should_be_zero_breaks_the_report():
    report = Report()
    report.add("answers of 5xx", 0, zero=True)
    assert not report.broken
    report.add("answers of 5xx", 2, zero=True)
    assert report.broken
    assert "| answers of 5xx | 2 |" in report.markdown()


def test_chance_is_the_same_again_for_the_same_seed_and_each_part_has_its_own():
    draws = [
        Report(seed).chance(name).random() for seed, name in ((1, "kills"), (1, "kills"), (2, "kills"), (1, "torn"))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_the_table_replaces_the_one_before_and_nothing_else(tmp_path):
    file = tmp_path / "reliability.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("new", "newer"):
        write(file, text)
    assert file.read_text() == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"
    file.write_text("no place")
    with pytest.raises(ValueError, match="no place for the table"):
        write(file, "new")
