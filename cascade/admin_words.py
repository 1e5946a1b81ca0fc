"""Names of models and fields in the admin, in the reader's language. The models themselves name them in English."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.utils.translation import gettext_lazy, override

from nodes.sentences import ENGLISH

OURS = ("nodes", "dispatch")


def _models() -> Iterator[Any]:
    for label in OURS:
        yield from apps.get_app_config(label).get_models()


def names() -> Iterator[str]:
    """All that ``translate`` makes translatable, in English."""
    for model in _models():
        yield from (str(model._meta.verbose_name), str(model._meta.verbose_name_plural))
        for field in _fields(model):
            yield from (str(field.verbose_name), str(field.help_text))
            yield from (str(label) for _value, label in field.flatchoices)
    yield from (str(apps.get_app_config(label).verbose_name) for label in OURS)


def _fields(model: Any) -> Iterator[Any]:
    return (field for field in model._meta.get_fields() if hasattr(field, "verbose_name"))


def translate() -> None:
    """Have them say themselves when they are shown. Migrations compare what a model was declared with, not these."""
    with override(ENGLISH):
        for model in _models():
            meta = model._meta
            meta.verbose_name, meta.verbose_name_plural = _lazy(meta.verbose_name), _lazy(meta.verbose_name_plural)
            for field in _fields(model):
                field.verbose_name = _lazy(field.verbose_name)
                field.help_text = _lazy(field.help_text)
                if field.flatchoices:
                    field.choices = [(value, _lazy(label)) for value, label in field.flatchoices]
        for label in OURS:
            config = apps.get_app_config(label)
            config.verbose_name = _lazy(config.verbose_name)


def _lazy(text: Any) -> Any:
    # A plural is made of the singular when it is shown, so both are taken as the texts that they are now.
    return gettext_lazy(str(text)) if text else text
