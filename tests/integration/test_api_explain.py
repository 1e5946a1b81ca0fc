"""GET runs/{id}/explain: what would be granted now, and why each node takes no more. It changes nothing."""

from __future__ import annotations

import pytest

from dispatch.models import Allocation
from tests.integration.factory import child, dispatch, submit
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


def test_a_run_that_waits_says_for_each_node_why(api: Api) -> None:
    child("busy", 1)
    child("other", 1, types=["data_import"])
    child("limited", 2, "echo=0/0")
    run = submit(3)
    dispatch()
    answer = api.get(f"runs/{run.pk}/explain")
    assert answer.status == 200
    assert answer.body["grants"] == []
    assert {refusal["node"]: refusal["code"] for refusal in answer.body["refusals"]} == {
        "busy": "slots",
        "other": "type",
        "limited": "limit",
    }
    assert answer.body["counts"] == {"slots": 1, "type": 1, "limit": 1}


def test_what_would_be_granted_is_told_with_its_reason_and_not_done(api: Api) -> None:
    child("a", 2, "echo=1")
    run = submit(2)
    grants = api.get(f"runs/{run.pk}/explain").body["grants"]
    assert [grant["node"] for grant in grants] == ["a", "a"]
    assert grants[0]["reason"].startswith("quota 1 of 1")
    assert grants[1]["reason"].startswith("free capacity")
    assert not Allocation.objects.exists()
