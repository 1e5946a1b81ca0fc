"""docs/security.md: its recipes work as they stand, the tests it names exist, and secrets are nowhere to be read."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cascade.local import ROOT, Child, LocalTree
from nodes import signing
from tests.acceptance.commands import managed
from tests.acceptance.trees import QUICK, label, rows, until

DOCUMENT = (ROOT / "docs" / "security.md").read_text()
RECIPES = dict(re.findall(r"```sh (\w+)\n(.*?)```", DOCUMENT, re.DOTALL))
DJANGO_KEY = "django-key-of-this-test-that-nobody-may-read-anywhere-0123456789"
NODE_KEY = "node-api-key-that-is-secret"
HOOK = "webhook-secret-that-is-long"
FAILING = "report.committed=error@2"
"""The parent fails in the middle of a report, so that there is a traceback to look through."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    env = {
        **QUICK,
        "CASCADE_LOG_LEVEL": "DEBUG",
        "CASCADE_DJANGO_KEY": DJANGO_KEY,
        "CASCADE_NODE_API_KEY": NODE_KEY,
        "CASCADE_FAILPOINTS": FAILING,
        "CASCADE_CUSTOM": "env=os:getenv",
    }
    children = [Child("pushing", 2, carrier="push"), Child("pulling", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("secrets"), children=children, env=env) as tree:
        yield tree


# The recipes


def shell(tree: LocalTree, recipe: str, **change: str) -> subprocess.CompletedProcess[str]:
    made = tree.json("POST", "/api/v1/nodes", json={"name": f"recipe-{os.urandom(4).hex()}"})
    given = {"PARENT": tree.url, "ACCESS_KEY": made["access_key"], "SECRET_KEY": made["secret_key"], **change}
    env = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", **given}
    return subprocess.run(["sh", "-eu", "-c", recipe], env=env, capture_output=True, text=True, timeout=60)


def test_there_are_the_two_recipes():
    assert set(RECIPES) == {"signed", "plain"}


@pytest.mark.parametrize("name", ["signed", "plain"])
def test_a_recipe_is_accepted_as_it_stands_and_not_with_another_secret(tree, name):
    done = shell(tree, RECIPES[name])
    assert (done.returncode, done.stderr) == (0, "")
    assert '"beat_seconds"' in done.stdout
    done = shell(tree, RECIPES[name], SECRET_KEY=signing.new_key()[1])
    assert '"beat_seconds"' not in done.stdout
    assert '"detail"' in done.stdout


def test_the_signed_recipe_serves_queries_and_other_methods(tree):
    recipe = RECIPES["signed"].replace("method=POST path=/api/v1/agent/beat query=''", "method=GET path=/x query='a=1'")
    assert recipe != RECIPES["signed"]
    recipe = recipe.replace("""body='{"held": []}'""", "body=''").replace("path=/x", "path=/api/v1/agent/config")
    done = shell(tree, recipe.replace("curl -sS", "curl -sS -o /dev/null -w '%{http_code}'"))
    assert done.stdout == "200", done.stderr


def test_every_test_that_the_document_names_exists():
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    latest = ""
    found = 0
    for quoted in re.findall(r"`(test_[\w.:]+)`", DOCUMENT):
        file, _, name = quoted.rpartition("::") if "::" in quoted else ("", "", quoted)
        if quoted.endswith(".py"):
            assert quoted in files
            continue
        latest = file or latest
        assert re.search(rf"def {name}\(", files[latest]), quoted
        found += 1
    assert found > 15


# Secrets


class Looked:
    """Everything that anybody could read, under names."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}

    def add(self, name: str, content: bytes | str) -> None:
        self.texts[name] = content.encode() if isinstance(content, str) else content

    def where(self, secret: str) -> list[str]:
        """Where ``secret`` is: as it is, and in base64 in any of its three alignments."""
        raw = secret.encode()
        coded = [base64.b64encode(b"\0" * shift + raw)[4 * (shift > 0) + shift : -6] for shift in range(3)]
        return [name for name, text in self.texts.items() if raw in text or any(each in text for each in coded)]


def provoke(tree: LocalTree, looked: Looked, secret: str, access_key: str) -> None:
    """Requests that show a secret where it belongs and are wrong in every other way; their answers are looked at."""
    session = requests.Session()
    session.trust_env = False
    headers = [
        {"Authorization": f"AK-SK CNnobody000:{secret}"},
        {"Authorization": f"AK-SK {access_key}:{secret}x"},
        {"Authorization": f"AK-SK {secret}"},
        {"Authorization": f"AK-SK {secret}:{access_key}"},
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": f"Bearer {access_key}:{secret}"},
        {"Authorization": f"Basic {base64.b64encode(f'{access_key}:{secret}'.encode()).decode()}"},
        {"X-API-Key": secret},
        {"Cookie": f"sessionid={secret}"},
        {"Signature-Input": f'cascade=("@method");keyid="{access_key}"', "Signature": secret, "Content-Digest": "x"},
    ]
    paths = ("/api/v1/agent/beat", "/api/v1/cascade/heartbeat", "/api/distribution/tasks/pull", "/api/v1/runs", "/x")
    for number, sent in enumerate(headers):
        for path in paths:
            for method in ("GET", "POST"):
                answer = session.request(method, tree.url + path, headers=sent, data=b"{", timeout=30)
                looked.add(f"{method} {path} {number}", answer.content + str(answer.headers).encode())
    for path in ("/api/v1/token", "/admin/login/"):
        for name, password in (("operator", secret), ("operator", f"{secret}x")):
            answer = session.post(tree.url + path, data={"username": name, "password": password}, timeout=30)
            if not answer.ok:
                looked.add(f"sign in {path}", answer.content)


def agent_errors(tree: LocalTree, looked: Looked, pair: dict[str, str]) -> None:
    """An agent that is wrong about everything but its secret."""
    argv = [tree.python, "-m", "nodes.agent", "--log-level", "DEBUG"]
    keys = {"CASCADE_ACCESS_KEY": pair["access_key"], "CASCADE_SECRET_KEY": pair["secret_key"]}
    wrong: list[tuple[list[str], dict[str, str]]] = [
        (["--parent", "nonsense"], keys),
        (["--parent", tree.url, "--carrier", "pigeon"], keys),
        (["--parent", tree.url], {**keys, "CASCADE_ACCESS_KEY": pair["secret_key"]}),
        (["--parent", tree.url], {**keys, "CASCADE_SECRET_KEY": f"{pair['secret_key']}x"}),
        (["--parent", tree.url, "--set", f"secret_key={pair['secret_key']}"], {}),
        (["--parent", tree.url, "--data-dir", "/proc/none"], keys),
    ]
    for number, (more, env) in enumerate(wrong):
        done = subprocess.run(
            [*argv, *more], cwd=ROOT, env=tree._environment(env), capture_output=True, text=True, timeout=60
        )
        assert done.returncode != 0
        looked.add(f"agent {number}", done.stdout + done.stderr)


def test_no_secret_is_in_any_log_page_answer_or_database(tree):
    looked = Looked()
    tree.json("POST", "/api/v1/nodes", json={"name": "driven", "carrier": "http", "api_url": "http://127.0.0.1:1",
                                            "api_key": NODE_KEY})  # fmt: skip
    task = {"name": "t", "type": "echo", "items": ["a"], "webhook_url": "http://127.0.0.1:1/x", "webhook_secret": HOOK}
    tree.json("POST", "/api/v1/tasks", json=task)
    run = tree.submit("echo", [f"i{number}" for number in range(20)], shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    until(lambda: "Injected" in tree.log("parent").read_text(), what="the traceback in the parent's log")
    child = tree.keys["pushing"]
    provoke(tree, looked, child["secret_key"], child["access_key"])
    provoke(tree, looked, tree.password, "operator")
    agent_errors(tree, looked, child)
    token = tree.json("POST", "/api/v1/token", json={"username": tree.username, "password": tree.password})["access"]
    for path in ("nodes", "tasks", "runs", "sync-logs", f"nodes/{tree.nodes()['pushing']['id']}/keys", "sources"):
        looked.add(path, tree._session.get(f"{tree.url}/api/v1/{path}", timeout=30).content)
    for path in ("/api/schema", "/api/docs", "/healthz"):
        looked.add(path, tree._session.get(tree.url + path, timeout=60).content)
    commands = (["node", "list"], ["node", "list", "--json"], ["config", "--show"], ["status"], ["check"])
    for command, done in zip(commands, managed(tree, commands), strict=True):
        looked.add(" ".join(command), done.stdout + done.stderr)
    for log in (tree.data_dir / "logs").iterdir():
        looked.add(f"log {log.name}", log.read_bytes())
    stored = Looked()
    for file in tree.data_dir.rglob("*"):
        # local.json is this tree's own note of its keys, as an operator would write them down.
        if file.is_file() and file.name != "local.json" and "logs" not in file.parts:
            stored.add(f"file {file.name}", file.read_bytes())
    assert any("sqlite3" in name for name in stored.texts)
    secrets = {
        "a child's secret key": child["secret_key"],
        "the other child's": tree.keys["pulling"]["secret_key"],
        "the operator's password": tree.password,
        "Django's key": DJANGO_KEY,
    }
    for name, secret in secrets.items():
        assert looked.where(secret) == [], name
        assert stored.where(secret) == [], name
    # These two have to be kept where they can be used; they are shown to nobody.
    for name, secret in {"a node's API key": NODE_KEY, "a webhook's secret": HOOK, "a token": token}.items():
        assert looked.where(secret) == [], name


def test_what_an_executor_finds_in_its_environment_is_no_secret(tree):
    names = ["CASCADE_SECRET_KEY", "CASCADE_NODE_API_KEY", "CASCADE_DJANGO_KEY", "CASCADE_LOG_LEVEL"]
    for by in ("pushing", "pulling", None):
        params = {"callable": "env"}
        chosen = {"labels": {"by": by}} if by else {"fallback": "required"}
        if by:
            label(tree, by)
        run = tree.submit("custom", names, params=params, **chosen)
        assert tree.wait(run)["state"] == "completed"
        assert [(row["item"], row["data"]) for row in rows(tree, run)] == [("CASCADE_LOG_LEVEL", '"DEBUG"')]


def test_what_is_looked_for_would_be_found():
    looked = Looked()
    secret = signing.new_key()[1]
    for shift in range(3):
        looked.add(f"coded {shift}", base64.b64encode(b"xyz"[:shift] + secret.encode() + b"tail"))
    looked.add("plain", f"a {secret} b")
    assert looked.where(secret) == ["coded 0", "coded 1", "coded 2", "plain"]


def test_objects_that_hold_secrets_do_not_show_them(tmp_path: Path):
    from cascade.config import Config
    from nodes.agent.config import AgentConfig
    from nodes.keys import IssuedKey
    from nodes.registrations import IssuedRegistration

    access_key, secret_key, _ = signing.new_key()
    made: list[Any] = [
        AgentConfig(parent="http://p", access_key=access_key, secret_key=secret_key),
        IssuedKey(access_key, secret_key, None),  # type: ignore[arg-type]
        IssuedRegistration(secret_key, None),  # type: ignore[arg-type]
        Config.model_validate(
            {"django_key": secret_key, "node_api_key": secret_key, "database_url": f"postgresql://u:{secret_key}@h/n"}
        ),
        Config.model_validate({"redis_url": f"redis://:{secret_key}@h/0", "data_dir": tmp_path}),
    ]
    for each in made:
        assert secret_key not in repr(each) + str(each)
