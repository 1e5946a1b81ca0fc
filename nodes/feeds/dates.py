"""Times as feeds write them: RFC 822, ISO 8601, seconds since 1970, and what people type in their own language."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from typing import Any

_EPOCH = dt.datetime(1970, 1, 1)
_OLDEST = 1000
"""Years before it are slips: 0001 is what some programs write for "none", 0024 lost its century."""


def _folded(text: str) -> str:
    """In lower case and without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower().replace("ı", "i"))
    return "".join(each for each in decomposed if not unicodedata.combining(each))


_NAMES = (
    "jan january januar januari januara januaria janvier janv enero ene gennaio gen janeiro stycznia sty ledna ocak"
    " tammikuuta января янв ιανουαριου ιαν",
    "feb february februar februari februara fevrier fevr fev febrero febbraio fevereiro lutego lut unora subat"
    " helmikuuta февраля фев февр φεβρουαριου φεβ",
    "mar march marz maerz mrz mars maart mrt marzo marco marca marta brezna marcius maaliskuuta mart"
    " марта мар μαρτιου μαρ",
    "apr april avril avr abril abr aprile aprila kwietnia kwi dubna nisan huhtikuuta апреля апр απριλιου απρ",
    "may mai mei maj mayo maggio mag maio maja kvetna mayis toukokuuta majus мая май μαιου μαι",
    "jun june juni juin junio junius giugno giu junho czerwca cze cervna haziran kesakuuta июня июн ιουνιου ιουν",
    "jul july juli juillet juil julio julius luglio lug julho lipca lip cervence temmuz heinakuuta"
    " июля июл ιουλιου ιουλ",
    "aug august aout augustus augusti augusztus agosto ago sierpnia sie srpna agustos elokuuta августа авг"
    " αυγουστου αυγ",
    "sep sept september septembre septiembre settembre szeptember set setembro wrzesnia wrz zari eylul syyskuuta"
    " сентября сен сент σεπτεμβριου σεπ",
    "oct october oktober okt octobre octubre ottobre ott outubro out pazdziernika paz rijna ekim lokakuuta"
    " октября окт οκτωβριου οκτ",
    "nov november novembre noviembre novembro listopada lis listopadu kasim marraskuuta ноября ноя нояб νοεμβριου νοε",
    "dec december dezember dez decembre diciembre dic dicembre dezembro grudnia gru prosince aralik joulukuuta"
    " декабря дек δεκεμβριου δεκ",
)
_MONTHS = {_folded(name): number for number, names in enumerate(_NAMES, start=1) for name in names.split()}
"""Of two months in one text the later one is meant: "mar. 30 janv." is a Tuesday."""
_ZONES = {
    "est": -300, "edt": -240, "cst": -360, "cdt": -300, "mst": -420, "mdt": -360, "pst": -480, "pdt": -420,
    "akst": -540, "akdt": -480, "hst": -600, "brt": -180, "art": -180,
    "wet": 0, "west": 60, "bst": 60, "cet": 60, "mez": 60, "cest": 120, "mesz": 120, "eet": 120, "eest": 180,
    "msk": 180, "sast": 120, "jst": 540, "kst": 540, "hkt": 480, "sgt": 480, "pht": 480, "awst": 480, "aest": 600,
    "aedt": 660, "nzst": 720, "nzdt": 780,
}  # fmt: skip
"""Minutes east of Greenwich. RFC 822 defines the American ones, custom the others; an unknown name counts as UTC."""

_CLOCK = (
    r"(?P<hour>\d{1,2})\s*[:h]\s*(?P<minute>\d{2})(?:\s*:\s*(?P<second>\d{2})(?:[.,](?P<part>\d{1,9})\d*)?)?"
    r"\s*(?P<half>[ap]\.?m\b\.?)?"
)
_TIME = re.compile(_CLOCK, re.I)
_OFFSET = re.compile(r"(?:(?:gmt|utc|ut)\s*)?(?P<sign>[+-])\s*(?P<hours>\d{1,2})(?::?(?P<minutes>\d{2}))?\b", re.I)
_YEAR_FIRST = re.compile(r"\b(\d{4})\s?[-/.]\s?(\d{1,2})(?:\s?[-/.]\s?(\d{1,2}))?(?=\D|$)")
_YEAR_LAST = re.compile(r"\b(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?=\D|$)")
_COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T?(\d\d)(\d\d)(\d\d)?)?(Z|[+-]\d\d:?\d\d)?")
_EAST_ASIAN = (
    (re.compile(r"[年년月월]"), "-"),
    (re.compile(r"[日일号號]"), " "),
    (re.compile(r"[时時시点點]\s*(?=\d)"), ":"),
    (re.compile(r"[时時시点點]"), ":00"),
    (re.compile(r"分\s*(?=\d)|분\s*(?=\d)"), ":"),
    (re.compile(r"[分분秒초]"), " "),
)
_AFTERNOON = re.compile(r"下午|晚上|午後|오후")
_MORNING = re.compile(r"上午|凌晨|早上|午前|오전")


