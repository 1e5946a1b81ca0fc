"""How a command reads results: from the lake, where they are in one, which any process may read; else from the running
server, which holds their file, or from the file when none runs.

A server says where it is in ``server.json`` of its data folder. A command on the same machine asks it as a member of
the staff, with a token signed by the secret key that both have.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils import timezone

from cascade.console import Unreachable
from dispatch.results import datasets, opening
from dispatch.results.base import Store
from dispatch.results.formats import stream
from nodes.executors.base import Dataset, shown
from nodes.protocol import FieldError, NotFound

if TYPE_CHECKING:
    import pyarrow as pa
    import requests

CONNECT_SECONDS = 5.0
READ_SECONDS = 120.0
PIECE_BYTES = 1024 * 1024


def _file() -> Path:
    return Path(settings.CASCADE.data_dir) / "server.json"


def announce(url: str) -> None:
    """Notes that this process serves ``data_dir`` at ``url``."""
    about = {"url": url, "pid": os.getpid(), "host": socket.gethostname(), "since": timezone.now().isoformat()}
    # Several servers may begin in one folder at the same moment; the last one stands.
    beside = _file().with_name(f"server.json.{os.getpid()}")
    beside.write_text(json.dumps(about))
    beside.replace(_file())


def withdraw() -> None:
    """Takes that back, where it is of this process."""
    if (about := _read()) is not None and about["pid"] == os.getpid() and about["host"] == socket.gethostname():
        _file().unlink(missing_ok=True)


def server() -> str | None:
    """The address of the server that serves this data folder, or None when none runs on this machine."""
    about = _read()
    if about is None or about["host"] != socket.gethostname():
        return None
    import psutil

    return str(about["url"]) if psutil.pid_exists(about["pid"]) else None


def _read() -> dict[str, Any] | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        about = json.loads(_file().read_text())
        return {"url": str(about["url"]), "pid": int(about["pid"]), "host": str(about["host"])}
    return None


@contextmanager
def rows(
    table: str, format: str, *, run: int | None = None, dataset: Dataset | None = None, **how: Any
) -> Iterator[Iterator[bytes]]:
    """The rows of ``table`` as pieces of a file in ``format``; ``how``: where, columns, order, limit, offset, raw,
    distinct.

    ``dataset`` stands in for a table that has no rows yet. Raises FieldError, NotFound, and Unreachable with what to
    do.
    """
    if not settings.CASCADE.in_lake and (url := server()) is not None:
        with closing(_ask(url, table, format, run, how)) as answer:
            yield answer.iter_content(PIECE_BYTES)
        return
    with opening.open_store() as store:  # raises StoreBusy, which says who holds it
        reader = _reader(store, table, run, dataset, how)
        # The database cannot be closed while somebody reads on, and a generator that nobody began closes nothing.
        with closing(reader), closing(_begun(reader, format)) as pieces:
            yield pieces


def _begun(reader: pa.RecordBatchReader, format: str) -> Generator[bytes, None, None]:
    try:
        yield from stream(reader, format)[1]
    finally:
        reader.close()


def _reader(
    store: Store, table: str, run: int | None, dataset: Dataset | None, how: Mapping[str, Any]
) -> pa.RecordBatchReader:
    known = [each["name"] for each in store.tables()]
    if table in known:
        return store.select(table, run=run, **how)
    if dataset is None:
        raise NotFound(f"there is no table {shown(table)}; there are: {', '.join(known) or 'none yet'}")
    import pyarrow as pa

    return pa.RecordBatchReader.from_batches(datasets.schema(dataset), [])


def asked(path: str, query: Mapping[str, Any]) -> Any:
    """The running server's answer to a GET of its API, as JSON. Raises FieldError, NotFound, and Unreachable with what
    to do.
    """
    if (url := server()) is None:
        raise Unreachable(f"the running server has to be asked, and none is at work here; {_file()} would name it")
    with closing(_get(url, path, query)) as answer:
        return answer.json()


def _ask(url: str, table: str, format: str, run: int | None, how: Mapping[str, Any]) -> requests.Response:
    path = f"/api/v1/runs/{run}/results" if run is not None else f"/api/v1/tables/{table}/rows"
    query: dict[str, Any] = {f"where.{name}": value for name, value in (how.get("where") or {}).items()}
    query |= {
        "format": format,
        "columns": ",".join(how.get("columns") or ()),
        "ordering": ",".join(how.get("order") or ()),
    }
    query |= {"limit": how.get("limit"), "offset": how.get("offset"), "raw": "true" if how.get("raw") else None}
    query |= {"distinct": "true" if how.get("distinct") else None}
    return _get(url, path, query)


def _get(url: str, path: str, query: Mapping[str, Any]) -> requests.Response:
    import requests

    headers = {"Authorization": f"Bearer {_token()}"}
    if settings.CASCADE.https:
        headers["X-Forwarded-Proto"] = "https"  # as the proxy in front of it says, which we pass by
    with requests.Session() as session:
        session.trust_env = False  # a proxy that the environment names cannot reach this machine's loopback
        try:
            answer = session.get(
                url + path,
                params={name: value for name, value in query.items() if value not in (None, "")},
                headers=headers,
                stream=True,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
            )
        except requests.RequestException as error:
            raise Unreachable(
                f"the running server does not answer at {url}: {error}. If it is gone, remove {_file()}"
            ) from None
        if answer.status_code >= 400:
            raise _refusal(answer, url)
        return answer


def _refusal(answer: requests.Response, url: str) -> Exception:
    try:
        about = answer.json()
        detail = str(about.get("detail", about))
    except ValueError:
        about, detail = {}, answer.text[:300]
    if answer.status_code == 400 and "field" in about:
        return FieldError(str(about["field"]), detail)
    if answer.status_code == 404:
        return NotFound(detail)
    return Unreachable(f"the server at {url} answered {answer.status_code}: {detail}")


def _token() -> str:
    from rest_framework_simplejwt.tokens import AccessToken

    user = get_user_model().objects.filter(is_active=True, is_staff=True).order_by("pk").first()
    if user is None:
        raise Unreachable(
            "the running server has to be asked and answers members of the staff only, and there is none yet; "
            "make one: python manage.py createsuperuser"
        )
    return str(AccessToken.for_user(user))
