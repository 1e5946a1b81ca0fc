"""The image's health check: exit status 0 when the server in this container answers GET /healthz with 200."""

import http.client
import os
import sys


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    given = int(os.environ.get("CASCADE_PORT") or 0)
    ports = [given] if given else [8000, 8900]
    sys.exit(0 if any(healthy(port) for port in ports) else 1)
