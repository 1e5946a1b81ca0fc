"""What ``feed_update`` says of itself: its items, its parameters, who can run it, what it costs to check work."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nodes import executors
from nodes.executors.base import ItemFailed
from nodes.executors.feed_update import FeedUpdate
from nodes.protocol import FieldError


def test_a_source_without_address_is_left_to_clients_with_code_of_their_own() -> None:
    with pytest.raises(ItemFailed, match="mp_1 has no address: only clients"):
        FeedUpdate({}).run("mp_1")


@pytest.mark.parametrize(
    ("items", "outside"),
    [
        (["mp_1"], True),
        ([7], True),
        ([{"key": "x", "mp_name": "X"}], True),
        ([{"key": "x", "url": ""}], True),
        (["https://example.org/feed"], False),
        ([{"key": "x", "url": "https://example.org/feed"}], False),
        (["https://example.org/feed", "mp_1"], True),
    ],
)
def test_a_run_with_any_item_without_address_is_for_such_clients(items: list[Any], outside: bool) -> None:
    assert FeedUpdate.outside(items, {}) is outside


def test_a_source_is_resolved_to_its_address_and_name() -> None:
    resolved = FeedUpdate.resolve("mp_1", "https://example.org/feed", "News")
    assert resolved == {"key": "mp_1", "url": "https://example.org/feed", "name": "News"}
    assert FeedUpdate.resolve("mp_1", "", "News") == "mp_1"
    assert FeedUpdate.source_kind == "feed"


def test_it_waits_and_remembers() -> None:
    assert executors.get("feed_update") is FeedUpdate
    assert (FeedUpdate.waits, FeedUpdate.remembers, FeedUpdate.grows) == (True, True, False)


@pytest.mark.parametrize(
    "item",
    [
        "https://example.org/feed",
        "mp_1",
        7,
        {"key": "x"},
        {"key": "x", "url": "http://e.org/"},
        {"id": "x", "mp_name": "X"},
    ],
)
def test_items_that_can_be_run(item: Any) -> None:
    FeedUpdate.check_item(item)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("", "give its address"),
        ("ftp://example.org/feed", "is not the address of a feed"),
        ("https://", "is not the address of a feed"),
        ("http://[bad/feed", "is not the address of a feed"),
        ("https://e.org/a\nb", "is not the address of a feed"),
        (f"https://e.org/{'x' * 3000}", "at most 2000"),
        ({"key": "x", "url": 5}, "url is not a text"),
        ({"key": "x", "url": "example.org/feed"}, "is not the address of a feed"),
        ({"key": "", "url": "https://e.org/"}, "key is missing"),
    ],
)
def test_items_that_never_can_be_run_are_refused(item: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FeedUpdate.check_item(item)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"max_mb": 0}, "params.max_mb"),
        ({"max_mb": 65}, "params.max_mb"),
        ({"timeout_seconds": 0}, "params.timeout_seconds"),
        ({"max_articles": 2001}, "params.max_articles"),
        ({"max_text": 5}, "params.max_text"),
        ({"text": "perhaps"}, "params.text"),
        ({"user_agent": "a\r\nb: c"}, "params.user_agent"),
        ({"user_agent": "名"}, "params.user_agent"),
    ],
)
def test_bad_params_are_refused_by_name(params: dict[str, Any], field: str) -> None:
    for check in (FeedUpdate.check, FeedUpdate.check_settings):
        with pytest.raises(FieldError) as refusal:
            check(params)
        assert refusal.value.field == field


def test_what_clients_are_told_is_still_taken() -> None:
    checked = FeedUpdate.check({"message_type": 1, "message_template": "{{title}}", "headers": '{"a": 1}'})
    assert (checked["message_type"], checked["message_template"], checked["cookies"]) == (1, "{{title}}", "")


def test_to_check_work_loads_no_parser_and_no_network_library() -> None:
    code = """
import sys
from nodes.executors import get
feeds = get("feed_update")
feeds.check({}); feeds.check_item("https://example.org/feed"); feeds.outside(["mp_1"], {})
heavy = ("feedparser", "selectolax", "requests", "pyarrow", "pandas", "django", "http.client", "ssl", "nodes.feeds")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr
