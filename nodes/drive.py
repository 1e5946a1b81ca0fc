"""Work and results as the ``node`` dialect words them, and back. Django-free; pure but for ``write_result``.

Who drives a node uses ``execute_body`` and ``entry_of``, the node itself ``work_of`` and ``result_of``. A node of ours
understands and answers a little more than the dialect says, so that nothing is lost between two of us; what a
foreign node answers (only ``kdata`` and errors by symbol) is made into a report, too.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nodes import executors
from nodes.executors.base import Item, item_key, shown
from nodes.protocol import FieldError

Rows = list[list[Any]]
Entry = dict[str, Any]

IMPORT = "data_import"
BARS = ("symbol", "datetime", "open", "high", "low", "close", "volume", "data_source")
"""Keys of a record of ``kdata``; the dataset has ``freq`` beside them."""
LEAST_TIMEOUT = 10
SYMBOLS_LIMIT = 1_000_000
MESSAGE_LIMIT = 2_000
RESULT_LIMIT = 120 * 1024 * 1024
"""Bytes of a result; who drives a node reads it in one piece."""


def execute_body(
    task_id: str,
    type: str,
    params: Mapping[str, Any],
    items: Sequence[Item],
    *,
    priority: int = 5,
    timeout: float = 300,
) -> dict[str, Any]:
    """What ``POST task/execute`` is sent for ``items``; ``timeout`` in seconds, at least 10 on the wire."""
    data: dict[str, Any] = {"items": list(items), "params": dict(params)}
    if type == IMPORT:
        data |= _import_data(params, items)
    return {
        "task_id": task_id,
        "task_type": type,
        "task_data": data,
        "priority": min(max(int(priority), 1), 10),
        "timeout": max(math.ceil(timeout), LEAST_TIMEOUT),
    }


def work_of(task_type: str, task_data: Any) -> tuple[str, dict[str, Any], list[Item]]:
    """Type, params and items of what was sent: ours, or as the dialect words it. The params are not checked here.

    Raises FieldError for an unknown type and for what is neither.
    """
    optional = executors.get(task_type).items_optional
    if not isinstance(task_data, dict):
        raise FieldError("task_data", f"{shown(task_data)} is not an object")
    params = task_data.get("params")
    if params is not None and not isinstance(params, dict):
        raise FieldError("task_data.params", f"{shown(params)} is not an object")
    if "items" in task_data and params is not None:
        return task_type, dict(params), _items(task_data["items"], "items")
    name = "items" if "items" in task_data or optional else "symbols"
    if task_data.get(name) is None and not optional:
        raise FieldError(f"task_data.{name}", "is required: the items to work on")
    items = [] if task_data.get(name) is None else _items(task_data[name], name)
    if params is None:
        params = {key: value for key, value in task_data.items() if key != name}
    if task_type == IMPORT:
        params = _import_params(params)
    return task_type, dict(params), items


def begun(task_type: str, params: Mapping[str, Any], items: Sequence[Item]) -> list[Item]:
    """The items that work handed to a node, or shared by a bridge, has; ``params`` were checked.

    Raises FieldError for one that cannot be, and for work that only a parent can plan as it goes.
    """
    executor = executors.get(task_type)
    for at, item in enumerate(items):
        try:
            executor.check_item(item)
        except ValueError as error:
            raise FieldError(f"items[{at}]", str(error)) from None
    made = executor.begin(items, params)
    if executor.expected(made, params) not in (None, len(made)):
        raise FieldError("params", f"{task_type} as asked for is planned as it goes: give it to a parent, as a run")
    return made


def result_of(
    type: str, params: Mapping[str, Any], items: Sequence[Item], entry: Mapping[str, Any], rows: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """The ``result`` of a status answer, for a report's ``entry`` whose indexes start at 0 and its ``rows``.

    ``rows`` hold plain JSON values in the dataset's column order; for ``data_import`` they leave as ``kdata``.
    ``errors`` has one message for each item, by symbol; ``item_errors`` and ``ranges`` are as in a report.
    """
    result: dict[str, Any] = {"task_type": type}
    if entry.get("log"):
        result["log"] = entry["log"]
    if entry.get("failure"):
        return result | {"status": "failed", "failure": dict(entry["failure"])}
    ranges, errors = entry.get("ranges", []), entry.get("errors", [])
    failed = {item_key(items[index]): message for index, message, _ in errors}
    result["status"] = "failed" if errors and not ranges else "completed"
    if type == IMPORT:
        symbols = _symbols(items)
        result |= {
            "symbols_count": len(symbols),
            "imported_count": len([symbol for symbol in symbols if symbol not in failed]),
            "total_records": len(rows),
            "data_source": params.get("source", ""),
            "freq": params.get("freq", "D"),
            "first_symbol": symbols[0] if symbols else "",
            "kdata": [_record(row) for row in rows],
        }
    else:
        result |= {"items_count": len(items), "total_records": len(rows), "rows": [list(row) for row in rows]}
    return result | {
        "errors": failed,
        "item_errors": [list(each) for each in errors],
        "ranges": list(map(list, ranges)),
    }


def write_result(
    file: Path,
    type: str,
    params: Mapping[str, Any],
    items: Sequence[Item],
    entry: Mapping[str, Any],
    pieces: Iterable[Sequence[Sequence[Any]]],
) -> str:
    """``result_of`` as JSON in ``file``, its rows piece by piece, as all of them may not fit into memory as objects.

    Returns why it cannot be done, or nothing.
    """
    head = result_of(type, params, items, entry, [])
    name = "kdata" if type == IMPORT else "rows"
    del head[name]
    head["total_records"] = sum(count for _, _, count in entry.get("ranges", []))
    temp = file.with_suffix(".tmp")
    size = 0
    try:
        with open(temp, "wb") as out:
            size += out.write(_json(head)[:-1] + f',"{name}":['.encode())
            first = True
            for rows in pieces:
                if not rows:
                    continue
                text = _json([_record(row) for row in rows] if type == IMPORT else rows)[1:-1]
                size += out.write(text if first else b"," + text)
                first = False
                if size > RESULT_LIMIT:
                    return f"its rows take more than {RESULT_LIMIT} bytes as JSON: hand over fewer items at a time"
            out.write(b"]}")
        os.replace(temp, file)
    except ValueError as error:
        return f"its rows cannot be told as JSON: {error}"
    finally:
        temp.unlink(missing_ok=True)
    return ""


def entry_of(
    allocation: int,
    type: str,
    start: int,
    items: Sequence[Item],
    status: Mapping[str, Any],
    params: Mapping[str, Any] | None = None,
) -> Entry:
    """A status answer of an ended task as a report's entry (see ``nodes.protocol``) for ``items`` from ``start`` on.

    Never raises: what cannot be understood is a failure with its reason. ``params`` say what a foreign node's
    records leave out: length of a bar and source.
    """
    entry: Entry = {"allocation": allocation, "seconds": _seconds(status.get("execution_time"))}
    result = status.get("result")
    if not isinstance(result, Mapping):
        result = {}
    if isinstance(result.get("log"), str):
        entry["log"] = result["log"]
    state = status.get("status")
    if state not in ("completed", "failed") or (state == "failed" and "ranges" not in result):
        return entry | {"failure": _failure(state, status, result)}
    try:
        if "ranges" in result:
            return entry | _own(type, start, result, params or {})
        if type == IMPORT and ("kdata" in result or "errors" in result):
            return entry | _foreign(start, items, result, params or {})
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        return entry | {"failure": _error(f"the node's result cannot be read: {error}")}
    return entry | {
        "failure": _error(f"the node's result says nothing of its rows; it has: {', '.join(result) or '-'}")
    }


# Work


def _import_data(params: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """The dialect's own keys. Where every item has a range of its own, theirs together is the task's."""
    data: dict[str, Any] = {"symbols": _symbols(items), "freq": params.get("freq", "D")}
    if params.get("source") is not None:
        data["data_source"] = params["source"]
    for name, most in (("start_date", min), ("end_date", max)):
        own = [item.get(name) if isinstance(item, dict) else None for item in items]
        dates = [date or params.get(name) for date in own]
        if dates and all(isinstance(date, str) for date in dates):
            data[name] = most(dates)  # type: ignore[type-var]
    return data


def _import_params(data: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` of our executor; what neither it nor the source knows is left out, as the dialect ignores it."""
    from nodes import providers
    from nodes.executors.data_import import DataImport

    source = data.get("source") if data.get("data_source") is None else data["data_source"]
    if source is None:
        raise FieldError("task_data.data_source", f"is required; there are: {', '.join(sorted(providers.PROVIDERS))}")
    if not isinstance(source, str) or source not in providers.PROVIDERS:
        raise FieldError(
            "task_data.data_source", f"{shown(source)} is not one of: {', '.join(sorted(providers.PROVIDERS))}"
        )
    known = {param.name for param in (*DataImport.params, *providers.get(source).params)} - {"source"}
    given = {name: value for name, value in data.items() if name in known and value not in (None, "")}
    return {"source": source, **given}


