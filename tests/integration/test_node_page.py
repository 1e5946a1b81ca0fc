"""The page of one node: what it shows, and what its buttons and forms do."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from nodes import keys, registry
from nodes.fields import parse_quota
from nodes.models import AccessKey, Node
from tests.integration import records

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_user("op", is_staff=True))
    return client


@pytest.fixture
def node() -> Node:
    node, _ = registry.add_node("east", capacity=4, quotas=[parse_quota("echo=2/3")], labels={"zone": "eu"})
    return node


def page(operator: Client, node: Node) -> str:
    return operator.get(f"/nodes/{node.pk}").content.decode()


def test_it_shows_what_the_node_may_and_has_and_how_it_is_started(operator: Client, node: Node) -> None:
    records.hold(node, 2)
    html = page(operator, node)
    assert "2/4" in html
    assert "zone=eu" in html
    assert ">echo=2/3</textarea>" in html
    assert "python manage.py runserver 8001 --role child --parent http://testserver" in html
    assert "python -m nodes.agent --parent http://testserver" in html
    assert node.keys.get().access_key in html


def test_capacity_and_quotas_are_set_together(operator: Client, node: Node) -> None:
    body = {"capacity": "8", "quotas": "echo=6/8\ndata_import[AAPL]=1\n"}
    assert operator.post(f"/nodes/{node.pk}/limits", body)["Location"] == f"/nodes/{node.pk}"
    node.refresh_from_db()
    assert node.capacity == 8
    assert sorted(map(str, node.quotas.values_list("task_type", "item", "slots", "limit"))) == [
        "('data_import', 'AAPL', 1, None)",
        "('echo', '', 6, 8)",
    ]


@pytest.mark.parametrize(
    ("capacity", "quotas", "said"),
    [
        ("4", "echo=two", "is not like data_import=4"),
        ("4", "echo=9", "9 is above the node"),
        ("4", "nonsense=1", "is not a task type"),
        ("none", "echo=1", "is not a whole number"),
        ("0", "", "capacity"),
        ("9" * 6, "", "capacity"),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_stays(
    operator: Client, node: Node, capacity: str, quotas: str, said: str
) -> None:
    answer = operator.post(f"/nodes/{node.pk}/limits", {"capacity": capacity, "quotas": quotas})
    html = answer.content.decode()
    assert answer.status_code == 400
    assert said in html
    assert f">{quotas}</textarea>" in html
    assert f'value="{capacity}"' in html
    node.refresh_from_db()
    assert (node.capacity, node.quotas.count()) == (4, 1)


def test_a_keys_secret_is_shown_once_with_the_command_that_uses_it(operator: Client, node: Node) -> None:
    answer = operator.post(f"/nodes/{node.pk}/issue")
    html = answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    (secret,) = set(re.findall(r"CASCADE_SECRET_KEY=(\S+) python", html))
    assert f"<code>{secret}</code>" in html
    assert secret not in page(operator, node)
    assert node.keys.count() == 2
    assert "has 2 live keys already" in operator.post(f"/nodes/{node.pk}/issue").content.decode()


def test_a_key_is_revoked_by_its_name_and_only_of_this_node(operator: Client, node: Node) -> None:
    _, other = registry.add_node("west")
    refused = operator.post(f"/nodes/{node.pk}/revoke", {"access_key": other.access_key})
    assert refused.status_code == 400
    assert AccessKey.objects.filter(revoked_at=None).count() == 2
    mine = node.keys.get().access_key
    operator.post(f"/nodes/{node.pk}/revoke", {"access_key": mine})
    assert AccessKey.objects.get(access_key=mine).revoked_at is not None


def test_it_is_drained_and_resumed(operator: Client, node: Node) -> None:
    assert "is-taking" in page(operator, node)
    operator.post(f"/nodes/{node.pk}/drain")
    node.refresh_from_db()
    assert node.draining
    assert "is-draining" in page(operator, node)
    operator.post(f"/nodes/{node.pk}/resume")
    node.refresh_from_db()
    assert not node.draining


def test_a_node_that_is_not_there_is_a_404(operator: Client) -> None:
    assert operator.get("/nodes/77").status_code == 404
    assert operator.post("/nodes/77/drain").status_code == 404


@pytest.mark.parametrize("verb", ["limits", "drain", "resume", "issue", "rotate", "revoke"])
def test_its_forms_are_for_signed_in_members_of_staff_with_a_token(node: Node, verb: str) -> None:
    assert Client().post(f"/nodes/{node.pk}/{verb}").status_code == 302
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.create_user("op", is_staff=True))
    assert strict.post(f"/nodes/{node.pk}/{verb}").status_code == 403
    assert strict.get(f"/nodes/{node.pk}/{verb}").status_code == 405
    assert keys.live([key.pk for key in node.keys.all()]) == {node.keys.get().pk}


def test_its_queries_are_few_however_much_it_does(operator: Client, node: Node, django_assert_max_num_queries) -> None:
    records.hold(node, 30)
    with django_assert_max_num_queries(16):
        page(operator, node)
