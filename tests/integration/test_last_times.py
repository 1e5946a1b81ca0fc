"""How it went with a source the last time: in the API, at the terminal, in the admin."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from dispatch import sources
from dispatch.models import ItemMemory
from tests.integration.native import Api

pytestmark = pytest.mark.django_db
COUNTS = {"new": 2, "changed": 1, "unchanged": 0}


@pytest.fixture(autouse=True)
def remembered() -> None:
    for key in ("good", "bad", "never"):
        sources.add("feed", key, address=f"https://{key}.example/")
    sources.add("symbol", "good")
    now = timezone.now()
    kept: dict[str, Any] = {"type": "feed_update", "at": now}
    ItemMemory.objects.create(**kept, key="good", status="ok", counts=COUNTS, succeeded_at=now, memory={"etag": "x"})
    ItemMemory.objects.create(**kept, key="bad", status="404 Not Found", failed=True)


def test_the_api_tells_it_with_each_source(api: Api) -> None:
    listed = {(each["kind"], each["key"]): each["last"] for each in api.get("sources").body["results"]}
    assert listed["feed", "good"] | {"at": "", "succeeded_at": ""} == {
        "status": "ok", "failed": False, "counts": COUNTS, "run": None, "at": "", "succeeded_at": "",
    }  # fmt: skip
    assert listed["feed", "bad"]["failed"]
    assert listed["feed", "never"] is None
    assert listed["symbol", "good"] is None  # a key of the same name, of another kind
    one = api.get(f"sources/{sources.find('feed', 'bad').pk}").body
    assert one["last"]["status"] == "404 Not Found"
    # What was remembered is the nodes' business.
    assert "etag" not in json.dumps(api.get("sources").body)


def test_the_terminal_shows_it_in_a_word() -> None:
    out = StringIO()
    call_command("sources", "list", json=True, stdout=out)
    told = {(row["kind"], row["key"]): row["last"] for row in json.loads(out.getvalue())}
    assert told["feed", "good"]["counts"] == COUNTS
    assert told["feed", "never"] is None
    out = StringIO()
    call_command("sources", "list", stdout=out)
    lines = " ".join(out.getvalue().split())
    assert "ok: 2 new, 1 changed" in lines
    assert "failed: 404 Not Found" in lines


def test_the_admin_shows_it_with_one_query_for_a_page(admin_client: Client, django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(12):
        page = admin_client.get("/admin/dispatch/source/").content.decode()
    assert "✓ ok: 2 new, 1 changed" in page
    assert "✕ 404 Not Found" in page
    assert User.objects.exists()
    memories = admin_client.get("/admin/dispatch/itemmemory/").content.decode()
    assert "✓ ok: 2 new, 1 changed" in memories
    assert "✕ 404 Not Found" in memories
