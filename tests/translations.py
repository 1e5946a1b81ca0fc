"""The catalogue of the pages' words: what templates, code and scripts say, brought into ``locale/``, and compiled.

    python -m tests.translations

adds what is new with an empty translation, drops what nothing says any more, and writes the ``.mo`` beside the ``.po``.
No gettext is needed. ``tests/unit/test_translations.py`` asks the same functions whether all is there.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import polib
from django.utils.translation.template import templatize

ROOT = Path(__file__).parent.parent
CATALOGUE = ROOT / "locale" / "zh_Hans" / "LC_MESSAGES" / "django.po"
SOURCES = ("api", "cascade", "dispatch", "nodes")
SINGULAR = {"_", "gettext", "gettext_lazy", "gettext_noop", "words", "said"}
PLURAL = {"ngettext", "ngettext_lazy", "counted"}
_CALL = re.compile(
    r"""\b(n?gettext|_)\(\s*u?((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))(?:\s*,\s*u?('(?:[^'\\]|\\.)*'))?"""
)
_SAY = re.compile(r"""\bsay\(\s*("(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`)""")

Message = tuple[str, str]
"""A text, and its plural or nothing."""


def collected() -> dict[Message, set[str]]:
    """All that is said, with the files that say it."""
    found: dict[Message, set[str]] = {}
    for message, place in [*_of_templates(), *_of_code(), *_of_declarations(), *_of_admin()]:
        if message[0].strip():
            found.setdefault(message, set()).add(place)
    return found


def _of_templates() -> Iterator[tuple[Message, str]]:
    for path in sorted((ROOT / "templates").rglob("*.html")):
        yield from ((message, _name(path)) for message in of_template(path.read_text(encoding="utf-8")))


def of_template(text: str) -> Iterator[Message]:
    for kind, one, many in _CALL.findall(templatize(text)):
        yield ast.literal_eval(one), ast.literal_eval(many) if kind == "ngettext" else ""


def _of_code() -> Iterator[tuple[Message, str]]:
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "gettext" in text or "api.words" in text:
                yield from ((message, _name(path)) for message in of_code(text))


def of_code(text: str) -> Iterator[Message]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if name in SINGULAR and len(texts) == len(node.args[:1]) == 1:
                yield texts[0], ""
            elif name in PLURAL and len(texts) >= 2:
                yield texts[0], texts[1]


def said_by_scripts() -> dict[str, set[str]]:
    """What scripts look up, with the scripts."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "templates" / "static" / "cascade").glob("*.js")):
        for text in _SAY.findall(path.read_text(encoding="utf-8")):
            found.setdefault(text[1:-1], set()).add(path.name)
    return found


def _of_declarations() -> Iterator[tuple[Message, str]]:
    """What task types declare in English, for the form of a submission."""
    from nodes import executors

    for name in executors.names():
        executor = executors.get(name)
        params = [*executor.params, *(param for variant in executor.variants() for param in variant.params)]
        for text in (executor.title, executor.item_form, *(param.help for param in params)):
            yield (text, ""), executor.__module__.replace(".", "/") + ".py"


def _of_admin() -> Iterator[tuple[Message, str]]:
    """Names of models and of their fields, and what the admin's theme says that Django does not say in Chinese."""
    from cascade import admin_words

    yield from (((text, ""), "cascade/admin_words.py") for text in admin_words.names())
    yield from (((text, many), "unfold") for text, many in _of_theme())


def _of_theme() -> Iterator[Message]:
    import django
    import unfold

    known: set[str] = set()
    for folder in ("conf", "contrib/admin", "contrib/auth"):
        file = Path(django.__file__).parent / folder / "locale" / "zh_Hans" / "LC_MESSAGES" / "django.mo"
        known.update(entry.msgid for entry in polib.mofile(str(file)))
    for path in sorted(Path(unfold.__file__).parent.rglob("*")):
        messages: Iterable[Message] = ()
        if path.suffix == ".html":
            messages = of_template(path.read_text(encoding="utf-8"))
        elif path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            messages = of_code(text) if "gettext" in text else ()
        for message in messages:
            if message[0] not in known:
                yield message


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def merged(old: polib.POFile, found: dict[Message, set[str]]) -> polib.POFile:
    """``old`` with an entry for each of ``found`` and no other, by what is said."""
    known = {(entry.msgid, entry.msgid_plural): entry for entry in old}
    made = polib.POFile(wrapwidth=110)
    made.metadata = {
        "Project-Id-Version": "Cascade",
        "Language": "zh_Hans",
        "MIME-Version": "1.0",
        "Content-Type": "text/plain; charset=UTF-8",
        "Content-Transfer-Encoding": "8bit",
        "Plural-Forms": "nplurals=1; plural=0;",
    }
    for (one, many), places in sorted(found.items()):
        entry = known.get((one, many)) or polib.POEntry(
            msgid=one, msgid_plural=many, msgstr="", msgstr_plural={0: ""} if many else {}
        )
        entry.occurrences = [(place, "") for place in sorted(places)]
        made.append(entry)
    return made


def compiled(catalogue: polib.POFile) -> bytes:
    return catalogue.to_binary()


def main() -> int:
    import django

    django.setup()
    CATALOGUE.parent.mkdir(parents=True, exist_ok=True)
    old = polib.pofile(str(CATALOGUE)) if CATALOGUE.exists() else polib.POFile()
    made = merged(old, collected())
    made.save(str(CATALOGUE))
    CATALOGUE.with_suffix(".mo").write_bytes(compiled(made))
    lacking = [entry.msgid for entry in made if not (entry.msgstr or any(entry.msgstr_plural.values()))]
    print(f"{len(made)} texts, {len(lacking)} without a translation")
    for text in lacking:
        print(f"  {text!r}")
    return 1 if lacking else 0


if __name__ == "__main__":
    import os

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
    sys.exit(main())
