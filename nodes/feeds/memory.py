"""What is remembered of a feed's articles: for each the hash of its id and of its content, in 12 characters."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping

CAPACITY = 2_300
"""Articles: 27,600 of the characters that the memory of an item may have."""
_ID, _CONTENT = 6, 3
_WIDTH = _ID + _CONTENT


class Seen:
    """The articles of a feed as they were the last time; those that left it lately are remembered behind the others,
    so that one that comes back is not new."""

    def __init__(self, packed: object = "") -> None:
        """``packed`` as ``pack`` made it; anything else is nothing."""
        self._known: dict[bytes, bytes] = {}
        try:
            content = base64.b64decode(packed.encode("ascii"), validate=True) if isinstance(packed, str) else b""
        except (binascii.Error, ValueError):
            content = b""
        for at in range(0, len(content), _WIDTH):
            self._known[content[at : at + _ID]] = content[at + _ID : at + _WIDTH]

    def __len__(self) -> int:
        return len(self._known)

    def compare(self, name: str, digest: str) -> str:
        """ "new", "changed" or "unchanged": the article with id ``name``, whose content has ``digest``."""
        before = self._known.get(_hash(name, _ID))
        if before is None:
            return "new"
        return "unchanged" if before == _hash(digest, _CONTENT) else "changed"

    def pack(self, present: Mapping[str, str]) -> str:
        """``present`` (id -> digest), in its order, then what was known before and is not among it, up to CAPACITY."""
        now = {_hash(name, _ID): _hash(digest, _CONTENT) for name, digest in present.items()}
        gone = {name: content for name, content in self._known.items() if name not in now}
        kept = list((now | gone).items())[:CAPACITY]
        return base64.b64encode(b"".join(name + content for name, content in kept)).decode()


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=size).digest()
