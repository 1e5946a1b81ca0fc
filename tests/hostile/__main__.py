"""``python -m tests.hostile [SECONDS]``: attacks a parent of its own for so long (default: 300); what came of it."""

from __future__ import annotations

import secrets
import sys

from tests.chaos.report import Report
from tests.hostile.run import run

if __name__ == "__main__":
    report = Report(secrets.randbelow(1_000_000))
    print(f"seed {report.seed}", flush=True)
    run(float(sys.argv[1]) if len(sys.argv) > 1 else 300.0, report)
    print(report.markdown())
    sys.exit(bool(report.problems))
