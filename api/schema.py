"""What drf-spectacular cannot see by itself: the agent's verbs, which are plain views, what task types
declare, and the shape of errors."""

from __future__ import annotations

from typing import Any

from api.serializers import WorkOptions
from dispatch.states import AllocationState, RunState, ShardState
from nodes import executors
from nodes.executors.described import plain_schema
from nodes.messages import ANSWERS_LIMIT, ENTRIES_LIMIT, IDS_LIMIT, TEXT_LIMIT
from nodes.protocol import INLINE_ROWS, LOG_CHARACTERS, LOG_LIMIT, LOG_PIECES, SEGMENT_BYTES_LIMIT

Json = dict[str, Any]

# Three kinds of thing have a "state"; these name their sets of values (ENUM_NAME_OVERRIDES of drf-spectacular).
RUN_STATES = [state.value for state in RunState]
SHARD_STATES = [state.value for state in ShardState]
ALLOCATION_STATES = [state.value for state in AllocationState]

METHODS = ("get", "put", "post", "delete", "patch")
PROBLEM = "Problem"
AGENT = "agent"
OF_TABLES = ("/api/v1/charts", "/api/v1/articles")
"""What reads a table that may not be there yet, though no name of it is in the path."""


def _object(properties: Json, required: tuple[str, ...] = (), **more: Any) -> Json:
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {}) | more


def _list(of: Json, help_text: str = "", **more: Any) -> Json:
    return {"type": "array", "items": of} | ({"description": help_text} if help_text else {}) | more


def _text(help_text: str = "", **more: Any) -> Json:
    return {"type": "string"} | ({"description": help_text} if help_text else {}) | more


def _cut(limit: int, help_text: str = "") -> Json:
    """A text of which the parent keeps the beginning: what a program printed must not cost its result."""
    return _text(f"{help_text} {limit:,} characters are kept.".strip())


def _whole(help_text: str = "", **more: Any) -> Json:
    return {"type": "integer", "minimum": 0} | ({"description": help_text} if help_text else {}) | more


def _number(help_text: str = "", **more: Any) -> Json:
    return {"type": "number"} | ({"description": help_text} if help_text else {}) | more


def _flag(help_text: str) -> Json:
    return {"type": "boolean", "description": help_text}


def _ids(help_text: str) -> Json:
    return _list(_whole(), help_text, maxItems=IDS_LIMIT)


_FAILURE = _object(
    {"kind": _text(enum=["error", "timeout", "crash"]), "message": _cut(TEXT_LIMIT)},
    ("kind",),
    description="Instead of ranges and errors, when nothing of the shard is known.",
)
_ENTRY = _object(
    {
        "allocation": _whole("Its id: the fencing token."),
        "ranges": _list(
            _list({"type": "integer"}, minItems=3, maxItems=3),
            "[start, stop, rows] of the items that are done, in order, none overlapping.",
        ),
        "errors": _list(_list({}, minItems=3, maxItems=3), "[index, message, retry] of the items that are not."),
        "failure": _FAILURE,
        "rows": _list(
            _list({}), f"Rows inline, in the dataset's column order: meant for up to about {INLINE_ROWS} of them."
        ),
        "segment": _text("Instead of rows: SHA-256 (hex) of a segment uploaded before.", pattern="^[0-9a-f]{64}$"),
        "offset": _whole("The first row of this entry in its segment."),
        "seconds": _number("Running time by the child's monotonic clock.", minimum=0),
        "log": _cut(LOG_LIMIT, "The tail of what the executor printed."),
        "log_start": _whole("Characters of the log that are left out before it."),
    },
    ("allocation",),
)
_RESULT = _object(
    {
        "allocation": _whole(),
        "status": _whole(
            "200 accepted, 404 not this node's, 409 lease lost, 412 segment not here, 422 contradicts the record. "
            "Where all are alike, it is the answer's own status too."
        ),
        "receipt": _text("The parent's durable yes; a repetition gets the same one."),
        "detail": _text(),
    }
)
_WORK = _list(
    _list({}, minItems=6, maxItems=6), "[allocation, run, start, stop, attempt, [item…]] for each shard granted."
)
_RUNS = _object(
    {},
    description="By run id, what its shards have in common: {type, params, timeout, priority}.",
    additionalProperties=_object(
        {"type": _text(), "params": _object({}), "timeout": _number("Seconds."), "priority": _whole()}
    ),
)

