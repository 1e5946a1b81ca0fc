"""``make test``: all tests but those in a browser or with trees, and beside them those that race on PostgreSQL.

The latter mostly wait for their database. What the second ones say comes at the end. Exit status 1 where either failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryFile

SIDE_BY_SIDE = ["--dist", "loadfile", "--no-loadscope-reorder", "-m", "not long and not trees"]
"""Files of tests in several processes, the long ones, which come first, first."""
ALL = ["-n", "3", *SIDE_BY_SIDE, "--ignore", "tests/browser"]
"""Those with processes of their own, which are most of the time, wait a third of it. Browsers have a target."""
RACES = ["-n", "2", *SIDE_BY_SIDE]


def main() -> int:
    # Each process of pytest would compile all tests, and each of those that they start all of the project.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with TemporaryFile() as said:
        beside = subprocess.Popen(
            [sys.executable, "-m", "tests.postgresql", *RACES], stdout=said, stderr=subprocess.STDOUT
        )
        try:
            failed = subprocess.call([sys.executable, "-m", "pytest", *ALL])
            failed_beside = beside.wait()
        finally:
            beside.terminate()
        said.seek(0)
        print("\nOn PostgreSQL, where verbs race:", flush=True)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return int(bool(failed or failed_beside))


if __name__ == "__main__":
    sys.exit(main())