def _items(value: Any, name: str) -> list[Item]:
    if isinstance(value, str):
        value = [each.strip() for each in value.split(",")]
    if not isinstance(value, list) or not value:
        raise FieldError(f"task_data.{name}", f"{shown(value)} is not a list with at least one entry")
    if len(value) > SYMBOLS_LIMIT:
        raise FieldError(f"task_data.{name}", f"has {len(value)} entries; at most {SYMBOLS_LIMIT} are allowed")
    for at, each in enumerate(value):
        if isinstance(each, bool) or not isinstance(each, str | int | float | dict):
            raise FieldError(f"task_data.{name}[{at}]", f"{shown(each)} is not a text, a number or an object")
    return list(value)


def _symbols(items: Iterable[Item]) -> list[str]:
    return list(dict.fromkeys(item_key(item) for item in items))


# Results


def _record(row: Sequence[Any]) -> dict[str, Any]:
    symbol, time, _freq, *rest = row
    return dict(zip(BARS, (symbol, time, *rest), strict=True))


def _own(type: str, start: int, result: Mapping[str, Any], params: Mapping[str, Any]) -> Entry:
    ranges = [[start + first, start + last, count] for first, last, count in result["ranges"]]
    errors = [[start + index, message, retry] for index, message, retry in result.get("item_errors", [])]
    rows = [_row(record, result, params) for record in result["kdata"]] if type == IMPORT else result["rows"]
    return {"ranges": ranges, "errors": errors} | ({"rows": rows} if rows else {})


