"""Moving a parent from its own files, SQLite and DuckDB, into PostgreSQL and a lake: with everything that it knows.

Nothing of the source is changed, and the target counts as moved to with one commit, the control database's, which comes
last. Whatever happens before that, the same command may be given again.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.core.management.color import no_style
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from cascade import reach
from cascade.config import Config
from cascade.settings import _postgresql
from dispatch.results import opening
from dispatch.results.lake import LakeStore
from dispatch.results.store import ResultStore
from nodes import executors, failpoints
from nodes.protocol import Conflict

TARGET = "target"
LIVED_IN = ("nodes.Node", "dispatch.Task", "dispatch.Run", "auth.User")
"""A database with any of these is a parent's already."""
CHUNK = 2000

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Moved:
    """``records``: table of the control database -> how many; ``rows``: the same of the result database."""

    to: Config
    records: dict[str, int]
    rows: dict[str, int]


def move(to: Config, tell: Tell) -> Moved:
    """Copies the parent of these settings to that of ``to``: PostgreSQL, lake, and data_dir if it is another one.

    Raises Conflict where that cannot be, StoreBusy while a server runs.
    """
    here: Config = settings.CASCADE
    if here.database_url:
        return _move_rows(here, to, tell)
    if (url := reach.server()) is not None:
        raise Conflict(f"a server runs on {here.data_dir}, at {url}: stop it first")
    source = ResultStore(here.results, memory=here.duckdb_memory)
    # The file is ours until the end, so that no server starts meanwhile; and SQLite's write lock keeps out commands.
    with source, transaction.atomic():
        target = _open(to.database_url)
        try:
            _refuse_inhabited(target)
            tell("making the tables")
            call_command("migrate", database=TARGET, verbosity=0, interactive=False)
            # Rows first: the lake has its own connections, which must not wait for locks of the transaction below.
            rows = _copy_rows(source, to, tell)
            _copy_files(here, to, tell)
            failpoints.reach("move.rows")
            with transaction.atomic(using=TARGET):
                records = _copy_records(target, tell)
        finally:
            target.close()
            del connections[TARGET]
    _mark(here, to)
    return Moved(to, records, rows)


def _move_rows(here: Config, to: Config, tell: Tell) -> Moved:
    """Of a parent that is on PostgreSQL already and has kept its rows in a file."""
    if to.database_url != here.database_url:
        raise Conflict("this parent is on PostgreSQL already; from one PostgreSQL to another its own tools bring it")
    if not here.results.exists():
        raise Conflict(f"this parent is on PostgreSQL already, and there is no {here.results} to bring over")
    with LakeStore(opening.place(to), memory=to.duckdb_memory) as lake:
        if lake.tables():
            raise Conflict(f"{lake.where} has rows already")
    with ResultStore(here.results, memory=here.duckdb_memory) as source:
        rows = _copy_rows(source, to, tell)
    _mark(here, to)
    return Moved(to, {}, rows)


def shown(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":…@") if parts.password else url


def _open(url: str) -> BaseDatabaseWrapper:
    made = connections.configure_settings({"default": connections.settings["default"], TARGET: _postgresql(url)})
    connections.settings[TARGET] = made[TARGET]
    return connections[TARGET]


def _refuse_inhabited(target: BaseDatabaseWrapper) -> None:
    there = set(target.introspection.table_names())
    for name in LIVED_IN:
        model = apps.get_model(name)
        if model._meta.db_table in there and model._base_manager.using(TARGET).exists():
            raise Conflict(
                f"that database is a parent's already: {model._meta.db_table} has records; take an empty one"
            )
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE 'cascade %%' AND application_name <> %s LIMIT 1",
            [settings.PROCESS],
        )
        if found := cursor.fetchone():
            raise Conflict(f"a server runs on that database: {found[0]}; stop it first")


def _copy_records(target: BaseDatabaseWrapper, tell: Tell) -> dict[str, int]:
    """All tables of all applications, in the transaction on the target that is under way."""
    models = [model for model in apps.get_models(include_auto_created=True) if model._meta.managed]
    models = [model for model in models if not model._meta.proxy]
    tables = ", ".join(target.ops.quote_name(model._meta.db_table) for model in models)
    counts: dict[str, int] = {}
    with target.cursor() as cursor:
        # What making the tables has put there, such as the kinds of content, has numbers of its own.
        cursor.execute(f"TRUNCATE {tables}")
        for model in models:
            counts[model._meta.db_table] = _copy_model(model, target, cursor)
        for sql in target.ops.sequence_reset_sql(no_style(), models):
            cursor.execute(sql)
    for model in models:
        there = model._base_manager.using(TARGET).count()
        if there != counts[model._meta.db_table] or there != model._base_manager.count():
            raise Conflict(f"{model._meta.db_table}: {there} of {counts[model._meta.db_table]} records came over")
    tell(f"copied {sum(counts.values())} records of {len(models)} tables")
    return counts


def _copy_model(model: type[Model], target: BaseDatabaseWrapper, cursor: Any) -> int:
    fields = [field for field in model._meta.local_concrete_fields if not field.generated]
    names = ", ".join(target.ops.quote_name(str(field.column)) for field in fields)
    values = model._base_manager.order_by("pk").values_list(*(field.attname for field in fields))
    count = 0
    with cursor.copy(f"COPY {target.ops.quote_name(model._meta.db_table)} ({names}) FROM STDIN") as out:
        for record in values.iterator(chunk_size=CHUNK):
            out.write_row(_prepared(fields, record, target))
            count += 1
    return count


def _prepared(fields: Sequence[Any], record: Sequence[Any], target: BaseDatabaseWrapper) -> list[Any]:
    # As they are: what a field would set by itself on saving, such as the time of a change, has been set already.
    return [
        None if value is None else field.get_db_prep_save(value, target)
        for field, value in zip(fields, record, strict=True)
    ]


def _copy_rows(source: ResultStore, to: Config, tell: Tell) -> dict[str, int]:
    from dispatch.results.lake_copying import copy

    views = {dataset.table: dataset for dataset in (executors.get(name).dataset for name in executors.names())}
    with LakeStore(opening.place(to), memory=to.duckdb_memory) as lake:
        rows = copy(source, lake, views)
    tell(f"copied {sum(rows.values())} rows of {len(rows)} result tables to {lake.place.root}")
    return rows


def _copy_files(here: Config, to: Config, tell: Tell) -> None:
    """Segments that are not saved yet, and the key that signs sessions."""
    if to.data_dir == here.data_dir:
        return
    to.data_dir.mkdir(parents=True, exist_ok=True)
    if here.spool.exists():
        shutil.copytree(here.spool, to.spool, dirs_exist_ok=True)
    key = here.data_dir / "secret_key"
    if key.exists():
        shutil.copy2(key, to.data_dir / key.name)
    tell(f"copied the spool and the secret key to {to.data_dir}")


def _mark(here: Config, to: Config) -> None:
    """By which a server that is started on the old files all the same says where its parent is now."""
    about = {"to": shown(to.database_url), "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
    here.moved.write_text(json.dumps(about, indent=1) + "\n")
