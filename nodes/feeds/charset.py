"""From bytes to text: byte-order mark, HTTP header, XML declaration, and what the bytes themselves show.

All four contradict each other in the wild. UTF-8 gives itself away, since other text hardly ever is valid UTF-8; so it
comes before what was declared (RFC 7303 has the order: mark, header, declaration). Where nothing that was declared
fits, the letters that are frequent in a language tell, or nothing does, and then there is an error and no mojibake.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import islice

from nodes.feeds import BadFeed

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z0-9._:-]{1,40})["']""")
_TEXTUAL = re.compile(
    r"utf-8|ascii|iso8859|cp125|cp866|cp874|cp932|cp949|cp950|koi8|gb|big5|shift_jis|euc|iso2022|mac|tis|hz"
)
"""Codecs that a feed can be in. Python has others by name: escapes, compressions, UTF-7."""
_WIDER = {
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
"""As browsers read them: the label means the larger set (https://encoding.spec.whatwg.org/#names-and-labels)."""
_ESCAPED = ("iso2022", "hz")

_KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30F7))))
_CYRILLIC = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъёіїєґўћђљњџ"
_SIMPLE = (
    "的一是了不在有人中国这大为上个我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说新产种面而方后多定行学法所"
    "民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开"
)
_TRADITIONAL = (
    "的一是了不在有人中國這大為上個我以要他時來用們生到作地於出就分對成會可主發年動同工也能下過子說新產種面而方後多定行學法所"
    "民得經十三之進著等部度家電力裡如水化高自二理起小物現實加量都兩體制機當使點從業本去把性好應開"
)
_FREQUENT: Sequence[tuple[str, float, str]] = (
    ("gb18030", 0.15, _SIMPLE),
    ("big5hkscs", 0.15, _TRADITIONAL),
    ("cp932", 0.3, _KANA),
    ("euc_jp", 0.3, _KANA),
    ("cp949", 0.15, "이다는의에을를가하고지도로기사한인서자대은시정리나스해전일부수장아어상라"),
    ("cp1251", 0.8, _CYRILLIC),
    ("koi8-r", 0.8, _CYRILLIC),
    ("cp1252", 0.9, "éèàùçâêîôûëïüöäßñáíóúåøæœãõìòýðþÉÈÀÇÂÊÎÔÜÖÄÑÁÍÓÚÅØÆ’‘“”«»–—…•·©®°€£¡¿\xa0"),
)
"""Codec, the share of all letters beyond ASCII that are to be among the frequent ones, and those."""
_CLUSTERED = {"cp1251": (0.7, 1.0), "koi8-r": (0.7, 1.0), "cp1252": (0.0, 0.4)}
"""Share of letters beyond ASCII with a neighbour of their kind: whole words in Cyrillic, single letters in Latin."""
_SAMPLE = 20_000
_SURE = 8
"""So many characters that are valid as UTF-8 are no accident in text of another multi-byte codec."""


def decode(content: bytes, charset: str = "") -> tuple[str, str]:
    """The text, and what was wrong with how it was declared (mostly nothing: ""). ``charset``: of the HTTP header.

    Raises BadFeed for bytes that fit nothing.
    """
    for mark, name in _MARKS:
        if content.startswith(mark) and (text := _complete(content[len(mark) :], name)) is not None:
            return text, ""
    if wide := _wide(content):
        if (text := _complete(content, wide)) is None:
            raise BadFeed(f"begins as {wide}, but is not in it throughout")
        return text, ""
    found = _DECLARED.search(content[:1000])
    labels = [label for label in (charset, found[1].decode() if found else "") if label]
    declared = list(dict.fromkeys(name for label in labels if (name := _codec(label))))
    if content.isascii():
        return _escaped(content, declared) or content.decode("ascii"), ""
    name, text = _settled(content, declared)
    if name in declared or not labels:
        return text, ""
    return text, f"declared as {labels[0]}, but is {name}"


def _settled(content: bytes, declared: list[str]) -> tuple[str, str]:
    text = _complete(content, "utf-8")
    others = [name for name in declared if name not in ("utf-8", "ascii")]
    if text is not None:
        accident = "utf-8" not in declared and sum(not each.isascii() for each in text[:_SAMPLE]) < _SURE
        for name in others if accident else ():
            if not _single(name) and (other := _complete(content, name)) is not None:
                return name, other
        return "utf-8", text
    if len(others) > 1 and others[0] == "cp1252":
        others.reverse()  # servers say iso-8859-1 of everything; the document knows better
    for name in others:
        if (text := _complete(content, name)) is None:
            continue
        if name == "cp1252" and not _western(content) and (guess := _guessed(content)):
            return guess
        return name, text
    for name in ("utf-8", *others):
        text = content.decode(name, "replace")
        wrong = text.count("\ufffd")
        if wrong * 20 <= sum(not each.isascii() for each in text):
            return name, text
    if guess := _guessed(content):
        return guess
    told = ", ".join(declared) or "nothing"
    raise BadFeed(f"declared is {told}, but the bytes are neither that nor UTF-8, nor any encoding that can be told")


def _guessed(content: bytes) -> tuple[str, str] | None:
    """The codec whose language shows most clearly, with the text."""
    best: tuple[float, str, str] | None = None
    clustered = _clustered(content)
    for name, least, frequent in _FREQUENT:
        low, high = _CLUSTERED.get(name, (0.0, 1.0))
        if not low <= clustered <= high or (text := _complete(content, name)) is None:
            continue
        letters = list(islice((each for each in text if not each.isascii()), _SAMPLE))
        share = sum(each in frequent for each in letters) / max(len(letters), 1)
        if share >= least and (best is None or share / least > best[0]):
            best = (share / least, name, text)
    return best and best[1:]


def _western(content: bytes) -> bool:
    return _clustered(content) <= _CLUSTERED["cp1252"][1]


def _clustered(content: bytes) -> float:
    runs = re.findall(rb"[\xc0-\xff]+", content)
    total = sum(map(len, runs))
    return sum(len(run) for run in runs if len(run) > 1) / max(total, 1)


def _codec(label: str) -> str:
    """Python's name of what ``label`` stands for; "" for what no feed is in, or what its bytes show by themselves."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    return _WIDER.get(name, name) if _TEXTUAL.match(name) else ""


def _wide(content: bytes) -> str:
    """UTF-16 or UTF-32 without a mark: the first character of a feed is ASCII."""
    head = content.lstrip(b"\x00")[:1]
    if not head or head not in b"<{[ \r\n\t":
        return ""
    shapes = {
        head + b"\0\0\0": "utf-32-le",
        b"\0\0\0" + head: "utf-32-be",
        head + b"\0": "utf-16-le",
        b"\0" + head: "utf-16-be",
    }
    for shape, name in shapes.items():
        # The second character has the shape of the first one; a stray NUL before a feed has not.
        width = len(shape)
        if content.startswith(shape) and [not each for each in content[width : 2 * width]] == [not x for x in shape]:
            return name
    return ""


def _escaped(content: bytes, declared: Sequence[str]) -> str | None:
    """Text in seven bits, of a codec that has its characters behind escapes."""
    for name in declared:
        if name.startswith(_ESCAPED):
            return _complete(content, name)
    return None


def _single(name: str) -> bool:
    return name.startswith(("iso8859", "cp125", "cp866", "cp874", "koi8", "mac", "tis"))


def _complete(content: bytes, name: str) -> str | None:
    """The text, if all is in ``name``; a character that is cut off at the very end is no objection."""
    decoder = codecs.getincrementaldecoder(name)()
    try:
        return decoder.decode(content)
    except (UnicodeDecodeError, LookupError):
        return None
