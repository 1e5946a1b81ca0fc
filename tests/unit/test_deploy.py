"""The image and compose.yaml: what they name exists and fits together, nobody is root, nothing secret is in them."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from cascade.config import BASE_DIR, Config, names

OURS = ("setup", "parent", "child1", "child2", "child3")
CHILDREN = ("child1", "child2", "child3")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    composed: dict[str, dict[str, Any]] = yaml.safe_load((BASE_DIR / "compose.yaml").read_text())
    return composed["services"]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: word and the rest."""
    lines = [line for line in (BASE_DIR / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def copied(steps: list[tuple[str, str]]) -> list[str]:
    return [source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]]


def is_sent(path: str) -> bool:
    """Does .dockerignore let it through? The last pattern that fits it, or a folder it is in, decides."""
    sent = True
    parts = PurePosixPath(path).parts
    within = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for line in (BASE_DIR / ".dockerignore").read_text().splitlines():
        pattern, wanted = line.removeprefix("!"), line.startswith("!")
        anywhere = pattern.startswith("**/")
        pattern = pattern.removeprefix("**/")
        tried = [PurePosixPath(each).name for each in within] if anywhere else within
        if any(each.count("/") == pattern.count("/") and fnmatch.fnmatchcase(each, pattern) for each in tried):
            sent = wanted
    return sent


# The image


def test_every_file_the_image_takes_exists_and_is_sent(steps):
    assert copied(steps)
    for source in copied(steps):
        assert (BASE_DIR / source).exists(), source
        assert is_sent(source.removesuffix("/")), source
    assert is_sent("cascade/management/commands/runserver.py")


@pytest.mark.parametrize("package", ["api", "cascade", "dispatch", "nodes", "templates"])
def test_all_of_the_program_is_in_the_image(steps, package):
    assert package in copied(steps)


@pytest.mark.parametrize(
    "path", [".git/config", ".env", "cascade.toml", "cascade.yaml", "data/secret_key", ".venv/bin/python", "tests/x.py"]
)
def test_what_is_private_or_of_no_use_is_not_sent(path):
    assert not is_sent(path)


def test_caches_are_not_sent():
    assert not is_sent("cascade/__pycache__/config.cpython-313.pyc")


def test_the_image_is_not_root_and_owns_only_its_volumes(steps):
    words = [word for word, _ in steps]
    user, group = steps[len(words) - 1 - words[::-1].index("USER")][1].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert "RUN" not in words[words.index("USER") :]
    owned = next(rest for word, rest in steps if word == "RUN" and "useradd" in rest)
    assert f"--uid {user}" in owned
    assert re.search(r"install -d -o cascade -g cascade -m 0700 /data /keys$", owned)
    assert not any("chown" in rest for _, rest in steps)


def test_no_secret_is_in_the_image_or_in_compose(steps, services):
    for word, rest in steps:
        assert word != "ARG"
        assert word != "ENV" or not re.search(r"password|secret|_key|token", rest, re.IGNORECASE)
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"://[^/]*:[^/]*@|PASSWORD", f"{variable} {value}"):
                assert "${POSTGRES_PASSWORD:-" in value, (name, variable)
            assert variable not in ("CASCADE_SECRET_KEY", "CASCADE_ACCESS_KEY", "CASCADE_DJANGO_KEY")


def test_the_image_has_drivers_of_postgresql_and_redis(steps):
    (installed,) = (rest for word, rest in steps if word == "RUN" and "pip install" in rest)
    wanted = "".join(
        (BASE_DIR / file).read_text() for file in copied(steps) if file.startswith("req") and f"-r {file}" in installed
    )
    assert "psycopg" in wanted
    assert "redis==" in wanted


def test_the_image_checks_its_health_with_a_file_it_has(steps):
    (check,) = (rest for word, rest in steps if word == "HEALTHCHECK")
    assert (BASE_DIR / check.split('"')[-2]).is_file()
    assert {Config.model_validate({"role": role}).listens_on for role in ("parent", "child")} == {
        int(port) for word, rest in steps if word == "EXPOSE" for port in rest.split()
    }


# compose.yaml


def test_there_are_a_parent_three_children_and_two_servers(services):
    assert set(services) == {*OURS, "postgres", "redis"}


def test_every_service_of_ours_runs_the_one_image_built_once(services):
    assert {services[name]["image"] for name in OURS} == {"cascade"}
    # Each build gives the same name to another image, and all containers are made anew at the next start.
    assert [name for name in services if "build" in services[name]] == ["setup"]


def test_every_server_has_a_health_check(services, steps):
    assert any(word == "HEALTHCHECK" for word, _ in steps)
    for name in ("postgres", "redis"):
        assert services[name]["healthcheck"]["test"]
    for name in ("parent", *CHILDREN):
        assert "healthcheck" not in services[name], "the image has one"
        assert "entrypoint" not in services[name]


def test_nobody_is_made_root_or_given_rights(services):
    for name in OURS:
        assert "user" not in services[name]
        assert not services[name].get("privileged")
        assert services[name]["cap_drop"] == ["ALL"]
        assert "cap_add" not in services[name]


def test_only_the_parent_is_reached_and_only_from_this_machine(services):
    assert [name for name in services if "ports" in services[name]] == ["parent"]
    assert all(port.startswith("127.0.0.1:") for port in services["parent"]["ports"])


def test_children_name_the_keys_that_setup_makes(services):
    made = [f"/keys/{name}" for name in services["setup"]["command"]]
    assert [services[name]["environment"]["CASCADE_KEY_FILE"] for name in CHILDREN] == made
    assert "keys:/keys" in services["setup"]["volumes"]
    for name in CHILDREN:
        assert "keys:/keys:ro" in services[name]["volumes"]
        assert f"{name}:/data" in services[name]["volumes"]
    assert (BASE_DIR / services["setup"]["entrypoint"][1]).is_file()


def test_each_starts_when_what_it_needs_is_there(services):
    assert services["setup"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["parent"]["depends_on"] == {
        "setup": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    for name in CHILDREN:
        assert services[name]["depends_on"] == {"parent": {"condition": "service_healthy"}}


def test_every_setting_it_gives_is_one(services):
    given = {name for service in services.values() for name in service.get("environment", {})}
    ours = {name.removeprefix("CASCADE_").lower() for name in given if name.startswith("CASCADE_")}
    # An unknown one would stop the start.
    assert {"database_url", "redis_url", "parent", "key_file"} <= ours <= names()


def test_nobody_is_killed_while_running_shards_are_waited_for(services):
    from nodes.agent.config import DRAIN_SECONDS

    for name in ("parent", *CHILDREN):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


# deploy/healthy.py


@contextmanager
def answering(status: int) -> Iterator[int]:
    """The port of a server whose /healthz, and nothing else, answers so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check(port: int) -> int:
    """The exit status of the health check."""
    asked = [sys.executable, str(BASE_DIR / "deploy" / "healthy.py")]
    return subprocess.run(asked, env={**os.environ, "CASCADE_PORT": str(port)}, timeout=30).returncode


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1), (302, 1)])
def test_a_server_is_healthy_when_it_says_so(status, exit_status):
    with answering(status) as port:
        assert check(port) == exit_status


def test_nobody_there_is_not_healthy():
    with answering(200) as port:
        pass
    assert check(port) == 1


def test_the_files_end_lines_as_a_shell_in_the_image_reads_them():
    for file in (BASE_DIR / "deploy").iterdir():
        if file.is_file():
            assert b"\r" not in file.read_bytes()
