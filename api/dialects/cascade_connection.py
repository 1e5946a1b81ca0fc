"""Whether a parent somewhere takes given credentials: one heartbeat, sent from here."""

from __future__ import annotations

import json
from typing import Any

from nodes import fields
from nodes.executors.base import shown
from nodes.protocol import FieldError

SECONDS = 5.0
ANSWER_LIMIT = 64 * 1024
BASE = "/api/v1/wx/cascade"
"""The path that every deployed parent serves."""


def try_parent(url: str, access_key: str, secret_key: str) -> dict[str, Any]:
    """``connected``, and the ``parent_response`` or the ``error``. Raises FieldError for what cannot be sent."""
    fields.check_fields({"api_url": url})
    for name, value in (("api_key", access_key), ("api_secret", secret_key)):
        if not value.isascii() or not value.isprintable() or len(value) > 200:
            raise FieldError(name, f"{shown(value) if name == 'api_key' else 'it'} is not a key")
    address = url.rstrip("/")
    address += "/heartbeat" if address.endswith("/cascade") else f"{BASE}/heartbeat"
    import requests  # a parent that is never asked this does without it

    try:
        with requests.Session() as session:
            # No proxy and no password file of this machine's: the answer is about these credentials at this address.
            session.trust_env = False
            with session.post(
                address,
                json={},
                headers={"Authorization": f"AK-SK {access_key}:{secret_key}"},
                timeout=SECONDS,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = response.raw.read(ANSWER_LIMIT, decode_content=True)
                status = response.status_code
    except (requests.RequestException, OSError, ValueError) as error:
        return {"connected": False, "error": f"{address}: {_first_line(error)}"}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if status != 200:
        said = found.get("message") or found.get("detail") if isinstance(found, dict) else None
        return {"connected": False, "error": f"{address} answered {status}{f': {said}' if said else ''}"[:500]}
    if not isinstance(found, dict) or found.get("code") != 0:
        return {"connected": False, "error": f"{address} answered, but not as a parent does: {shown(content[:200])}"}
    return {"connected": True, "parent_response": found}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
