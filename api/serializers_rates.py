"""What the native API reads and writes about rate limits and balancers."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from api.serializers import Name, Real, Strict, Whole
from dispatch.models import RateLimit


class RateChange(Strict):
    """How fast items of a key may be given out, over all nodes together. ``dispatch.buckets`` knows the bounds."""

    key = Name(required=False, max_length=200, help_text="As runs name it; * stands for any text, as in host:*")
    per_second = Real(required=False, help_text="Items a second, 0.001 to 100,000.")
    burst = Whole(
        required=False,
        help_text="Items at once after a pause. Default 1. Below per_second / 50 the rate is not reached.",
    )


class RateCreation(RateChange):
    key = Name(max_length=200, help_text="As runs name it; * stands for any text, as in host:*")
    per_second = Real(help_text="Items a second, 0.001 to 100,000.")


class BucketSerializer(serializers.Serializer[Any]):
    key = serializers.CharField()
    tokens = serializers.FloatField(help_text="Items that could be given out now.")


class RateSerializer(serializers.ModelSerializer[RateLimit]):
    """A limit as ``views_rates.shown`` completes it, with ``buckets``."""

    buckets = BucketSerializer(
        many=True, read_only=True, help_text="Keys that it holds for and that were drawn from lately; others are full."
    )

    class Meta:
        model = RateLimit
        fields = ("id", "key", "per_second", "burst", "buckets")
        read_only_fields = fields


class BalancerSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    help = serializers.CharField()
