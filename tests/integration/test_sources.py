"""Sources: what may be said of one, and imports that are all or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch import lifecycle, sources
from dispatch.models import Source, Task
from nodes.protocol import Conflict, FieldError, NotFound
from tests.integration.factory import at_once

pytestmark = pytest.mark.django_db


def keys(**filters: Any) -> list[str]:
    return list(Source.objects.filter(**filters).order_by("key").values_list("key", flat=True))


def test_a_source_is_added_changed_and_removed() -> None:
    made = sources.add("feed", "paper", name="The Paper", address="https://paper.example/rss", extra={"lang": "de"})
    changed = sources.update(made.pk, name="Paper", active=False)
    assert (changed.key, changed.name, changed.active, changed.extra) == ("paper", "Paper", False, {"lang": "de"})
    assert changed.updated_at > made.updated_at
    assert sources.find("feed", "paper").pk == made.pk
    sources.remove(made.pk)
    for gone in (
        lambda: sources.remove(made.pk),
        lambda: sources.update(made.pk),
        lambda: sources.find("feed", "paper"),
    ):
        with pytest.raises(NotFound):
            gone()


def test_kind_and_key_are_one_sources_own() -> None:
    first, second = sources.add("symbol", "A"), sources.add("symbol", "B")
    sources.add("feed", "A")
    with pytest.raises(Conflict):
        sources.add("symbol", "A")
    with pytest.raises(Conflict):
        sources.update(second.pk, key="A")
    assert keys(kind="symbol") == ["A", "B"]
    assert first.pk != second.pk


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": "planet"}, "kind"),
        ({"kind": None}, "kind"),
        ({"kind": ["feed"]}, "kind"),
        ({"key": ""}, "key"),
        ({"key": " a"}, "key"),
        ({"key": "a\n"}, "key"),
        ({"key": "a\u202eb"}, "key"),
        ({"key": "a" * 201}, "key"),
        ({"key": 7}, "key"),
        ({"name": "a\x00"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"address": "javascript:alert(1)"}, "address"),
        ({"address": "https://"}, "address"),
        ({"address": "https://[x"}, "address"),
        ({"address": "https://a.example:99999/"}, "address"),
        ({"address": "https://a.example/" + "a" * 2000}, "address"),
        ({"active": "perhaps"}, "active"),
        ({"active": 1}, "active"),
        ({"extra": []}, "extra"),
        ({"extra": {"a": float("nan")}}, "extra"),
        ({"extra": {"a": "\x00"}}, "extra"),
        ({"extra": {"a": "\ud800"}}, "extra"),
        ({"extra": {"a": "x" * 10_001}}, "extra"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_no_source_can_be_is_refused_naming_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refused:
        sources.add(**{"kind": "feed", "key": "a", **fields})
    assert refused.value.field == field
    assert not Source.objects.exists()


def test_a_url_needs_no_address_beside_its_key() -> None:
    assert sources.add("url", "https://a.example/x").address == "https://a.example/x"
    with pytest.raises(FieldError):
        sources.add("url", "just a word")


def test_an_import_adds_changes_and_counts() -> None:
    sources.add("feed", "a", name="old", extra={"kept": 1})
    sources.add("feed", "b", name="same")
    counts = sources.import_rows([{"key": "a", "name": "new"}, {"key": "b"}, {"key": "c", "active": "no"}], "feed")
    assert (counts.added, counts.changed, counts.unchanged, counts.kept, counts.total) == (1, 1, 1, 0, 3)
    a, c = sources.find("feed", "a"), sources.find("feed", "c")
    assert (a.name, a.extra) == ("new", {"kept": 1})
    assert (c.active, c.extra, c.created_at.tzinfo is not None) == (False, {}, True)


def test_an_import_that_keeps_changes_nothing_that_is_there() -> None:
    sources.add("feed", "a", name="old")
    counts = sources.import_rows([{"key": "a", "name": "new"}, {"key": "b"}], "feed", update=False)
    assert (counts.added, counts.changed, counts.kept) == (1, 0, 1)
    assert sources.find("feed", "a").name == "old"


def test_one_bad_row_and_nothing_is_imported_and_each_bad_one_is_named() -> None:
    sources.add("feed", "a", name="old")
    rows = [{"key": "a", "name": "new"}, {"key": ""}, {"key": "c"}, {"key": "c"}, {"kind": "planet", "key": "d"}, 7]
    with pytest.raises(sources.Refused) as refused:
        sources.import_rows(rows, "feed", named="line {}".format)  # type: ignore[arg-type]
    assert [(each.line, each.field) for each in refused.value.problems] == [
        ("line 1", "key"),
        ("line 3", "key"),
        ("line 4", "kind"),
        ("line 5", ""),
    ]
    assert refused.value.field == "line 1.key"
    assert "line 2" in refused.value.problems[1].detail  # where it stood first
    assert (keys(), sources.find("feed", "a").name) == (["a"], "old")


def test_many_bad_rows_are_counted_and_some_of_them_named() -> None:
    with pytest.raises(sources.Refused) as refused:
        sources.import_rows([{"key": ""}] * 1000, "feed")
    assert (refused.value.count, len(refused.value.problems)) == (1000, sources.NAMED)


def test_rows_say_their_kind_where_the_import_does_not() -> None:
    sources.import_rows([{"kind": "feed", "key": "a"}, {"kind": "symbol", "key": "a"}])
    assert (keys(kind="feed"), keys(kind="symbol")) == (["a"], ["a"])
    with pytest.raises(FieldError, match="kind"):
        sources.import_rows([{"key": "b"}])


def test_there_is_a_most_that_a_parent_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LIMIT", 3)
    sources.import_rows([{"key": name} for name in "abc"], "feed")
    for more in (lambda: sources.add("feed", "d"), lambda: sources.import_rows([{"key": "d"}], "feed")):
        with pytest.raises(FieldError, match="at most 3"):
            more()
    sources.import_rows([{"key": "a", "name": "still changes"}], "feed")
    with pytest.raises(FieldError, match="more than 3"):
        sources.import_rows([{"key": str(each)} for each in range(9)], "symbol")
    assert keys() == ["a", "b", "c"]


def test_runs_of_a_task_go_through_the_active_sources_of_its_kind() -> None:
    sources.import_rows([{"key": name, "active": name != "b"} for name in "abc"], "symbol")
    task = Task.objects.create(name="all", type="echo", source_kind="symbol")
    assert lifecycle.submit_task(task).count == 2


@pytest.mark.django_db(transaction=True)
def test_two_imports_at_once_leave_each_source_once() -> None:
    rows = [{"key": f"k{number}", "name": "x"} for number in range(200)]
    results = at_once(*[lambda: sources.import_rows(rows, "feed")] * 4)
    assert sorted(result.added for result in results) == [0, 0, 0, 200]
    assert Source.objects.count() == 200
