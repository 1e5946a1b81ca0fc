"""Rows: what was imported, by table or by run, streamed in the format asked for."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers import Table
from api.views import Native


class Tables(Native):
    @extend_schema(responses=Table(many=True))
    def get(self, request: Request) -> Response:
        """The tables that hold rows."""
        raise NotImplementedError


class Rows(Native):
    def get(self, request: Request, name: str) -> Response:
        raise NotImplementedError
