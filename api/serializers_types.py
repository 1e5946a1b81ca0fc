"""What the native API says of task types and of sources of market data: what ``nodes.executors.described`` gives."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from api.serializers import ColumnSerializer
from nodes.executors.described import KINDS


class ParamSerializer(serializers.Serializer[Any]):
    """One parameter, as it is checked."""

    name = serializers.CharField()
    kind = serializers.CharField(help_text=f"One of {', '.join(KINDS)}.")
    of = serializers.CharField(allow_null=True, help_text="Of a list: the kind of each element.")
    # DRF's metaclass takes fields out of the class, so that this does not hide Field.required.
    required = serializers.BooleanField()  # type: ignore[assignment]
    default = serializers.JSONField(allow_null=True, help_text="null: none.")
    help = serializers.CharField()
    minimum = serializers.FloatField(allow_null=True, help_text="Of a list: of each element, like maximum and choices.")
    maximum = serializers.FloatField(allow_null=True)
    choices = serializers.ListField(allow_null=True)


class VariantSerializer(serializers.Serializer[Any]):
    """Parameters that there are only where another one has a certain value."""

    by = serializers.CharField(help_text="The parameter that decides: source, say.")
    value = serializers.CharField(help_text="The value with which these exist.")
    within = serializers.CharField(help_text="The parameter, an object, that they are in; empty: beside the others.")
    params = ParamSerializer(many=True)
    choices = serializers.DictField(
        child=serializers.ListField(), help_text="What other parameters may be there, by name: {freq: [D]}."
    )


class SelectSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    select = serializers.CharField(help_text="SQL, over {table} or, for reductions, over rows.")


class TypeDataset(serializers.Serializer[Any]):
    table = serializers.CharField()
    columns = ColumnSerializer(many=True)
    key = serializers.ListField(child=serializers.CharField(), help_text="The natural key: which rows are one fact.")
    views = SelectSerializer(many=True, help_text="Further names to read it by.")


class ExecutorSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    title = serializers.CharField()
    waits = serializers.BooleanField(help_text="Many of its shards at once in one process; false: a process each.")
    remembers = serializers.BooleanField(help_text="Its items have a memory from run to run.")
    grows = serializers.BooleanField(help_text="Its items may find further ones, which join the run.")
    outside = serializers.BooleanField(help_text="Only clients with code of their own run it.")
    items = serializers.CharField(help_text="What an item looks like.")
    items_optional = serializers.BooleanField(help_text="It can make its items of the parameters.")
    source_kind = serializers.CharField(help_text="Kind of the sources whose keys can be items; empty: none.")
    params = ParamSerializer(many=True)
    variants = VariantSerializer(many=True)
    dataset = TypeDataset()
    reductions = SelectSerializer(many=True, help_text="What is computed of a run's rows when it has ended.")


class ProviderSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    freqs = serializers.ListField(child=serializers.CharField(), help_text="Lengths of a bar it offers.")
    types = serializers.ListField(child=serializers.CharField(), help_text="Task types that can take it as source.")
    params = ParamSerializer(many=True)
