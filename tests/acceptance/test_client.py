"""``cascade.client.Client`` as other people's programs use it, against a running parent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cascade.client import Client, Unavailable
from cascade.local import PARENT, ROOT, Child, LocalTree
from nodes.protocol import Conflict, FieldError, NotFound, Unauthenticated, Unprocessable
from tests.acceptance.trees import QUICK, numbered


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("client"), children=[Child("only", 2)], env=QUICK) as tree:
        yield tree


@pytest.fixture
def client(tree: LocalTree) -> Iterator[Client]:
    with Client(tree.url, username=tree.username, password=tree.password) as client:
        yield client


class BadLine(Client):
    """Loses the parent's first answers after the requests were made."""

    lost = 0

    def _send(self, method: str, path: str, token: str, **options: Any) -> requests.Response:
        response = super()._send(method, path, token, **options)
        if self.lost < 2:
            self.lost += 1
            raise requests.ConnectionError("the line was cut")
        return response


def values(rows: list[dict[str, object]]) -> list[str]:
    return sorted(str(row["value"]) for row in rows)


def test_submit_wait_and_read_the_rows_as_records_table_and_frame(client):
    items = numbered(20)
    run = client.submit("echo", items, {"rows": 2}, name="by a program", priority=7)
    assert run.wait(30)["state"] == "completed"
    about = run.about()
    assert (about["name"], about["priority"], about["count"]) == ("by a program", 7, 20)
    wanted = sorted(f"{item}:{number}" for item in items for number in range(2))
    assert values(run.results()) == wanted
    table = run.results("arrow")
    assert values(table.to_pylist()) == wanted
    frame = run.results("dataframe", columns="value", limit=3)
    assert (list(frame.columns), len(frame)) == (["value"], 3)
    assert [share["node"] for share in run.nodes()] == ["only"]


async def test_the_async_twins_do_the_same_without_holding_up_the_loop(client):
    runs = [await client.submit_async("echo", numbered(3, prefix)) for prefix in "ab"]
    ended = await asyncio.gather(*(run.wait_async(30) for run in runs))
    assert [each["state"] for each in ended] == ["completed", "completed"]
    assert values(await runs[1].results_async()) == ["b0:0", "b1:0", "b2:0"]


def test_progress_explain_cancel_and_wait_that_ends_in_time(client):
    run = client.submit("echo", numbered(50), {"seconds": 60}, shard_size=1)
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.3 s"):
        run.wait(0.3)
    assert run.progress()["saved"] == 0
    explained = run.explain()
    assert explained["refusals"] or explained["grants"]
    assert run.cancel()["state"] == "cancelled"
    assert run.wait(10)["cancelled"] == 50
    with pytest.raises(Conflict):
        run.cancel()


def test_what_failed_is_named_and_can_be_tried_again(client):
    run = client.submit("echo", ["a", "b"], {"fail_items": ["b"]}, max_attempts=1, shard_size=1)
    assert run.wait(30)["state"] == "partial"
    assert [(each["item"], each["index"]) for each in run.failures()] == [("b", 1)]
    assert run.retry() == 1
    assert run.wait(30)["failed"] == 1


def test_an_answer_that_was_lost_on_the_way_is_no_second_run(tree, client):
    """The line is cut after the parent has it; the client sends it again with the same key."""
    before = client._json("GET", "/api/v1/runs")["count"]
    far = BadLine(tree.url, username=tree.username, password=tree.password)
    with far:
        run = far.submit("echo", ["once"])
    assert far.lost == 2
    assert run.wait(30)["state"] == "completed"
    assert client._json("GET", "/api/v1/runs")["count"] == before + 1


def test_a_key_of_ones_own_makes_the_same_run_and_refuses_another(client):
    first = client.submit("echo", ["a"], idempotency_key="nightly-2026-11-21")
    again = client.submit("echo", ["a"], idempotency_key="nightly-2026-11-21")
    assert first.id == again.id
    with pytest.raises(Unprocessable):
        client.submit("echo", ["b"], idempotency_key="nightly-2026-11-21")


def test_a_parent_that_is_restarted_meanwhile_is_waited_for(tree, client):
    run = client.submit("echo", numbered(4), {"seconds": 0.3}, shard_size=1)
    tree.kill(PARENT)
    starting = threading.Thread(target=tree.start_parent)
    starting.start()
    assert run.wait(60)["state"] == "completed"
    starting.join()


def test_a_token_that_is_worn_out_is_renewed(tree, client):
    client.submit("echo", ["a"]).wait(30)
    client._token = client._token[:-4] + "AAAA"
    assert client.submit("echo", ["b"]).wait(30)["state"] == "completed"
    client._token, client._refresh = "nonsense", "nonsense"
    assert client.submit("echo", ["c"]).wait(30)["state"] == "completed"


def test_a_token_alone_is_enough_and_a_wrong_one_is_refused(tree):
    access = requests.post(
        f"{tree.url}/api/v1/token", json={"username": tree.username, "password": tree.password}, timeout=30
    ).json()["access"]
    with Client(tree.url, token=access) as client:
        assert client.submit("echo", ["a"]).wait(30)["state"] == "completed"
    with Client(tree.url, token="nonsense") as client, pytest.raises(Unauthenticated):
        client.submit("echo", ["a"])
    with Client(tree.url, username=tree.username, password="wrong") as client, pytest.raises(Unauthenticated):
        client.submit("echo", ["a"])


def test_refusals_come_as_errors_that_name_the_field(client):
    with pytest.raises(FieldError) as refused:
        client.submit("nonsense", ["a"])
    assert refused.value.field == "type"
    with pytest.raises(FieldError, match="priority"):
        client.submit("echo", ["a"], priority=99)
    with pytest.raises(NotFound):
        client.run(10**9).progress()
    with pytest.raises(FieldError, match="records, dataframe, arrow"):
        client.run(1).results("xml")


def test_where_nobody_answers_it_says_so():
    with (
        Client("http://127.0.0.1:9", token="x", tries=2) as client,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        client.submit("echo", ["a"])


def test_to_import_it_takes_no_django_and_no_library_for_tables():
    script = (
        "import sys\nfrom cascade.client import Bridge, Client\nBridge().close()\n"
        "print(*sorted({'django', 'rest_framework', 'pandas', 'pyarrow', 'duckdb', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