# verb: (what it does, body, reply)
VERBS: dict[str, tuple[str, Json, Json]] = {
    "claim": (
        "Asks for work. With nothing to give, the answer waits up to 'wait' seconds for some.",
        _object(
            {
                "boot": _cut(64, "Names this start of the agent."),
                "slots": _whole("Free ones."),
                "held": _ids("Allocations it holds."),
                "wait": _number("Seconds.", minimum=0),
            }
        ),
        _object(
            {
                "runs": _RUNS,
                "work": _WORK,
                "cancel": _ids("What to stop."),
                "drain": _flag("True: finish what is held, take nothing new."),
            }
        ),
    ),
    "accept": (
        "Answers an offer that came over the socket; the lease begins.",
        _object({"allocations": _ids("Taken.")}, ("allocations",)),
        _object({"gone": _ids("Given to somebody else meanwhile.")}),
    ),
    "beat": (
        "Renews the leases of all that is held, and brings news both ways.",
        _object(
            {
                "boot": _cut(64),
                "hello": _flag("Opens a session: what is not in 'held' is handed back."),
                "held": _ids("Allocations it holds."),
                "running": _ids("Those that have begun."),
                "progress": _object({}, additionalProperties=_whole(), description="Allocation id to items done."),
                "cpu": _number("Percent."),
                "memory": _number("Percent."),
                "disk": _number("Percent."),
                "version": _cut(40),
                "executors": _list(_text(), "Task types it can run."),
                "carrier": _text(enum=["pull", "push", "http"]),
                "leaving": _flag("It is about to stop."),
                "subtree": _object({}, description="Of a relay: as 'subtree' of a node."),
                "config": _whole("The version of the configuration that it has, 0 for none."),
            }
        ),
        _object(
            {
                "cancel": _ids("What to stop."),
                "drain": _flag("True: finish what is held, take nothing new."),
                "capacity": _whole("Slots."),
                "beat_seconds": _number("How often to beat."),
                "lease_seconds": _number("Without a beat for so long, allocations expire."),
                "time": _number("The parent's clock, seconds since 1970."),
                "config": _whole("The version of the configuration in force; 0: none yet."),
                "logs": _flag("It takes what running shards print."),
                "config_mark": _text("The beginning of its digest: numbers come again after a restore."),
            }
        ),
    ),
    "report": (
        "Results of finished allocations. What got a receipt is durable; reporting it again changes nothing.",
        _object({"reports": _list(_ENTRY, maxItems=ENTRIES_LIMIT)}, ("reports",)),
        _object({"results": _list(_RESULT)}),
    ),
    "release": (
        "Hands work back that has not begun; no attempt is counted.",
        _object({"allocations": _ids("Handed back."), "detail": _cut(200, "Why.")}, ("allocations",)),
        _object({"released": _ids("Those that were still this node's.")}),
    ),
    "log": (
        "What shards that still run have printed; a parent that takes it says 'logs' to a beat. What comes twice "
        "counts once.",
        _object(
            {
                "logs": _list(
                    _list({}, minItems=3, maxItems=3),
                    f"[allocation, start, text]: before the text, 'start' characters. Each allocation once; "
                    f"{LOG_LIMIT:,} characters of one, {LOG_CHARACTERS:,} in all.",
                    maxItems=LOG_PIECES,
                )
            },
            ("logs",),
        ),
        _object({"gone": _ids("Those that are not this node's, or do not run any more.")}),
    ),
    "tell": (
        "Answers what a relay was asked, which came as 'ask' with a claim, a beat or on the socket.",
        _object(
            {
                "answers": _list(
                    _object(
                        {
                            "id": _whole("The question's."),
                            "status": {"type": "integer", "enum": [200, 404, 504]},
                            "body": _object({}, description="With 200: as of GET /api/v1/nodes/{id}/below."),
                            "detail": _cut(TEXT_LIMIT, "Else: why there is none."),
                        },
                        ("id",),
                    ),
                    maxItems=ANSWERS_LIMIT,
                )
            }
        ),
        _object({"taken": _ids("Those that somebody waited for.")}),
    ),
    "rotate": (
        "Registers a key that the child has made itself. Signed by its present key, which stays valid until retired.",
        _object(
            {"public_key": _text("Ed25519, 32 bytes in hex.", minLength=64, maxLength=64, pattern="^[0-9a-f]{64}$")},
            ("public_key",),
        ),
        _object({"access_key": _text("Names the new key; the same when asked again.")}),
    ),
    "retire": (
        "Ends the node's keys that are older than the one this is signed with.",
        _object({}),
        _object({"revoked": _list(_text(), maxItems=100)}),
    ),
}

