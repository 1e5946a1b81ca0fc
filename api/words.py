"""Words of the pages: kept as what is to be said, and said in the language of whoever looks, when it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.utils.translation import get_language, gettext, gettext_noop, ngettext, override

from nodes.sentences import ENGLISH


@lru_cache(4096)
def _translated(text: str, language: str | None) -> str:
    return gettext(text)


def translated(text: str) -> str:
    """``text``, of the catalogue, in the active language; a page says it by the thousand."""
    return _translated(text, get_language())


class Spoken:
    """Two are equal where they say the same in all languages, so that a view made of them is as good as its text."""

    def told(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Spoken):
            return self.told() == other.told()
        return isinstance(other, str) and str(self) == other

    def __hash__(self) -> int:
        return hash(self.told())


@dataclass(frozen=True, eq=False)
class Words(Spoken):
    """``template``, a text of the catalogue, with ``values`` put in for its {names}, whichever language is active then;
    or ``many``, where ``number`` wants the plural.
    """

    template: str
    values: tuple[tuple[str, Any], ...] = ()
    many: str = ""
    number: int = 0

    def __str__(self) -> str:
        said = ngettext(self.template, self.many, self.number) if self.many else translated(self.template)
        return said.format(**dict(self.values)) if self.values else said

    def told(self) -> tuple[Any, ...]:
        return (self.template, self.values, self.many, self.number)


@dataclass(frozen=True, eq=False)
class Joined(Spoken):
    """Several one after the other, with ``between`` between them, which may be words, too."""

    between: Text
    parts: tuple[Text, ...]

    def __str__(self) -> str:
        return str(self.between).join(map(str, self.parts))

    def __bool__(self) -> bool:
        return bool(self.parts)

    def told(self) -> tuple[Any, ...]:
        return (self.between, self.parts)


Text = str | Words | Joined
"""What a view shows: a text as it is, or words."""
LIST = Words(gettext_noop(", "))
"""Between the parts of a list."""


def words(template: str, /, **values: Any) -> Words:
    return Words(template, tuple(values.items()))


def counted(one: str, many: str, number: int, /, **values: Any) -> Words:
    """``one`` or ``many`` by ``number``, which is ``{n}`` there, with commas between thousands."""
    return Words(one, (("n", f"{number:,}"), *values.items()), many, number)


def listed(parts: Iterable[Text]) -> Joined:
    return Joined(LIST, tuple(parts))


# ---- what scripts say --------------------------------------------------------------------------------------------

_ = gettext_noop
IN_SCRIPTS: tuple[str, ...] = (
    # branches.js
    _("The server cannot be reached."),
    _("answered {status}"),
    # copy.js
    _("Copy"),
    _("Copied"),
    _("Selected: press Ctrl-C"),
    # equity.js
    _("equity {equity}  draw-down {drawdown} %"),
    # live.js
    _("Connecting…"),
    _("Reconnecting…"),
    _("Signed out"),
    _("Deleted"),
    _("Live"),
    _("Polling"),
    _("Live · {n} s ago"),
    _("Polling · {n} s ago"),
    _("Paused"),
    _("Paused (+{n})"),
    _("Pause"),
    _("Resume"),
    _("Resumed"),
    _("Sign in"),
    # log.js
    _("{at}, items {first} to {last}, attempt {attempt}, line {line}"),
    _("[… {n} characters are missing] "),
    _("No line has “{text}”."),
    _("the server answered {status}"),
    _("The log could not be read: {why}."),
    # page.js
    _("({n} failed) {title}"),
    # times.js
    _("{time} ago"),
    _("in {time}"),
    _("{n} s"),
    _("{n} min"),
    _("{n} h"),
    _("{n} d"),
    _("{n} min {m} s"),
    _("{n} h {m} min"),
    _("{n} d {m} h"),
    _("Times in UTC"),
    _("Times in local zone"),
)
"""The texts that scripts look up by ``say`` of words.js."""


def in_scripts() -> dict[str, str]:
    """The same in the active language; nothing in English, where a text says itself."""
    return {} if get_language() == ENGLISH else {text: translated(text) for text in IN_SCRIPTS}


def in_languages(languages: Iterable[str]) -> Iterator[str]:
    """Each of ``languages``, active meanwhile."""
    for language in languages:
        with override(language):
            yield language
