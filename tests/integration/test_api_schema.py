"""The description of the API: OpenAPI, and the page made of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from drf_spectacular.validation import validate_schema

pytestmark = pytest.mark.django_db

OPERATIONS = [
    ("post", "/api/v1/token"),
    ("post", "/api/v1/runs"),
    ("get", "/api/v1/runs/{id}/progress"),
    ("get", "/api/v1/runs/{id}/results"),
    ("post", "/api/v1/runs/{id}/cancel"),
    ("post", "/api/v1/tasks/{id}/run"),
    ("get", "/api/v1/allocations"),
    ("put", "/api/v1/nodes/{id}/quotas"),
    ("delete", "/api/v1/keys/{access_key}"),
    ("get", "/api/v1/tables/{name}"),
    ("get", "/api/v1/tables/{name}/rows"),
    ("get", "/api/v1/tables/{name}/page"),
    ("get", "/api/v1/tables/{name}/facets"),
    ("post", "/api/v1/sql"),
    ("get", "/api/v1/charts/candles"),
    ("get", "/api/v1/charts/backtest"),
    ("get", "/api/v1/charts/optimization"),
    ("get", "/api/v1/articles"),
    ("post", "/api/v1/agent/claim"),
    ("post", "/api/v1/agent/accept"),
    ("post", "/api/v1/agent/beat"),
    ("post", "/api/v1/agent/report"),
    ("post", "/api/v1/agent/release"),
    ("put", "/api/v1/agent/segments/{sha256}"),
]


@pytest.fixture
def schema(admin_client: Client) -> dict[str, Any]:
    response = admin_client.get("/api/schema?format=json")
    assert response.status_code == 200
    loaded: dict[str, Any] = json.loads(response.content)
    return loaded


def test_the_schema_is_valid_openapi_without_a_warning(schema: dict[str, Any], tmp_path: Any) -> None:
    validate_schema(schema)
    call_command("spectacular", "--fail-on-warn", "--validate", "--file", str(tmp_path / "schema.yml"))


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_operation_is_described(schema: dict[str, Any], method: str, path: str) -> None:
    operation = schema["paths"][path][method]
    assert operation["tags"] == [path.split("/")[3]]
    assert operation["summary"]
    assert "400" in operation["responses"]


def test_a_submission_is_described_field_by_field(schema: dict[str, Any]) -> None:
    body = schema["paths"]["/api/v1/runs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    assert {"type", "items", "task", "params", "split", "shard_size", "labels"} <= fields.keys()
    assert (fields["priority"]["minimum"], fields["priority"]["maximum"]) == (1, 10)
    names = [parameter["name"] for parameter in schema["paths"]["/api/v1/runs"]["post"]["parameters"]]
    assert "Idempotency-Key" in names


def test_the_schema_is_yaml_where_nothing_is_asked_for(admin_client: Client) -> None:
    response = admin_client.get("/api/schema")
    assert response.content.startswith(b"openapi: 3")


class _Page(HTMLParser):
    """What a page loads, which ids it has, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.attributes |= values.keys()
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        elif tag in ("link", "script", "img", "iframe"):
            self.loads.append(values.get("href", "") + values.get("src", ""))


@pytest.fixture
def page(admin_client: Client) -> str:
    response = admin_client.get("/api/docs", headers={"accept": "text/html"})
    assert response.status_code == 200
    return response.content.decode()


def test_the_page_needs_nothing_but_this_server_and_no_script(page: str) -> None:
    found = _Page(page)
    assert found.loads
    assert all(address.startswith("/static/") for address in found.loads)
    assert not found.tags & {"script", "style", "iframe"}
    assert "style" not in found.attributes
    assert not any(name.startswith("on") for name in found.attributes)


def test_the_page_shows_every_operation_and_its_contents_lead_there(page: str, schema: dict[str, Any]) -> None:
    found = _Page(page)
    shown = {operation["operationId"] for methods in schema["paths"].values() for operation in methods.values()}
    assert shown <= found.ids
    assert {link[1:] for link in found.links if link.startswith("#")} <= found.ids


def test_the_page_shows_fields_their_meaning_and_a_command_to_try(page: str) -> None:
    assert "Seconds one shard may run." in page
    assert re.search(r"curl -X POST .*-d .*data_import.*/api/v1/runs", page)
    assert "Authorization: AK-SK" in page
    assert "quotas[].slots" in page


def test_the_style_sheet_of_the_page_is_there(page: str, client: Client) -> None:
    (address,) = (each for each in _Page(page).loads if each.endswith("docs.css"))
    assert client.get(address).status_code == 200


@pytest.mark.parametrize("path", ["/api/schema", "/api/docs"])
def test_only_staff_may_read_how_the_api_is(client: Client, path: str) -> None:
    response = client.get(path, headers={"accept": "application/json"})
    assert response.status_code == 401
    assert response.json()["detail"]
    client.force_login(get_user_model().objects.create_user("guest"))
    assert client.get(path).status_code == 403


def test_a_browser_that_is_not_signed_in_is_sent_to_do_so(client: Client) -> None:
    response = client.get("/api/docs", headers={"accept": "text/html"})
    assert response.status_code == 302
    assert response["Location"].endswith("?next=/api/docs")


def test_an_unknown_address_below_api_is_answered_in_json(client: Client) -> None:
    for path in ("/api", "/api/nothing", "/api/v1/nothing", "/api/v1/runs/"):
        for method in ("GET", "POST"):
            response = client.generic(method, path)
            assert response.status_code == 404
            assert response.json()["detail"]


def test_other_addresses_keep_their_own_pages(client: Client) -> None:
    response = client.get("/no/such/page")
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")
