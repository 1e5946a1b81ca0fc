"""A small S3: as much of its protocol as DuckDB uses, in memory, on a port of loopback. No signature is checked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

WHEN = "2026-11-21T00:00:00.000Z"


@dataclass
class Storage:
    """``objects``: "bucket/key" -> bytes; ``asked``: methods and paths of all requests."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)


@contextmanager
def object_storage() -> Iterator[Storage]:
    storage = Storage()

    class Handler(_Handler):
        pass

    Handler.storage = storage
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    storage.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._give()

    def do_GET(self) -> None:
        key, query = self._read()
        if "list-type" in query:
            self._list(key.rstrip("/"), query.get("prefix", [""])[0])
        else:
            self._give()

    def do_PUT(self) -> None:
        key, query = self._read()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "partNumber" in query:
            self.storage.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self.storage.objects[key] = body
        self._answer(200, headers={"ETag": _tag(body)})

    def do_POST(self) -> None:
        key, query = self._read()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "uploads" in query:
            upload = f"upload-{len(self.storage.parts)}"
            self.storage.parts[upload] = {}
            inner = f"<UploadId>{upload}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{inner}</InitiateMultipartUploadResult>".encode())
        elif "delete" in query:
            for name in re.findall("<Key>(.*?)</Key>", body.decode()):
                self.storage.objects.pop(f"{key.rstrip('/')}/{unescape(name)}", None)
            self._answer(200, b"<DeleteResult></DeleteResult>")
        else:
            parts = self.storage.parts.pop(query["uploadId"][0])
            self.storage.objects[key] = b"".join(parts[number] for number in sorted(parts))
            inner = f"<ETag>{_tag(self.storage.objects[key])}</ETag>"
            self._answer(200, f"<CompleteMultipartUploadResult>{inner}</CompleteMultipartUploadResult>".encode())

    def do_DELETE(self) -> None:
        key, _ = self._read()
        self.storage.objects.pop(key, None)
        self._answer(204)

    def _read(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        self.storage.asked.append((self.command, self.path))
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _give(self) -> None:
        key, _ = self._read()
        body = self.storage.objects.get(key)
        if body is None:
            self._answer(404)
            return
        headers = {"ETag": _tag(body), "Last-Modified": formatdate(0, usegmt=True), "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if not asked:
            self._answer(200, body, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(body) - 1) + 1, len(body))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        self._answer(206, body[start:stop], headers)

    def _list(self, bucket: str, prefix: str) -> None:
        found = ""
        for path, body in sorted(self.storage.objects.items()):
            key = path.removeprefix(f"{bucket}/")
            if path != key and key.startswith(prefix):
                found += (
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{WHEN}</LastModified>"
                    f"<ETag>{_tag(body)}</ETag><Size>{len(body)}</Size></Contents>"
                )
        listed = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self._answer(200, listed.encode())

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(body: bytes) -> str:
    return f'"{md5(body, usedforsecurity=False).hexdigest()}"'
