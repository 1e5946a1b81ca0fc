"""The API's description: OpenAPI for programs, and the same as a page for people, made here without any script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import HttpResponseBase
from django.shortcuts import render
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView
from rest_framework.exceptions import APIException, NotAuthenticated
from rest_framework.permissions import IsAdminUser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from api.schema import AGENT, METHODS, Json
from api.views import Json as JsonNegotiation

DEPTH = 3
"""Objects inside objects are spelt out so deep."""


class Schema(SpectacularAPIView):
    """OpenAPI 3, as YAML or, by ``?format=json`` or the Accept header, as JSON."""

    permission_classes = (IsAdminUser,)

    def handle_exception(self, exc: Exception) -> Response:
        response: Response = super().handle_exception(exc)
        # Errors are JSON here too; the schema's own renderers would write them as a document of theirs.
        self.request.accepted_renderer = JSONRenderer()
        self.request.accepted_media_type = JSONRenderer.media_type
        return response


@dataclass(frozen=True)
class Field:
    """One line of a table: a parameter, or a part of a body by its dotted path."""

    name: str
    type: str
    required: bool
    help: str
    place: str = ""


@dataclass(frozen=True)
class Answer:
    status: str
    help: str
    fields: list[Field]


@dataclass(frozen=True)
class Operation:
    id: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[Field]
    body: list[Field]
    body_help: str
    answers: list[Answer]
    arguments: str
    """What follows the address on curl's command line."""
    for_agents: bool


def _types(schema: Json, root: Json) -> str:
    schema = _resolved(schema, root)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(_types(part, root) for part in schema[word] if part))
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"] if value not in ("", None))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_types(schema.get('items', {}), root)}"
    words = [str(schema["format"]) if kind == "string" and "format" in schema else str(kind)]
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None and most < 2**31 - 1:
        words.append(f"{least} to {most}")
    elif least:
        words.append(f"from {least}")
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']} characters")
    return ", ".join(words)


def _resolved(schema: Json, root: Json) -> Json:
    """Follows references; parts that must all hold are laid over each other, as each adds to what the others say."""
    if "$ref" in schema:
        return _resolved(root["components"]["schemas"][schema["$ref"].rpartition("/")[2]], root)
    if "allOf" in schema:
        whole: Json = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            whole = _resolved(part, root) | whole
        return whole
    return schema


def _fields(schema: Json, root: Json, prefix: str = "", depth: int = DEPTH) -> Iterator[Field]:
    schema = _resolved(schema, root)
    if schema.get("type") == "array" and not prefix:
        prefix = "[]."
        schema = _resolved(schema.get("items", {}), root)
    required = schema.get("required", ())
    for name, part in schema.get("properties", {}).items():
        whole = _resolved(part, root)
        path = f"{prefix}{name}"
        yield Field(path, _types(part, root), name in required, whole.get("description", "").partition("\n")[0])
        inner = _resolved(whole["items"], root) if whole.get("type") == "array" else whole
        if depth > 1 and "properties" in inner:
            yield from _fields(inner, root, f"{path}{'[]' if inner is not whole else ''}.", depth - 1)


def _example(schema: Json, root: Json) -> Any:
    """The least body that is of this form."""
    schema = _resolved(schema, root)
    if "oneOf" in schema:
        return _example(schema["oneOf"][0], root)
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {
                name: _example(part, root)
                for name, part in schema.get("properties", {}).items()
                if name in schema.get("required", ())
            }
        case "array":
            return [_example(schema["items"], root)] if schema.get("items", {}) else []
        case "integer" | "number":
            return schema.get("minimum", 1) or 1
        case "boolean":
            return True
    return "…"


def _arguments(method: str, operation: Json, root: Json) -> str:
    words = [] if method == "get" else ["-X", method.upper()]
    key = (
        '"Authorization: AK-SK $ACCESS_KEY:$SECRET_KEY"'
        if AGENT in operation["tags"]
        else '"Authorization: Bearer $TOKEN"'
    )
    line = " ".join(words)
    if operation.get("security") != [{}] and "/token" not in operation["operationId"]:
        line += f" -H {key}"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        line += f" -H {shlex.quote('Content-Type: ' + media_type)}"
        if media_type == "application/json":
            examples = [example["value"] for example in content.get("examples", {}).values()]
            body = examples[0] if examples else _example(content.get("schema", {}), root)
            line += f" -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
        else:
            line += " --data-binary @segment.arrow"
        break
    return line.strip()


def _operation(path: str, method: str, operation: Json, root: Json) -> Operation:
    content: Json = next(iter(operation.get("requestBody", {}).get("content", {}).values()), {})
    answers = []
    for status, answer in sorted(operation["responses"].items()):
        body: Json = next(iter(answer.get("content", {}).values()), {})
        schema = body.get("schema", {})
        shown = list(_fields(schema, root)) if status.startswith("2") else []
        answers.append(Answer(status, answer.get("description", ""), shown))
    return Operation(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        description=operation.get("description", ""),
        parameters=[
            Field(
                each["name"],
                _types(each.get("schema", {}), root),
                each.get("required", False),
                each.get("description", ""),
                each["in"],
            )
            for each in operation.get("parameters", ())
        ],
        body=list(_fields(content.get("schema", {}), root)),
        body_help=operation.get("requestBody", {}).get("description", ""),
        answers=answers,
        arguments=_arguments(method, operation, root),
        for_agents=AGENT in operation["tags"],
    )


@cache
def _groups() -> tuple[Json, dict[str, list[Operation]]]:
    """What the page shows: general information, and the operations by tag. It is the same for everybody."""
    root: Json = SchemaGenerator().get_schema(request=None, public=True)
    groups: dict[str, list[Operation]] = {}
    for path, operations in root["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                groups.setdefault(operation["tags"][0], []).append(_operation(path, method, operation, root))
    # The verbs of agents are for few readers.
    ordered = sorted(groups.items(), key=lambda group: (group[0] == AGENT, group[0]))
    return root["info"], dict(ordered)


class Docs(APIView):
    content_negotiation_class = JsonNegotiation

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponseBase:
        """The page. Whoever is not signed in is sent to do so."""
        info, groups = _groups()
        context = {"info": info, "groups": groups, "base": request.build_absolute_uri("/")[:-1]}
        return render(request._request, "api/docs.html", context)

    def handle_exception(self, exc: Exception) -> HttpResponseBase:  # type: ignore[override]
        if isinstance(exc, (NotAuthenticated, APIException)) and exc.status_code == 401:
            browser = "text/html" in self.request.headers.get("Accept", "")
            if browser and "Authorization" not in self.request.headers:
                return redirect_to_login(self.request.get_full_path())
        return super().handle_exception(exc)
