"""The ground of the native API's views: permissions apart (settings), how lists are filtered, ordered and cut in pages.

Also here: signing in. Runs, nodes, tables and task types have files of their own.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import QuerySet
from django_filters import rest_framework as filters
from django_filters.fields import IsoDateTimeField
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import viewsets
from rest_framework.exceptions import APIException
from rest_framework.filters import OrderingFilter
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.pagination import LimitOffsetPagination
from rest_framework.parsers import BaseParser, FormParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.exceptions import InvalidToken
from rest_framework_simplejwt.views import TokenObtainPairView, TokenRefreshView

from api.authentication import client_address
from api.guesses import PasswordTry
from api.parsers import StrictJSON
from api.serializers import unknown
from nodes.protocol import FieldError

LARGEST_ID = 2**63 - 1
LARGEST_OFFSET = 2**53
"""What a database takes, with room to add a page."""
FLAGS = {"true": True, "1": True, "false": False, "0": False}


def number(request: Request, name: str, default: int, least: int, most: int = LARGEST_OFFSET) -> int:
    """The query's ``name`` as a whole number. Raises FieldError."""
    given = request.query_params.get(name)
    if given is None:
        return default
    # isascii: int() also reads digits of other scripts, which no client of ours means.
    if not (given.isascii() and given.removeprefix("-").isdigit() and len(given) < 20 and least <= int(given) <= most):
        raise FieldError(name, f"{given[:100]!r} is not a whole number from {least} to {most}")
    return int(given)


def flag(request: Request, name: str) -> bool:
    """The query's ``name`` as true or false; false when it is not there. Raises FieldError."""
    given = request.query_params.get(name, "false").lower()
    if given not in FLAGS:
        raise FieldError(name, f"{given[:100]!r} is neither true nor false")
    return FLAGS[given]


def only_known(request: Request, known: Sequence[str]) -> None:
    """A misspelt filter would quietly select everything. Raises FieldError."""
    for name in request.query_params:
        if name not in known:
            raise FieldError(name[:100], unknown(name, known))


class Page(LimitOffsetPagination):
    default_limit = 100
    max_limit = 1000

    def get_limit(self, request: Request) -> int:
        return min(number(request, "limit", self.default_limit, 1), self.max_limit)

    def get_offset(self, request: Request) -> int:
        return number(request, "offset", 0, 0)


class Filters(filters.DjangoFilterBackend):
    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        filterset = self.get_filterset_class(view, queryset)
        only_known(request, [*(filterset.base_filters if filterset else ()), "ordering", "limit", "offset"])
        found: QuerySet[Any] = super().filter_queryset(request, queryset, view)
        return found


class Ordering(OrderingFilter):
    ordering_description = "A field, or several with commas; - before one turns it round."

    def remove_invalid_fields(
        self, queryset: QuerySet[Any], fields: Iterable[str], view: Any, request: Request
    ) -> list[str]:
        """Invalid ones are refused rather than removed. Equals are in the order of their ids, so that pages meet."""
        for name in fields:
            if name.removeprefix("-") not in view.ordering_fields:
                allowed = ", ".join(view.ordering_fields)
                raise FieldError("ordering", f"{name[:100]!r} is not one of: {allowed} (each with or without -)")
        return [*fields, "-id"]


class Json(BaseContentNegotiation):
    """Always what the view makes, whatever the Accept header; ``?format=`` is left to views that export rows."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        media_type = (request.content_type or "").partition(";")[0].strip().lower()
        if media_type == "" or media_type.endswith("+json"):
            media_type = StrictJSON.media_type
        return next((parser for parser in parsers if parser.media_type == media_type), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type


class LengthRequired(APIException):
    status_code = 411


class Native(APIView):
    """Every view of the native API."""

    parser_classes: Sequence[type[BaseParser]] = (StrictJSON,)
    content_negotiation_class = Json

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        # Neither Django nor DRF looks at such a body: its size is unknown, so that upload_limit would not hold.
        if "chunked" in request.headers.get("Transfer-Encoding", "").lower():
            raise LengthRequired("send the body with a Content-Length, not in chunks")


class NativeSet(Native, viewsets.GenericViewSet[Any]):
    """A kind of thing at /api/v1/<kind>, listed with filters, in the order of one of ``ordering_fields``."""

    pagination_class = Page
    filter_backends = (Filters, Ordering)
    lookup_value_regex = "[0-9]{1,18}"
    ordering_fields: Sequence[str] = ("id",)
    filterset_class: type[filters.FilterSet] | None = None

    def checked(self, request: Request, **options: Any) -> Any:
        """The body's validated content, by the action's serializer."""
        serializer = self.get_serializer(data=request.data, **options)
        serializer.is_valid(raise_exception=True)
        return serializer.validated_data


@extend_schema_field(OpenApiTypes.INT)
class WholeFilter(filters.NumberFilter):
    """django-filter's own reads decimals, which a key is not."""

    field_class = forms.IntegerField

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, min_value=0, max_value=LARGEST_ID, **kwargs)

    def get_max_validator(self) -> None:
        return None


class _MomentField(IsoDateTimeField):
    def clean(self, value: Any) -> Any:
        moment = super().clean(value)
        try:
            return moment and moment.astimezone(dt.UTC)
        except OverflowError:
            raise forms.ValidationError("is outside the years 1 to 9999 in UTC") from None


class Moment(filters.IsoDateTimeFilter):
    """A moment in ISO 8601 that exists in UTC too."""

    field_class = _MomentField


class _FlagField(forms.Field):
    def clean(self, value: Any) -> bool | None:
        if not value:
            return None
        if value.lower() not in FLAGS:
            raise forms.ValidationError(f"{value[:100]!r} is neither true nor false")
        return FLAGS[value.lower()]


@extend_schema_field(OpenApiTypes.BOOL)
class Flag(filters.BooleanFilter):
    """True or false. django-filter's own takes anything else for no filter at all, which selects everything."""

    field_class = _FlagField

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, widget=forms.TextInput, **kwargs)


def state_filter(states: type[Any]) -> filters.MultipleChoiceFilter:
    return filters.MultipleChoiceFilter(
        choices=[(state.value, state.value) for state in states], help_text="Repeat it for several."
    )


class TakesForms(Native):
    """It also takes forms, which is what one types for curl."""

    parser_classes = (StrictJSON, FormParser)


class SignIn(TakesForms, TokenObtainPairView):
    """A token pair for a user's name and password. The access token goes into ``Authorization: Bearer …``."""

    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        name = request.data.get(get_user_model().USERNAME_FIELD) if isinstance(request.data, dict) else ""
        attempt = PasswordTry(client_address(request), str(name))
        response = super().post(request, *args, **kwargs)
        attempt.right()
        return response


class Refresh(TakesForms, TokenRefreshView):
    """A new access token for a refresh token."""

    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        attempt = PasswordTry(client_address(request))
        try:
            response = super().post(request, *args, **kwargs)
        except ObjectDoesNotExist:
            raise InvalidToken({"detail": "the user of this token is gone"}) from None
        attempt.right()
        return response
