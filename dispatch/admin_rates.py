"""Rate limits to edit, their buckets to look at. Changes go through ``dispatch.buckets``."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from dispatch import buckets
from dispatch.models import RateBucket, RateLimit
from nodes.admin_base import Page, ReadOnly, moment
from nodes.protocol import FieldError


class RateLimitForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = RateLimit
        fields = ("key", "per_second", "burst")

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if not self.errors:
            try:
                buckets.check_limit(**self.cleaned_data)
            except FieldError as error:
                self.add_error(error.field, error.message)
        return cleaned


@admin.register(RateLimit)
class RateLimitAdmin(Page):
    form = RateLimitForm
    list_display = ("key", "per_second", "burst")
    search_fields = ("key",)

    def save_model(self, request: HttpRequest, obj: RateLimit, form: Any, change: bool) -> None:
        given = {name: form.cleaned_data[name] for name in RateLimitForm.Meta.fields}
        stored = buckets.change_limit(obj.pk, **given) if change else buckets.set_limit(**given)
        obj.pk = stored.pk


@admin.register(RateBucket)
class RateBucketAdmin(ReadOnly):
    list_display = ("key", "tokens", "filled")
    fields = ("key", "tokens", "filled_at")
    search_fields = ("key",)

    @admin.display(description=_("as of"), ordering="filled_at")
    def filled(self, bucket: RateBucket) -> str:
        return moment(bucket.filled_at)
