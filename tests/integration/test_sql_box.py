"""The SQL box: what it answers, over a file and over a lake, and what nobody gets out of it."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from django.contrib.auth.models import User
from django.test import Client

from dispatch.results import sql
from dispatch.results.base import Store
from dispatch.results.formats import plain
from nodes.executors.base import Column, Dataset
from tests.integration.lakes import emptied, server, shared
from tests.integration.native import Api
from tests.integration.test_table_pages import POINTS, huge, limit, points, save, store

__all__ = ["emptied", "huge", "points", "server", "shared", "store"]

IN_FILE = pytest.mark.parametrize("store", ["file"], indirect=True)
"""Where a lake makes no difference."""

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _patient(settings: Any) -> None:
    """Machines that run tests are slow at times; who waits for the limit sets it."""
    limit(settings, sql_seconds=30)


@pytest.fixture(autouse=True, scope="module")
def _no_process_stays() -> Iterator[None]:
    yield
    for _ in range(sql.PROCESSES):
        if (process := sql._free.get_nowait()) is not None:
            process.close()
        sql._free.put(None)


def answer(api: Api, query: str, **more: Any) -> dict[str, Any]:
    told = api.post("sql", {"query": query, **more})
    assert told.status == 200, told.body
    body: dict[str, Any] = told.body
    return body


def refused(api: Api, query: str, **more: Any) -> str:
    told = api.post("sql", {"query": query, **more})
    assert told.status in (400, 422), told.body
    assert told.body["field"] == "query"
    return str(told.body["detail"])


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "dispatch.results.sql_process" in " ".join(_argv(each))]


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []  # it has ended, and may be waited for yet


# What it is for

MEANT = [
    "SELECT name, count(*) AS n, round(avg(x), 6) AS mean FROM points GROUP BY name ORDER BY name",
    "SELECT * FROM points WHERE name = 'p1' ORDER BY day DESC LIMIT 3",
    "SELECT * FROM points WHERE x > 0.5 AND n IN (1, 3) ORDER BY ALL",
    "SELECT day FROM points WHERE day BETWEEN DATE '2024-01-03' AND '2024-01-05' ORDER BY day, name OFFSET 2",
    "SELECT a.name, b.x FROM points a LEFT JOIN points b ON a.name = b.name AND b.x > 1 WHERE a.n = 2 ORDER BY ALL",
    "SELECT p.name, l.text FROM points AS p JOIN loose AS l ON p.n = l.n WHERE l.n = 2 AND p.name = 'p2' ORDER BY ALL",
    "SELECT count(*) FROM points",
    "SELECT count(*), max(_saved_at) FROM points_rows WHERE _run = 2",
    "SELECT tag, count(*) FROM points_tags WHERE tag <> 'odd' GROUP BY ALL ORDER BY ALL",
    "WITH points AS (SELECT * FROM points WHERE n = 1) SELECT name, x FROM points ORDER BY ALL",
    "WITH few AS (SELECT name, x FROM points WHERE good) SELECT * FROM few a NATURAL JOIN few b ORDER BY ALL",
    "SELECT name FROM points WHERE n = (SELECT max(n) FROM points WHERE name = 'p2') ORDER BY ALL",
    "SELECT name, x FROM points p WHERE EXISTS (SELECT 1 FROM loose WHERE loose.n = p.n) ORDER BY ALL",
    "PIVOT points ON name IN ('p0', 'p1') USING count(*) GROUP BY good ORDER BY good",
    "SELECT name, row_number() OVER (PARTITION BY name ORDER BY day) AS r FROM points QUALIFY r = 2 ORDER BY name",
    "SELECT x AS n FROM points WHERE n = 3 ORDER BY n, x",
    "SELECT k.b FROM points AS k(a, b) WHERE a = 'p1' ORDER BY ALL LIMIT 4",
    "SELECT p.n FROM points p WHERE name = 'p1' UNION ALL SELECT n FROM loose ORDER BY ALL",
    "SELECT points.more ->> 0 AS first, count(*) FROM points GROUP BY ALL ORDER BY ALL",
    "FROM points SELECT max(day) AS span, list(DISTINCT name ORDER BY name) AS names",
    "SELECT name FROM points GROUP BY name HAVING count(*) > 12 ORDER BY 1",
    "SELECT 'p1' AS name, name AS other FROM points WHERE name = 'p0' LIMIT 2",
    "SELECT DISTINCT good FROM points ORDER BY good LIMIT 1",
    "SELECT #1, #3 FROM points ORDER BY ALL LIMIT 3",
    "SELECT [1, 2] AS l, name FROM points WHERE name = 'p0' LIMIT 1",
    "SELECT points FROM points WHERE name = 'p2' ORDER BY day LIMIT 1 -- a comment;",
]


def test_the_answer_is_what_the_database_itself_would_say(points: Store, api: Api) -> None:
    for query in MEANT:
        with points.reader() as connection:
            expected = connection.execute(query).to_arrow_reader(1000).read_all()
        assert expected.num_rows
        content = api.post("sql", {"query": query, "format": "parquet"}).response.content
        found = pyarrow.parquet.read_table(pa.BufferReader(content))
        assert found.column_names == expected.column_names, query
        assert found.to_pylist() == expected.to_pylist(), query


@IN_FILE
def test_whatever_is_left_out_before_a_statement_runs_changes_no_answer(points: Store, api: Api) -> None:
    """Statements made by chance, from parts that say something of what has to be read, or seem to."""
    chance = random.Random(7)
    conditions = [
        *(
            "name = 'p1'",
            "'p1' < name",
            "p.name IN ('p0', 'p2')",
            "x > 0.5",
            "x >= 1",
            "p.x = 9.5",
            "n <= 3",
            "NOT n = 2",
        ),
        *("NOT n = 2", "n = 2.0", "n BETWEEN 1 AND 4", "x IS NULL", "day >= '2024-01-05'"),
        *("day < DATE '2024-01-09 15:00'", "good"),
        *("(n = 1 OR x = 1)", "day BETWEEN '2024-01-02' AND TIMESTAMP '2024-01-08 00:00:00'", "n IN (1, 2.5)"),
        *("n IN (SELECT n FROM loose)", "name > 'p0' COLLATE NOCASE", "more LIKE '%even%'", "n = x", "NULL"),
    ]
    chosen = [
        "*",
        "name, n",
        "x AS n, n AS x",
        "name AS day, n",
        "p.*",
        "n + 1 AS m",
        "count(*) AS c, max(x) AS m",
        "1 AS a",
    ]
    sources = ["points p", "points AS p", "(SELECT * FROM points) AS p", "points p TABLESAMPLE 100%"]
    sources += ["points p LEFT JOIN loose ON loose.n = p.n", "loose FULL JOIN points p USING (n)"]
    orders = ["", "ORDER BY ALL", "ORDER BY 1", "ORDER BY n DESC, day", "ORDER BY x NULLS FIRST"]
    ran = 0
    for _ in range(90):
        where = " AND ".join(chance.sample(conditions, chance.randint(0, 3)))
        query = f"SELECT {chance.choice(['', 'DISTINCT '])}{chance.choice(chosen)} FROM {chance.choice(sources)}"
        query += f" WHERE {where}" if where else ""
        query += f" {chance.choice(orders)}"
        # Which of equal rows come first is nobody's promise: with LIMIT their number is compared.
        limited = f"{query} LIMIT {chance.randint(0, 9)} OFFSET {chance.randint(0, 3)}"
        with points.reader() as connection:
            try:
                expected = connection.execute(query).fetchall()
                some = connection.execute(limited).fetchall()
            except duckdb.Error:
                assert api.post("sql", {"query": query}).status in (400, 422), query
                continue
        told = answer(api, query)
        found = [tuple(row) for row in told["rows"]]
        wanted = [tuple(plain(value) for value in row) for row in expected]
        assert sorted(map(repr, found)) == sorted(map(repr, wanted)), query
        part = [tuple(row) for row in answer(api, limited)["rows"]]
        assert len(part) == len(some), limited
        assert not Counter(map(repr, part)) - Counter(map(repr, wanted)), limited
        ran += 1
    assert ran > 45


@IN_FILE
def test_rows_come_with_their_columns_and_say_when_there_were_more(points: Store, api: Api) -> None:
    told = answer(api, "SELECT name, x FROM points ORDER BY day, name", limit=2)
    assert [each["name"] for each in told["columns"]] == ["name", "x"]
    assert told["rows"] == [["p0", 9.5], ["p1", 9.5]]
    assert told["truncated"]
    assert told["took"] > 0
    assert not answer(api, "SELECT name FROM points LIMIT 2", limit=2)["truncated"]
    odd = "SELECT 1.5, 'nan'::DOUBLE, [1, NULL], {'a': DATE '2020-01-01'}, now() IS NULL"
    odd += ", 2::HUGEINT ** 3, 'x'::BLOB, INTERVAL 3 DAY, TIMESTAMPTZ '2024-01-01 00:00:00+02'"
    assert answer(api, odd)["rows"] == [
        [1.5, None, [1, None], {"a": "2020-01-01"}, False, 8, "78", "P0M3DT0S", "2023-12-31T22:00:00+00:00"]
    ]


@IN_FILE
def test_each_file_has_the_rows_and_says_whether_it_has_all(points: Store, api: Api) -> None:
    query = "SELECT name, day, [n] AS several FROM points ORDER BY day, name"
    files = {
        format: api.post("sql", {"query": query, "format": format, "limit": 30}).response
        for format in ("csv", "json", "jsonl", "arrow", "parquet")
    }
    assert api.post("sql", {"query": "SELECT INTERVAL 3 DAY", "format": "parquet"}).status == 200
    for response in files.values():
        assert (response["Cascade-Rows"], response["Cascade-Truncated"]) == ("30", "true")
        assert "attachment" in response["Content-Disposition"]
    names = [row["name"] for row in json.loads(files["json"].content)]
    assert names[:4] == ["p0", "p1", "p2", "p0"]
    assert [row["name"] for row in csv.DictReader(io.StringIO(files["csv"].content.decode()))] == names
    assert [json.loads(line)["name"] for line in files["jsonl"].content.splitlines()] == names
    assert pyarrow.ipc.open_stream(files["arrow"].content).read_all()["name"].to_pylist() == names
    assert pyarrow.parquet.read_table(pa.BufferReader(files["parquet"].content))["name"].to_pylist() == names


@IN_FILE
def test_the_statement_of_a_page_gives_the_rows_of_the_page(points: Store, api: Api) -> None:
    for query in (
        "x__gte=0.5&ordering=-x&name__contains=P",
        "n__in=1,2&day__gte=2024-01-03&columns=name,n",
        "run=1&x__lt=9&ordering=day",
        "raw=true&n__isnull=true",
        "name__ne=it's&good=true",
    ):
        page = api.get(f"tables/points/page?{query}&limit=50").body
        told = answer(api, page["sql"])
        assert [each["name"] for each in told["columns"]] == page["columns"]
        assert sorted(map(repr, told["rows"])) == sorted(map(repr, page["rows"])), page["sql"]


@IN_FILE
def test_the_tables_it_may_read_are_told(points: Store, api: Api) -> None:
    told = {each["name"]: each["columns"] for each in api.get("sql/tables").body}
    assert list(told) == ["loose", "points", "points_tags", "loose_rows", "points_rows"]
    assert {"name": "day", "type": "TIMESTAMP"} in told["points"]


# Who may, and what is no question


@IN_FILE
def test_it_is_for_staff_and_not_for_other_sites(points: Store, client: Client, admin_user: User) -> None:
    assert Api(client).post("sql", {"query": "SELECT 1"}).status == 401
    user = User.objects.create_user("nobody", password="x")
    client.force_login(user)
    assert Api(client).post("sql", {"query": "SELECT 1"}).status == 403
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert Api(strict).post("sql", {"query": "SELECT 1"}).status == 403


@IN_FILE
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": 5}, "query"),
        ({"query": "  "}, "query"),
        ({"query": "SELECT '\x00'"}, "query"),
        ({"query": "SELECT 1", "limit": 0}, "limit"),
        ({"query": "SELECT 1", "limit": 1001}, "limit"),
        ({"query": "SELECT 1", "limit": True}, "limit"),
        ({"query": "SELECT 1", "format": "xlsx"}, "format"),
        ({"query": "SELECT 1", "qery": "x"}, "qery"),
        ({"query": "SELECT " + " " * 100_000 + "1"}, "query"),
        ([1], "body"),
    ],
)
def test_what_is_no_question_is_refused_naming_the_field(points: Store, api: Api, body: Any, field: str) -> None:
    told = api.post("sql", body)
    assert (told.status, told.body["field"]) == (400, field), told.body


@IN_FILE
def test_a_mistake_is_told_in_the_databases_words_with_the_columns_there_are(points: Store, api: Api) -> None:
    assert "name" in refused(api, "SELECT nam FROM points")
    assert "points, points_tags" in refused(api, "SELECT * FROM point")
    assert "syntax error" in refused(api, "SELEC 1")
    assert "Conversion" in refused(api, "SELECT CAST(name AS INTEGER) FROM points")


# What nobody gets out of it

OUTSIDE = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM read_json('http://127.0.0.1:1/')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'results.parquet'",
    "FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('x.parquet')",
    "SELECT getenv('PATH')",
    "SELECT current_setting('home_directory')",
    "FROM duckdb_settings()",
    "FROM duckdb_secrets()",
    "FROM duckdb_databases()",
    "FROM duckdb_extensions()",
    "FROM which_secret('s3://x', 's3')",
    "FROM pragma_database_list()",
    "FROM pragma_table_info('points')",
    "FROM query('SELECT 1')",
    "FROM query_table('points')",
    "FROM postgres_query('lake', 'SELECT * FROM auth_user')",
    "FROM postgres_scan('host=127.0.0.1', 'public', 'auth_user')",
    "FROM postgres_execute('lake', 'DROP TABLE auth_user')",
    "FROM ducklake_snapshots('lake')",
    "FROM ducklake_list_files('lake', 'points_rows')",
    "FROM lake.main.points",
    "FROM __ducklake_metadata_lake.lake.ducklake_table",
    "FROM information_schema.tables",
    "FROM pg_catalog.pg_tables",
    "FROM sqlite_master",
    "FROM duckdb_tables",
    "FROM ledger",
    "FROM _datasets",
    "FROM _views",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT 1 WHERE EXISTS (FROM read_text('/etc/passwd'))",
    "WITH x AS (FROM read_text('/etc/passwd')) FROM x",
    "SELECT 1 UNION ALL SELECT content FROM read_text('/etc/passwd')",
    "SELECT * FROM points, LATERAL (SELECT * FROM read_text(name))",
    "SELECT system.main.getenv('PATH')",
    "FROM store",
    "FROM connection",
]
OTHERS = [
    "ATTACH '/tmp/x.db'",
    "ATTACH 'postgres:host=127.0.0.1'",
    "COPY points TO '/tmp/x.csv'",
    "COPY (SELECT 1) TO '/tmp/x.csv'",
    "EXPORT DATABASE '/tmp/x'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "RESET ALL",
    "PRAGMA enable_external_access",
    "CALL duckdb_settings()",
    "CREATE TABLE t AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET (TYPE s3)",
    "INSERT INTO points VALUES (1)",
    "UPDATE points SET x = 1",
    "DELETE FROM points",
    "DROP TABLE points",
    "TRUNCATE points_rows",
    "BEGIN",
    "CHECKPOINT",
    "USE memory",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE points",
    "SELECT 1; ATTACH '/tmp/x.db'; SELECT 2",
    "SELECT ?",
    "SELECT $1",
    "-- only a comment",
    ";",
]


def test_nothing_outside_is_read_and_nothing_else_than_one_select_is_run(points: Store, api: Api) -> None:
    for query in [*OUTSIDE, *OTHERS]:
        told = api.post("sql", {"query": query})
        assert told.status in (400, 422), (query, told.body)
        assert "root:" not in json.dumps(told.body)
        assert "password" not in json.dumps(told.body)
    assert answer(api, "SELECT count(*) FROM points_rows")["rows"] == [[39]]
    assert not Path("/tmp/x.csv").exists()


def test_the_process_could_not_do_it_if_it_were_asked(points: Store, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tree is looked at for is told clearly; what keeps it in is the process."""
    answer(api, "SELECT 1")
    (process,) = children()
    assert len(process.open_files()) == 0
    assert not process.net_connections()
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    for line in (
        "Max open files            0                    0",
        "Max file size             0                    0",
    ):
        assert line in limits
    environ = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert {name.partition(b"=")[0].decode() for name in environ.split(b"\0") if name} <= {*sql._PASSED_ON, "LC_CTYPE"}
    mapped = {each.path for each in process.memory_maps()}
    assert not any("postgres_scanner" in path or "ducklake" in path or "httpfs" in path for path in mapped)


