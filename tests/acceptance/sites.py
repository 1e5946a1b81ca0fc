"""A web site on this machine that is made up as it is asked for, and keeps a log of who asked for what, and when."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FANOUT = 8
ROBOTS = "User-agent: *\nDisallow: /private/\nDisallow: /*?session=\nAllow: /private/open\n"


@dataclass
class Site:
    """``count`` pages /page/0 and so on, each reachable from the first, linked to in many ways; ``seconds``: how long
    an answer takes."""

    count: int
    seconds: float = 0.0
    address: str = ""
    log: list[tuple[float, str]] = field(default_factory=list)
    """(time, path) of each request, as they came."""

    def asked(self) -> Counter[str]:
        return Counter(path for _, path in self.log)

    def most_within(self, seconds: float) -> int:
        """The most requests in any stretch of so many seconds."""
        times, first, most = sorted(at for at, _ in self.log), 0, 0
        for last, at in enumerate(times):
            while at - times[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def pages(self) -> set[str]:
        """The paths that a polite crawl asks for, beside robots.txt."""
        return {"/", "/private/open"} | {f"/page/{number}" for number in range(self.count)} | self.moved()

    def moved(self) -> set[str]:
        return {f"/old/{number}" for number in range(0, self.count, 50)}

    def answer(self, path: str) -> tuple[int, str, str]:
        """(status, where to or the type, content)"""
        if path == "/robots.txt":
            return 200, "text/plain", ROBOTS
        _, kind, *rest = path.split("/")
        if kind == "":
            return 200, "text/html; charset=utf-8", "<title>Start</title><a href=page/0>in</a>"
        if kind == "old":
            return 301, f"{self.address}/page/{rest[0]}#moved", ""
        if kind == "page" and rest[0].isdigit() and int(rest[0]) < self.count:
            return 200, "text/html; charset=utf-8", self._page(int(rest[0]))
        return 200, "text/html", "<title>not meant to be seen</title>"

    def _page(self, number: int) -> str:
        chance = random.Random(number)
        below = [each for each in range(FANOUT * number + 1, FANOUT * number + FANOUT + 1) if each < self.count]
        others = [chance.randrange(self.count) for _ in range(6)]
        links = [self._written(each, chance) for each in below + others]
        if number % 50 == 0:
            links.append(f"/old/{number}")
        links += [
            f"/private/{number}",
            f"/page/{number}?session={number}",
            "/private/open",
            "mailto:nobody@example.org",
        ]
        links.append(f"http://127.0.0.2:{self.address.rpartition(':')[2]}/elsewhere/{number}")
        anchors = " ".join(f'<a href="{link}">{at}</a>' for at, link in enumerate(links))
        return f"<title>Page {number}</title><p>Grüße von Seite {number}</p>{anchors}<a rel=nofollow href=/never>n</a>"

    def _written(self, number: int, chance: random.Random) -> str:
        """One page, many addresses."""
        port = self.address.rpartition(":")[2]
        return chance.choice(
            [
                f"/page/{number}",
                f"{number}",
                f"{number}#part{chance.randrange(9)}",
                f"HTTP://127.0.0.1:{port}/page/{number}",
                f"//127.1:{port}/page/{number}",
                f"/page/x/../{number}",
                f"/%70age/{number}",
                f"/page/{number}?utm_source=feed",
            ]
        )


@contextmanager
def serving(site: Site, host: str = "127.0.0.1", port: int = 0) -> Iterator[Site]:
    """``site`` can be fetched from ``site.address``."""

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet

        def do_GET(self) -> None:
            site.log.append((time.monotonic(), self.path))
            if site.seconds:
                time.sleep(site.seconds)
            status, what, text = site.answer(self.path)
            content = text.encode()
            self.send_response(status)
            self.send_header("Location" if status == 301 else "Content-Type", what)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Who asked is gone: killed, or done with us."""

    server = Server((host, port), Answering)
    site.address = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
