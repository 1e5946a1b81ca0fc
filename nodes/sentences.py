"""Sentences that are made in English, for the API and to be stored, as pages and the admin say them in other languages.

Why a node got a shard, why work waits and what was wrong with a value come up as finished texts. In another language
a page looks for the pattern that such a text has, and says its translation with the same values. A text without
a pattern, like a message of an executor or of DuckDB, stays as it is.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from django.utils.translation import get_language, gettext
from django.utils.translation import gettext_noop as _

ENGLISH = "en"
NUMBER = r"-?[\d.,]+(?:e[+-]?\d+)?"
PLACES = {
    **dict.fromkeys(("n", "m", "k"), NUMBER),
    "s": "s?",  # of a plural
    "field": r"[a-z][\w.\[\]-]*",
    "moment": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
}
"""What stands for a name in a pattern; anything for others."""
INNER = frozenset({"reason", "rest", "why", "state"})
"""Those that are sentences themselves: where one of them is none, the text is not of this pattern."""

SENTENCES: tuple[str, ...] = (
    # several, how many there are, a field before it
    _("{reason}; {rest}"),
    _("{reason}: {n} of {m} in use on {k} node{s}"),
    _("{reason}: {n} node{s}"),
    _("{field}: {reason}"),
    # states and words that stand alone
    *(_("pending"), _("executing"), _("running"), _("completed"), _("failed"), _("cancelled")),
    *(_("online"), _("offline"), _("draining"), _("inactive"), _("yes"), _("no"), _("allocated"), _("saved")),
    *(_("quarantined"), _("spooled"), _("superseded"), _("expired"), _("waiting"), _("delivered"), _("live")),
    *(_("on"), _("off"), _("ok"), _("revoked"), _("partial")),
    *(_("priority"), _("capacity"), _("labels"), _("limit"), _("added"), _("pull"), _("push")),
    # why a node got it: dispatch.allocator, dispatch.seats, dispatch.tail
    _("assigned by an operator"),
    _("quota {n} of {m} for {type}"),
    _("free capacity: {n} of {m} slots free, by {name}"),
    _("look-ahead: {n} queued beyond capacity {m}, shards are short"),
    _("second copy: {name} is thought to need {n} s more, this node {m} s"),
    _("{n} slots for the nodes below it"),
    _("preferred: {labels}"),
    _("rate {key}: {n} tokens"),
    _("local fallback: {why}"),
    _("the run asks for it"),
    _("no other node can run it"),
    # how it ended: dispatch.explaining.history
    _("granted, not begun"),
    _("completed: its report was accepted"),
    _("expired: the lease, or the offer, ended before a report came"),
    _("superseded: another attempt was first, or it was taken back"),
    # why it waits: dispatch.allocator, dispatch.seats, dispatch.queue
    _("left to the nodes that can run it: {names} and {n} more"),
    _("left to the nodes that can run it: {names}"),
    _("local fallback in {n} s"),
    _("all slots that the node above granted for it are in use"),
    _("no free slot: {n} in use, capacity {m}"),
    _("the next pass looks at more of it"),
    _("this run must run on the parent itself"),
    _("this run must not run here"),
    _("does not offer {type}"),
    _("only a client with code of its own can run these items: they have no address"),
    _("is only called by the parent, and this run's items need a line to it"),
    _("none of its nodes has {labels}"),
    _("label {label} is {value}, not {wanted}"),
    _("quota limit {n} of {m} for {type}"),
    _("{name} {n} % is above its limit, {m} %"),
    _("rate {key}: next {reason} in {n} s ({m} a second, {k} at once)"),
    _("token"),
    _("{n} tokens"),
    _("rate {key}: {n} of {m} at a time under way, {count} rest ({k} a second)"),
    _("rate {key}: {n} of {m} at a time under way ({k} a second)"),
    _("cooling down for {n} s more: it lost its work {m} times in a row"),
    _("this relay is cut off from the node above for longer than the run may go on (island_seconds)"),
    # the same, counted: dispatch.explaining.reasons
    _("no free slot"),
    _("cooling down"),
    _("{name} above its limit"),
    _("label {labels}"),
    _("there is no node"),
    _("no node can take it: {reason}"),
    # dispatch.explaining.waiting, line, supposed
    _("the run is {state}"),
    _("the next pass gives out {n} shard{s} of it unless runs before it take the slots"),
    _("the next pass gives out {n} shard{s} of it"),
    _("nothing of it waits for a node"),
    _("offline: never heard of"),
    _("offline: last heard of {why}"),
    _("silent: last heard of {why}"),
    _("never"),
    _("{n} s ago"),
    _("{n} min ago"),
    _("{n} h ago"),
    _("{n} d ago"),
    _("{reason}; the first until {moment} UTC"),
    _("{n} shard{s} wait{s} for the next attempt (back-off), {m} shard{s} wait{s} for the rate limit"),
    _("{n} shard{s} wait{s} for the next attempt (back-off)"),
    _("{n} shard{s} wait{s} for the rate limit"),
    _("priority {n}, above {m}"),
    _("has fewer slots: {n}, this one {m}"),
    _("submitted earlier: {moment} UTC"),
    _("it ends after {n} shards given out"),
    _("only the first {n} runs in line are looked at"),
    _("run {n}"),
    _("node {name}"),
    _("quota {name}"),
    # how a run would be cut: dispatch.explaining.drafts
    _("1 shard of 1 item"),
    _("{n} shard{s} of {m} item{s}, the last one of {k}"),
    _("{n} shard{s} of {m} item{s}, {rest}"),
    _("{n} shard{s} of {m} item{s}"),
    _(
        "shards sized for each node: single items first, to measure, then what takes about {n} s there, and less"
        " towards the end; at most {m} items each"
    ),
    _(
        "shards sized for each node: single items first, to measure, then what takes about {n} s there, and less"
        " towards the end"
    ),
    # what was wrong with a value
    _("{value} is not one of 0 to {n}, the items of run {m}"),
    _("{value} is not one of: {names} (each with or without -)"),
    _("{value} is not one of: {names}"),
    _("{value} is not a whole number from {n} to {m}"),
    _("{value} is not a whole number from {n} up"),
    _("{value} is not a whole number from 0 (automatic) to {n}"),
    _("{value} is not a whole number"),
    _("{value} is not a number from {n} to {m}"),
    _("{value} is not a finite number"),
    _("{value} is not a number"),
    _("{value} is not true or false"),
    _("{value} is neither true nor false"),
    _("{value} is neither yes nor no"),
    _("{value} is not a date like 2024-01-31"),
    _("{value} is not a text (without NUL or lone surrogates)"),
    _("{value} is not a text, a number or an object"),
    _("{value} is not a text"),
    _("{value} is not an object of plain JSON values"),
    _("{value} is not a list of plain JSON values"),
    _("{value} is not an object of texts"),
    _("{value} is not an object, like {example}"),
    _("{value} is not an object"),
    _("{value} is not a list"),
    _("{value} is not name=value, like region=eu"),
    _("{value} is not TABLE.COLUMN, like kline.symbol"),
    _("{value} is not like data_import=4, data_import[AAPL]=2 or data_import=2/4"),
    _("{value}: between [ and ] an item is missing"),
    _("{value} is not a label; allowed are 1 to 63 letters, digits or _ . / -"),
    _("{value} is not a task type; known are: {names}"),
    _("{value} is not a parameter; known are: {names}"),
    _("{value} is not a value of this column, which is {kind}"),
    _("{value} is not a run that goes on"),
    _("{value} is not a symbol: 1 to {n} printable characters, no space at either end"),
    _("{value} is below the least allowed, {n}"),
    _("{value} is above the most allowed, {n}"),
    _("{n} is above the node's capacity, {m}"),
    _("{n} is above this quota's own limit, {m}"),
    _("{n} is below the quota {quota}; lower that first"),
    _("{n} is below the quota {quota}; lower that, too"),
    _("{value} is named twice; once is allowed"),
    _("{end} is before start_date, {start}"),
    _("{value} is not offered by {name}: {names}"),
    _("has {n} characters; at most {m} are allowed"),
    _("has {n} characters; allowed are {m}"),
    _("has {n} words; at most {m} are allowed"),
    _("has {n} changes; at most {m} are allowed"),
    _("names {n} values; at most {m} are allowed"),
    _("{n} items; at most {m} are allowed (CASCADE_MAX_ITEMS)"),
    _("these make {n} items; 1 to {m} are allowed (CASCADE_MAX_ITEMS)"),
    _("{value} gives {n} items; at most {m} are allowed (CASCADE_MAX_ITEMS)"),
    _("{value} leaves no item"),
    _("is empty; a run needs at least one item"),
    _("is empty; a SELECT is needed"),
    _("is empty; five fields say when, like 0 6 * * 1-5 for six o'clock on working days"),
    _("is empty, and items are to come from it"),
    _("is empty; the new node of {name} {value} needs one"),
    _("is required: {help}"),
    _("is not plain JSON"),
    _("is not JSON: {error}"),
    _("line {n}, {value}, is not JSON: {error}"),
    _("begin with [ and so are JSON, which they are not: {error}"),
    _("says what the form has no field for; correct it, or submit it from here"),
    _("cannot be kept with a schedule; leave it empty, or submit the run now"),
    _("a task called {name} exists already"),
    _("a node called {name} exists already"),
    _("is not a key of this node"),
    _("none is ticked"),
    _("there is no active source of kind {kind}"),
    _("{type} has no source that lists its items"),
    _("there is no rate limit {key}"),
    _("no node is called {name}"),
    _("is not known here; did you mean {name}?"),
    _("is not known here; known are: {names}"),
    _("is given twice; a row has one value"),
    _("at least one is needed"),
    _("holds a NUL character"),
    _("{name} is no column of {table}; there are: {names}"),
    _("{column} is {kind}, which has no order"),
    _("{column} is {kind}; only text contains text"),
    _("{table} is a view, whose rows come from no run"),
    _("there is no table {table}; there are: {names}"),
    _("there are no bars yet: neither a table kline nor a table analysis"),
    # what speaks against a button
    _("there is no run {n}"),
    _("there is no node {n}"),
    _("run {n} has no item {name}"),
    _("run {n} has ended already: {state}"),
    _("run {n} is still running; retry what failed when it has ended"),
    _("run {n} is {state}: nothing in it can be retried, of the items that were asked for"),
    _("run {n} is {state}: nothing in it can be retried"),
    _("{name} is no relay: nothing hangs below it"),
    _("this process does not hold the result store; ask the one that runs `manage.py runserver`"),
    _("another what-if is being looked at; try again"),
    _("the database is busy; try again"),
    # what became of a verb of the admin
    _("Task {name}: submitted run {n} with {m} items."),
    _("Run {n} is {state}: {m} items cancelled, {k} saved."),
    _("Run {n}: {m} items opened again."),
    _("Items of {n} runs opened again."),
    _("{n} runs have ended."),
    _("{n} runs submitted."),
    _("Call {n} will be made again."),
    _("{n} calls will be made again."),
    _("The scheduler is on."),
    _("The scheduler is off."),
    _("{n} sources enabled."),
    _("{n} sources disabled."),
    _("Draining: {n} nodes."),
    _("Draining: {name}."),
    _("Getting work again: {n} nodes."),
    _("Getting work again: {name}."),
    _("All keys revoked of {n} nodes."),
    _("Keys revoked of {name}: {n}."),
    _("Keys revoked: {n}."),
    # what a parameter may be: nodes.executors.described
    _("{n} to {m}"),
    _("from {n}"),
    _("up to {n}"),
    _("{n} of {m}"),
)
"""Each before those that would take it for one of theirs."""
_PLACE = re.compile(r"\{(\w+)\}")


def said(text: str) -> str:
    """``text`` in the active language."""
    language = get_language() or ENGLISH
    return text if language == ENGLISH or not text else _said(text, language)


@lru_cache(4096)
def _said(text: str, language: str) -> str:
    for sentence, pattern in _patterns():
        if match := pattern.fullmatch(text):
            values = match.groupdict()
            inner = {name: _said(values[name], language) for name in INNER & values.keys()}
            if any(inner[name] == values[name] for name in inner):
                continue
            told = values | inner
            return _PLACE.sub(lambda place, told=told: told.get(place[1], ""), gettext(sentence))  # type: ignore[misc]
    return text


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(sentence, _pattern(sentence)) for sentence in SENTENCES]


def _pattern(sentence: str) -> re.Pattern[str]:
    """Letters of plurals are not kept; a name that comes twice is the same text."""
    made, at, seen = "", 0, set()
    for place in _PLACE.finditer(sentence):
        made += re.escape(sentence[at : place.start()])
        name, at = place[1], place.end()
        if name == "s":
            made += PLACES[name]
        else:
            assert name not in seen, sentence
            made += f"(?P<{name}>{PLACES.get(name, '.+?')})"
        seen.add(name)
    return re.compile(made + re.escape(sentence[at:]), re.DOTALL)