@IN_FILE
@pytest.mark.parametrize(
    "query",
    [
        "WITH RECURSIVE t AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM t) SELECT count(*) FROM t",
        "SELECT count(*) FROM range(10000000) a, range(10000000) b",
        "SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))",  # one call that no interrupt ends
        "SELECT sum(a.x * b.x * c.x * d.x * e.x * f.x) FROM points a, points b, points c, points d, points e, points f",
    ],
)
def test_what_takes_too_long_is_ended_names_the_setting_and_leaves_nothing_running(
    points: Store, api: Api, settings: Any, query: str
) -> None:
    answer(api, "SELECT 1")
    limit(settings, sql_seconds=0.3)
    assert "sql_seconds" in refused(api, query)
    assert not children()
    assert not points._reading
    limit(settings, sql_seconds=30)
    assert answer(api, "SELECT 1")["rows"] == [[1]]


@IN_FILE
def test_reading_that_takes_too_long_is_ended_in_this_process_too(huge: Store, api: Api, settings: Any) -> None:
    answer(api, "SELECT 1")
    limit(settings, sql_seconds=0.05)
    query = "SELECT * FROM points a JOIN points b USING (more) ORDER BY ALL"
    assert "sql_seconds" in refused(api, query)
    assert not huge._reading
    assert not children()
    # The store goes on: a statement that was ended here has no say in what is saved.
    save(huge, POINTS, 9, [["new", "2024-05-05T00:00:00", 1.0, 1, True, "[]"]], allocation=9)
    limit(settings, sql_seconds=30)
    assert answer(api, "SELECT x FROM points WHERE name = 'new'")["rows"] == [[1.0]]


