"""Django's admin of nodes and of work, as an operator's browser uses it."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from dispatch.models import Allocation, Receipt, Run, Shard, Task
from dispatch.states import RunState, ShardState
from nodes import keys, registrations, registry, signing
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Heartbeat, Node
from tests.integration.records import allocation, hold
from tests.integration.records import run as run_of

pytestmark = pytest.mark.django_db
QUERIES_LIMIT = 12
# With its ends: a CSRF token is longer, and has these letters in its middle once in a while.
SECRET = re.compile(r"(?<![\w-])CS[A-Za-z0-9_-]{43}(?![\w-])")


@pytest.fixture
def browser() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


@pytest.fixture
def alpha() -> Node:
    return registry.add_node("alpha", capacity=8, quotas=[QuotaSpec("data_import", 4)])[0]


def url(model: str, page: str = "changelist", *args) -> str:
    return reverse(f"admin:{model}_{page}", args=args)


def text_of(response) -> str:
    assert response.status_code == 200, response.status_code
    return response.content.decode()


def act(browser: Client, model: str, action: str, *objects) -> str:
    """Chooses an action for some rows of a list, and agrees; the page that follows."""
    chosen = {"action": action, "_selected_action": [each.pk for each in objects], "confirmed": len(objects)}
    return text_of(browser.post(url(model), chosen, follow=True))


def node_form(node: Node | None = None, quotas: list[dict] = [], **changed) -> dict:  # noqa: B006
    """What the browser sends for a node: its fields, and its quotas as rows."""
    form = {"name": "beta", "role": "child", "capacity": 4, "weight": 1.0, "labels": "{}", "active": "on"}
    form |= {"description": "", "api_url": "", "allow_plain_key": "on"}
    if node is not None:
        form["name"], form["capacity"] = node.name, node.capacity
        form |= {"keys-TOTAL_FORMS": node.keys.count(), "keys-INITIAL_FORMS": node.keys.count()}
    form |= {"quotas-TOTAL_FORMS": len(quotas), "quotas-INITIAL_FORMS": sum("id" in quota for quota in quotas)}
    for index, quota in enumerate(quotas):
        row = {"item": "", "limit": "", "id": "", "node": node.pk if node else ""} | quota
        form |= {f"quotas-{index}-{part}": value for part, value in row.items()}
    return form | changed


def work(count: int, **fields) -> Run:
    return run_of(count, **{"type": "echo", **fields})


# Nodes


def test_the_list_of_nodes_shows_what_they_are_doing(browser, alpha):
    registry.record_beat(alpha.pk, at=timezone.now(), cpu=37, memory=62, version="0.1", executors=["echo"])
    hold(alpha, 3)
    hold(registry.add_node("beta")[0])
    text = text_of(browser.get(url("nodes_node")))
    for shown in ("alpha", "✓ online", "3 of 8", "1 of 4", "data_import=4", "37 %", "62 %", "0.1", "s ago"):
        assert shown in text


@pytest.mark.parametrize("state", ["online", "draining", "offline", "inactive"])
def test_nodes_can_be_filtered_by_state(browser, state):
    for name in ("online", "draining", "offline", "inactive"):
        node, _ = registry.add_node(f"node-{name}")
        if name != "offline":
            registry.record_beat(node.pk, at=timezone.now())
        registry.update_node(node.pk, draining=name == "draining", active=name != "inactive")
    text = text_of(browser.get(url("nodes_node"), {"state": state}))
    assert re.findall(r">(node-\w+)</a>", text) == [f"node-{state}"]


def test_nodes_can_be_searched_by_access_key(browser, alpha):
    registry.add_node("beta")
    text = text_of(browser.get(url("nodes_node"), {"q": alpha.keys.get().access_key}))
    assert ">alpha</a>" in text
    assert ">beta</a>" not in text
    keys.issue(alpha.pk)
    for sought in ("alpha", "CN"):
        text = text_of(browser.get(url("nodes_node"), {"q": sought}))
        assert re.findall(r'data-label="live keys">(\d+)<', text)[0] == "2"


def test_a_node_added_here_has_its_quotas_and_a_key_whose_secret_is_shown_once(browser):
    quotas = [
        {"task_type": "data_import", "slots": 3},
        {"task_type": "echo", "item": "slow", "slots": 1, "limit": 2},
    ]
    sent = node_form(quotas=quotas, capacity=6, labels='{"region": "eu"}', description="in the cellar")
    text = text_of(browser.post(url("nodes_node", "add"), sent, follow=True))
    node = Node.objects.get()
    assert (node.name, node.capacity, node.labels, node.description) == ("beta", 6, {"region": "eu"}, "in the cellar")
    assert [str(quota) for quota in node.quotas.all()] == ["data_import=3", "echo[slow]=1 (limit 2)"]
    (secret,) = SECRET.findall(text)
    assert node.keys.get().public_key == signing.public_key_of(secret)
    for page in (url("nodes_node"), url("nodes_node", "change", node.pk), url("nodes_accesskey")):
        assert not SECRET.search(text_of(browser.get(page)))
    assert LogEntry.objects.get().object_id == str(node.pk)
    assert secret not in str(LogEntry.objects.values())


@pytest.mark.parametrize(
    ("changed", "quotas", "said"),
    [
        ({"capacity": 0}, [], "0 is not a whole number from 1 to 10000"),
        ({"capacity": -1}, [], "greater than or equal to"),
        ({"name": "a/b"}, [], "A name has 1 to 100"),
        ({"labels": "[1]"}, [], "not an object"),
        ({"labels": '{"a b": "c"}'}, [], "'a b' is not a label"),
        ({"labels": "{"}, [], "valid JSON"),
        ({"api_url": "ftp://host"}, [], "not an address"),
        ({"description": "a\u202eb"}, [], "text-direction"),
        ({"weight": "nan"}, [], "Enter a number"),
        ({}, [{"task_type": "echo", "slots": 5}], "5 is above the node's capacity, 4"),
        ({"capacity": 2}, [{"task_type": "echo", "slots": 3}], "3 is above the node's capacity, 2"),
        ({}, [{"task_type": "echo", "slots": 3, "limit": 2}], "3 is above this quota's own limit, 2"),
        ({}, [{"task_type": "nosuch", "slots": 1}], "not one of the available choices"),
        ({}, [{"task_type": "echo", "slots": ""}], "required"),
        ({}, [{"task_type": "echo", "slots": 1}, {"task_type": "echo", "slots": 2}], "duplicate"),
    ],
)
def test_a_bad_value_is_named_beside_its_field_and_nothing_is_added(browser, changed, quotas, said):
    text = text_of(browser.post(url("nodes_node", "add"), node_form(quotas=quotas, **changed)))
    assert escape(said) in text
    assert re.search(r"text-red|errorlist|errornote", text)
    assert not Node.objects.exists()


def test_a_quota_is_checked_against_the_capacity_as_it_is_being_edited(browser, alpha):
    page = url("nodes_node", "change", alpha.pk)
    row = {"id": alpha.quotas.get().pk, "task_type": "data_import", "slots": 4}
    text = text_of(browser.post(page, node_form(alpha, [row], capacity=3)))
    assert escape("4 is above the node's capacity, 3.") in text or escape("4 is above the node's capacity, 3") in text
    browser.post(page, node_form(alpha, [row | {"slots": 12}], capacity=12))
    alpha.refresh_from_db()
    assert (alpha.capacity, alpha.quotas.get().slots) == (12, 12)
    browser.post(page, node_form(alpha, [row | {"slots": 2}], capacity=2))
    alpha.refresh_from_db()
    assert (alpha.capacity, alpha.quotas.get().slots) == (2, 2)


def test_a_quota_can_be_taken_away_and_another_added(browser, alpha):
    row = {"id": alpha.quotas.get().pk, "task_type": "data_import", "slots": 4, "DELETE": "on"}
    sent = node_form(alpha, [row, {"task_type": "echo", "slots": 1}], labels="")
    browser.post(url("nodes_node", "change", alpha.pk), sent)
    assert [str(quota) for quota in alpha.quotas.all()] == ["echo=1"]
    assert Node.objects.get().labels == {}


def test_what_the_agent_says_cannot_be_edited(browser, alpha):
    registry.record_beat(alpha.pk, at=timezone.now(), version="0.1", carrier="push")
    row = {"id": alpha.quotas.get().pk, "task_type": "data_import", "slots": 4}
    sent = node_form(alpha, [row], carrier="http", version="9", description="seen")
    browser.post(url("nodes_node", "change", alpha.pk), sent)
    alpha.refresh_from_db()
    assert (alpha.carrier, alpha.version, alpha.description) == ("push", "0.1", "seen")


def test_a_name_taken_meanwhile_is_told_at_the_field(browser, alpha):
    text = text_of(browser.post(url("nodes_node", "add"), node_form(name="alpha")))
    assert "already exists" in text


def test_drain_and_resume_are_actions_for_several_nodes(browser, alpha):
    beta, _ = registry.add_node("beta")
    text = act(browser, "nodes_node", "drain", alpha, beta)
    for told in ("Draining: 2 nodes.", "Draining: alpha.", "Draining: beta."):
        assert told in text
    assert Node.objects.filter(draining=True).count() == 2
    act(browser, "nodes_node", "resume", alpha)
    assert [node.name for node in Node.objects.filter(draining=True)] == ["beta"]


def test_a_key_is_issued_with_its_secret_shown_once_and_a_third_is_refused(browser, alpha):
    text = act(browser, "nodes_node", "issue_key", alpha)
    (secret,) = SECRET.findall(text)
    assert alpha.keys.filter(public_key=signing.public_key_of(secret)).exists()
    assert not SECRET.search(text_of(browser.get(url("nodes_node"))))
    refused = act(browser, "nodes_node", "issue_key", alpha)
    assert "2 live keys already" in refused
    assert not SECRET.search(refused)


def test_keys_can_be_revoked_by_node_and_one_by_one(browser, alpha):
    first = alpha.keys.get()
    second = keys.issue(alpha.pk)
    act(browser, "nodes_accesskey", "revoke", first)
    assert [key.access_key for key in alpha.keys.filter(revoked_at=None)] == [second.access_key]
    assert "Keys revoked of alpha: 1." in act(browser, "nodes_node", "revoke_keys", alpha)
    assert not alpha.keys.filter(revoked_at=None).exists()


def test_removing_a_node_with_live_work_is_refused(browser, alpha):
    hold(alpha)
    page = url("nodes_node", "delete", alpha.pk)
    assert "node alpha with its live allocations: 1" in text_of(browser.get(page))
    text_of(browser.post(page, {"post": "yes"}, follow=True))
    act(browser, "nodes_node", "delete_selected", alpha)
    assert Node.objects.exists()
    Allocation.objects.update(state="completed")
    browser.post(page, {"post": "yes"})
    assert not Node.objects.exists()


def test_work_granted_between_the_question_and_the_yes_keeps_the_node(browser, alpha, monkeypatch):
    hold(alpha)
    monkeypatch.setattr("nodes.admin.NodeAdmin.get_deleted_objects", lambda *args: ([], {}, set(), []))
    text = text_of(browser.post(url("nodes_node", "delete", alpha.pk), {"post": "yes"}, follow=True))
    assert "alpha holds 1 live allocation" in text
    assert Node.objects.exists()


def test_several_nodes_can_be_removed_at_once(browser, alpha):
    beta, _ = registry.add_node("beta")
    chosen = {"action": "delete_selected", "_selected_action": [alpha.pk, beta.pk], "post": "yes"}
    browser.post(url("nodes_node"), chosen)
    assert not Node.objects.exists()


def test_a_script_in_a_description_is_shown_as_text(browser, alpha):
    registry.update_node(alpha.pk, description="<script>alert(1)</script>", labels={"x": "</textarea><script>"})
    text = text_of(browser.get(url("nodes_node", "change", alpha.pk)))
    assert "<script>alert(1)" not in text
    assert "</textarea><script>" not in text


# Who may


def test_the_admin_is_for_staff(alpha):
    client = Client()
    assert client.get(url("nodes_node")).status_code == 302
    client.force_login(User.objects.create_user("guest"))
    assert client.get(url("nodes_node")).status_code == 302


def test_staff_without_permissions_can_neither_look_nor_act(alpha):
    client = Client()
    client.force_login(User.objects.create_user("helper", is_staff=True))
    run = work(1)
    for model, action, each in (("nodes_node", "drain", alpha), ("dispatch_run", "cancel", run)):
        assert client.get(url(model)).status_code == 403
        assert client.post(url(model), {"action": action, "_selected_action": [each.pk]}).status_code == 403
    assert not Node.objects.filter(draining=True).exists()


def test_a_form_from_elsewhere_is_refused(alpha):
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("operator"))
    sent = {"action": "revoke_keys", "_selected_action": [alpha.pk]}
    assert client.post(url("nodes_node"), sent).status_code == 403
    assert alpha.keys.filter(revoked_at=None).exists()


READ_ONLY = [
    "nodes_accesskey",
    "nodes_heartbeat",
    "dispatch_run",
    "dispatch_shard",
    "dispatch_allocation",
    "dispatch_receipt",
]


def one_of_each(node: Node) -> dict[str, int]:
    run = work(3, name="nightly")
    held = allocation(run, node, 0, run.count)
    receipt = Receipt.objects.create(node=node, type="echo", manifest=[{"run": run.pk}], payload=b"rows", rows=3)
    registry.record_beat(node.pk, at=timezone.now(), cpu=1)
    return {
        "nodes_accesskey": node.keys.get().pk,
        "nodes_heartbeat": node.heartbeats.get().pk,
        "dispatch_run": run.pk,
        "dispatch_shard": held.shard_id,
        "dispatch_allocation": held.pk,
        "dispatch_receipt": receipt.pk,
    }


@pytest.mark.parametrize("model", READ_ONLY)
def test_what_happened_can_be_looked_at_and_not_changed(browser, alpha, model):
    pk = one_of_each(alpha)[model]
    assert f"/{pk}/" in text_of(browser.get(url(model)))
    page = url(model, "change", pk)
    assert 'name="_save"' not in text_of(browser.get(page))
    assert browser.post(page, {"state": "saved"}).status_code == 403
    assert browser.get(url(model, "add")).status_code == 403
    assert browser.post(url(model, "delete", pk), {"post": "yes"}).status_code == 403


# Many rows


def test_no_list_asks_more_often_for_more_rows(browser, django_assert_max_num_queries):
    for number in range(30):
        node, _ = registry.add_node(f"node-{number}", quotas=[QuotaSpec("echo", 1), QuotaSpec("data_import", 1)])
        keys.issue(node.pk)
        Heartbeat.objects.create(node=node, at=timezone.now() - dt.timedelta(minutes=number))
        task = Task.objects.create(name=f"task {number}", type="echo", items=[1])
        run = work(1, task=task)
        allocation(run, node, 0, 1)
        Receipt.objects.create(node=node, type="echo", manifest=[], rows=1)
    for model in ["nodes_node", "dispatch_task", *READ_ONLY]:
        with django_assert_max_num_queries(QUERIES_LIMIT):
            text = text_of(browser.get(url(model)))
        assert text.count("<tbody") >= 30, model
    with django_assert_max_num_queries(QUERIES_LIMIT):
        text_of(browser.get(url("nodes_node", "change", Node.objects.latest("pk").pk)))


def test_lists_and_pages_leave_large_blobs_where_they_are(browser, alpha, django_assert_max_num_queries):
    pks = one_of_each(alpha)
    with django_assert_max_num_queries(QUERIES_LIMIT) as asked:
        for model in ("dispatch_run", "dispatch_receipt"):
            browser.get(url(model))
    for model in ("dispatch_run", "dispatch_receipt"):
        with django_assert_max_num_queries(QUERIES_LIMIT) as also:
            browser.get(url(model, "change", pks[model]))
        asked.captured_queries.extend(also.captured_queries)
    statements = [query["sql"] for query in asked.captured_queries]
    assert any('FROM "dispatch_run"' in sql for sql in statements)
    assert not [sql for sql in statements if '"items"' in sql or '"payload"' in sql]


# Work


def task_form(**changed) -> dict:
    form = {"name": "nightly", "type": "echo", "active": "on", "items": '["a", "b"]', "params": "{}", "priority": 5}
    form |= {"timeout": 300, "max_attempts": 3, "backoff": 1, "shard_size": 0, "balancer": "most_free", "labels": "{}"}
    form |= {"affinity": "{}", "rate_key": "", "fallback": "allowed"}
    return form | changed


def test_a_task_can_be_defined_changed_and_run(browser):
    browser.post(url("dispatch_task", "add"), task_form(params='{"rows": 2}'))
    task = Task.objects.get()
    assert (task.name, task.items, task.params) == ("nightly", ["a", "b"], {"rows": 2})
    browser.post(url("dispatch_task", "change", task.pk), task_form(priority=9))
    text = act(browser, "dispatch_task", "run_now", task)
    run = Run.objects.get()
    assert f"submitted run {run.pk} with 2 items" in text
    assert (run.task, run.priority, run.submitted_by, run.count) == (task, 9, "operator", 2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"type": "nosuch"}, "not one of the available choices"),
        ({"params": '{"nosuch": 1}'}, "nosuch"),
        ({"params": "[]"}, "is not an object"),
        ({"labels": "[1]"}, "is not an object"),
        ({"items": '{"a": 1}'}, "is not a list"),
        ({"items": "[null]"}, "items[0]"),
        ({"priority": 11}, "less than or equal to 10"),
        ({"balancer": "nosuch"}, "nosuch"),
        ({"timeout": "nan"}, "Enter a number"),
    ],
)
def test_a_task_that_could_never_run_is_refused_at_its_field(browser, changed, said):
    text = text_of(browser.post(url("dispatch_task", "add"), task_form(**changed)))
    assert escape(said) in text
    assert not Task.objects.exists()


def test_a_task_without_items_can_be_defined_but_not_run(browser):
    browser.post(url("dispatch_task", "add"), task_form(items="", params="", labels=""))
    task = Task.objects.get()
    assert (task.items, task.params, task.labels) == ([], {}, {})
    assert "at least one item" in act(browser, "dispatch_task", "run_now", task)
    assert not Run.objects.exists()


def test_runs_can_be_cancelled(browser):
    run, ended = work(5), work(1, state=RunState.COMPLETED, saved=1)
    text = act(browser, "dispatch_run", "cancel", run, ended)
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    assert f"Run {run.pk} is cancelled: 5 items cancelled" in text
    ended.refresh_from_db()
    assert ended.state == RunState.COMPLETED


def test_what_failed_can_be_retried_and_a_run_where_nothing_failed_says_so(browser):
    failed = work(2, state=RunState.FAILED, failed=2, cut=2, ended_at=timezone.now())
    Shard.objects.create(run=failed, start=0, stop=2, state=ShardState.FAILED, error="no such symbol")
    running = work(1)
    text = act(browser, "dispatch_run", "retry_failed", failed, running)
    assert "2 items opened again" in text
    failed.refresh_from_db()
    assert failed.state == RunState.RUNNING
    assert f"Run {failed.pk}: 2 items opened again." in text
    assert re.search(rf"run run {running.pk}: [^<]*nothing", text) or f"run run {running.pk}" in text


def test_a_run_leads_to_its_shards_and_allocations(browser, alpha):
    mine, other = allocation(work(3), alpha, 0, 3), allocation(work(1), alpha, 0, 1)
    page = text_of(browser.get(url("dispatch_run", "change", mine.run_id)))
    for model in ("dispatch_shard", "dispatch_allocation"):
        link = f"{url(model)}?run__id__exact={mine.run_id}"
        assert link in page
        rows = text_of(browser.get(link))
        assert f"/{mine.shard_id if 'shard' in model else mine.pk}/change/" in rows
        assert f"/{other.shard_id if 'shard' in model else other.pk}/change/" not in rows
    assert AccessKey.objects.count() == 1


def test_the_servers_own_worker_is_marked_and_keeps_its_role_and_gets_no_key(browser, alpha):
    own = registry.own_node(2)
    text = text_of(browser.get(url("nodes_node")))
    assert text.count("This server<") == 1
    assert "own worker" in act(browser, "nodes_node", "issue_key", own)
    assert not own.keys.exists()
    assert 'name="role"' not in text_of(browser.get(url("nodes_node", "change", own.pk)))
    assert browser.post(url("nodes_node", "change", own.pk), node_form(own, role="child")).status_code == 302
    own.refresh_from_db()
    assert own.embedded
    page = text_of(browser.get(url("nodes_node", "change", alpha.pk)))
    assert 'value="child"' in page
    assert 'value="standalone"' not in page


def test_a_node_of_another_dialect_shows_what_it_said_and_where_it_registered(browser):
    key = registrations.issue("crawlers", False).registration
    node = registrations.bind(key, "w-1", facts={"device_name": "<b>Crawler</b>"}, capacity=2)
    registry.update_node(node.pk, max_cpu=71, max_memory=72)
    assert "Child (Distribution)" in text_of(browser.get(url("nodes_node"), {"dialect": "distribution"}))
    assert ">w-1</a>" not in text_of(browser.get(url("nodes_node"), {"dialect": "cascade"}))
    page = text_of(browser.get(url("nodes_node", "change", node.pk)))
    said = escape('"device_name": "<b>Crawler</b>"')
    for shown in (said, "Distribution", "crawlers", 'value="71.0"', 'value="72.0"'):
        assert shown in page
