"""Which nodes have which version: a canary first, then all, or back; and what does not make sense is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from dispatch import config_releases, configuration
from dispatch.models import ConfigVersion, Task
from nodes import registry
from nodes.protocol import Conflict, FieldError, NotFound
from tests.integration.factory import Child, child
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    configuration.forget()
    yield
    configuration.forget()


def changed(name: str) -> int:
    """A further task, and the version with it."""
    Task.objects.create(name=name, type="echo", items=["a"])
    made = configuration.refresh()
    assert made is not None
    return made


def given(node: Child) -> int:
    """What the answer to a beat names, which is what it fetches."""
    reply = node.beat()
    document = configuration.document(node.id)
    assert (reply["config"], reply["config_mark"]) == (document.version, document.mark)
    return int(reply["config"])


def test_a_canary_has_what_is_new_and_the_others_keep_what_they_have_until_it_is_promoted() -> None:
    eu, us = child("eu"), child("us")
    first = changed("one")
    assert (given(eu), given(us)) == (first, first)
    config_releases.canary(["eu"])
    assert (given(eu), given(us)) == (first, first)
    second = changed("two")
    third = changed("three")
    assert (given(eu), given(us)) == (third, first)
    state = config_releases.state()
    assert (state["released"], state["newest"], state["canary"], state["following"]) == (first, third, ["eu"], False)
    state = config_releases.promote()
    assert (given(eu), given(us)) == (third, third)
    assert (state["following"], state["canary"]) == (True, [])
    assert first < second < third
    fourth = changed("four")
    assert (given(eu), given(us)) == (fourth, fourth)


def test_a_rollback_takes_a_canary_back_and_keeps_everybody_there() -> None:
    eu, us = child("eu"), child("us")
    first = changed("one")
    config_releases.canary(["eu"])
    changed("two")
    config_releases.rollback()
    assert (given(eu), given(us)) == (first, first)
    changed("three")
    assert (given(eu), given(us)) == (first, first), "not before it is promoted"
    config_releases.promote()
    assert given(us) == first + 2


def test_a_rollback_without_a_canary_goes_one_back_and_further_or_to_a_version_by_number() -> None:
    eu = child("eu")
    first, second, third = changed("one"), changed("two"), changed("three")
    config_releases.rollback()
    assert given(eu) == second
    config_releases.rollback()
    assert given(eu) == first
    with pytest.raises(Conflict, match="no version before"):
        config_releases.rollback()
    config_releases.rollback(third)
    assert given(eu) == third
    with pytest.raises(Conflict, match="all nodes have version"):
        config_releases.rollback(third)
    with pytest.raises(NotFound, match=r"version 99 is not kept; there are: \d+, \d+, \d+"):
        config_releases.rollback(99)


def test_other_nodes_may_become_the_canary_and_names_that_make_no_sense_are_refused() -> None:
    eu, us = child("eu"), child("us")
    child("old", dialect="cascade")
    with pytest.raises(Conflict, match="no configuration yet"):
        config_releases.canary(["eu"])
    first = changed("one")
    config_releases.canary(["eu"])
    second = changed("two")
    config_releases.canary(["us"])
    assert (given(eu), given(us)) == (first, second)
    with pytest.raises(NotFound, match="there is no node 'xy'"):
        config_releases.canary(["eu", "xy"])
    with pytest.raises(FieldError, match="nodes: has 0 names"):
        config_releases.canary([])
    with pytest.raises(FieldError, match="old fetches no configuration"):
        config_releases.canary(["old"])
    config_releases.promote()
    with pytest.raises(Conflict, match="every node has the newest version already"):
        config_releases.promote()


def test_what_is_released_is_kept_however_many_versions_come_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configuration, "KEPT", 3)
    eu = child("eu")
    first = changed("one")
    config_releases.canary(["eu"])
    last = [changed(f"task {number}") for number in range(6)][-1]
    assert set(ConfigVersion.objects.values_list("pk", flat=True)) == {first, last, last - 1, last - 2}
    config_releases.rollback()
    assert given(eu) == first


def test_it_is_told_how_many_nodes_have_which_version_at_any_depth() -> None:
    eu = child("eu", capacity=50)
    first, second = changed("one"), changed("two")
    child("leaf").beat(config=first)
    relay = {"role": "relay", "id": "e" * 32, "slots": 3, "types": {"echo": 3}, "branches": [{}]}
    eu.beat(**relay, config=second, configs={str(second): 190, str(first): 8, "0": 1})
    state = config_releases.state()
    assert state["nodes"] == 201
    assert {each["version"]: each["nodes"] for each in state["versions"]} == {second: 191, first: 9}
    registry.record_beat(eu.id, at=timezone.now() - timezone.timedelta(hours=1))  # type: ignore[attr-defined]
    assert config_releases.state()["nodes"] == 1


def test_the_api_and_the_command_do_the_same(api: Api) -> None:
    eu = child("eu")
    first = changed("one")
    answer = api.post("configuration/canary", {"nodes": ["eu"]})
    assert (answer.status, answer.body["canary"], answer.body["released"]) == (200, ["eu"], first)
    second = changed("two")
    assert api.get("configuration").body["newest"] == second
    refused = api.post("configuration/canary", {"nodes": "eu"})
    assert (refused.status, refused.body["field"]) == (400, "nodes")
    assert api.post("configuration/rollback", {"to": 99}).status == 404
    assert api.post("configuration/rollback", {"to": "x"}).body["field"] == "to"
    told = io.StringIO()
    call_command("config_release", "status", stdout=told)
    assert f"released: version {first} (kept until 'promote')" in told.getvalue()
    assert f"canary:   version {second} at eu" in told.getvalue()
    assert json.loads(_command("rollback", "--json"))["canary"] == []
    assert given(eu) == first
    assert api.post("configuration/promote").body["following"] is True
    assert api.post("configuration/promote").status == 409


def _command(*arguments: Any) -> str:
    told = io.StringIO()
    call_command("config_release", *arguments, stdout=told)
    return told.getvalue()
