"""Where a lake is: its catalogue in PostgreSQL, its rows as Parquet in a folder or on S3; and a DuckDB with both open.

DuckDB's extensions come from packages and are loaded from their files: nothing is fetched at run time.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dispatch.results import catalogue
from dispatch.results.base import SETTINGS, StoreBusy
from dispatch.results.reading import quoted

if TYPE_CHECKING:
    import duckdb

SCHEMA = "lake"
"""Of PostgreSQL, for DuckLake's tables, beside the control database's own."""
PREPARING = 5_206_014_001
"""The advisory lock under which one process makes the lake while others wait."""
IDLE_SECONDS = 60
"""A writer that stands still in the middle of a transaction, frozen or cut off, is rolled back by the server after so
long: its locks would keep its successor waiting."""
TARGET_MB = 256
"""What merged files grow to."""

_WRITER = {
    "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "synchronous_commit": "on",
}
_OWN = {**catalogue.TABLES, "_fence": "fenced TIMESTAMP"}


@dataclass(frozen=True)
class S3:
    """How S3 is reached. ``endpoint``: empty for Amazon's own, else like http://127.0.0.1:9000."""

    endpoint: str = ""
    region: str = "us-east-1"
    access_key: str = ""
    secret_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Place:
    """``database``: a postgresql:// address; ``path``: a folder, or s3://bucket/prefix."""

    database: str = field(repr=False)
    path: str
    s3: S3 = S3()
    schema: str = SCHEMA
    process: str = ""
    """The name of this process' connections in PostgreSQL, by which a successor ends them."""

    @property
    def folder(self) -> Path | None:
        """The folder of the rows, where they are files of this machine (or shared with it)."""
        return None if self.path.startswith("s3://") else Path(self.path).resolve()

    @property
    def root(self) -> str:
        """What the path of every file of rows begins with."""
        return f"{self.folder or self.path.rstrip('/')}/"

    def __str__(self) -> str:
        parts = urlsplit(self.database)
        return f"{self.root} (catalogue: {parts.hostname or 'local'}{parts.path}, schema {self.schema})"


def extension(name: str) -> str:
    """The file of one of DuckDB's extensions, of the package that carries it. Raises StoreBusy where there is none."""
    import duckdb

    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    for folder in (found.submodule_search_locations if found else None) or ():
        file = Path(folder) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if file.exists():
            return str(file)
    raise StoreBusy(
        f"results in a lake need DuckDB's extension {name} for version {duckdb.__version__}: "
        "pip install -r requirements-scale.txt"
    )


def connect(place: Place, memory: str, *, writing: bool) -> duckdb.DuckDBPyConnection:
    """A DuckDB with the lake as ``lake``, for reading only, and with ``writing`` as ``writing``, too. It reaches
    nothing else, and its settings stay. Raises duckdb.Error, psycopg.Error and StoreBusy.
    """
    import duckdb

    if place.folder is not None:
        place.folder.mkdir(parents=True, exist_ok=True)
    # A folder of its own: processes share data_dir, and DuckDB's names for what it puts aside are always the same.
    aside = Path(tempfile.gettempdir()) / f"cascade-lake-{os.getpid()}-{id(place):x}"
    made = duckdb.connect(config={**SETTINGS, "memory_limit": memory, "temp_directory": str(aside)})
    try:
        for name in ("postgres_scanner", "ducklake", *(() if place.folder else ("httpfs",))):
            made.execute(f"LOAD {text(extension(name))}")
        _secrets(made, place)
        _prepare(made, place)
        _attach(made, place, "lake", options="READ_ONLY", session={})
        if writing:
            _attach(made, place, "writing", options="", session=_WRITER)
        # Two leaders for a moment must not both save: whoever committed meanwhile makes the other's commit fail.
        # Left at its default, DuckLake would commit again without having looked at the ledger again.
        made.execute("SET GLOBAL ducklake_max_retry_count = 0")
        made.execute(f"SET GLOBAL allowed_directories = [{text(place.root)}]")
        made.execute("SET GLOBAL enable_external_access = false")
        made.execute("SET GLOBAL lock_configuration = true")
    except BaseException:
        made.close()
        raise
    return made


def _secrets(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Passwords are given apart from addresses, which DuckDB's errors show."""
    password = _conninfo(place).get("password")
    connection.execute(f"CREATE SECRET catalogue (TYPE postgres{f', PASSWORD {text(password)}' if password else ''})")
    if place.folder is not None:
        return
    s3, url = place.s3, urlsplit(place.s3.endpoint)
    parts = [f"SCOPE {text(place.root)}", f"REGION {text(s3.region)}"]
    if s3.access_key:
        parts += [f"KEY_ID {text(s3.access_key)}", f"SECRET {text(s3.secret_key)}"]
    if s3.endpoint:
        parts += [f"ENDPOINT {text(url.netloc)}", "URL_STYLE 'path'", f"USE_SSL {url.scheme != 'http'}"]
    connection.execute(f"CREATE SECRET rows (TYPE s3, {', '.join(parts)})")


def _prepare(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Makes the lake and its own tables where they are not yet, one process at a time."""
    import psycopg

    with psycopg.connect(place.database, autocommit=True) as control:
        if _ready(control, place):
            return
        control.execute("SELECT pg_advisory_lock(%s)", [PREPARING])  # ends with this connection
        if _ready(control, place):
            return
        control.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(place.schema)}")
        _attach(connection, place, "making", options="", session=_WRITER)
        connection.execute("USE making")
        for name, columns in _OWN.items():
            connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
        connection.execute(f"CALL making.set_option('target_file_size', '{TARGET_MB}MB')")
        connection.execute("USE memory")
        connection.execute("DETACH making")


def _ready(control: Any, place: Place) -> bool:
    table = f"{quoted(place.schema)}.ducklake_table"
    if control.execute("SELECT to_regclass(%s)", [table]).fetchone()[0] is None:
        return False
    found = control.execute(f"SELECT 1 FROM {table} WHERE table_name = '_fence' AND end_snapshot IS NULL")
    return found.fetchone() is not None


def _attach(
    connection: duckdb.DuckDBPyConnection, place: Place, name: str, *, options: str, session: dict[str, str]
) -> None:
    from psycopg.conninfo import make_conninfo

    info = {key: value for key, value in _conninfo(place).items() if key != "password"}
    if place.process:
        info["application_name"] = place.process
    if session:
        settings = [f"-c {key}={value}" for key, value in session.items()]
        info["options"] = " ".join([*filter(None, [info.get("options")]), *settings])
    told = [f"META_SCHEMA {text(place.schema)}", "META_SECRET 'catalogue'", f"DATA_PATH {text(place.root)}"]
    told += [options] if options else []
    target = text(f"ducklake:postgres:{make_conninfo('', **info)}")
    connection.execute(f"ATTACH {target} AS {name} ({', '.join(told)})")


def _conninfo(place: Place) -> dict[str, Any]:
    from psycopg.conninfo import conninfo_to_dict

    return dict(conninfo_to_dict(place.database))


def sync(file: Path) -> None:
    """Has ``file``, and that it is in its folder, survive the loss of power."""
    for path, flags in ((file, os.O_RDWR), (file.parent, os.O_RDONLY | os.O_DIRECTORY)):
        opened = os.open(path, flags)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def text(value: str) -> str:
    """A text for SQL that takes no placeholder."""
    return "'" + value.replace("'", "''") + "'"
