"""The configuration for children: when there is a new version, what is in it, and how a child gets it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dispatch import configuration, sources, synclog, type_settings
from dispatch.configuration import Configuration
from dispatch.models import ConfigVersion, Source, Task
from nodes.agent.configuration import Store
from nodes.protocol import NotFound
from tests.integration.agents import Agent, parent, until
from tests.integration.factory import at_once, child
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    configuration.forget()
    synclog.clear()
    yield
    configuration.forget()
    synclog.clear()


def content() -> dict[str, Any]:
    found: dict[str, Any] = ConfigVersion.objects.latest("pk").content
    return found


def task(name: str = "nightly", **fields: Any) -> Task:
    return Task.objects.create(**{"name": name, "type": "echo", "items": ["a"], **fields})


def test_only_what_is_active_is_in_it_and_nothing_secret() -> None:
    task(params={"rows": 2}, source_kind="feed", cron="0 3 * * *", webhook_secret="s3cret", webhook_url="https://a.b")
    task("old", active=False)
    sources.add("feed", "paper", extra={"lang": "de"})
    sources.add("feed", "gone", active=False)
    type_settings.put("echo", {"rows": 3})
    configuration.refresh()
    made = content()
    (only,) = made["tasks"]
    assert (only["name"], only["params"], only["items"], only["cron"]) == ("nightly", {"rows": 2}, ["a"], "0 3 * * *")
    assert [(each["key"], each["extra"]) for each in made["sources"]] == [("paper", {"lang": "de"})]
    assert made["settings"] == {"echo": {"rows": 3}}
    assert "s3cret" not in json.dumps(made)


def test_a_version_is_made_where_something_differs_and_only_there() -> None:
    looks = Configuration()
    first = looks.once()
    assert first is not None
    assert (looks.once(), configuration.refresh()) == (None, None)
    made = task()
    second = looks.once()
    assert second == first + 1
    # Saved again as it was: seen, compared, the same.
    made.save()
    assert looks.once() is None
    assert ConfigVersion.objects.count() == 2


CHANGES: dict[str, Callable[[], Any]] = {
    "a task is added": lambda: task("other"),
    "a task is changed": lambda: change_task(),
    "a task is removed": lambda: Task.objects.get().delete(),
    "a source is added": lambda: sources.add("feed", "b"),
    "a source is changed": lambda: sources.update(sources.find("feed", "a").pk, name="x"),
    "sources are disabled together": lambda: sources.switch(Source.objects.values_list("pk", flat=True), False),
    "a source is imported": lambda: sources.import_rows([{"key": "a", "name": "x"}], "feed"),
    "a source is removed": lambda: sources.remove(sources.find("feed", "a").pk),
    "settings are put": lambda: type_settings.put("echo", {"rows": 9}),
    "settings are removed": lambda: type_settings.put("echo", {}),
}


def change_task() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    Api(client).patch(f"tasks/{Task.objects.get().pk}", {"priority": 9})


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str) -> None:
    task()
    sources.add("feed", "a")
    type_settings.put("echo", {"rows": 2})
    looks = Configuration()
    before = looks.once()
    assert before is not None
    CHANGES[change]()
    assert looks.once() == before + 1


def test_a_change_in_the_admin_is_seen(admin_client: Client) -> None:
    sources.add("feed", "a")
    looks = Configuration()
    before = looks.once()
    pk = Source.objects.get().pk
    form = {"kind": "feed", "key": "a", "name": "New name", "address": "", "active": "on", "extra": "{}"}
    assert admin_client.post(f"/admin/dispatch/source/{pk}/change/", form).status_code == 302
    assert looks.once() == (before or 0) + 1
    assert content()["sources"][0]["name"] == "New name"


def test_what_is_too_large_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "TASK_LIMIT", 1000)
    monkeypatch.setattr(configuration, "SIZE_LIMIT", 3000)
    task("huge", items=["x" * 50] * 30)
    task("small")
    sources.import_rows([{"key": f"k{at:03}"} for at in range(100)], "feed")
    made = configuration.collect()
    assert made["left_out"]["tasks"] == ["huge", "small"]
    assert len(made["sources"]) + made["left_out"]["sources"] == 100
    assert made["left_out"]["sources"] > 0
    sources.switch(Source.objects.values_list("pk", flat=True), False)
    made = configuration.collect()
    assert ([each["name"] for each in made["tasks"]], made["left_out"]) == (
        ["small"],
        {"tasks": ["huge"], "sources": 0},
    )


def test_old_versions_are_forgotten() -> None:
    for number in range(configuration.KEPT + 5):
        type_settings.put("echo", {"rows": number + 1})
        configuration.refresh()
    assert ConfigVersion.objects.count() == configuration.KEPT
    assert content()["settings"] == {"echo": {"rows": configuration.KEPT + 5}}


def test_a_beat_names_the_version_and_asks_the_database_for_it_once_a_second() -> None:
    a = child()
    assert (a.beat()["config"], a.beat()["config_mark"]) == (0, "")
    made = configuration.refresh()
    reply = a.beat()
    assert reply["config"] == made
    assert reply["config_mark"] == ConfigVersion.objects.get().digest[:12]
    with CaptureQueriesContext(connection) as captured:
        for _ in range(5):
            a.beat()
    assert not [each for each in captured.captured_queries if "configversion" in each["sql"]]


def test_what_a_child_says_it_has_is_shown(api: Api) -> None:
    a = child()
    a.beat(config=0)
    assert (a.node.config_version, a.node.synced_at) == (None, None)
    a.beat(config=7)
    since = a.node.synced_at
    assert (a.node.config_version, since is not None) == (7, True)
    a.beat(config=7)
    a.beat()  # one that says nothing of it
    assert (a.node.config_version, a.node.synced_at) == (7, since)
    shown = api.get(f"nodes/{a.id}").body
    assert (shown["config_version"], shown["synced_at"] is not None) == (7, True)
    a.beat(config=3)
    assert a.node.config_version == 3
    a.beat(config=0)  # its file is damaged
    assert a.node.config_version is None


@pytest.mark.parametrize("wrong", ["x", -1, 1.5, True, [], 2**70])
def test_a_version_that_is_no_number_is_refused(wrong: Any) -> None:
    from nodes.protocol import FieldError

    a = child()
    with pytest.raises(FieldError, match="config"):
        a.beat(config=wrong)


def test_the_document_is_what_an_agent_takes(tmp_path: Path) -> None:
    task(name="Übung", params={"log": "\u2028 \U0001f600"})
    with pytest.raises(NotFound):
        configuration.document()
    number = configuration.refresh()
    made = configuration.document()
    version, found = _taken(tmp_path, made.body)
    assert (version.number, version.mark) == (number, configuration.newest().mark)
    assert found == content()
    assert configuration.document() is made
    type_settings.put("echo", {"rows": 2})
    configuration.refresh()
    assert configuration.document().version == configuration.newest().version == (number or 0) + 1


def _taken(folder: Path, body: bytes) -> Any:
    store = Store(folder)
    store.take(body)
    return store.read()


@pytest.mark.django_db(transaction=True)
def test_two_changes_at_once_are_both_in_the_newest_version() -> None:
    looks = [Configuration(), Configuration()]
    for each in looks:
        each.once()
    at_once(
        lambda: (task("one"), looks[0].once()),
        lambda: (sources.add("feed", "two"), looks[1].once()),
        lambda: configuration.refresh(),
    )
    for each in looks:
        each.once()
    made = content()
    assert ([each["name"] for each in made["tasks"]], [each["key"] for each in made["sources"]]) == (["one"], ["two"])


def test_twenty_thousand_sources_travel() -> None:
    rows = [{"key": f"feed-{at}", "address": f"https://a{at}.example/rss", "name": "x" * 60} for at in range(20_000)]
    sources.import_rows(rows, "feed")
    configuration.refresh()
    made = configuration.document()
    assert made.entries == 20_000
    assert len(made.body) < 1_000_000
    assert len(gzip.decompress(made.body)) < 5_000_000


# Over the wire


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with parent(tmp_path_factory.mktemp("parent")) as made:
        yield made


def test_a_signed_request_gets_the_version_that_beats_name(tree: Any) -> None:
    agent = Agent(tree)
    number = until(lambda: agent.beat(hello=True)["config"])
    answer = agent.send("GET", "config")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/gzip")
    head, _, body = gzip.decompress(answer.content).partition(b"\n")
    header = json.loads(head)
    assert header["version"] == number
    assert header["digest"] == hashlib.sha256(body).hexdigest()
    assert set(json.loads(body)) == {"tasks", "sources", "settings", "left_out"}
    logged = until(lambda: tree.json("GET", f"/api/v1/sync-logs?operation=config&node={agent.id}")["results"])
    assert (logged[0]["direction"], logged[0]["status"], logged[0]["extra"]["version"]) == ("pull", "ok", number)


def test_a_plain_key_gets_it_too(tree: Any) -> None:
    assert Agent(tree, plain=True).send("GET", "config").status_code == 200


def test_strangers_and_other_methods_get_nothing(tree: Any) -> None:
    agent = Agent(tree)
    assert agent.send("GET", "config", headers={}).status_code == 401
    assert agent.send("GET", "config", headers=agent.headers("GET", "/api/v1/agent/claim")).status_code == 401
    assert agent.send("GET", "config", b"x").status_code == 401
    assert agent.send("POST", "config", b"{}").status_code == 405
    tree.json("DELETE", f"/api/v1/keys/{agent.key['access_key']}")
    assert agent.send("GET", "config").status_code == 401
