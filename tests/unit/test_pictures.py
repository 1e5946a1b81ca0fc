"""Pictures in the documentation: each that is shown is there, each that is there is shown, and none is heavy."""

from __future__ import annotations

import re
import struct

import pytest

from tests import pictures

TAKEN = {shot.name: shot for shot in pictures.shots({"night": 1, "norway": 2, "node": 3})}
FILES = {file.name: file for file in pictures.FOLDER.iterdir()}


def test_every_picture_that_is_shown_is_there_and_every_one_that_is_there_is_shown() -> None:
    assert pictures.named() == set(FILES)


def test_every_picture_is_taken_by_the_script() -> None:
    assert {f"{name}.png" for name in TAKEN} == set(FILES)


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_a_picture_is_as_large_as_it_was_taken_and_light(name: str) -> None:
    content = FILES[f"{name}.png"].read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == TAKEN[name].size
    assert len(content) <= pictures.LARGEST


def test_every_picture_says_in_words_what_it_shows() -> None:
    pages = [*pictures.ROOT.glob("README*.md"), *(pictures.ROOT / "docs").glob("*.md")]
    words = [
        match[1] for page in pages for match in re.finditer(r"!\[([^\]]*)\]\((?:docs/)?pictures/", page.read_text())
    ]
    assert len(words) >= len(FILES)
    assert all(len(each) > 20 for each in words)