@IN_FILE
@pytest.mark.parametrize(
    "query",
    [
        "SELECT length(repeat('x', 3000000000))",
        "SELECT length(repeat('x', 300000000) || repeat('y', 300000000))",
        "SELECT list(range) FROM range(200000000)",
        "SELECT string_agg(repeat('x', 10000), '') FROM range(100000)",
        "SELECT count(*) FROM (SELECT DISTINCT md5(range::VARCHAR) FROM range(100000000))",
        "SELECT repeat('x', 100000) FROM range(1000)",
        "SELECT * FROM range(5000000) a JOIN range(5000000) b USING (range) ORDER BY hash(range)",
    ],
)
def test_what_takes_too_much_memory_fails_alone(points: Store, api: Api, settings: Any, query: str) -> None:
    limit(settings, sql_megabytes=64)
    before = psutil.Process().memory_info().rss
    detail = refused(api, query)
    assert "sql_megabytes" in detail or "64 MB" in detail, detail
    assert psutil.Process().memory_info().rss - before < 200 * 1024 * 1024
    assert answer(api, "SELECT count(*) FROM points")["rows"] == [[37]]


@IN_FILE
def test_rows_that_do_not_fit_are_an_error_not_half_an_answer(huge: Store, api: Api, settings: Any) -> None:
    limit(settings, sql_megabytes=1)
    assert "sql_megabytes" in refused(api, "SELECT count(*) FROM (SELECT DISTINCT * FROM points_rows)")