_PROBLEMS = {
    "400": "A field is wrong.",
    "401": "No key, or a wrong one.",
    "403": "Not allowed.",
    "429": "Too many wrong keys.",
}


def _problem(detail: str) -> Json:
    schema = {"$ref": f"#/components/schemas/{PROBLEM}"}
    return {"description": detail, "content": {"application/json": {"schema": schema}}}


def _verb(name: str, does: str, body: Json, reply: Json) -> Json:
    return {
        "operationId": f"agent_{name}",
        "summary": does,
        "tags": [AGENT],
        "security": [{"signature": []}, {"plainKey": []}],
        "requestBody": {"content": {"application/json": {"schema": body}}, "required": "required" in body},
        "responses": {
            "200": {"description": "", "content": {"application/json": {"schema": reply}}},
            **{status: _problem(detail) for status, detail in _PROBLEMS.items()},
        },
    }


def _segments() -> Json:
    return {
        "operationId": "agent_segment",
        "summary": "Uploads rows of one or more shards, for the reports that follow to name. Repeating it is harmless.",
        "tags": [AGENT],
        "security": [{"signature": []}, {"plainKey": []}],
        "parameters": [
            {
                "name": "sha256",
                "in": "path",
                "required": True,
                "description": "Of the body, in hex.",
                "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            },
        ],
        "requestBody": {
            "description": f"An Arrow IPC file, zstd inside, of at most {SEGMENT_BYTES_LIMIT:,} bytes.",
            "content": {"application/vnd.apache.arrow.file": {"schema": {"type": "string", "format": "binary"}}},
            "required": True,
        },
        "responses": {
            "201": {
                "description": "It is on disk.",
                "content": {"application/json": {"schema": _object({"sha256": _text(), "bytes": _whole()})}},
            },
            **{status: _problem(detail) for status, detail in _PROBLEMS.items()},
            "413": _problem("Above a stated limit."),
            "507": _problem("No room; nothing was kept."),
        },
    }


def _configuration() -> Json:
    packed = {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "operationId": "agent_config",
        "summary": "Tasks, sources and type settings as of the version in force.",
        "description": 'Gzip of two lines of JSON: {"version", "mark", "digest", "bytes"}, where the digest is the '
        'SHA-256 of the second line, and {"tasks", "sources", "settings", "left_out"}; of a relay also '
        '"levels", the versions above that it is made of, and "settings_of", those of tasks with "of".',
        "tags": [AGENT],
        "security": [{"signature": []}, {"plainKey": []}],
        "responses": {
            "200": {"description": "", "content": packed},
            **{status: _problem(detail) for status, detail in _PROBLEMS.items()},
            "404": _problem("There is no configuration yet."),
        },
    }


def agent_verbs(result: Json, generator: Any, request: Any, public: bool) -> Json:
    """Adds the agent's verbs and how their requests are authenticated (a POSTPROCESSING_HOOK of drf-spectacular)."""
    for name, (does, body, reply) in VERBS.items():
        result["paths"][f"/api/v1/agent/{name}"] = {"post": _verb(name, does, body, reply)}
    alike = {status: _problem("So for every entry.") for status in ("404", "409", "412", "422")}
    result["paths"]["/api/v1/agent/report"]["post"]["responses"] |= {
        status: answer | {"content": {"application/json": {"schema": VERBS["report"][2]}}}
        for status, answer in alike.items()
    }
    conflict = _problem("The key was registered before, or another one is in use, too.")
    result["paths"]["/api/v1/agent/rotate"]["post"]["responses"]["409"] = conflict
    for name in ("rotate", "retire"):
        result["paths"][f"/api/v1/agent/{name}"]["post"]["security"] = [{"signature": []}]
    result["paths"]["/api/v1/agent/segments/{sha256}"] = {"put": _segments()}
    result["paths"]["/api/v1/agent/config"] = {"get": _configuration()}
    schemes = result.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["signature"] = {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "RFC 9421 with Ed25519 over @method, @authority, @path, @query and content-digest, beside "
        "Signature-Input (created, nonce, keyid = the access key, tag = cascade) and Content-Digest.",
    }
    schemes["plainKey"] = {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "AK-SK <access key>:<secret key>; an operator can switch it off.",
    }
    return result


def task_params(result: Json, generator: Any, request: Any, public: bool) -> Json:
    """Adds what each task type's params are, and says so where work is submitted."""
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    named = {f"Params_{name}": plain_schema(executors.get(name)) for name in executors.names()}
    schemas |= named
    either = [{"$ref": f"#/components/schemas/{name}"} for name in named]
    either.append(_object({}, description="Of a task's run: what shall differ.", additionalProperties=True))
    for schema in schemas.values():
        params = schema.get("properties", {}).get("params", {})
        if params.get("description", "") == WorkOptions().fields["params"].help_text:
            schema["properties"]["params"] = {"anyOf": either, "description": params["description"]}
    return result


def problems(result: Json, generator: Any, request: Any, public: bool) -> Json:
    """Adds the errors each operation can answer with, a summary from its description, and that ids are numbers."""
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    schemas[PROBLEM] = _object(
        {
            "detail": _text("What was wrong, with which value, and what is allowed."),
            "field": _text("Dotted path into what was sent; 'body' for all of it."),
            "errors": _object({}, description="Every wrong field of the body with its messages."),
        },
        ("detail",),
    )
    for path, operations in result["paths"].items():
        for method in METHODS:
            if (operation := operations.get(method)) is None:
                continue
            description = operation.get("description", "").replace("``", "")
            operation.setdefault("summary", description.partition("\n")[0])
            if operation["summary"] == description:
                operation.pop("description", None)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] == "id":
                    parameter["schema"] = {"type": "integer"}
            answers = operation.setdefault("responses", {})
            answers.setdefault("400", _problem("A field, a filter or the body is wrong."))
            answers.setdefault("401", _problem("Not signed in."))
            if AGENT not in operation["tags"] and not path.startswith("/api/v1/token"):
                answers.setdefault("403", _problem("Not staff."))
            if "{" in path or path.startswith(OF_TABLES):
                answers.setdefault("404", _problem("No such thing."))
            if "/token" in path:
                answers.setdefault("429", _problem("Too many wrong guesses; Retry-After says when."))
            if path.endswith("/what-if"):
                answers.setdefault("429", _problem("Another is being looked at; Retry-After says when."))
            if method != "get" and AGENT not in operation["tags"] and "/token" not in path:
                answers.setdefault("409", _problem("Its state forbids it."))
    return result
