"""A whole tree on this machine: one parent and its children as real processes, for the demo, benchmarks and tests.

Everything goes through what an operator has: ``manage.py`` commands, ``python -m nodes.agent``, the HTTP API.
Nothing here knows how the parent or an agent works inside.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from nodes.protocol import CascadeError

ROOT = Path(__file__).resolve().parent.parent
PARENT = "parent"
"""The parent's name among the tree's processes."""
START_SECONDS = 60.0
"""A process that has not come up by then will not; machines that run tests are slow and busy."""
STOP_SECONDS = 25.0
"""Grace between SIGTERM and SIGKILL; an agent takes up to 20 for what it still runs."""
SOONEST_LOOK, LATEST_LOOK = 0.03, 0.15
"""Bounds of the time between two looks at something that is waited for."""

# Told the group of every process started here, it ends those that are left when this process is gone,
# however it went: a closed terminal or a kill -9 runs no clean-up of ours.
_GUARD = """
import os, signal, sys, time
for name in ("SIGINT", "SIGHUP", "SIGTERM"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
def end(number):
    for group in list(groups):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            groups.discard(group)
        except PermissionError:
            pass
end(signal.SIGTERM)
limit = time.monotonic() + 10
while groups and time.monotonic() < limit:
    time.sleep(0.1)
    end(0)
end(signal.SIGKILL)
"""


class LocalTreeError(CascadeError):
    """A process did not come up, or the tree did not do in time what was asked; says which, with the end of its log."""


@dataclass(frozen=True)
class Child:
    """One child: ``quotas`` as for POST /api/v1/nodes, ``carrier`` one of pull, push, auto."""

    name: str
    capacity: int = 4
    quotas: Sequence[Mapping[str, Any]] = ()
    carrier: str = "auto"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Process:
    argv: Sequence[str]
    env: Mapping[str, str]
    popen: subprocess.Popen[bytes]


prepared: Callable[[], Path] | None = None
"""Where tests, which start many trees, keep a folder prepared before, without children: new ones begin as copies."""
COPIED = ("cascade.sqlite3", "secret_key", "local.json")


class LocalTree:
    """A parent and ``children`` in ``data_dir``; a context manager that starts them and, at the end, stops them.

    ``env`` holds settings for all processes, such as ``{"CASCADE_LEASE_SECONDS": "2"}``; settings of the calling
    process and its ``cascade.toml`` do not reach them. A folder used before is taken up again with its nodes.
    Names of processes: ``"parent"`` and the children's. ``above`` makes the parent a relay: its own parent's address
    and its keys there, as ``manage.py node add --json`` tells them.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        children: Sequence[Child] = (),
        env: Mapping[str, str] | None = None,
        port: int = 0,
        python: str = sys.executable,
        above: tuple[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.above = above
        self.data_dir = Path(data_dir).resolve()
        self.children = {child.name: child for child in children}
        if len(self.children) != len(children) or PARENT in self.children:
            raise ValueError(f"names of children must differ from each other and from {PARENT!r}")
        self.env = dict(env or {})
        self.port = port
        self.python = python
        self.username = "operator"
        self.password = ""
        self.keys: dict[str, dict[str, str]] = {}
        """Child's name -> {"access_key", "secret_key"}."""
        self._processes: dict[str, _Process] = {}
        self._before: dict[str, Any] = {}
        self._orphaned: set[int] = set()
        self._guard: subprocess.Popen[str] | None = None
        self._session = requests.Session()
        # A proxy that the environment names cannot reach this machine's loopback.
        self._session.trust_env = False
        self._fixed_port = bool(port)

    # Life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(grace=2)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Prepares the folder, starts the parent, then the children, and returns when all have been heard of.

        Raises LocalTreeError.
        """
        (self.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._prepare()
        self.start_parent()
        self.introduce(*self.children.values())
        for child in self.children.values():
            self._start_child(child)
        self.wait_for_children(*self.children)

    def prepare(self) -> None:
        """Prepares the folder and starts nothing."""
        self._make()

    def start_parent(self) -> None:
        """Starts the parent, on the port it had before if it was running already. Raises LocalTreeError."""
        for attempt in range(5):
            self.port = self.port or free_port()
            argv = [self.python, "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.port}"]
            keys: dict[str, str] = {}
            if self.above is not None:
                url, key = self.above
                argv += ["--role", "relay", "--parent", url]
                keys = {f"CASCADE_{name.upper()}": key[name] for name in ("access_key", "secret_key")}
            try:
                self.spawn(PARENT, argv, keys)
                self._await(PARENT, self._healthy, "answer GET /healthz")
                break
            except LocalTreeError as error:
                # Somebody else may have taken the port since it was found free.
                if self._fixed_port or attempt == 4 or "already in use" not in str(error):
                    raise
                self.port = 0
        self._fixed_port = True

    def stop(self, *, grace: float = STOP_SECONDS) -> None:
        """Stops everything: children first, so that they can hand back what they hold. Safe to call again."""
        rest = [name for name in self._processes if name != PARENT]
        for name in rest:
            self._signal(name, signal.SIGCONT)
            self._signal(name, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for name in rest:
            self._end(name, deadline)
        self._signal(PARENT, signal.SIGCONT)
        self._signal(PARENT, signal.SIGTERM)
        self._end(PARENT, time.monotonic() + grace)
        for group in list(self._orphaned):
            self._end_group(group)
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
        self._session.close()

    # One process

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Starts any process as part of this tree, in the project's folder; its output goes to ``log(name)``."""
        if self.alive(name):
            raise LocalTreeError(f"{name} is already running, as process {self.pid(name)}")
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            # Its own session: Ctrl-C at the terminal reaches only us, and we stop the tree in order.
            popen = subprocess.Popen(
                list(argv),
                cwd=ROOT,
                env=self._environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[name] = _Process(list(argv), dict(env or {}), popen)
        self._tell_guard("+", popen.pid)

    def add(self, child: Child) -> None:
        """Makes another child known to the running parent, starts it and waits until it has beaten."""
        self.children[child.name] = child
        self.introduce(child)
        self._start_child(child)
        self.wait_for_children(child.name)

    def restart(self, name: str) -> None:
        """Starts a process again, stopping it first if it still runs, and waits until it is up."""
        if self.alive(name):
            self.terminate(name)
        if name == PARENT:
            self.start_parent()
        elif name in self.children:
            self._start_child(self.children[name])
            self.wait_for_children(name)
        else:
            process = self._processes[name]
            self.spawn(name, process.argv, process.env)

    def terminate(self, name: str, *, grace: float = STOP_SECONDS) -> int:
        """SIGTERM, then SIGKILL after ``grace`` seconds. The exit status, negative for the signal that ended it."""
        self._signal(name, signal.SIGTERM)
        return self._end(name, time.monotonic() + grace)

    def kill(self, name: str, *, machine: bool = False) -> None:
        """kill -9 of the process; with ``machine`` of its worker processes at the same time, as a power cut does."""
        popen = self._popen(name)
        if machine:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
        popen.kill()
        popen.wait()
        self._orphaned.add(popen.pid)

    def pause(self, name: str) -> None:
        """SIGSTOP for the process and its workers."""
        os.killpg(self._popen(name).pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT after ``pause``."""
        os.killpg(self._popen(name).pid, signal.SIGCONT)

    def pid(self, name: str) -> int:
        return self._popen(name).pid

    def alive(self, name: str) -> bool:
        return name in self._processes and self._popen(name).poll() is None

    def folder(self, name: str) -> Path:
        """Where a process keeps its files."""
        return self.data_dir if name == PARENT else self.data_dir / "children" / name

    def log(self, name: str) -> Path:
        return self.data_dir / "logs" / f"{name}.log"

    def tail(self, name: str, lines: int = 30) -> str:
        """The end of a process's log."""
        try:
            text = self.log(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    # Talking to the parent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def manage(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs ``manage.py`` with ``arguments`` against this tree's folder. Raises LocalTreeError if it fails."""
        done = subprocess.run(
            [self.python, "manage.py", *arguments],
            cwd=ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise LocalTreeError(
                f"manage.py {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}{done.stdout}"
            )
        return done

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request of the operator; ``path`` like ``/api/v1/runs``, ``options`` as for ``requests``."""
        if "Authorization" not in self._session.headers:
            self.sign_in()
        options.setdefault("timeout", 30)
        response = self._session.request(method, self.url + path, **options)
        if response.status_code == 401:
            self.sign_in()
            response = self._session.request(method, self.url + path, **options)
        return response

    def sign_in(self) -> None:
        """Fetches the operator's token. Raises LocalTreeError if the parent gives none."""
        answer = self._session.post(
            f"{self.url}/api/v1/token", json={"username": self.username, "password": self.password}, timeout=30
        )
        if answer.status_code != 200:
            raise LocalTreeError(f"POST /api/v1/token was answered {answer.status_code}: {answer.text[:500]}")
        self._session.headers["Authorization"] = f"Bearer {answer.json()['access']}"

    def json(self, method: str, path: str, **options: Any) -> Any:
        """``request``, and its decoded answer. Raises LocalTreeError on any status of 400 or above."""
        response = self.request(method, path, **options)
        if response.status_code >= 400:
            raise LocalTreeError(f"{method} {path} was answered {response.status_code}: {response.text[:2000]}")
        return response.json() if response.content else None

    def submit(self, type: str, items: Sequence[Any], **fields: Any) -> int:
        """Submits a run over ``items``; ``fields`` as for POST /api/v1/runs. Its id."""
        run = self.json("POST", "/api/v1/runs", json={"type": type, "items": list(items), **fields})
        return int(run["id"])

    def progress(self, run_id: int) -> dict[str, Any]:
        answer: dict[str, Any] = self.json("GET", f"/api/v1/runs/{run_id}/progress")
        return answer

    def wait(
        self,
        run_id: int,
        *,
        timeout: float = 60,
        every: float = 0.0,
        until: Callable[[dict[str, Any]], bool] | None = None,
    ) -> dict[str, Any]:
        """The run's progress once it has ended, or once ``until(progress)`` holds; asked ``every`` so many seconds, or
        where that is 0 ever more rarely.

        Raises LocalTreeError when ``timeout`` seconds pass first.
        """
        reached = until or (lambda progress: progress["state"] != "running")
        began = time.monotonic()
        deadline = began + timeout
        while True:
            progress = self.progress(run_id)
            if reached(progress):
                return progress
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.tail(name, 15)}" for name in self._processes)
                raise LocalTreeError(f"run {run_id} has not got there in {timeout:g} s: {progress}\n{logs}")
            time.sleep(every or next_look(began))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The parent's nodes by name."""
        answer = self.json("GET", "/api/v1/nodes", params={"limit": 1000})
        return {node["name"]: node for node in answer["results"]}

    def introduce(self, *children: Child) -> None:
        """Makes nodes of the running parent for those that the folder does not have yet. Raises LocalTreeError."""
        kept = self._kept()
        missing = [child for child in children if not self._known(kept, child)]
        for child in missing:
            order = {"name": child.name, "capacity": child.capacity, "quotas": list(child.quotas)}
            made = self.json("POST", "/api/v1/nodes", json=order)
            self.keys[child.name] = {name: made[name] for name in ("access_key", "secret_key")}
            kept["children"][child.name] = {"as": _shape(child), "key": self.keys[child.name]}
        if missing:
            self._keep(kept)

    def wait_for_children(self, *names: str) -> None:
        """Returns when each of these children has beaten since it was started last. Raises LocalTreeError."""
        for name in names:
            self._await(name, partial(self._beaten, name), "reach the parent")

    # Inside

    def _start_child(self, child: Child) -> None:
        self._before[child.name] = self._sign_of_life(child.name)
        argv = [self.python, "-m", "nodes.agent", "--parent", self.url, "--carrier", child.carrier]
        argv += ["--data-dir", str(self.folder(child.name))]
        key = self.keys[child.name]
        pair = {"CASCADE_ACCESS_KEY": key["access_key"], "CASCADE_SECRET_KEY": key["secret_key"]}
        self.spawn(child.name, argv, {**child.env, **pair})

    def _sign_of_life(self, name: str) -> Any:
        """What changes when a newly started agent has beaten; None for a node never heard of."""
        node = self.nodes().get(name, {})
        return node.get("boot") or node.get("last_beat_at")

    def _beaten(self, name: str) -> bool:
        return self._sign_of_life(name) not in (None, "", self._before.get(name))

    def _healthy(self) -> bool:
        try:
            return self._session.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def _await(self, name: str, condition: Callable[[], bool], what: str) -> None:
        began = time.monotonic()
        deadline = began + START_SECONDS
        while not condition():
            popen = self._popen(name)
            if popen.poll() is not None:
                problem = f"did not {what}: it ended with status {popen.returncode}"
            elif time.monotonic() > deadline:
                problem = f"did not {what} in {START_SECONDS:g} s"
            else:
                time.sleep(next_look(began))
                continue
            raise LocalTreeError(f"{name} {problem}. The end of {self.log(name)}:\n{self.tail(name)}")

    def _environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours without its settings, then the tree's, then ``env``."""
        base = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "DJANGO_"))}
        own = {
            "CASCADE_DATA_DIR": str(self.data_dir),
            "CASCADE_CONFIG": str(file) if (file := self.data_dir / "cascade.toml").exists() else "",
            "DJANGO_SETTINGS_MODULE": "cascade.settings",
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        return {**base, **own, **self.env, **(env or {})}

    def _prepare(self) -> None:
        """Makes database and operator, as far as they are not there yet."""
        fresh = not any((self.data_dir / name).exists() for name in COPIED)
        if prepared is not None and fresh and "CASCADE_DATABASE_URL" not in self.env:
            for name in COPIED:
                shutil.copy(prepared() / name, self.data_dir / name)
            self._take_up(self._kept())
        else:
            self._make()

    def _make(self) -> None:
        kept = self._kept()
        order = {"username": self.username, "password": "" if kept["password"] else secrets.token_urlsafe(12)}
        # One process instead of one per command: each costs a second of imports.
        done = subprocess.run(
            [self.python, "-m", "cascade.local"],
            cwd=ROOT,
            env=self._environment(),
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=2 * START_SECONDS,
        )
        if done.returncode:
            raise LocalTreeError(f"the folder {self.data_dir} could not be prepared:\n{done.stderr[-4000:]}")
        kept["password"] = kept["password"] or order["password"]
        kept["token"] = done.stdout.strip()
        self._keep(kept)
        self._take_up(kept)

    def _take_up(self, kept: Mapping[str, Any]) -> None:
        """Secrets of the operator and the children, and a token that spares the parent the check of the password."""
        self.password = kept["password"]
        self.keys = {name: made["key"] for name, made in kept["children"].items()}
        self._session.headers["Authorization"] = f"Bearer {kept['token']}"
        for child in self.children.values():
            self._known(kept, child)

    def _kept(self) -> dict[str, Any]:
        """What this folder's ``local.json`` says."""
        file = self.data_dir / "local.json"
        kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"password": "", "children": {}}
        return kept

    def _keep(self, kept: Mapping[str, Any]) -> None:
        file = self.data_dir / "local.json"
        with open(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
            json.dump(kept, out, indent=1)

    @staticmethod
    def _known(kept: Mapping[str, Any], child: Child) -> bool:
        """Whether the folder has it. Raises LocalTreeError where it was another one."""
        wanted, made = _shape(child), kept["children"].get(child.name)
        if made is not None and made["as"] != wanted:
            raise LocalTreeError(
                f"a child {child.name!r} was made with capacity and quotas {made['as']},"
                f" not {wanted}: take another folder, or remove this one"
            )
        return made is not None

    def _popen(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self._processes:
            raise LocalTreeError(f"{name} was never started; started were: {', '.join(self._processes) or 'none'}")
        return self._processes[name].popen

    def _signal(self, name: str, number: signal.Signals) -> None:
        if self.alive(name):
            self._popen(name).send_signal(number)

    def _end(self, name: str, deadline: float) -> int:
        """Waits for a process until ``deadline``, kills it then, and with it what it left behind."""
        if name not in self._processes:
            return 0
        popen = self._popen(name)
        try:
            popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        self._end_group(popen.pid)
        return popen.returncode

    def _end_group(self, group: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        self._orphaned.discard(group)
        self._tell_guard("-", group)

    def _tell_guard(self, sign: str, group: int) -> None:
        if self._guard is None:
            self._guard = subprocess.Popen(
                [self.python, "-I", "-S", "-c", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        assert self._guard.stdin is not None
        self._guard.stdin.write(f"{sign}{group}\n")
        self._guard.stdin.flush()


def _shape(child: Child) -> list[Any]:
    return [child.capacity, [dict(quota) for quota in child.quotas]]


def next_look(began: float) -> float:
    """Seconds until somebody who waits since ``began`` looks again: a tenth of what it has taken. Looking more often
    tells it hardly sooner, and takes the parent more time than the work that is waited for."""
    return min(max((time.monotonic() - began) / 10, SOONEST_LOOK), LATEST_LOOK)


def free_port() -> int:
    """A TCP port of this machine's loopback that nobody listens on.

    Taken from below the range that outgoing connections use, so that none of them is on it after a restart.
    """
    for port in random.sample(range(20_000, 30_000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise LocalTreeError("no free port found between 20000 and 29999")


def _prepare_folder(order: Mapping[str, str]) -> str:
    """Runs the commands that make a folder ready, in this process. A token of the operator."""
    import django
    from django.core.management import call_command

    django.setup()
    from django.contrib.auth.models import User
    from rest_framework_simplejwt.tokens import AccessToken

    call_command("migrate", verbosity=0, interactive=False)
    if order["password"]:
        os.environ["DJANGO_SUPERUSER_PASSWORD"] = order["password"]
        call_command("createsuperuser", username=order["username"], email="", interactive=False, verbosity=0)
    return str(AccessToken.for_user(User.objects.get(username=order["username"])))


if __name__ == "__main__":
    print(_prepare_folder(json.load(sys.stdin)))
