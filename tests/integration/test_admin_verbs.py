"""The admin's verbs ask before they act, and say how many rows it is about; pages cost few queries with many rows."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core import checks
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cascade import admin_apps
from cascade.local import ROOT
from dispatch.models import Allocation, Run, Shard, Task
from dispatch.states import RunState
from nodes import admin_base, registry
from nodes.models import Heartbeat, Node
from tests.integration.records import allocation, run

pytestmark = pytest.mark.django_db
QUERIES_LIMIT = 12
RUNS, NODES = "/admin/dispatch/run/", "/admin/nodes/node/"


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.status_code
    return str(response.content.decode())


def question(text: str) -> str:
    found = re.search(r'<p class="question[^>]*>([^<]*)</p>', text)
    assert found is not None, text
    return found.group(1)


def hidden(text: str) -> dict[str, list[str]]:
    """What the form that asks sends on."""
    form = text[text.index('<div class="confirm') :]
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form):
        fields.setdefault(name, []).append(value)
    return {name: values for name, values in fields.items() if name != "csrfmiddlewaretoken"}


# ---- asking ----


def test_a_verb_over_several_rows_does_nothing_until_its_number_was_agreed_to(admin_client: Client) -> None:
    runs = [run(1, type="echo", name=f"run {number} <b>") for number in range(25)]
    asked = text_of(admin_client.post(RUNS, {"action": "cancel", "_selected_action": [each.pk for each in runs]}))
    assert question(asked).startswith("Cancel 25 runs?")
    assert asked.count("&lt;b&gt;") == admin_base.NAMED
    assert "and 5 more" in asked
    assert Run.objects.filter(state=RunState.RUNNING).count() == 25
    told = text_of(admin_client.post(RUNS, hidden(asked), follow=True))
    assert "25 runs have ended." in told
    assert not Run.objects.filter(state=RunState.RUNNING).exists()


def test_what_fits_a_filter_is_asked_again_when_more_fits_than_was_agreed_to(admin_client: Client) -> None:
    for _ in range(3):
        run(1, type="echo", name="nightly")
    other = run(1, type="echo", name="other")
    address = f"{RUNS}?q=nightly"
    first = Run.objects.filter(name="nightly").values_list("pk", flat=True)[:1]
    chosen = {"action": "cancel", "index": "0", "select_across": "1", "_selected_action": list(first)}
    asked = text_of(admin_client.post(address, chosen))
    assert question(asked).startswith("Cancel 3 runs?")
    run(1, type="echo", name="nightly")
    again = text_of(admin_client.post(address, hidden(asked)))
    assert question(again).startswith("Cancel 4 runs?")
    assert "has changed meanwhile" in again
    assert not Run.objects.filter(state=RunState.CANCELLED).exists()
    admin_client.post(address, hidden(again))
    assert Run.objects.filter(state=RunState.CANCELLED).count() == 4
    other.refresh_from_db()
    assert other.state == RunState.RUNNING


def test_more_than_one_confirmation_covers_is_refused(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_base, "MOST", 2)
    runs = [run(1, type="echo") for _ in range(3)]
    chosen = {"action": "cancel", "_selected_action": [each.pk for each in runs], "confirmed": "3"}
    assert "3 rows are too many at once: 2 are allowed" in text_of(admin_client.post(RUNS, chosen, follow=True))
    assert Run.objects.filter(state=RunState.RUNNING).count() == 3


def test_a_rows_verb_asks_on_its_own_page_and_leads_back_to_where_it_was_asked_from(admin_client: Client) -> None:
    node, _ = registry.add_node("alpha")
    address = reverse("admin:nodes_node_drain", args=[node.pk])
    assert address in text_of(admin_client.get(NODES))
    assert address in text_of(admin_client.get(f"{NODES}{node.pk}/change/"))
    asked = text_of(admin_client.get(address, headers={"referer": f"http://testserver{NODES}?state=offline"}))
    assert question(asked).startswith("Drain 1 node?")
    assert not Node.objects.get().draining
    done = admin_client.post(address, hidden(asked))
    assert (done.status_code, done.headers["Location"]) == (302, f"http://testserver{NODES}?state=offline")
    assert Node.objects.get().draining


def test_nobody_is_led_to_another_site(admin_client: Client) -> None:
    node, _ = registry.add_node("alpha")
    address = reverse("admin:nodes_node_drain", args=[node.pk])
    for elsewhere in ("https://evil.example/", "//evil.example", "javascript:alert(1)"):
        done = admin_client.post(address, {"confirmed": "1", "back": elsewhere})
        assert done.headers["Location"] == NODES


@pytest.mark.parametrize("number", ["0", "x", "99999999999999999999", "1_2"])
def test_a_verb_for_a_row_that_is_not_there_is_a_404(admin_client: Client, number: str) -> None:
    assert admin_client.get(f"{NODES}{number}/do/drain/").status_code == 404
    assert admin_client.post(f"{NODES}{number}/do/drain/", {"confirmed": "1"}).status_code == 404


def test_a_rows_verb_asks_for_the_permission_of_its_action() -> None:
    client, account = Client(), User.objects.create_user("helper", is_staff=True)
    account.user_permissions.add(*Permission.objects.filter(codename__in=("view_node", "view_run")))
    client.force_login(account)
    node, _ = registry.add_node("alpha")
    each = run(1, type="echo")
    for address in (f"{NODES}{node.pk}/do/drain/", f"{RUNS}{each.pk}/do/cancel/"):
        assert client.get(address).status_code == 403
        assert client.post(address, {"confirmed": "1"}).status_code == 403
    assert not Node.objects.get().draining
    assert "/do/" not in text_of(client.get(NODES))
    stranger = Client()
    assert stranger.get(f"{NODES}{node.pk}/do/drain/").status_code == 302


def test_a_yes_from_elsewhere_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("operator"))
    node, _ = registry.add_node("alpha")
    assert client.post(f"{NODES}{node.pk}/do/drain/", {"confirmed": "1"}).status_code == 403
    assert not Node.objects.get().draining


def test_one_that_cannot_be_done_hides_no_other(admin_client: Client) -> None:
    tasks = [
        Task.objects.create(name=f"task {number}", type="echo", items=[1] if number else []) for number in range(3)
    ]
    chosen = {"action": "run_now", "_selected_action": [task.pk for task in tasks], "confirmed": "3"}
    told = text_of(admin_client.post("/admin/dispatch/task/", chosen, follow=True))
    assert "2 runs submitted." in told
    assert "task task 0:" in told
    assert Run.objects.count() == 2


# ---- looking ----


def test_rows_lead_to_the_operational_pages(admin_client: Client) -> None:
    node, _ = registry.add_node("alpha")
    held = allocation(run(3, type="echo"), node, 0, 3)
    for path, addresses in {
        RUNS: [f'href="/runs/{held.run_id}"'],
        f"{RUNS}{held.run_id}/change/": [f'href="/runs/{held.run_id}"', f"/admin/dispatch/shard/{held.shard_id}/"],
        NODES: [f'href="/nodes/{node.pk}"'],
        "/admin/dispatch/allocation/": [f'href="/nodes/{node.pk}"', f'href="/runs/{held.run_id}"'],
        "/admin/": ['href="/runs"', f'href="{RUNS}"'],
    }.items():
        text = text_of(admin_client.get(path))
        assert [address for address in addresses if address not in text] == [], path


def test_the_palette_finds_pages_and_rows_that_this_account_may_see(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        registry.add_node(f"berlin-{number:02}")
        run(1, type="echo", name=f"berlin nightly {number}")
    with django_assert_max_num_queries(QUERIES_LIMIT):
        found = text_of(admin_client.get("/admin/search/", {"s": "berlin", "extended": "1"}))
    assert found.count("data-title=") == 2 * 8
    assert "/admin/nodes/node/" in found
    assert 'data-title="Allocations"' in text_of(admin_client.get("/admin/search/", {"s": "alloc", "extended": "1"}))
    assert admin_client.get("/admin/search/", {"s": ""}).content == b""
    client, helper = Client(), User.objects.create_user("helper", is_staff=True)
    helper.user_permissions.add(Permission.objects.get(codename="view_run"))
    client.force_login(helper)
    mine = text_of(client.get("/admin/search/", {"s": "berlin", "extended": "1"}))
    assert mine.count("data-title=") == 8
    assert "/admin/nodes/" not in mine
    assert "/admin/nodes/" not in text_of(client.get("/admin/"))


def test_ten_thousand_runs_and_a_thousand_nodes_cost_few_queries(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    now = timezone.now()
    nodes = Node.objects.bulk_create(
        [Node(name=f"node-{number}", last_beat_at=now if number % 2 else None) for number in range(1_000)]
    )
    runs = Run.objects.bulk_create(
        [Run(type="echo", count=5, items=b"", name=f"run {number}") for number in range(10_000)], batch_size=1_000
    )
    shards = Shard.objects.bulk_create([Shard(run=runs[0], start=start, stop=start + 1) for start in range(1_000)])
    Allocation.objects.bulk_create(
        [
            Allocation(run=runs[0], shard=shard, node=node, type="echo", start=0, stop=1, deadline=now, reason="free")
            for shard, node in zip(shards, nodes, strict=True)
        ]
    )
    Heartbeat.objects.bulk_create([Heartbeat(node=nodes[0], at=now) for _ in range(1_000)])
    held = Allocation.objects.latest("pk")
    for path in (
        *("/admin/", RUNS, f"{RUNS}?state=running&type=echo&q=run", f"{RUNS}?p=100", f"{RUNS}{runs[0].pk}/change/"),
        *(NODES, f"{NODES}?state=online", f"{NODES}{nodes[0].pk}/change/", "/admin/nodes/heartbeat/"),
        *("/admin/dispatch/shard/", f"/admin/dispatch/shard/{shards[0].pk}/change/", "/admin/dispatch/task/add/"),
        *("/admin/dispatch/allocation/", f"/admin/dispatch/allocation/?node__id__exact={nodes[5].pk}"),
        *(f"/admin/dispatch/allocation/{held.pk}/change/", f"{RUNS}{runs[0].pk}/do/cancel/"),
    ):
        with django_assert_max_num_queries(QUERIES_LIMIT):
            text = text_of(admin_client.get(path))
        assert len(text) < 1_000_000, path
    # The filter of a thousand nodes has the one that was chosen.
    filtered = text_of(admin_client.get("/admin/dispatch/allocation/", {"node__id__exact": nodes[5].pk}))
    assert filtered.count("<tbody") == 1
    assert "node-900" not in filtered


@pytest.mark.parametrize("chosen", ["x", "-1", "99999999999999999999", "１"])
def test_a_node_in_the_address_that_cannot_be_one_fits_nothing(admin_client: Client, chosen: str) -> None:
    node, _ = registry.add_node("alpha")
    allocation(run(1, type="echo"), node, 0, 1)
    page = text_of(admin_client.get("/admin/dispatch/allocation/", {"node__id__exact": chosen}))
    assert page.count("<tbody") == 0


# ---- when it is loaded ----

LOOK = """
import sys
import cascade.asgi
from django.urls import resolve, reverse
assert reverse("run", args=[1]) == "/runs/1" and resolve("/api/v1/runs") and resolve("/healthz")
before = [name for name in sys.modules if name.startswith("unfold.") or name in ("nodes.admin", "dispatch.admin")]
assert not before, before
assert reverse("admin:dispatch_run_changelist") == "/admin/dispatch/run/"
assert resolve("/admin/nodes/node/").url_name == "nodes_node_changelist"
assert "unfold.admin" in sys.modules and "dispatch.admin" in sys.modules
"""


def test_a_server_loads_the_admin_when_an_address_of_it_is_asked_for_or_named(tmp_path: Any) -> None:
    env = {"CASCADE_DATA_DIR": str(tmp_path), "CASCADE_CONFIG": "", "DJANGO_SETTINGS_MODULE": "cascade.settings"}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_checks_look_at_the_admins_pages() -> None:
    class Wrong(admin_base.Page):
        list_display = ("no_such_column",)

    assert admin_apps._check_pages(None) == []
    admin.site.register(Permission, Wrong)
    try:
        assert any(isinstance(each, checks.Error) for each in admin_apps._check_pages(None))
    finally:
        admin.site.unregister(Permission)
