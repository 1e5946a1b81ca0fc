"""The agent protocol: its version, its errors, and what its messages look like. Shared by parent and agent.

Seven verbs travel on every carrier, with the same payloads and replies (JSON):

claim    {"boot", "slots", "held": [id…], "wait": s}
         -> {"runs": {id: {type, params, timeout, priority}},
             "work": [[allocation, run, start, stop, attempt, [item…]]…], "cancel": [id…], "drain": bool,
             "memory": {allocation: {item_key: {…}}}, "inputs": [allocation…]}     (both where there are any)
accept   {"allocations": [id…]} -> {"gone": [id…]}                       (push only: answers an offer)
beat     {"boot", "hello": bool, "held", "running", "progress": {id: items}, "cpu", "memory", "disk", "version",
          "executors", "carrier", "config": version, "protocol": VERSION (with hello)}
         -> {"cancel", "drain", "capacity", "beat_seconds", "lease_seconds", "time", "config": version, "config_mark",
             "logs": bool, "parent": id of the server, "protocol": the version that both speak (to a hello)}
         A relay adds {"role": "relay", "id", "slots", "types": {type: slots}, "branches": [{label: value}…],
         "subtree", "begun": {id: items}, "configs": {version: nodes}}: who it is, what its nodes can do now, what hangs
         below it in short (SUMMARY_NUMBERS, and some of its children), how many items of what came with tokens of a
         rate they have begun, and which configurations they have. It is told {"path": [[id, name]…] from the root to
         the parent, "limits": {type: slots}}, and with work {"slots": {id: slots}, "rates": {id: key of the rate whose
         tokens come with it}}, and of a run name, shard_size, labels, rate_key and island_seconds.
report   {"reports": [entry…]} -> {"results": [{"allocation", "status", "receipt" | "detail"}…]}
release  {"allocations": [id…], "detail"} -> {"released": [id…]}
log      {"logs": [[allocation, start, text]…]} -> {"gone": [id…]}
         What shards that run longer than a moment have printed since the last one; sent only to a parent that says
         "logs" to a beat. ``start``: the characters of the shard's log before ``text``. What comes twice counts once.
Any of them may name its "parent", the id of the server whose allocations it is about. Another one answers 421: it may
have given out the same ids for other work.

cancel   parent to child: a frame on the socket, or in the reply to claim and beat.
ask      to a relay, the same way: [{"id", "path": [name…], "within": s}…]: what hangs below the node at that path?
tell     {"answers": [{"id", "status": 200 | 404 | 504, "body" | "detail"}…]} -> {"taken": [id…]}     (answers an ask)
shorten  the same: [[allocation, stop]…], a wish: end before item ``stop``, and report what is done by then.

A report's entry is one finished allocation:
  allocation   its id (the fencing token)
  ranges       [[start, stop, rows]…] items that are done, in order, none overlapping
  errors       [[index, message, retry]…] items that are not
  stopped      item at which it ended early because it was asked to; ranges and errors are about those before it
  failure      {"kind": crash | timeout | error, "message"} instead of both, when nothing of the shard is known
  rows         [[value…]…] small results inline, in the dataset's column order, or
  segment      sha256 (hex) of an Arrow IPC file uploaded before, with "offset": the first row of this entry in it
  seconds      running time by the child's monotonic clock
  log          the tail of what the executor printed
  log_start    where that begins in the shard's log: so many characters were before it, and are left out
  part         1, 2, …: what is done so far of an allocation that goes on, ranges and rows only; the last has none.
               Sent again it says the same, and counts once
  nodes        names of who worked below a relay; each range then has, as a fourth number, which of them it was
  outcomes     [[index, {"found": [item…], "memory": {…}, "status", "counts": {name: number}}]…] of items that are done
               and brought more than rows; see ``nodes.executors.base.Outcome``
"""

from __future__ import annotations

from itertools import takewhile

VERSION = 1
"""Raised when an older peer could misread a message; unknown fields are ignored on both sides."""
OLDEST = 1
"""Peers from this version on are understood. Both sides say theirs with the first beat, and speak the lower one."""

SLOTS_LIMIT = 1_000_000
SUMMARY_NUMBERS = ("nodes", "leaves", "online", "capacity", "used", "queued", "depth")
"""What is said of a subtree: nodes in all, those that run work, those that are there, slots of these, slots in use and
queued, levels."""
CHILDREN_SUMMED = 20
"""So many nodes are named in what a relay says of its subtree with each beat."""
CHILDREN_TOLD = 1000
"""So many are told in full to whoever asks."""
INLINE_ROWS = 2000
"""Up to so many rows travel inside the report; above that an Arrow segment costs less."""
LOG_LIMIT = 16_000
"""Characters of a shard's log that travel at once: its end, where a failure shows."""
LOG_CUT = "[…]\n"
"""Stands where the beginning of a log is left out."""
LOG_CHARACTERS = 70_000
"""Of all logs in one message: as JSON they fit a frame, whatever they are."""
LOG_PIECES = 500
"""Shards in one message of logs."""
SEGMENT_BYTES_LIMIT = 256 * 1024 * 1024
"""The largest segment a parent takes; an executor's shard should stay far below."""
FRAME_BYTES_LIMIT = 900 * 1024
"""Daphne drops a WebSocket message over 1 MiB without a close frame, so longer ones go by HTTP."""


class CascadeError(Exception):
    """Root of the project's exceptions.

    CascadeError
    ├── FieldError            a value somebody sent is wrong           400
    ├── Unauthenticated       who is it?                               401
    ├── Forbidden             known, but may not                       403
    ├── NotFound              no such thing for this caller            404
    ├── Conflict              lost a race, or came too late            409
    ├── TooLarge              above a stated limit                     413
    ├── Misdirected           meant for another server                 421
    ├── Unprocessable         well-formed, but contradicts the record  422
    ├── TooOld                speaks a version that is not understood  426
    ├── TooMany               of these for now; come back later        429
    ├── NotYet                it is still to come; ask again            503
    ├── NoAnswer              who was to be asked does not answer      504
    └── StorageFull           no room on the parent's disk             507
    """

    status = 500
    retry_after: float = 0.0
    """In how many seconds it is worth asking again, where it is at all; answers carry it as Retry-After."""

    def as_dict(self) -> dict[str, str]:
        return {"detail": str(self)}


class FieldError(CascadeError):
    """``field`` is a dotted path into what was sent; the message names the value and what is allowed."""

    status = 400

    def __init__(self, field: str, message: str) -> None:
        field = _sound(field)
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def as_dict(self) -> dict[str, str]:
        return {"field": self.field, "detail": self.message}


def _sound(field: str) -> str:
    """``field`` up to a name in it that somebody sent and that cannot be shown or stored, or is long."""
    if field.isprintable() and len(field) <= 100 and ".." not in field and not field.endswith("."):
        return field
    whole = takewhile(lambda name: name.isprintable() and 0 < len(name) <= 100, field.split("."))
    return ".".join(whole) or "body"


class Unauthenticated(CascadeError):
    status = 401


class Forbidden(CascadeError):
    status = 403


class NotFound(CascadeError):
    status = 404


class Conflict(CascadeError):
    status = 409


class TooLarge(CascadeError):
    status = 413


class Misdirected(CascadeError):
    status = 421


class Unprocessable(CascadeError):
    status = 422


class TooOld(CascadeError):
    status = 426


class TooMany(CascadeError):
    """There are too many of these for now."""

    status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotYet(CascadeError):
    """What was asked for is on its way here."""

    status = 503

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoAnswer(CascadeError):
    status = 504


class StorageFull(CascadeError):
    status = 507
    retry_after = 10.0
