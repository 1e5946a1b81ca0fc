"""Which characters a page's bytes are: by its mark, its header, what it says of itself, or else a guess. Pure.

The order is that of browsers (HTML Standard, "Determining the character encoding"), and so is what a name stands for
(Encoding Standard: who says Latin-1 means windows-1252).
"""

from __future__ import annotations

import codecs
import re

FALLBACK = "cp1252"
PRESCAN = 1024
"""Bytes in which a page must say it."""

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_HEADER = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,]+)", re.IGNORECASE)
_META = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([a-z0-9_:.-]+)", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]+encoding\s*=\s*[\"']([a-z0-9_:.-]+)", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_MEANT = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "hz": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-8-sig": "utf-8",
    "utf-16": "utf-16-le",
}
_KNOWN = re.compile(
    r"utf-8|utf-16-[lb]e|cp12\d\d|cp(437|866|874|932|949)|iso8859-\d+|koi8-[rut]|mac-(roman|cyrillic)"
    r"|gb18030|big5hkscs|euc_jp|iso2022_jp"
)


def codec_of(name: str) -> str | None:
    """Python's codec for what the web calls ``name``; None for one that browsers do not know either."""
    try:
        found = codecs.lookup(name.strip()).name
    except (LookupError, ValueError):
        return None
    found = _MEANT.get(found, found)
    # Python has codecs that are no encodings of text, and some that have been used for attacks (UTF-7).
    return found if _KNOWN.fullmatch(found) else None


def decode(content: bytes, content_type: str) -> tuple[str, str]:
    """The text of ``content`` and the codec it was read by; bytes that fit nowhere become U+FFFD, NUL is dropped.

    ``content_type`` is the header of that name.
    """
    codec = _codec(content, content_type)
    for mark, name in _MARKS:
        if name == codec and content.startswith(mark):
            content = content[len(mark) :]
    return content.decode(codec, errors="replace").replace("\x00", ""), codec


def _codec(content: bytes, content_type: str) -> str:
    for mark, codec in _MARKS:
        if content.startswith(mark):
            return codec
    header = _HEADER.search(content_type)
    if header and (found := codec_of(header[1])):
        return found
    start = content[:PRESCAN]
    inside = _META.search(_COMMENT.sub(b"", start)) or _XML.search(start)
    if inside and (found := codec_of(inside[1].decode("ascii"))):
        # What could be read as ASCII thus far is not UTF-16.
        return "utf-8" if found.startswith("utf-16") else found
    try:
        content.decode()
    except UnicodeDecodeError as error:
        # A page that was cut within a letter is no less UTF-8.
        return "utf-8" if error.end == len(content) and error.reason == "unexpected end of data" else FALLBACK
    return "utf-8"
