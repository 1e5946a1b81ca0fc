"""What a statement of the SQL box reads, seen from its parse tree: which tables, of these which columns, and which rows
would do. Pure: a tree in, needs out.

``tree`` is what DuckDB's ``json_serialize_sql`` makes of a statement. A need may name more than is read, never less:
the statement is run over what was brought, with all its conditions again.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TABLE_FUNCTIONS = frozenset({"generate_series", "json_each", "json_tree", "range", "unnest"})
"""Others read files, settings and catalogues; there is nothing behind them here, and this says it clearly."""
REFUSED = frozenset({"current_setting", "getenv", "getvariable", "query", "query_table", "write_log"})
MOST_TABLES = 20
_JOINED = frozenset({"REGULAR", "CROSS"})
_KINDS = {"VARCHAR": "string", "BIGINT": "int64", "DOUBLE": "float64", "TIMESTAMP": "timestamp"}
_WHOLE = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT"})
_COMPARED = {
    "COMPARE_EQUAL": "",
    "COMPARE_LESSTHAN": "lt",
    "COMPARE_LESSTHANOREQUALTO": "lte",
    "COMPARE_GREATERTHAN": "gt",
    "COMPARE_GREATERTHANOREQUALTO": "gte",
}
_TURNED = {"": "", "lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"}

Tree = dict[str, Any]
Types = Mapping[str, Mapping[str, str]]
"""Table -> column -> type in SQL."""
Test = tuple[str, str, Any]
"""Column, operator of ``reading_filters`` ("" for equal), value; times in ISO 8601."""


class Refused(Exception):
    """The statement is none that is run here; the message says why."""


@dataclass(frozen=True)
class Need:
    """Columns of a table, of the rows that ``where`` leaves; with ``limit`` the first so many of them in ``order``."""

    table: str
    columns: tuple[str, ...]
    where: tuple[Test, ...] = ()
    order: tuple[tuple[str, bool, bool], ...] = ()
    """Column, descending, nulls first."""
    limit: int | None = None


def statement(tree: Tree) -> Tree:
    """The one SELECT that ``tree`` has. Raises Refused."""
    if tree.get("error"):
        raise Refused(str(tree.get("error_message", "it cannot be read")))
    if len(tree["statements"]) != 1:
        raise Refused(f"there are {len(tree['statements'])} statements; one SELECT is allowed")
    node: Tree = tree["statements"][0]["node"]
    return node


def tables(node: Tree) -> list[str]:
    """The tables that are read, but for names that the statement itself makes (WITH). Raises Refused."""
    made = _made(node)
    found: list[str] = []
    for each in _every(node):
        if each.get("type") == "BASE_TABLE":
            named = [each.get("catalog_name") or "", each.get("schema_name") or ""]
            if named[0] or named[1].lower() not in ("", "main"):
                raise Refused(f"{'.'.join(filter(None, named))}.{each['table_name']} is not here; name tables alone")
            found.append(each["table_name"].lower())
        elif each.get("class") == "FUNCTION" and (each.get("catalog") or each.get("schema") not in (None, "", "main")):
            raise Refused(f"{each['function_name']} is named with a schema; name functions alone")
        elif each.get("class") == "FUNCTION" and each["function_name"].lower() in REFUSED:
            raise Refused(f"the function {each['function_name']} is not for the SQL box")
        if each.get("type") == "TABLE_FUNCTION":
            name = str(each.get("function", {}).get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise Refused(
                    f"the table function {name} is not for the SQL box; there are: {', '.join(sorted(TABLE_FUNCTIONS))}"
                )
    # A name that WITH makes may hide a table, or be made of the one it hides: such a one is brought, if it is there.
    names = [name for name in dict.fromkeys(found) if name not in made] + sorted(made & set(found))
    if len(names) > MOST_TABLES:
        raise Refused(f"it reads {len(names)} tables; at most {MOST_TABLES} are allowed")
    return names


def made_here(node: Tree) -> set[str]:
    """Names that the statement makes by WITH."""
    return _made(node)


def needs(node: Tree, types: Types, rows: int) -> list[Need]:
    """What has to be brought of each table of ``types`` for the first ``rows`` rows of the answer."""
    counts = Counter(each["table_name"].lower() for each in _every(node) if each.get("type") == "BASE_TABLE")
    alone = {name for name in types if counts[name] == 1} - _made(node)
    words = {word.lower() for word in _words(node)}
    whole = _needs_all(node)
    tests: dict[str, list[Test]] = {}
    for each in _every(node):
        if each.get("type") == "SELECT_NODE":
            for name, test in _tests(each, types, alone):
                tests.setdefault(name, []).append(test)
    found = []
    for name, columns in types.items():
        used = [column for column in columns if whole or column.lower() in words]
        where = tests.get(name, [])
        first = _first(node, name, columns, where, rows) if name in alone else None
        order, limit = first if first is not None else ((), None)
        found.append(Need(name, tuple(used or [_smallest(columns)]), tuple(where), order, limit))
    return found


def _smallest(columns: Mapping[str, str]) -> str:
    return next(
        (name for name, kind in columns.items() if kind in ("BOOLEAN", "BIGINT", "DOUBLE")), next(iter(columns))
    )


def _every(tree: Any) -> Iterator[Tree]:
    """Every object in ``tree``; without recursion, which a deep statement would exhaust."""
    left = [tree]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield each
            left += each.values()
        elif isinstance(each, list):
            left += each


def _words(tree: Any) -> Iterator[str]:
    for each in _every(tree):
        for value in each.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (part for part in value if isinstance(part, str))


def _made(node: Tree) -> set[str]:
    named = {
        str(entry["key"]).lower()
        for each in _every(node)
        if isinstance(each.get("cte_map"), dict)
        for entry in each["cte_map"].get("map", [])
    }
    return named | {str(each["cte_name"]).lower() for each in _every(node) if each.get("cte_name")}


def _needs_all(node: Tree) -> bool:
    """Whether columns may be read that the statement does not name."""
    known = ("BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EMPTY", "EXPRESSION_LIST", "EMPTY_FROM")
    called: set[str] = set()
    single: set[str] = set()
    for each in _every(node):
        if each.get("class") in ("STAR", "POSITIONAL_REFERENCE") or each.get("column_name_alias"):
            return True
        if each.get("type") == "JOIN" and each.get("ref_type", "REGULAR") not in _JOINED:
            return True
        source = each.get("from_table")
        if isinstance(source, dict) and source.get("type") not in known:
            return True
        if each.get("type") in ("PIVOT", "SHOW_REF", "COLUMN_DATA", "DELIM_GET", "BOUND_TABLE_REF"):
            return True
        if each.get("type") in ("BASE_TABLE", "SUBQUERY", "JOIN"):
            called |= {str(each.get(name) or "").lower() for name in ("alias", "table_name")}
        if each.get("class") == "COLUMN_REF" and len(each["column_names"]) == 1:
            single.add(each["column_names"][0].lower())
    return bool(called & single)  # a table's name as a value is the whole row


def _leaves(source: Any) -> list[Tree]:
    if not isinstance(source, dict):
        return []
    if source.get("type") == "JOIN":
        return [*_leaves(source.get("left")), *_leaves(source.get("right"))]
    return [source]


def _tests(node: Tree, types: Types, alone: set[str]) -> Iterator[tuple[str, Test]]:
    """What WHERE of one SELECT says of single columns of tables that are read nowhere else."""
    leaves = _leaves(node.get("from_table"))
    if node.get("sample") or any(leaf.get("sample") or leaf.get("column_name_alias") for leaf in leaves):
        return
    called: dict[str, str] = {}
    for leaf in leaves:
        name = str(leaf.get("table_name") or "").lower()
        alias = str(leaf.get("alias") or name).lower()
        if alias in called:
            return
        called[alias] = name if leaf.get("type") == "BASE_TABLE" and name in alone else ""
    single = next(iter(called.values())) if len(leaves) == 1 else ""
    for part in _conjuncts(node.get("where_clause")):
        for column, operator, constant in _comparisons(part):
            names = [name.lower() for name in column["column_names"]]
            table = single if len(names) == 1 else called.get(names[0], "") if len(names) == 2 else ""
            if not table or names[-1] not in types[table]:
                continue
            value = _value(constant, types[table][names[-1]])
            if value is not None:
                yield table, (names[-1], operator, value)


def _conjuncts(where: Any) -> list[Tree]:
    if not isinstance(where, dict):
        return []
    left, found = [where], []
    while left:
        each = left.pop()
        if each.get("type") == "CONJUNCTION_AND":
            left += each["children"]
        else:
            found.append(each)
    return found


def _comparisons(part: Tree) -> Iterator[tuple[Tree, str, Any]]:
    kind = part.get("type", "")
    if kind in _COMPARED:
        left, right = part["left"], part["right"]
        if left.get("class") == "COLUMN_REF":
            yield left, _COMPARED[kind], right
        elif right.get("class") == "COLUMN_REF":
            yield right, _TURNED[_COMPARED[kind]], left
    elif kind == "COMPARE_BETWEEN" and part["input"].get("class") == "COLUMN_REF":
        yield part["input"], "gte", part["lower"]
        yield part["input"], "lte", part["upper"]
    elif kind == "COMPARE_IN" and part["children"][0].get("class") == "COLUMN_REF":
        yield part["children"][0], "in", part["children"][1:]


def _value(constant: Any, sql_type: str) -> Any:
    """The value of a constant as a column of this type compares with it; None where that is not certain."""
    if isinstance(constant, list):
        several = [_value(each, sql_type) for each in constant]
        return several if several and None not in several and len(several) <= 1000 else None
    kind = _KINDS.get(sql_type)
    if constant.get("class") == "CAST" and kind == "timestamp":
        told, moment = constant.get("cast_type", {}).get("id"), _value(constant["child"], sql_type)
        # A date leaves out the time of what it is made of.
        return moment if told == "TIMESTAMP" or (told == "DATE" and len(moment or "") == 10) else None
    if constant.get("class") != "CONSTANT" or constant["value"].get("is_null"):
        return None
    told, value = constant["value"]["type"], constant["value"].get("value")
    if kind == "string" and told["id"] == "VARCHAR":
        return value
    if kind == "timestamp" and told["id"] == "VARCHAR":
        return _moment(value)
    if kind in ("int64", "float64") and told["id"] in _WHOLE:
        return value
    if kind == "float64" and told["id"] == "DOUBLE":
        return value
    if kind == "float64" and told["id"] == "DECIMAL" and isinstance(value, int) and abs(value) < 2**53:
        return value / 10 ** told["type_info"]["scale"]
    return None


def _moment(text: Any) -> str | None:
    try:
        moment = dt.datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
    return text if moment.tzinfo is None else None


def _first(
    node: Tree, table: str, columns: Mapping[str, str], where: Sequence[Test], rows: int
) -> tuple[tuple[tuple[str, bool, bool], ...], int] | None:
    """For a statement that only chooses, orders and cuts rows of one table: how many in which order would do."""
    source = node.get("from_table") or {}
    if node.get("type") != "SELECT_NODE" or source.get("type") != "BASE_TABLE" or source["table_name"].lower() != table:
        return None
    if any(node.get(part) for part in ("group_expressions", "group_sets", "having", "qualify", "sample", "cte_map")):
        return None
    if source.get("sample") or source.get("column_name_alias") or node.get("aggregate_handling") != "STANDARD_HANDLING":
        return None
    for item in node["select_list"]:
        star = item.get("class") == "STAR" and not set(item) - {"class", "type", "query_location"}
        plain = item.get("class") in ("COLUMN_REF", "CONSTANT") and not item.get("alias")
        if not (star or plain):
            return None
    parts = _conjuncts(node.get("where_clause"))
    if len(where) != sum(2 if part.get("type") == "COMPARE_BETWEEN" else 1 for part in parts):
        return None
    order: list[tuple[str, bool, bool]] = []
    limit = rows
    for modifier in node.get("modifiers", []):
        if modifier["type"] == "LIMIT_MODIFIER":
            most, offset = (_number(modifier.get(part), none) for part, none in (("limit", rows), ("offset", 0)))
            if most is None or offset is None:
                return None
            limit = min(most, rows) + offset
        elif modifier["type"] == "ORDER_MODIFIER":
            for each in modifier["orders"]:
                names = each["expression"].get("column_names", [])
                if each["expression"].get("class") != "COLUMN_REF" or names[-1].lower() not in columns:
                    return None
                nulls = each.get("null_order", "ORDER_DEFAULT").replace("_", " ") == "NULLS FIRST"
                order.append((names[-1].lower(), each.get("type") == "DESCENDING", nulls))
        else:
            return None
    return tuple(order), limit


def _number(constant: Any, none: int) -> int | None:
    if constant is None:
        return none
    if constant.get("class") != "CONSTANT" or constant["value"].get("is_null"):
        return None
    value = constant["value"].get("value")
    return value if type(value) is int and 0 <= value < 2**53 else None
