"""Every task type: what it declares can be kept, is what it checks, and no input breaks its check."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from nodes import executors, providers, surroundings
from nodes.executors.base import REQUIRED, Param
from nodes.executors.described import KINDS, declared, described, param_schema, plain_schema, schema
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

TYPES = executors.names()
LEAST: dict[str, dict[str, Any]] = {
    "backtest": {"strategy": "ma_cross"},
    "custom": {"callable": "it"},
    "data_import": {"source": "sample"},
    "external": {"task_type": "scan"},
    "optimization": {"symbols": ["AAPL"], "strategy": "ma_cross", "space": {"fast": {"low": 2, "high": 9}}},
}
"""The least that a type can be run with, where that is anything."""
WRONG: dict[str, Any] = {
    "string": 5,
    "integer": "x",
    "number": "x",
    "boolean": "perhaps",
    "date": "x",
    "object": [1],
    "list": {"a": 1},
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module", autouse=True)
def _allowed():
    before = surroundings.current()
    surroundings.settle(Surroundings(custom={"it": "json:dumps"}))
    yield
    surroundings.settle(before)


def own_params(task_type: str) -> list[Param]:
    executor = executors.get(task_type)
    return [*executor.params, *(param for variant in executor.variants() for param in variant.params)]


def least(task_type: str) -> dict[str, Any]:
    return dict(LEAST.get(task_type, {}))


def accepts(task_type: str, params: Any) -> bool:
    return bool(Draft202012Validator(schema(executors.get(task_type)), format_checker=FormatChecker()).is_valid(params))


def checks(task_type: str, params: Any) -> bool:
    try:
        executors.get(task_type).check(params)
    except FieldError:
        return False
    return True


def assert_tells(refusal: FieldError) -> None:
    """Its field, in a message that can be shown and stored."""
    assert refusal.field == "params" or refusal.field.startswith("params.")
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 2000
    str(refusal).encode()


# Declarations


@pytest.mark.parametrize("task_type", TYPES)
def test_each_parameter_says_what_it_is_and_can_be_what_it_says(task_type):
    for param in own_params(task_type):
        assert param.name.isidentifier()
        assert param.kind in KINDS
        assert param.of is None or (param.kind == "list" and param.of in KINDS)
        assert len(param.help) > 5, f"{task_type}.{param.name} has no help"
        assert param.help[-1] in ".?", f"{task_type}.{param.name}: {param.help}"
        if param.minimum is not None and param.maximum is not None:
            assert param.minimum <= param.maximum
        if param.default is not REQUIRED and param.default is not None:
            assert param.check(param.default) == param.default
        if param.kind != "list":
            for choice in param.choices or ():
                assert param.check(choice) == choice


@pytest.mark.parametrize("task_type", TYPES)
def test_no_two_parameters_that_stand_together_have_one_name(task_type):
    executor = executors.get(task_type)
    names = [param.name for param in executor.params]
    assert len(set(names)) == len(names)
    for variant in executor.variants():
        beside = [param.name for param in variant.params]
        assert len(set(beside)) == len(beside)
        assert variant.by in names
        assert not variant.within or variant.within in names
        assert set(variant.choices) <= set(names)
        if not variant.within:
            assert not set(beside) & set(names)


@pytest.mark.parametrize("task_type", TYPES)
def test_the_table_has_its_key_and_can_be_made(task_type):
    executor = executors.get(task_type)
    assert executor.type == task_type
    assert executor.title
    assert set(executor.dataset.key) <= set(executor.dataset.names)
    assert {column.type for column in executor.dataset.columns} <= {
        *("string", "int64", "float64", "bool", "timestamp", "json")
    }
    told = described(executor)
    assert [view["name"] for view in told["dataset"]["views"]] == [name for name, _ in executor.dataset.views]
    assert len(told["items"]) > 5


def test_every_source_is_taken_by_some_type_and_the_parent_s_table_not_by_imports():
    taken: dict[str, set[str]] = {}
    for task_type in TYPES:
        for variant in executors.get(task_type).variants():
            if variant.by == "source":
                taken.setdefault(variant.value, set()).add(task_type)
    assert set(taken) == set(providers.PROVIDERS)
    assert "data_import" not in taken["store"]
    assert "data_import" in taken["tdx"] & taken["akshare"] & taken["yfinance"]


# Checks


@pytest.mark.parametrize("task_type", TYPES)
def test_the_least_params_pass_and_stay_as_they_are_when_checked_again(task_type):
    check = executors.get(task_type).check
    checked = check(least(task_type))
    assert check(checked) == checked


@pytest.mark.parametrize("task_type", TYPES)
def test_a_missing_or_unknown_parameter_is_named(task_type):
    executor = executors.get(task_type)
    for param in executor.params:
        if param.default is REQUIRED:
            with pytest.raises(FieldError) as refusal:
                executor.check({name: value for name, value in least(task_type).items() if name != param.name})
            assert refusal.value.field == f"params.{param.name}"
    for check in (executor.check, executor.check_settings):
        with pytest.raises(FieldError) as refusal:
            check({**least(task_type), "colour": 1})
        assert refusal.value.field == "params.colour"


@pytest.mark.parametrize("task_type", TYPES)
def test_a_value_of_another_kind_or_out_of_bounds_is_refused_by_its_name(task_type):
    executor = executors.get(task_type)
    for param in executor.params:
        wrong = [WRONG[param.kind]]
        if param.kind in ("integer", "number"):
            wrong += [param.minimum - 1] if param.minimum is not None else []
            wrong += [param.maximum + 1] if param.maximum is not None else []
        if param.choices is not None and param.kind == "string":
            wrong.append("no such choice")
        for value in wrong:
            for check in (executor.check, executor.check_settings):
                with pytest.raises(FieldError) as refusal:
                    check({**least(task_type), param.name: value})
                assert refusal.value.field == f"params.{param.name}", value


@pytest.mark.parametrize("task_type", TYPES)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_json_brings_is_checked_or_refused_with_a_field(task_type, data):
    names = st.sampled_from([param.name for param in own_params(task_type)] or ["none"])
    given_values = data.draw(st.dictionaries(names, ANY_JSON, max_size=4) | ANY_JSON)
    executor = executors.get(task_type)
    sources = [{"source": variant.value} for variant in executor.variants() if variant.by == "source"]
    source = data.draw(st.sampled_from([{}, *sources]))
    params = {**least(task_type), **source, **given_values} if isinstance(given_values, dict) else given_values
    for check in (executor.check, executor.check_settings):
        try:
            assert isinstance(check(params), dict)
        except FieldError as refusal:
            assert_tells(refusal)


@pytest.mark.parametrize("task_type", TYPES)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_stands_inside_an_object_or_a_list_is_checked_or_refused_with_a_field(task_type, data):
    executor = executors.get(task_type)
    inside = [param for param in own_params(task_type) if param.kind in ("object", "list")]
    words = st.text(max_size=6) | st.sampled_from(["fast", "slow", "low", "high", "step", "values", "log", "a@href"])
    for param in inside:
        value: Any = data.draw(
            st.dictionaries(words, ANY_JSON, max_size=3) if param.kind == "object" else st.lists(ANY_JSON, max_size=3)
        )
        try:
            executor.check({**least(task_type), param.name: value})
        except FieldError as refusal:
            assert_tells(refusal)


@pytest.mark.parametrize("task_type", TYPES)
@given(item=ANY_JSON)
@example(item={"symbol": "A", "params": {"fast": "x"}})
@example(item={"key": "a", "url": "http://[::1"})
@example(item="http://[")
def test_whatever_item_json_brings_is_taken_or_refused_with_a_reason(task_type, item):
    if isinstance(item, bool | None | list):
        return  # refused before
    with contextlib.suppress(ValueError):
        executors.get(task_type).check_item(item)


# JSON Schema


@pytest.mark.parametrize("task_type", TYPES)
def test_the_schema_is_one_and_takes_what_the_check_takes(task_type):
    made = schema(executors.get(task_type))
    Draft202012Validator.check_schema(made)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert accepts(task_type, least(task_type))
    assert accepts(task_type, executors.get(task_type).check(least(task_type)))
    assert not accepts(task_type, {**least(task_type), "colour": 1})
    assert not accepts(task_type, [])


@pytest.mark.parametrize(
    ("task_type", "params", "good"),
    [
        ("data_import", {}, False),
        ("data_import", {"source": "sample"}, True),
        ("data_import", {"source": "nope"}, False),
        ("data_import", {"source": "store"}, False),
        ("data_import", {"source": "sample", "freq": "5min"}, False),
        ("data_import", {"source": "sample", "path": "/x"}, False),
        ("data_import", {"source": "files"}, False),
        ("data_import", {"source": "files", "path": "/x", "max_mb": 1}, True),
        ("data_import", {"source": "files", "path": "/x", "max_mb": 0}, False),
        ("data_import", {"source": "tdx", "path": "/x", "divisor": 100}, True),
        ("data_import", {"source": "tdx", "path": "/x", "divisor": 10}, False),
        ("data_import", {"source": "yfinance", "auto_adjust": True, "freq": "60min"}, True),
        ("data_import", {"source": "akshare", "auto_adjust": True}, False),
        ("data_import", {"source": "sample", "start_date": "2020-02-30"}, False),
        # Without a source it is the parent's table.
        ("analysis", {"path": "/x"}, False),
        ("analysis", {"freq": "2min"}, False),
        ("analysis", {"freq": "5min"}, True),
        ("analysis", {"source": "files", "path": "/x"}, True),
        ("backtest", {"strategy": "ma_cross", "strategy_params": {"fast": 5}}, True),
        ("backtest", {"strategy": "ma_cross", "strategy_params": {"entry": 5}}, False),
        ("backtest", {"strategy": "breakout", "strategy_params": {"entry": 5, "exit": 5}}, True),
        ("backtest", {"strategy": "breakout", "strategy_params": {"entry": 0}}, False),
        ("custom", {"callable": "it", "arguments": {"a": 1}}, True),
        ("custom", {"callable": "it", "arguments": [1]}, False),
        ("echo", {"rows": 100_001}, False),
        ("echo", {"fail_items": ["a"]}, True),
    ],
)
def test_the_schema_and_the_check_agree(task_type, params, good):
    assert accepts(task_type, params) is checks(task_type, params) is good


EVERY_PARAM = list(
    {
        (param.kind, param.of, param.minimum, param.maximum, param.choices): param
        for task_type in TYPES
        for param in own_params(task_type)
    }.values()
)


@settings(max_examples=300)
@given(st.sampled_from(EVERY_PARAM), ANY_JSON)
def test_a_parameter_s_schema_and_its_check_agree_on_whatever_json_brings(param, value):
    validator = Draft202012Validator(param_schema(param), format_checker=FormatChecker())
    try:
        param.check(value)
        checked = True
    except FieldError:
        checked = False
    if _storable(value) and not _from_text(param, value):
        assert validator.is_valid(value) is checked


def _storable(value: Any) -> bool:
    """Without what a schema cannot refuse: NaN, infinity, NUL and lone surrogates."""
    text = repr(value)
    return not any(each in text for each in ("nan", "inf", "\\x00", "\\ud"))


def _from_text(param: Param, value: Any) -> bool:
    """Text is read as the kind, as the command line sends it; a schema is about JSON."""
    if isinstance(value, list):
        return param.of not in (None, "string") and any(isinstance(each, str) for each in value)
    return isinstance(value, str) and param.kind != "string"


@pytest.mark.parametrize("task_type", TYPES)
def test_what_openapi_is_told_takes_no_less(task_type):
    made = plain_schema(executors.get(task_type))
    Draft202012Validator.check_schema(made)
    assert Draft202012Validator(made).is_valid(executors.get(task_type).check(least(task_type)))
    assert not Draft202012Validator(made).is_valid({**least(task_type), "colour": 1})
    assert {param.name for param in executors.get(task_type).params} <= set(made["properties"])


def test_what_is_declared_twice_under_one_name_keeps_what_both_agree_on():
    path = plain_schema(executors.get("data_import"))["properties"]["path"]
    assert path["type"] == "string"
    assert "With source files" in path["description"]
    assert "With source tdx" in path["description"]


def test_lists_say_of_what_and_bounds_are_the_elements():
    param = Param("p", "list", None, "Some.", minimum=1, maximum=3, of="integer")
    assert declared([param])[0]["of"] == "integer"
    assert param_schema(param) == {
        "type": "array",
        "items": {"type": "integer", "minimum": 1, "maximum": 3},
        "description": "Some.",
    }
