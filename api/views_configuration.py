"""Which nodes have which version of the configuration: seen, and changed one branch first."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers import Name, Strict, Whole
from api.views import Native
from dispatch import config_releases


class VersionSerializer(serializers.Serializer[Any]):
    version = serializers.IntegerField()
    mark = serializers.CharField(help_text="The beginning of its digest.")
    above = serializers.IntegerField(allow_null=True, help_text="Of a relay: the version of the node above in it.")
    created_at = serializers.DateTimeField()
    nodes = serializers.IntegerField(help_text="Nodes that are here and have it, at any depth.")


class ConfigurationState(serializers.Serializer[Any]):
    newest = serializers.IntegerField(allow_null=True)
    released = serializers.IntegerField(allow_null=True, help_text="What all nodes have but those of the canary.")
    following = serializers.BooleanField(help_text="All nodes get every new version at once.")
    canary = serializers.ListField(child=serializers.CharField(), help_text="Nodes that have the newest one.")
    nodes = serializers.IntegerField(help_text="Nodes that are here, at any depth.")
    versions = VersionSerializer(many=True)


class Canary(Strict):
    nodes = serializers.ListField(child=Name(max_length=100), help_text="Names; a relay stands for all below it.")


class Rollback(Strict):
    to = Whole(required=False, help_text="A version that is kept. Default: the released one, or the one before.")


class Configuration(Native):
    @extend_schema(responses=ConfigurationState)
    def get(self, request: Request) -> Response:
        """Which version is released to whom, which are kept, and how many nodes have which."""
        return Response(ConfigurationState(config_releases.state()).data)


class ConfigurationCanary(Native):
    @extend_schema(request=Canary, responses=ConfigurationState)
    def post(self, request: Request) -> Response:
        """These nodes alone get new versions, with all that is below them; the others keep what they have."""
        given = _checked(Canary, request)
        return Response(ConfigurationState(config_releases.canary(given["nodes"])).data)


class ConfigurationPromote(Native):
    @extend_schema(request=None, responses=ConfigurationState)
    def post(self, request: Request) -> Response:
        """All nodes get the newest version, and from now on every new one. 409 where they do already."""
        return Response(ConfigurationState(config_releases.promote()).data)


class ConfigurationRollback(Native):
    @extend_schema(request=Rollback, responses=ConfigurationState)
    def post(self, request: Request) -> Response:
        """All nodes get the version before, or the one that is named, and keep it until the newest is promoted."""
        given = _checked(Rollback, request)
        return Response(ConfigurationState(config_releases.rollback(given.get("to"))).data)


def _checked(serializer: type[Strict], request: Request) -> dict[str, Any]:
    read = serializer(data=request.data)
    read.is_valid(raise_exception=True)
    given: dict[str, Any] = read.validated_data
    return given
