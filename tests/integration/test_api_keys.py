"""Access keys over the native API."""

from __future__ import annotations

import pytest
from django.test import Client

from nodes import registry, signing
from nodes.models import AccessKey, Node
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture
def north() -> Node:
    node, _ = registry.add_node("north")
    return node


def live(node: Node) -> set[str]:
    return set(node.keys.filter(revoked_at=None).values_list("access_key", flat=True))


def test_an_issued_key_shows_its_secret_once_and_lists_never_do(api: Api, north: Node) -> None:
    answer = api.post(f"nodes/{north.pk}/keys")
    assert answer.status == 201
    assert (answer.body["node"], answer.body["node_name"]) == (north.pk, "north")
    key = AccessKey.objects.get(access_key=answer.body["access_key"])
    assert signing.public_key_of(answer.body["secret_key"]) == key.public_key
    listed = api.get(f"nodes/{north.pk}/keys")
    assert listed.body[0]["access_key"] == key.access_key
    assert len(listed.body) == 2
    assert answer.body["secret_key"] not in listed.response.content.decode()


def test_a_third_live_key_conflicts(api: Api, north: Node) -> None:
    api.post(f"nodes/{north.pk}/keys")
    answer = api.post(f"nodes/{north.pk}/keys")
    assert answer.status == 409
    assert len(live(north)) == 2


def test_rotation_keeps_the_newest_key_for_the_change_over(api: Api, north: Node) -> None:
    (oldest,) = live(north)
    second = api.post(f"nodes/{north.pk}/rotate").body["access_key"]
    third = api.post(f"nodes/{north.pk}/rotate")
    assert third.status == 201
    assert live(north) == {second, third.body["access_key"]}
    revoked = [key["access_key"] for key in api.get(f"nodes/{north.pk}/keys").body if key["revoked_at"]]
    assert revoked == [oldest]


def test_a_revoked_key_stays_on_record(api: Api, north: Node) -> None:
    (key,) = live(north)
    answer = api.delete(f"keys/{key}")
    assert (answer.status, answer.body["access_key"]) == (200, key)
    assert answer.body["revoked_at"]
    assert not live(north)
    # Again: nothing changes, least of all the time.
    assert api.delete(f"keys/{key}").body == answer.body


def test_an_unknown_key_is_a_404(api: Api) -> None:
    assert api.delete("keys/CNnonsense").status == 404
    assert api.delete("keys/%00").status == 404


def test_keys_are_for_staff(client: Client, north: Node) -> None:
    (key,) = live(north)
    api = Api(client)
    assert api.delete(f"keys/{key}").status == 401
    assert api.post(f"nodes/{north.pk}/keys").status == 401
    assert api.post(f"nodes/{north.pk}/rotate").status == 401
    assert live(north) == {key}