@IN_FILE
@pytest.mark.parametrize(
    "query",
    [
        "SELECT " + "(" * 30_000 + "1" + ")" * 30_000,
        "SELECT " + "-" * 1 + "(- " * 20_000 + "1" + ")" * 20_000,
        "SELECT " + "(SELECT " * 5_000 + "1" + ")" * 5_000,
        "SELECT " + "[" * 20_000 + "1" + "]" * 20_000,
        "SELECT " + " AND ".join(["true"] * 10_000),
        "SELECT * FROM " + "(SELECT * FROM " * 3_000 + "points" + ")" * 3_000,
        "SELECT '" + "[" * 90_000 + "'::JSON",
        "SELECT 1 " + "UNION ALL SELECT 1 " * 4_000,
        "WITH t0 AS (FROM points), "
        + ", ".join(f"t{n} AS (SELECT * FROM t{n - 1} a, t{n - 1} b)" for n in range(1, 40))
        + " SELECT count(*) FROM t39",
    ],
)  # fmt: skip
def test_deep_and_wide_statements_cost_at_most_their_process(
    points: Store, api: Api, settings: Any, query: str
) -> None:
    limit(settings, sql_seconds=5)
    told = api.post("sql", {"query": query[: sql.QUERY_LENGTH]})
    assert told.status in (200, 400, 422), told.body
    limit(settings, sql_seconds=30)
    assert answer(api, "SELECT count(*) FROM points")["rows"] == [[37]]


