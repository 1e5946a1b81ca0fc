"""The image's health check: exit status 0 when the server in this container answers GET /healthz with 200."""

import os
import sys
import urllib.request

PORTS = [int(os.environ["CASCADE_PORT"])] if os.environ.get("CASCADE_PORT") else [8000, 8900]


def healthy(port: int) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz", headers={"Host": "localhost"})
    try:
        with urllib.request.urlopen(request, timeout=4) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


sys.exit(0 if any(healthy(port) for port in PORTS) else 1)
