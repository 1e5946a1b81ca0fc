"""The catalogue of translations: complete, compiled, and of what is really said. The README in both languages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from string import Formatter

import polib
import pytest

from api.words import IN_SCRIPTS
from nodes.sentences import SENTENCES
from tests import translations
from tests.translations import CATALOGUE, ROOT

AGAIN = "python -m tests.translations brings the catalogue up to date"


@pytest.fixture(scope="module")
def catalogue() -> polib.POFile:
    return polib.pofile(str(CATALOGUE))


def test_all_that_pages_say_is_in_it_and_nothing_else(catalogue: polib.POFile) -> None:
    said = set(translations.collected())
    kept = {(entry.msgid, entry.msgid_plural) for entry in catalogue}
    assert said - kept == set(), AGAIN
    assert kept - said == set(), AGAIN


def test_everything_is_translated_and_nothing_is_in_doubt(catalogue: polib.POFile) -> None:
    for entry in catalogue:
        texts = list(entry.msgstr_plural.values()) if entry.msgid_plural else [entry.msgstr]
        assert all(text.strip() for text in texts), entry.msgid
        assert texts, entry.msgid
        assert not entry.fuzzy, entry.msgid
        assert not entry.obsolete, entry.msgid


def test_what_is_compiled_is_what_is_written(catalogue: polib.POFile) -> None:
    compiled = polib.mofile(str(CATALOGUE.with_suffix(".mo")))
    told = {(entry.msgid, entry.msgid_plural): (entry.msgstr, entry.msgstr_plural) for entry in compiled}
    assert told == {(entry.msgid, entry.msgid_plural): (entry.msgstr, entry.msgstr_plural) for entry in catalogue}
    assert "nplurals=1" in compiled.metadata["Plural-Forms"]


def placeholders(text: str) -> set[str]:
    """%(name)s and {name}, as the code puts values in; braces of examples in JSON are none."""
    return set(re.findall(r"%\(\w+\)s|\{\w*\}", text))


def test_a_translation_has_the_same_places_for_values(catalogue: polib.POFile) -> None:
    for entry in catalogue:
        wanted = placeholders(entry.msgid_plural or entry.msgid) | placeholders(entry.msgid)
        for text in entry.msgstr_plural.values() if entry.msgid_plural else [entry.msgstr]:
            # Letters of a plural have no counterpart.
            assert placeholders(text) == wanted - {"{s}"}, entry.msgid
            assert re.findall(r"<[^>]+>", text).sort() == re.findall(r"<[^>]+>", entry.msgid).sort(), entry.msgid


def test_chinese_has_chinese_marks(catalogue: polib.POFile) -> None:
    for entry in catalogue:
        for text in (*entry.msgstr_plural.values(), entry.msgstr):
            assert not re.search(r"[\u4e00-\u9fff][,;:?!]|[\u4e00-\u9fff]\.(?!\w)", text), text


def test_what_scripts_look_up_is_brought_to_them_and_nothing_else() -> None:
    said = translations.said_by_scripts()
    assert set(said) == set(IN_SCRIPTS), {text: said.get(text) for text in set(said) ^ set(IN_SCRIPTS)}


def constants(files: Iterable[Path]) -> str:
    """All texts of code, and the pieces of those with values in them; one that is written in parts as one."""
    found: list[str] = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_sentence_is_made_somewhere() -> None:
    """What pages look for: a wording that code does not have any more would silently stay English."""
    files = [
        path
        for folder in ("api", "dispatch", "nodes", "cascade")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "sentences.py"
    ]
    texts = constants(files)
    for sentence in SENTENCES:
        for piece, *_ in Formatter().parse(sentence):
            wanted = piece.strip(" ,:;.()")
            # Some are put together of two.
            halves = ((wanted[:at].strip(), wanted[at:].strip()) for at in range(3, len(wanted) - 2))
            whole = wanted in texts or any(one in texts and other in texts for one, other in halves)
            assert whole, f"{sentence!r}: nothing says {wanted!r}"


# ---- the README --------------------------------------------------------------------------------------------------


def readme(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[int]:
    """Their levels, in order."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [len(marks) for marks in re.findall(r"^(#+) ", outside, re.MULTILINE)]


def links(text: str) -> list[str]:
    return sorted(re.findall(r"\]\(([^)\s]+)\)", text))


def test_both_readmes_have_the_same_commands_headings_and_links() -> None:
    english, chinese = readme("README.md"), readme("README.zh-CN.md")
    assert blocks(chinese) == blocks(english)
    assert headings(chinese) == headings(english)
    ours = {"README.zh-CN.md", "README.md"}
    assert [each for each in links(chinese) if each not in ours and not each.startswith("#")] == [
        each for each in links(english) if each not in ours and not each.startswith("#")
    ]
    assert "(README.zh-CN.md)" in english.split("\n## ")[0]
    assert "(README.md)" in chinese.split("\n## ")[0]
