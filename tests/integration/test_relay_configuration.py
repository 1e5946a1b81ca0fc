"""A relay gives its nodes its parent's configuration with its own beside, and tells which versions are below it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from dispatch import config_releases, configuration, sources, type_settings
from dispatch.configuration import Configuration
from dispatch.models import ConfigVersion, Task
from dispatch.relay import bundles
from nodes.agent.configuration import Store, of_task
from nodes.agent.offline_run import OfflineRun
from nodes.surroundings import Surroundings
from tests.integration.factory import child

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "relay")]


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    configuration.forget()
    yield
    configuration.forget()


def task(name: str, **more: Any) -> dict[str, Any]:
    fields = {"type": "echo", "params": {}, "items": [], "source_kind": "feed", "cron": "", "shard_size": 0}
    return {"name": name, "timeout": 60.0, "max_attempts": 1, "backoff": 0.0, **fields, **more}


def source(key: str) -> dict[str, Any]:
    return {"kind": "feed", "key": key, "name": "", "address": "", "extra": {}}


THEIRS = {
    "tasks": [task("nightly"), task("hourly")],
    "sources": [source("paper")],
    "settings": {"echo": {"rows": 2}},
    "left_out": {"tasks": ["huge"], "sources": 1},
}


def parent_gives(number: int, content: dict[str, Any] = THEIRS) -> None:
    """As it is fetched and put in place."""
    text = json.dumps(content).encode()
    header = {"version": number, "mark": f"m{number}", "digest": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    bundles.store().take(gzip.compress(json.dumps(header).encode() + b"\n" + text))


def made() -> dict[str, Any]:
    configuration.refresh()
    found: dict[str, Any] = ConfigVersion.objects.latest("pk").content
    return found


def test_it_makes_no_version_before_it_has_its_parents() -> None:
    Task.objects.create(name="own", type="echo", items=["a"])
    assert configuration.refresh() is None
    parent_gives(12)
    assert [each["name"] for each in made()["tasks"]] == ["nightly", "hourly", "own"]


def test_both_are_in_one_bundle_each_with_its_own_sources_and_settings(tmp_path: Path) -> None:
    parent_gives(12)
    Task.objects.create(name="nightly", type="echo", source_kind="feed")
    sources.add("feed", "paper")
    sources.add("feed", "local")
    type_settings.put("echo", {"rows": 5})
    content = made()
    name = settings.CASCADE.called
    names = [each["name"] for each in content["tasks"]]
    assert names == ["nightly", "hourly", f"{name}/nightly"]
    assert content["levels"] == [12]
    assert content["left_out"] == {"tasks": ["huge"], "sources": 1}
    theirs, own = content["tasks"][0], content["tasks"][2]
    for each, rows, keys in ((theirs, 2, ["paper"]), (own, 5, ["local", "paper"])):
        found, through = of_task(content, each)
        assert (found["echo"], [entry["key"] for entry in through]) == ({"rows": rows}, keys)
        offline = OfflineRun(each, content, tmp_path / str(rows), 1, Surroundings())
        assert (offline.params["rows"], offline.items) == (rows, keys)


def test_a_node_below_reads_it_as_it_comes(tmp_path: Path) -> None:
    parent_gives(12)
    made()
    store = Store(tmp_path)
    document = configuration.document()
    version = store.take(document.body)
    assert version.number == document.version
    assert store.read()[1]["levels"] == [12]


def test_a_new_version_above_makes_one_here_though_nothing_of_it_differs() -> None:
    parent_gives(12)
    looks = Configuration()
    first = looks.once()
    assert first is not None
    assert looks.once() is None
    parent_gives(13)
    assert looks.once() == first + 1
    assert ConfigVersion.objects.latest("pk").above == 13


def test_a_relay_under_a_relay_says_all_levels_and_keeps_whose_is_whose() -> None:
    low = {**THEIRS, "tasks": [*THEIRS["tasks"], task("eu/nightly", of="eu")], "levels": [12]}
    low |= {"settings_of": {"eu": {"echo": {"rows": 7}}}}
    own = {"tasks": [task("nightly")], "sources": [], "settings": {}, "left_out": {"tasks": [], "sources": 2}}
    both = bundles.joined(low, 7, own, "paris")
    assert both["levels"] == [12, 7]
    assert [(each["name"], each.get("of")) for each in both["tasks"]][2:] == [
        ("eu/nightly", "eu"),
        ("paris/nightly", "paris"),
    ]
    assert of_task(both, both["tasks"][2])[0] == {"echo": {"rows": 7}}
    assert both["left_out"]["sources"] == 3
    twice = bundles.joined(both, 3, own, "paris")
    assert twice["tasks"][-1]["name"] == "paris-4/nightly"


def test_it_tells_its_parent_how_many_below_have_which_of_its_versions() -> None:
    parent_gives(12)
    first = configuration.refresh()
    parent_gives(13)
    second = configuration.refresh()
    child("a").beat(config=first)
    child("b").beat(config=second)
    child("c")
    low = {"role": "relay", "id": "e" * 32, "slots": 3, "types": {"echo": 3}, "branches": [{}]}
    child("low").beat(**low, config=second, configs={str(second): 4, str(first): 2, "0": 1})
    assert bundles.counts() == {13: 6, 12: 3, 0: 2}


def test_what_it_tells_is_bounded() -> None:
    found = bundles.bounded(Counter({number: number for number in range(1, 200)}))
    assert len(found) == 10
    assert sum(found.values()) == sum(range(200))
    assert max(found) == 199


def test_a_canary_of_the_parent_reaches_the_whole_branch_and_a_canary_here_only_its_own() -> None:
    one, two = child("one"), child("two")
    parent_gives(12)
    first = configuration.refresh()
    config_releases.canary(["one"])
    parent_gives(13)
    second = configuration.refresh()
    assert (one.beat()["config"], two.beat()["config"]) == (second, first)
    config_releases.promote()
    assert two.beat()["config"] == second


def test_a_damaged_bundle_is_fetched_again_and_changes_nothing_meanwhile() -> None:
    parent_gives(12)
    first = configuration.refresh()
    file = bundles.store().file
    file.write_bytes(file.read_bytes()[:-3])
    assert configuration.refresh() is None
    assert configuration.newest().version == first
