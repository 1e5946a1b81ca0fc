"""The lines that promises hang on, each with the test that turns red without it; ``tests.mutations`` tries them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defence:
    """``old`` is in ``file`` once, and is replaced by ``new``; one of ``tests`` must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    postgresql: bool = False


_INTEGRATION = "tests/integration/test_"
_UNIT = "tests/unit/test_"

DEFENCES = (
    # Reports and results
    Defence(
        "a report is taken of a live allocation only",
        "dispatch/deciding/reports.py",
        "    if held.live:\n",
        "    if held.live or held.receipt is None:\n",
        (f"{_INTEGRATION}report.py::test_a_late_report_after_reassignment_saves_nothing",),
    ),
    Defence(
        "another content for a reported allocation is refused",
        "dispatch/deciding/reports.py",
        "    if earlier == entry.digest:\n",
        "    if earlier:\n",
        (f"{_INTEGRATION}report.py::test_another_content_for_a_reported_allocation_is_refused",),
    ),
    Defence(
        "a report names each item once",
        "dispatch/deciding/reports.py",
        "    if not covers(",
        "    if False and not covers(",
        (f"{_INTEGRATION}report.py::test_a_report_that_does_not_name_each_item_once_is_refused",),
    ),
    Defence(
        "the first of two copies wins",
        "dispatch/deciding/reports.py",
        "        yield EndAllocations(beaten, AllocationState.SUPERSEDED, SUPERSEDED)\n",
        "        pass\n",
        (f"{_INTEGRATION}copies.py::test_the_first_report_counts_and_the_other_comes_too_late",),
    ),
    Defence(
        "what the ledger has is not written again",
        "dispatch/results/saver.py",
        '        if entry["ranges"] and (entry["run"], *entry["ranges"][0][:2]) not in recorded\n',
        '        if entry["ranges"]\n',
        (f"{_INTEGRATION}saving.py::test_a_parent_killed_between_the_two_commits_has_each_row_once",),
    ),
    Defence(
        "a save that is told twice counts once",
        "dispatch/lifecycle/saving.py",
        "if each.pk in fresh}",
        "}",
        (f"{_INTEGRATION}saving.py::test_telling_twice_what_is_saved_counts_it_once",),
    ),
    Defence(
        "the ledger has a primary key",
        "dispatch/results/catalogue.py",
        'KEYS = {"ledger": "run, start, stop"',
        'KEYS = {"elsewhere": "run, start, stop"',
        (f"{_UNIT}store.py",),
    ),
    Defence(
        "a segment is synced before it has its name (fsync)",
        "dispatch/results/spool.py",
        "                os.fsync(file.fileno())\n",
        "",
        (f"{_UNIT}spool.py::test_a_segment_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_answer",),
    ),
    Defence(
        "a flipped bit in the spool is found",
        "dispatch/results/spool.py",
        "    return hashed.hexdigest() == sha256\n",
        "    return True\n",
        (f"{_INTEGRATION}saving.py::test_a_damaged_spool_file_is_put_aside_and_its_items_run_again",),
    ),
    # Work
    Defence(
        "nobody waits for locked rows to expire them (skip_locked)",
        "dispatch/lifecycle/leases.py",
        "select_for_update(skip_locked=True)",
        "select_for_update()",
        (f"{_INTEGRATION}expire.py::test_the_dispatcher_does_not_wait_for_a_row_that_somebody_works_on",),
        postgresql=True,
    ),
    Defence(
        "transactions are IMMEDIATE on SQLite",
        "cascade/settings.py",
        '"transaction_mode": "IMMEDIATE"',
        '"transaction_mode": "DEFERRED"',
        (f"{_INTEGRATION}claimers.py",),
    ),
    Defence(
        "a shard that a node came back without is given to others",
        "dispatch/lifecycle/beats.py",
        "            release_unheld(node.pk, sent.held)\n",
        "            pass\n",
        (f"{_INTEGRATION}beat.py",),
    ),
    Defence(
        "a cut moves only where it was",
        "dispatch/lifecycle/grants.py",
        "if Run.objects.filter(pk=run, cut=first, state=RunState.RUNNING)",
        "if Run.objects.filter(pk=run)",
        (f"{_INTEGRATION}cancel.py::test_a_cancel_that_races_with_a_pass_of_the_dispatcher_leaves_nobody_at_work",),
        postgresql=True,
    ),
    Defence(
        "a key's revocation is looked at in each verb's transaction",
        "nodes/keys.py",
        ".filter(pk=caller.key_id, node_id=caller.node_id, revoked_at=None)",
        ".filter(pk=caller.key_id, node_id=caller.node_id)",
        (f"{_INTEGRATION}report.py::test_a_key_that_is_not_valid_any_more_reports_nothing",),
    ),
    Defence(
        "finished work stays in the outbox until its receipt",
        "nodes/agent/outbox.py",
        '            os.replace(temp, self.folder / f"{number}.json")\n',
        "            temp.unlink()\n",
        (f"{_UNIT}outbox.py::test_a_kill_loses_nothing_that_was_put",),
    ),
    # What comes from outside
    Defence(
        "a nonce is good once",
        "api/authentication.py",
        "                if nonce:\n",
        "                if False:\n",
        (f"{_INTEGRATION}authentication.py", f"{_INTEGRATION}agent_socket.py::test_a_replayed_upgrade_is_refused"),
    ),
    Defence(
        "addresses that are not public are not fetched (SSRF)",
        "nodes/addresses.py",
        "    if not public(address) and not any(",
        "    if False and not any(",
        (f"{_UNIT}fetching.py::test_whatever_is_not_public_is_refused_however_it_is_spelt",),
    ),
    Defence(
        "a fetched body has a limit on its bytes",
        "nodes/wire.py",
        "while piece and len(found) < most:",
        "while piece:",
        (f"{_UNIT}fetching.py::test_a_bomb_is_unpacked_no_further_than_the_limit",),
    ),
    Defence(
        "an upload has a limit on its bytes",
        "dispatch/results/spool.py",
        "                    if size > limit:\n",
        "                    if False:\n",
        (f"{_UNIT}spool.py::test_too_large_a_segment_is_refused_and_leaves_nothing",),
    ),
)
