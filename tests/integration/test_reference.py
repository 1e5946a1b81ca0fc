"""The pages of reference in docs/ are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cascade import config, reference
from cascade.config import BASE_DIR, Config

DOCS = BASE_DIR / "docs"


def test_no_page_of_reference_is_out_of_date() -> None:
    assert not list(reference.differing(DOCS)), "run `make docs`"


def test_every_setting_is_in_its_page_once_with_its_default() -> None:
    lines = (DOCS / "settings.md").read_text().splitlines()
    for name in config.names():
        assert len([line for line in lines if line.startswith(f"| `{name}`")]) == 1
    assert any("`CASCADE_LEASE_SECONDS` | `30` |" in line for line in lines)


@pytest.mark.parametrize(
    ("setting", "text"), [("lease_seconds", "another meaning"), ("metrics_token", "what it was not before")]
)
def test_a_setting_that_is_described_differently_is_noticed(
    setting: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config.model_fields[setting], "description", text)
    assert list(reference.differing(DOCS)) == ["settings.md"]


def test_what_was_written_by_hand_stays(tmp_path: Path) -> None:
    (tmp_path / "http-api.md").write_text(f"# Mine\n\nwords\n\n{reference.MARK}\n\nwhat was here\n")
    made = reference.differing(tmp_path)["http-api.md"]
    assert made.startswith(f"# Mine\n\nwords\n\n{reference.MARK}\n")
    assert "`/api/v1/runs`" in made
    assert "what was here" not in made


LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = sorted([*DOCS.glob("*.md"), *BASE_DIR.glob("*.md")])


def anchors(page: Path) -> set[str]:
    """What its headings are called in addresses, as GitHub and others make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_the_pages_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