def _foreign(start: int, items: Sequence[Item], result: Mapping[str, Any], params: Mapping[str, Any]) -> Entry:
    """A node that knows only ``kdata`` and errors by symbol: each item gets the records of its symbol and its range.

    A symbol without either counts as done only where the node says that it imported all of them.
    """
    by_symbol: dict[str, Rows] = {}
    wrong = _messages(result.get("errors") or result.get("failed_symbols"))
    for record in result.get("kdata") or []:
        symbol = str(record["symbol"])
        try:
            by_symbol.setdefault(symbol, []).append(_row(record, result, params))
        except (TypeError, ValueError, KeyError) as error:
            wrong[symbol] = f"a record cannot be read: {error}"
    whole = result.get("imported_count", -1) == result.get("symbols_count")
    ranges: list[list[int]] = []
    errors: list[list[Any]] = []
    rows: Rows = []
    for index, item in enumerate(items, start):
        symbol = item_key(item)
        if symbol in wrong or (symbol not in by_symbol and not whole):
            message = wrong.get(symbol, f"{symbol}: the node brought neither rows nor an error")
            errors.append([index, message[:MESSAGE_LIMIT], True])
            continue
        own = _within(by_symbol.get(symbol, []), item)
        rows += own
        if ranges and ranges[-1][1] == index:
            ranges[-1][1:] = [index + 1, ranges[-1][2] + len(own)]
        else:
            ranges.append([index, index + 1, len(own)])
    return {"ranges": ranges, "errors": errors} | ({"rows": rows} if rows else {})


def _row(record: Mapping[str, Any], result: Mapping[str, Any], params: Mapping[str, Any]) -> list[Any]:
    """A record of ``kdata`` as a row of the dataset. Raises KeyError, TypeError, ValueError."""
    time = record["datetime"]
    if not isinstance(time, str):
        raise ValueError(f"datetime {shown(time)} is not a text")
    moment = dt.datetime.fromisoformat(time)
    if moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
    freq = record.get("freq") or result.get("freq") or params.get("freq") or "D"
    source = record.get("data_source") or result.get("data_source") or params.get("source") or ""
    prices = [record.get(name) for name in ("open", "high", "low", "close", "volume")]
    return [str(record["symbol"]), moment.isoformat(), freq, *prices, source]


def _within(rows: Rows, item: Item) -> Rows:
    if not isinstance(item, dict):
        return rows
    first, last = item.get("start_date") or "", item.get("end_date") or "9999-12-31"
    return [row for row in rows if str(first) <= row[1][:10] <= str(last)]


def _messages(errors: Any) -> dict[str, str]:
    """Message by symbol, from an object, a list of objects, or a list of symbols."""
    if isinstance(errors, Mapping):
        return {str(symbol): str(message) for symbol, message in errors.items()}
    found: dict[str, str] = {}
    for each in errors if isinstance(errors, list) else ():
        if isinstance(each, Mapping) and "symbol" in each:
            found[str(each["symbol"])] = str(each.get("error") or each.get("message") or "failed")
        elif isinstance(each, str):
            found[each] = f"{each}: failed on the node"
    return found


def _failure(state: Any, status: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    own = result.get("failure")
    if isinstance(own, Mapping) and own.get("kind") in ("crash", "timeout", "error"):
        return {"kind": own["kind"], "message": str(own.get("message", ""))[:MESSAGE_LIMIT]}
    if state == "failed":
        return _error(str(status.get("error") or "the node says that it failed, not why"))
    return _error("cancelled on the node" if state == "cancelled" else f"the node says {shown(state)} of its state")


def _error(message: str) -> dict[str, str]:
    return {"kind": "error", "message": message[:MESSAGE_LIMIT]}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return 0.0
    return float(value)
