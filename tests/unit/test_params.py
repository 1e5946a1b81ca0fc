"""Declared parameters: what is read, what is refused, and that a refusal can always be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.executors.base import REQUIRED, Param, check_params, item_key, shown
from nodes.protocol import FieldError

KINDS = ("string", "integer", "number", "boolean", "date", "object", "list")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        ("string", "", ""),
        ("string", "日本", "日本"),
        ("integer", 3, 3),
        ("integer", "3", 3),
        ("integer", 3.0, 3),
        ("number", "2.5", 2.5),
        ("number", 2, 2.0),
        ("boolean", True, True),
        ("boolean", "no", False),
        ("boolean", "On", True),
        ("date", "2024-02-29", "2024-02-29"),
        ("date", "20240229", "2024-02-29"),
        ("object", {"a": 1}, {"a": 1}),
        ("object", '{"a": "b"}', {"a": "b"}),
        ("list", [1, "a"], [1, "a"]),
        ("list", "a,b", ["a", "b"]),
        ("list", '["a,b"]', ["a,b"]),
    ],
)
def test_a_value_is_read_as_its_kind_also_from_text(kind, given, read):
    assert Param("p", kind).check(given) == read


@pytest.mark.parametrize(
    ("kind", "value", "allowed"),
    [
        ("string", 5, "a text"),
        ("string", "a\x00b", "a text"),
        ("string", "\ud800", "a text"),
        ("integer", 2.5, "a whole number"),
        ("integer", True, "a whole number"),
        ("integer", float("inf"), "a whole number"),
        ("integer", [1], "a whole number"),
        ("number", float("nan"), "a finite number"),
        ("number", "inf", "a finite number"),
        ("number", 10**400, "a finite number"),
        ("number", False, "a finite number"),
        ("boolean", "perhaps", "true or false"),
        ("boolean", 2, "true or false"),
        ("date", "2023-02-29", "a date like"),
        ("date", 20240101, "a date like"),
        ("date", "2024-01-01T00:00", "a date like"),
        ("object", [1], "an object"),
        ("object", "{", "an object"),
        ("object", {"a": float("nan")}, "an object"),
        ("object", {"a": "\x00"}, "an object"),
        ("list", {"a": 1}, "a list"),
        ("list", ["\udfff"], "a list"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_field_and_what_is_allowed(kind, value, allowed):
    with pytest.raises(FieldError) as refusal:
        Param("p", kind).check(value)
    assert refusal.value.field == "params.p"
    assert allowed in refusal.value.message


@given(st.sampled_from(KINDS), ANY_JSON)
def test_whatever_json_brings_is_read_or_refused_in_a_short_printable_message(kind, value):
    message = ""
    try:
        Param("p", kind, minimum=0 if kind in ("integer", "number") else None).check(value)
    except FieldError as refusal:
        message = str(refusal)
    assert message.isprintable()
    assert len(message) < 250
    message.encode()


def test_nesting_beyond_any_use_is_refused():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(FieldError, match=r"params\.p"):
        Param("p", "list").check(value)


@pytest.mark.parametrize(("value", "message"), [(-1, "below the least allowed, 0"), (11, "above the most allowed, 10")])
def test_a_number_outside_its_bounds_is_refused_with_the_bound(value, message):
    with pytest.raises(FieldError, match=message):
        Param("p", "integer", minimum=0, maximum=10).check(value)


def test_a_value_outside_the_choices_is_refused_with_all_of_them():
    with pytest.raises(FieldError, match="'c' is not one of: a, b"):
        Param("p", "string", choices=("a", "b")).check("c")


DECLARED = (Param("must", "string", help="a name"), Param("size", "integer", 7), Param("may", "string", None))


def test_defaults_are_filled_in_and_null_means_not_given():
    assert check_params(DECLARED, {"must": "x"}) == {"must": "x", "size": 7}
    assert check_params(DECLARED, {"must": "x", "size": None, "may": None}) == {"must": "x", "size": 7}
    assert check_params(DECLARED, {"must": "x", "size": "8", "may": "y"}) == {"must": "x", "size": 8, "may": "y"}


@pytest.mark.parametrize("params", [{}, {"must": None}])
def test_a_missing_parameter_is_named_with_its_help(params):
    with pytest.raises(FieldError, match=r"params\.must: is required: a name"):
        check_params(DECLARED, params)


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(FieldError, match=r"params\.sise: 'sise' is not a parameter; known are: may, must, size"):
        check_params(DECLARED, {"must": "x", "sise": 1})


@pytest.mark.parametrize("name", ["\ud800", "a\x00", "x" * 10_000, "\u202eabc"])
def test_an_unknown_parameter_with_a_hostile_name_is_refused_in_a_storable_message(name):
    with pytest.raises(FieldError) as refusal:
        check_params(DECLARED, {"must": "x", name: 1})
    assert refusal.value.field == "params"
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("params.strategy_params.fast", "params.strategy_params.fast"),
        ("items[3].params", "items[3].params"),
        ("params.space.\x1f.low", "params.space"),
        ("params.select.", "params.select"),
        (f"params.{'x' * 200}", "params"),
        ("\ud800", "body"),
        ("", ""),
    ],
)
def test_an_error_names_its_field_as_far_as_it_can_be_shown(field, shown):
    error = FieldError(field, "is wrong")
    assert error.field == error.as_dict()["field"] == shown
    assert str(error) == f"{shown}: is wrong"


@pytest.mark.parametrize("params", [[], "source=sample", 5])
def test_params_that_are_no_object_are_refused(params):
    with pytest.raises(FieldError, match=r"params: .* is not an object"):
        check_params(DECLARED, params)


def test_a_checked_set_stays_the_same_when_checked_again():
    checked = check_params(DECLARED, {"must": "x", "size": "8"})
    assert check_params(DECLARED, checked) == checked


def test_required_is_told_from_any_default():
    assert Param("p", "string").default is REQUIRED
    assert repr(REQUIRED) == "REQUIRED"


def test_a_long_value_is_shown_short():
    assert shown("x" * 10**6).startswith("'xxxx")
    assert len(shown("x" * 10**6)) == len(shown(["x" * 10**6])) == 100
    assert shown("AAPL") == "'AAPL'"


@pytest.mark.parametrize(
    ("item", "key"),
    [
        ("AAPL", "AAPL"),
        (5, "5"),
        ({"n": 1, "symbol": "AAPL"}, "AAPL"),
        ({"symbol": "AAPL", "key": "k"}, "k"),
        ({"url": "http://x"}, "http://x"),
        ({}, ""),
    ],
)
def test_an_item_is_called_by_its_text_its_key_its_symbol_or_its_first_value(item, key):
    assert item_key(item) == key
