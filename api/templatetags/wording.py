"""``page_words``: what scripts of a page say; ``said``: a sentence made in English, in the reader's language."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.html import json_script
from django.utils.safestring import SafeString, mark_safe

from api.words import in_scripts
from nodes import sentences

register = template.Library()


@register.simple_tag
def page_words() -> SafeString:
    """As data for words.js; nothing in English."""
    found = in_scripts()
    return json_script(found, "words") if found else mark_safe("")


@register.filter
def said(value: Any) -> str:
    return sentences.said(str(value))
