"""Rate limits in the admin: made, changed and refused by the same rules as everywhere."""

from __future__ import annotations

import pytest
from django.test import Client

from dispatch import buckets
from dispatch.models import RateBucket, RateLimit
from tests.integration.factory import child, dispatch, submit

pytestmark = pytest.mark.django_db
LIST = "/admin/dispatch/ratelimit/"


def test_a_limit_is_made_and_changed(admin_client: Client) -> None:
    assert admin_client.post(f"{LIST}add/", {"key": "host:*", "per_second": "2", "burst": "3"}).status_code == 302
    limit = RateLimit.objects.get()
    change = {"key": "host:*", "per_second": "4", "burst": "3"}
    assert admin_client.post(f"{LIST}{limit.pk}/change/", change).status_code == 302
    assert RateLimit.objects.get().per_second == 4
    assert b"host:*" in admin_client.get(LIST).content


@pytest.mark.parametrize(
    "body",
    [
        {"key": "a*b*c*d*e*f*g", "per_second": "2", "burst": "3"},
        {"key": "a", "per_second": "0", "burst": "3"},
        {"key": "a", "per_second": "nan", "burst": "3"},
        {"key": "a", "per_second": "2", "burst": "0"},
        {"key": "taken", "per_second": "2", "burst": "1"},
    ],
)
def test_nonsense_is_said_at_its_field(admin_client: Client, body: dict[str, str]) -> None:
    buckets.set_limit("taken", 1.0)
    answer = admin_client.post(f"{LIST}add/", body)
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors
    assert RateLimit.objects.count() == 1


def test_buckets_are_there_to_look_at(admin_client: Client) -> None:
    buckets.set_limit("feeds", 0.001, 5)
    child("a")
    submit(3, rate_key="feeds")
    dispatch()
    row = RateBucket.objects.get()
    assert b"feeds" in admin_client.get("/admin/dispatch/ratebucket/").content
    admin_client.post(f"/admin/dispatch/ratebucket/{row.pk}/change/", {"tokens": "99"})
    assert RateBucket.objects.get().tokens < 3