def moment(value: Any) -> dt.datetime | None:
    """A text or a number as naive UTC; None for what cannot be read with certainty.

    A number counts seconds since 1970, or milli- or microseconds by its size. A time without a zone is UTC. Days and
    months in figures (03/04/2024) are read where only one order is possible, or where points part them.
    """
    try:
        if isinstance(value, str):
            found = _of_text(unicodedata.normalize("NFKC", value[:200]).strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found = _of_number(value)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return found if found and found.year >= _OLDEST else None


def _of_number(value: float) -> dt.datetime | None:
    if not value:
        return None
    size = abs(value)
    scale = 1_000_000 if size > 1e14 else 1_000 if size > 1e11 else 1
    return _EPOCH + dt.timedelta(seconds=value / scale)


def _of_text(text: str) -> dt.datetime | None:
    if re.fullmatch(r"-?\d{9,10}(\.\d+)?|\d{12,13}|\d{16}", text, re.ASCII):
        return _of_number(float(text))
    if found := _COMPACT.fullmatch(text):
        year, month, day, hour, minute, second, zone = found.groups()
        day_ = dt.datetime(int(year), int(month), int(day))
        clock = dt.timedelta(hours=int(hour or 0), minutes=int(minute or 0), seconds=int(second or 0))
        return day_ + clock - _zone(zone or "")
    if re.search(r"[年년]", text):
        for pattern, plain in _EAST_ASIAN:
            text = pattern.sub(plain, text)
    time = _TIME.search(text)
    date_text, rest = (text[: time.start()], text[time.end() :]) if time else (text, "")
    # asctime has the year behind the time.
    day = _day(date_text) or _day(f"{date_text} {rest}")
    if day is None:
        return None
    return day + _clock(time, text) - _zone(rest if time else "")


def _day(text: str) -> dt.datetime | None:
    if found := _YEAR_FIRST.search(text):
        return dt.datetime(int(found[1]), int(found[2]), int(found[3] or 1))
    if found := _YEAR_LAST.search(text):
        day, month = int(found[1]), int(found[3])
        if found[2] != "." and day != month and day <= 12 and month <= 12:
            return None
        if found[2] != "." and month > 12:
            day, month = month, day
        return dt.datetime(int(found[4]), month, day)
    if re.fullmatch(r"\d{4}", text):
        return dt.datetime(int(text), 1, 1)
    return _named(text)


def _named(text: str) -> dt.datetime | None:
    """31 Jan 2024, Jan 31st, 2024, 31. Januar 2024, 31 de enero de 2024."""
    plain = re.sub(r"(?<=[^\W\d_])-(?=\d)|(?<=\d)-(?=[^\W\d_])", " ", _folded(text))  # 31-Jan-2024
    months = [_MONTHS[word] for word in re.findall(r"[^\W\d_]+", plain) if word in _MONTHS]
    numbers = re.findall(r"(?<![\d:+-])\d{1,4}(?![\d:])", plain)
    if not months or len(numbers) < 2:
        return None
    first, second = numbers[0], numbers[1]
    year, day = (first, second) if len(first) == 4 else (second, first)
    whole = int(year)
    if len(year) <= 2:
        whole += 2000 if whole < 50 else 1900  # RFC 2822, 4.3
    return dt.datetime(whole, months[-1], int(day))


def _clock(found: re.Match[str] | None, text: str) -> dt.timedelta:
    if found is None:
        return dt.timedelta()
    hour, minute, second = int(found["hour"]), int(found["minute"]), min(int(found["second"] or 0), 59)
    half = (found["half"] or "").lower()
    late = half.startswith("p") or bool(_AFTERNOON.search(text))
    if (late or half.startswith("a") or _MORNING.search(text)) and 1 <= hour <= 12:
        hour = hour % 12 + (12 if late else 0)
    if hour > 24 or minute > 59:
        raise ValueError("no time of day")
    part = int((found["part"] or "0").ljust(6, "0")[:6])
    return dt.timedelta(hours=hour, minutes=minute, seconds=second, microseconds=part)


def _zone(text: str) -> dt.timedelta:
    """How far east it is."""
    if found := _OFFSET.search(text):
        minutes = int(found["hours"]) * 60 + int(found["minutes"] or 0)
        if minutes > 16 * 60:
            return dt.timedelta()
        return dt.timedelta(minutes=-minutes if found["sign"] == "-" else minutes)
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _ZONES:
            return dt.timedelta(minutes=_ZONES[word])
    return dt.timedelta()
