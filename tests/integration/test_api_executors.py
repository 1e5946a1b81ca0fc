"""What kinds of work there are, over the API: what each type declares, its JSON Schema, and OpenAPI with both."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client
from jsonschema import Draft202012Validator

from nodes import executors, providers
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture
def types(api: Api) -> dict[str, Any]:
    answer = api.get("executors")
    assert answer.status == 200
    return {each["type"]: each for each in answer.body}


@pytest.fixture
def openapi(admin_client: Client) -> Any:
    return json.loads(admin_client.get("/api/schema?format=json").content)


def test_every_type_is_listed_with_what_it_does(types: dict[str, Any]) -> None:
    assert sorted(types) == executors.names()
    assert types["feed_update"]["waits"]
    assert types["feed_update"]["remembers"]
    assert types["feed_update"]["source_kind"] == "feed"
    assert types["crawl"]["grows"]
    assert types["optimization"]["items_optional"]
    assert types["external"]["outside"]
    echo = types["echo"]
    assert not any(echo[name] for name in ("waits", "remembers", "grows", "items_optional", "outside", "source_kind"))
    assert "AAPL" in types["data_import"]["items"]


def test_columns_keys_views_and_reductions_are_listed(types: dict[str, Any]) -> None:
    assert types["echo"]["dataset"] == {
        "table": "echo",
        "columns": [
            {"name": "item", "type": "string"},
            {"name": "number", "type": "int64"},
            {"name": "value", "type": "string"},
        ],
        "key": ["item", "number"],
        "views": [],
    }
    backtest = executors.get("backtest")
    assert [view["name"] for view in types["backtest"]["dataset"]["views"]] == [
        name for name, _ in backtest.dataset.views
    ]
    assert {each["name"]: each["select"] for each in types["backtest"]["reductions"]} == dict(backtest.reductions)


def test_parameters_say_their_kind_bounds_and_elements(types: dict[str, Any]) -> None:
    rows = next(param for param in types["echo"]["params"] if param["name"] == "rows")
    assert rows == {
        "name": "rows",
        "kind": "integer",
        "of": None,
        "required": False,
        "default": 1,
        "help": "Rows per item.",
        "minimum": 0,
        "maximum": 100_000,
        "choices": None,
    }
    symbols = next(param for param in types["optimization"]["params"] if param["name"] == "symbols")
    assert (symbols["kind"], symbols["of"], symbols["required"]) == ("list", "string", True)


def test_parameters_of_sources_and_strategies_are_listed_with_what_brings_them(types: dict[str, Any]) -> None:
    variants = {(each["by"], each["value"]): each for each in types["backtest"]["variants"]}
    assert {value for by, value in variants if by == "source"} == set(providers.PROVIDERS)
    assert variants["source", "sample"]["choices"] == {"freq": ["D"]}
    assert [param["name"] for param in variants["source", "tdx"]["params"]] == ["path", "divisor"]
    assert variants["strategy", "ma_cross"]["within"] == "strategy_params"
    assert ("source", "store") not in {(each["by"], each["value"]) for each in types["data_import"]["variants"]}


def test_sources_say_which_types_take_them(api: Api) -> None:
    sources = {each["name"]: each for each in api.get("providers").body}
    assert set(sources) == set(providers.PROVIDERS)
    assert "data_import" not in sources["store"]["types"]
    assert {"analysis", "backtest", "optimization"} <= set(sources["store"]["types"])
    assert "data_import" in sources["yfinance"]["types"]
    assert sources["yfinance"]["freqs"] == ["1min", "5min", "15min", "30min", "60min", "D", "W", "M"]


@pytest.mark.parametrize("task_type", executors.names())
def test_each_type_has_a_json_schema(api: Api, task_type: str) -> None:
    answer = api.get(f"executors/{task_type}/schema")
    assert answer.status == 200
    Draft202012Validator.check_schema(answer.body)
    assert answer.body["title"] == task_type


def test_a_schema_refuses_what_a_submission_would(api: Api) -> None:
    validator = Draft202012Validator(api.get("executors/data_import/schema").body)
    for params in (
        {"source": "sample"},
        {"source": "files", "path": "/x"},
        {"source": "files"},
        {"source": "sample", "a": 1},
    ):
        task = {"name": "t", "type": "data_import", "params": params, "items": ["AAPL"]}
        status = api.post("tasks", task).status
        assert validator.is_valid(params) is (status in (201, 409)), params


def test_an_unknown_type_has_none(api: Api) -> None:
    answer = api.get("executors/nonsense/schema")
    assert answer.status == 404
    assert "there are: analysis" in answer.body["detail"]


def test_only_who_is_signed_in_may_look(client: Client) -> None:
    for path in ("executors", "executors/echo/schema", "providers"):
        assert Api(client).get(path).status == 401


def test_openapi_describes_the_params_of_each_type(openapi: Any) -> None:
    schemas = openapi["components"]["schemas"]
    assert {f"Params_{name}" for name in executors.names()} <= set(schemas)
    rows = schemas["Params_echo"]["properties"]["rows"]
    assert (rows["type"], rows["minimum"], rows["maximum"], rows["default"]) == ("integer", 0, 100_000, 1)
    assert rows["description"] == "Rows per item."
    source = schemas["Params_data_import"]["properties"]["source"]
    assert "yfinance" in source["enum"]
    assert schemas["Params_data_import"]["required"] == ["source"]
    assert schemas["Params_data_import"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("method", "path"), [("post", "/api/v1/runs"), ("post", "/api/v1/tasks"), ("post", "/api/v1/tasks/{id}/run")]
)
def test_a_submission_s_params_are_those_of_one_of_the_types(openapi: Any, method: str, path: str) -> None:
    body = openapi["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    schema = openapi["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    references = {each.get("$ref", "").rpartition("/")[2] for each in schema["properties"]["params"]["anyOf"]}
    assert {f"Params_{name}" for name in executors.names()} <= references
    assert "Parameters of the type" in schema["properties"]["params"]["description"]
