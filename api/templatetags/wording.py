"""``page_words``: what scripts of a page say; ``said``: a sentence made in English, in the reader's language;
``translate``, loaded after i18n's: the same of a text that is in the template, cheaply, for rows by the hundred.
"""

from __future__ import annotations

from typing import Any

from django import template
from django.templatetags.i18n import TranslateNode, do_translate
from django.utils.html import json_script
from django.utils.safestring import SafeString, mark_safe

from api.words import in_scripts, translated
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


class Text(template.Node):
    """As a template has it, so not escaped."""

    def __init__(self, text: str) -> None:
        self.text = text

    def render(self, context: Any) -> SafeString:
        return mark_safe(translated(self.text))


@register.tag
def translate(parser: Any, token: Any) -> template.Node:
    node: TranslateNode = do_translate(parser, token)
    said = node.filter_expression
    text = getattr(said.var, "literal", None)
    plain = isinstance(text, str) and "%" not in text and not said.filters
    if not plain or node.noop or node.asvar or node.message_context:
        return node
    return Text(str(text))
