"""What a result database knows beside the rows: the tables of datasets, their views, and the ledger. As SQL that DuckDB
runs the same in the file of one process and in the lake of several.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dispatch.results import reading
from dispatch.results.datasets import LINEAGE, check
from dispatch.results.reading import quoted
from nodes.executors.base import Column, Dataset
from nodes.protocol import Conflict

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Entry = tuple[int, int, int, int, str, int]
"""run, start, stop, allocation, sha256, rows."""
Range = tuple[int, int, int]
"""run, start, stop."""
Known = tuple[str, list[Column], tuple[str, ...]]
"""A dataset as the database has it: its table, columns and key."""

SQL_TYPES = {
    "string": "VARCHAR",
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP",
    "json": "VARCHAR",
}
_VIEW_TYPES = {
    **dict.fromkeys(("BIGINT", "INTEGER", "HUGEINT", "UBIGINT", "UINTEGER", "SMALLINT"), "int64"),
    **dict.fromkeys(("DOUBLE", "FLOAT"), "float64"),
    "BOOLEAN": "bool",
    "TIMESTAMP": "timestamp",
    "DATE": "timestamp",
}
"""What the columns of views are, in our words; others are read as text."""

TABLES = {
    "ledger": "run BIGINT, start BIGINT, stop BIGINT, allocation BIGINT, sha256 VARCHAR, rows BIGINT, "
    "saved_at TIMESTAMP",
    "_datasets": "name VARCHAR, columns VARCHAR, key VARCHAR",
    "_views": "name VARCHAR, of VARCHAR",
}
"""The database's own tables. The file has keys on two of them; a lake has no keys."""
KEYS = {"ledger": "run, start, stop", "_views": "name"}


def rows_of(table: str) -> str:
    """The name of the table with all rows of the dataset ``table``; ``table`` itself is the view of the newest."""
    return f"{table}_rows"


def known(connection: duckdb.DuckDBPyConnection) -> list[Known]:
    found = connection.execute("SELECT name, columns, key FROM _datasets ORDER BY name").fetchall()
    return [
        (name, [Column(*column) for column in json.loads(columns)], tuple(json.loads(key)))
        for name, columns, key in found
    ]


def views(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """View -> the table it is of."""
    return dict(connection.execute("SELECT name, of FROM _views ORDER BY name").fetchall())


def described(connection: duckdb.DuckDBPyConnection, name: str) -> list[Column]:
    found = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
    return [Column(column, kind_of(kind)) for column, kind, *_ in found]


def kind_of(sql_type: str) -> str:
    """What a column of this type in SQL is, in our words."""
    return _VIEW_TYPES.get(sql_type, "string")


def declare(connection: duckdb.DuckDBPyConnection, dataset: Dataset, where: str) -> None:
    """Makes the table and the views of ``dataset``, or adds the columns that its newer version has, in the transaction
    that ``connection`` is in. ``where`` says which database this is.

    Raises FieldError for names that cannot be, Conflict where a column is there with another type.
    """
    check(dataset)
    there = next((each for each in known(connection) if each[0] == dataset.table), None)
    rows = quoted(rows_of(dataset.table))
    types = {} if there is None else {column.name: column.type for column in there[1]}
    for column in dataset.columns:
        if types.get(column.name, column.type) != column.type:
            raise Conflict(
                f"{dataset.table}.{column.name} is {types[column.name]} in {where}; "
                f"this version of the dataset has {column.type}: give it another name"
            )
    if there is None:
        columns = [f"{quoted(column.name)} {SQL_TYPES[column.type]}" for column in dataset.columns]
        columns += [f"{quoted(name)} {SQL_TYPES[kind]}" for name, kind in LINEAGE.items()]
        connection.execute(f"CREATE TABLE {rows} ({', '.join(columns)})")
    for column in dataset.columns if there else ():
        if column.name not in types:
            connection.execute(f"ALTER TABLE {rows} ADD COLUMN {quoted(column.name)} {SQL_TYPES[column.type]}")
    # Columns that only an older version had stay, with its rows.
    columns_now = [*dataset.columns, *(each for each in (there[1] if there else ()) if each.name not in dataset.names)]
    if there is None or there[1] != columns_now or there[2] != dataset.key:
        names = ", ".join(quoted(column.name) for column in columns_now)
        newest = reading.newest(dataset.table, dataset.key)
        connection.execute(f"CREATE OR REPLACE VIEW {quoted(dataset.table)} AS SELECT {names} FROM ({newest})")
        connection.execute("DELETE FROM _datasets WHERE name = ?", [dataset.table])
        shape = json.dumps([[column.name, column.type] for column in columns_now])
        connection.execute("INSERT INTO _datasets VALUES (?, ?, ?)", [dataset.table, shape, json.dumps(dataset.key)])
    _declare_views(connection, dataset)


def _declare_views(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> None:
    for name in [name for name, of in views(connection).items() if of == dataset.table]:
        connection.execute(f"DROP VIEW IF EXISTS {quoted(name)}")
    connection.execute("DELETE FROM _views WHERE of = ?", [dataset.table])
    for name, sql in dataset.views:
        told = sql.replace("{table}", quoted(dataset.table))
        connection.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS {told}")
        connection.execute("INSERT INTO _views VALUES (?, ?)", [name, dataset.table])


def ledger_table(entries: Sequence[Entry], saved_at: dt.datetime | None = None) -> pa.Table:
    """``entries`` as rows of the ledger, saved now."""
    import pyarrow as pa

    names = ["run", "start", "stop", "allocation", "sha256", "rows"]
    values = zip(names, zip(*entries, strict=True), strict=True)
    arrays = [pa.array(column, pa.string() if name == "sha256" else pa.int64()) for name, column in values]
    now = saved_at or dt.datetime.now(dt.UTC).replace(tzinfo=None)
    arrays.append(pa.repeat(pa.scalar(now, pa.timestamp("us")), len(entries)))
    return pa.table(arrays, [*names, "saved_at"])


def recorded(connection: duckdb.DuckDBPyConnection, ranges: Sequence[Range]) -> dict[Range, int]:
    """Those of ``ranges``, at least one, that the ledger has, each with the allocation that was saved."""
    import pyarrow as pa

    runs, starts, stops = zip(*ranges, strict=True)
    asked = pa.table([pa.array(values, pa.int64()) for values in (runs, starts, stops)], ["run", "start", "stop"])
    connection.register("_asked", asked)
    # The bounds say nothing new; by them a lake leaves out those of its files that cannot hold an answer.
    found = connection.execute(
        "SELECT run, start, stop, allocation FROM ledger JOIN _asked USING (run, start, stop) "
        f"WHERE run BETWEEN {min(runs):d} AND {max(runs):d} AND start BETWEEN {min(starts):d} AND {max(starts):d}"
    ).fetchall()
    connection.unregister("_asked")
    return {(run, start, stop): allocation for run, start, stop, allocation in found}
