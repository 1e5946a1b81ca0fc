"""Sources over the native API."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dispatch.models import Source
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

PAPER = {
    "kind": "feed",
    "key": "paper",
    "name": "The Paper",
    "address": "https://paper.example/rss",
    "extra": {"lang": "de"},
}


def test_a_source_is_kept_as_it_was_said(api: Api) -> None:
    made = api.post("sources", PAPER)
    assert made.status == 201
    assert made.response.headers["Location"].endswith(f"/api/v1/sources/{made.body['id']}")
    kept = api.get(f"sources/{made.body['id']}").body
    assert {name: kept[name] for name in PAPER} == PAPER
    assert kept["active"] is True
    assert api.post("sources", PAPER).status == 409


def test_what_is_given_is_changed(api: Api) -> None:
    pk = api.post("sources", PAPER).body["id"]
    answer = api.patch(f"sources/{pk}", {"active": False})
    assert (answer.status, answer.body["active"], answer.body["name"]) == (200, False, "The Paper")
    assert api.delete(f"sources/{pk}").status == 204
    assert (api.get(f"sources/{pk}").status, api.delete(f"sources/{pk}").status) == (404, 404)
    assert api.patch(f"sources/{pk}", {}).status == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "planet"}, "kind"),
        ({"key": ""}, "key"),
        ({"key": None}, "key"),
        ({"address": "ftp://a.example"}, "address"),
        ({"active": "perhaps"}, "active"),
        ({"extra": 1}, "extra"),
        ({"kye": 1}, "kye"),
    ],
)
def test_a_bad_value_is_refused_naming_the_field(api: Api, change: dict[str, Any], field: str) -> None:
    answer = api.post("sources", PAPER | change)
    assert (answer.status, answer.body["field"]) == (400, field)
    pk = api.post("sources", PAPER).body["id"]
    answer = api.patch(f"sources/{pk}", change)
    assert (answer.status, answer.body["field"]) == (400, field)


def test_lists_are_filtered(api: Api) -> None:
    rows = [{"key": f"k{at}", "name": f"Name {at}", "active": at != 1} for at in range(3)]
    assert api.post("sources/import?kind=symbol", rows).status == 200
    api.post("sources", PAPER)

    def found(query: str) -> list[str]:
        return [each["key"] for each in api.get(f"sources?{query}").body["results"]]

    assert found("kind=symbol") == ["k0", "k1", "k2"]
    assert found("kind=symbol&active=false") == ["k1"]
    assert found("key=paper") == ["paper"]
    assert found("key=pape") == []
    assert found("name=aper") == ["paper"]
    assert found("kind=symbol&limit=1&offset=1") == ["k1"]
    assert found("ordering=-key&limit=1") == ["paper"]
    assert api.get("sources?kind=planet").status == 400
    assert api.get("sources?knd=feed").body["field"] == "knd"


def test_an_import_is_all_or_nothing(api: Api) -> None:
    answer = api.post("sources/import", [PAPER, {"kind": "feed", "key": "b", "address": "x"}, {"key": "c"}])
    assert (answer.status, answer.body["field"], answer.body["wrong"]) == (400, "sources[1].address", 2)
    assert [(each["line"], each["field"]) for each in answer.body["problems"]] == [
        ("sources[1]", "address"),
        ("sources[2]", "kind"),
    ]
    assert not Source.objects.exists()
    answer = api.post("sources/import?kind=feed", [PAPER, {"key": "b"}])
    assert (answer.status, answer.body["added"], answer.body["total"]) == (200, 2, 2)
    answer = api.post("sources/import?kind=feed&update=false", [PAPER | {"name": "other"}])
    assert answer.body["kept"] == 1
    assert Source.objects.get(key="paper").name == "The Paper"


@pytest.mark.parametrize(
    ("query", "body", "field"),
    [
        ("", {}, "body"),
        ("", "nonsense", "body"),
        ("", ["a"], "sources[0]"),
        ("?kind=planet", [], "kind"),
        ("?update=perhaps", [], "update"),
        ("?knd=feed", [], "knd"),
    ],
)
def test_an_import_of_something_else_is_refused(api: Api, query: str, body: Any, field: str) -> None:
    answer = api.post(f"sources/import{query}", body)
    assert (answer.status, answer.body["field"]) == (400, field)


def test_strangers_see_nothing(client: Client) -> None:
    api = Api(client)
    assert {api.get("sources").status, api.post("sources", PAPER).status, api.get("sync-logs").status} == {401}
    assert api.post("sources/import", [PAPER]).status == 401
    assert api.put("executors/echo/settings", {}).status == 401
