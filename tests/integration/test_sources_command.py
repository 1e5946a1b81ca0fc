"""``manage.py sources`` at a terminal and in scripts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from dispatch.models import Source

pytestmark = pytest.mark.django_db

OPML = '<opml version="2.0"><body><outline text="Paper" xmlUrl="https://paper.example/rss"/></body></opml>'


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("sources", *arguments, stdout=out)
    return out.getvalue()


def file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("a.csv", "key,name\na,A\nb,\n", ["--kind", "feed"]),
        ("a.json", '["a", {"key": "b"}]', ["--kind", "feed"]),
        ("a.jsonl", '"a"\n{"key": "b"}\n', ["--kind", "feed"]),
        ("a.txt", "# mine\na\nb\n", ["--kind", "feed"]),
        ("a.list", "a\nb\n", ["--kind", "feed", "--format", "txt"]),
    ],
)
def test_a_file_is_imported(tmp_path: Path, name: str, text: str, arguments: list[str]) -> None:
    said = run("import", file(tmp_path, name, text), *arguments)
    assert said == "2 sources: 2 added, 0 changed, 0 left as they were.\n"
    assert list(Source.objects.values_list("kind", "key")) == [("feed", "a"), ("feed", "b")]


def test_feeds_come_from_opml_without_saying_their_kind(tmp_path: Path) -> None:
    run("import", file(tmp_path, "a.opml", OPML))
    assert Source.objects.get().address == "https://paper.example/rss"


def test_a_bad_line_is_named_and_nothing_is_imported(tmp_path: Path) -> None:
    bad = file(tmp_path, "a.csv", "key,url\na,https://a.example\nb,nonsense\na,\n")
    with pytest.raises(CommandError) as refused:
        run("import", bad, "--kind", "feed")
    _, third, fourth = str(refused.value).split("\n")
    assert third.startswith("line 3: address: 'nonsense'")
    assert fourth.startswith("line 4: key: 'a' stands in line 2 already")
    assert not Source.objects.exists()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "name\nx\n", "no column key"),
        ("a.txt", "", "no source"),
        ("a.bin", "a", "--format"),
        ("a.opml", "<html/>", "not OPML"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        run("import", file(tmp_path, name, text), "--kind", "feed")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"nowhere\.csv: No such file"):
        run("import", str(tmp_path / "nowhere.csv"))
    with pytest.raises(CommandError, match="directory"):
        run("import", str(tmp_path), "--format", "txt")


def test_the_exit_status_says_what_kind_of_refusal_it_is(tmp_path: Path) -> None:
    run("add", "feed", "a")
    for status, arguments in (
        (2, ("import", str(tmp_path / "nowhere.csv"))),
        (2, ("import", file(tmp_path, "a.csv", "key,url\nb,nonsense\n"), "--kind", "feed")),
        (2, ("add", "feed", "b", "--address", "nonsense")),
        (3, ("remove", "feed", "b")),
        (4, ("add", "feed", "a")),
    ):
        with pytest.raises(CommandError) as refused:
            run(*arguments)
        assert refused.value.returncode == status, arguments


def test_what_is_there_can_be_kept(tmp_path: Path) -> None:
    run("add", "feed", "a", "--name", "old")
    table = file(tmp_path, "a.csv", "key,name\na,new\n")
    kept: dict[str, Any] = json.loads(run("import", table, "--kind", "feed", "--keep", "--json"))
    assert (kept["kept"], Source.objects.get().name) == (1, "old")
    assert json.loads(run("import", table, "--kind", "feed", "--json"))["changed"] == 1


def test_one_source_is_added_disabled_enabled_listed_removed() -> None:
    assert run("add", "feed", "a", "--address", "https://a.example") == "Added feed a.\n"
    run("add", "symbol", "b")
    assert json.loads(run("disable", "feed", "a", "--json"))["active"] is False
    assert "disabled" in run("list")
    assert [each["key"] for each in json.loads(run("list", "--json", "--active"))] == ["b"]
    assert [each["key"] for each in json.loads(run("list", "--json", "--kind", "feed"))] == ["a"]
    run("enable", "feed", "a")
    assert "disabled" not in run("list")
    assert run("remove", "feed", "a") == "Removed feed a.\n"
    for verb in ("remove", "disable", "enable"):
        with pytest.raises(CommandError, match="no source feed 'a'"):
            run(verb, "feed", "a")
    with pytest.raises(CommandError, match="already"):
        run("add", "symbol", "b")
    run("remove", "symbol", "b")
    assert "No sources" in run("list")
