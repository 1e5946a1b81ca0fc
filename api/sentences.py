"""Sentences that are made in English below, for the API and to be stored, as pages say them in other languages."""

from __future__ import annotations


def said(text: str) -> str:
    return text