# Beside the saver


def test_a_statement_sees_whole_batches_only_and_one_state_of_all_tables(points: Store, api: Api) -> None:
    """Each append adds a row to both tables, so that in any state their numbers differ by the same."""
    done = threading.Event()
    failed: list[BaseException] = []
    other = Dataset("others", POINTS.columns, POINTS.key)
    save(points, other, 50, [["a", "2024-01-01T00:00:00", 1.0, 1, True, "[]"]], allocation=50)

    def append() -> None:
        from dispatch.results import datasets
        from dispatch.results.base import Part
        from tests.integration.test_table_pages import SAVED

        try:
            for number in range(100, 112):
                row = [[f"n{number}", "2024-01-01T00:00:00", 1.0, 1, True, "[]"]]
                lined = [
                    datasets.with_lineage(
                        datasets.from_rows(each, row), run=number, start=0, allocation=1, node="n", saved_at=SAVED
                    )
                    for each in (POINTS, other)
                ]
                entries = [(number, n, n + 1, number, "0" * 64, 1) for n in (0, 1)]
                points.append([Part(POINTS, lined[0], entries[:1]), Part(other, lined[1], entries[1:])])
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=append)
    thread.start()
    seen = set()
    while not done.is_set():
        query = "SELECT (SELECT count(*) FROM points) - (SELECT count(*) FROM others), (SELECT count(*) FROM others)"
        ((difference, rows),) = answer(api, query)["rows"]
        assert difference == 36
        seen.add(rows)
    thread.join()
    assert not failed
    assert len(seen) > 1


@IN_FILE
def test_a_process_that_was_killed_between_two_statements_is_not_missed(points: Store, api: Api) -> None:
    answer(api, "SELECT 1")
    (process,) = children()
    os.kill(process.pid, 9)
    assert answer(api, "SELECT 2")["rows"] == [[2]]


@IN_FILE
def test_a_view_that_fails_over_its_rows_is_told_and_the_next_statement_is_not_mistaken_for_it(
    points: Store, api: Api
) -> None:
    broken = Dataset(
        "broken",
        (Column("name", "string"),),
        ("name",),
        (("broken_numbers", "SELECT CAST(name AS INTEGER) AS number FROM {table}"),),
    )
    save(points, broken, 60, [["1"], ["x"]], allocation=60)
    assert "Conversion Error" in refused(api, "SELECT number FROM broken_numbers")
    assert answer(api, "SELECT count(*) FROM points")["rows"] == [[37]]
    for path in ("tables/broken_numbers/page", "tables/broken_numbers/facets?column=number"):
        told = api.get(path)
        assert (told.status, "Conversion Error" in told.body["detail"]) == (422, True)
