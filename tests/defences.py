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
_TREES = "tests/sim/test_worlds.py::test_every_promise_is_kept_in_simulated_trees"

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
        "select_for_update(skip_locked=True).filter(state__in=LIVE, deadline__lt=now)",
        "select_for_update().filter(state__in=LIVE, deadline__lt=now)",
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
        'Run.objects.filter(pk=Given("run"), cut=Given("first"), state=RunState.RUNNING)',
        'Run.objects.filter(pk=Given("run"))',
        (f"{_INTEGRATION}cancel.py::test_a_cancel_that_races_with_a_pass_of_the_dispatcher_leaves_nobody_at_work",),
        postgresql=True,
    ),
    Defence(
        "a key's revocation is looked at in each verb's transaction",
        "nodes/keys.py",
        '.filter(pk__among=Given("keys"), revoked_at=None)',
        '.filter(pk__among=Given("keys"))',
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
    # Crashes and disks
    Defence(
        "a full control database is 507, not a fault of the parent's",
        "nodes/transactions.py",
        '== "SQLITE_FULL"',
        '== "SQLITE_NEVER"',
        (
            "tests/integration/test_full_database.py::test_a_report_that_does_not_fit_is_507_and_counts_when_it_is_sent_again",
        ),
    ),
    Defence(
        "what a torn log of the result store lost comes from the spool again",
        "dispatch/results/saver.py",
        "self._replayed = False",
        "self._replayed = True",
        ("tests/integration/test_saving.py::test_what_a_torn_log_of_the_store_has_lost_is_saved_again_from_the_spool",),
    ),
    Defence(
        "a parent that hears of no node at all suspects itself",
        "dispatch/lifecycle/leases.py",
        ".exists() or _suspect(now):",
        ".exists():",
        (
            "tests/integration/test_expire.py::test_where_all_nodes_fall_silent_at_once_nothing_expires_for_another_leases_time",
        ),
    ),
    Defence(
        "a jump of the parent's clock ends no lease",
        "dispatch/dispatcher.py",
        "abs(clock - looked[0] - passed) > away",
        "False",
        ("tests/integration/test_expire.py::test_a_jump_of_the_parents_clock_expires_nothing",),
    ),
    Defence(
        "a full disk is 507 before any acknowledgement",
        "dispatch/results/spool.py",
        "if error.errno in _FULL:",
        "if error.errno in ():",
        ("tests/unit/test_spool.py::test_a_disk_without_room_is_507_leaves_nothing_and_heals",),
    ),
    Defence(
        "a child's full disk is no failure of its items",
        "nodes/agent/runner.py",
        "if error.errno in FULL:",
        "if False:",
        ("tests/unit/test_runner.py::test_a_full_disk_is_no_fault_of_the_items_and_leaves_nothing_half_written",),
    ),
    Defence(
        "work that a full disk cannot keep is handed back",
        "nodes/agent/loop.py",
        "except NoRoom as error:",
        "except KeyError as error:",
        ("tests/unit/test_agent_reports.py::test_what_finds_no_room_on_this_disk_is_handed_back_and_is_no_failure",),
    ),
    # Hostile input
    Defence(
        "byte cap while a segment is unpacked",
        "dispatch/results/datasets.py",
        "size += unpacked + BATCH_BYTES",
        "size += 0",
        (
            "tests/hostile/test_segments.py::test_a_bomb_is_refused_and_costs_this_process_nothing[many_batches_of_zeros]",
        ),
    ),
    Defence(
        "Origin of the live socket",
        "api/live.py",
        "if not _same_site(self.scope):",
        "if False:",
        (
            "tests/hostile/test_frames.py::test_another_sites_page_cannot_open_the_live_socket_with_the_operators_cookie",
        ),
    ),
    Defence(
        "SSRF: address check",
        "nodes/addresses.py",
        "if not public(address) and not any(_inside(address, network) for network in allowed):",
        "if False:",
        ("tests/hostile/test_addresses.py::test_work_about_such_an_address_fails_without_a_call",),
    ),
    Defence(
        "SSRF by a node's own callback address",
        "dispatch/knocking.py",
        "told = node.api_url == node.facts.get(CALLBACK)",
        "told = False",
        (
            "tests/hostile/test_addresses.py::test_an_address_that_a_node_told_itself_is_knocked_at_only_where_everybody_may_call",
        ),
    ),
    # Keys
    Defence(
        "nonces are remembered: a replay is refused",
        "api/authentication.py",
        'raise Unauthenticated("replayed: this nonce was used before; sign each request anew") from None',
        "pass",
        ("tests/integration/test_authentication.py::test_a_signed_request_is_accepted_once",),
    ),
    Defence(
        "every part of the profile must be covered by the signature",
        "nodes/signing.py",
        "if missing := set(COVERED).difference(covered):",
        "if missing := set():",
        ("tests/unit/test_signing.py::test_a_signature_that_covers_nothing_is_refused",),
    ),
    Defence(
        "nothing but the profile's parts may be covered",
        "nodes/signing.py",
        "if len(covered) > len(COVERED) or any(each.params for each in sig_input):",
        "if False:",
        ("tests/unit/test_signing.py::test_a_signature_that_covers_more_than_the_profile_or_parts_of_it_is_refused",),
    ),
    Defence(
        "the window of time of a signature, both ways",
        "nodes/signing.py",
        'if abs(now - created) > max_age or parameters.get("expires", now) < now:',
        'if parameters.get("expires", now) < now:',
        ("tests/unit/test_signing.py::test_a_signature_outside_the_window_is_told_the_servers_time",),
    ),
    Defence(
        "no replay after the clock was set back or the window grew",
        "nodes/signing.py",
        "if created < earliest:",
        "if False:",
        (
            "tests/integration/test_authentication.py::test_what_was_signed_before_the_clock_was_set_back_is_refused_because_its_nonce_may_be_forgotten",
        ),
    ),
    Defence(
        "the body is compared with the signed digest",
        "api/authentication.py",
        "if body_sha256 is not None and not signing.digest_matches(verified.digest, body_sha256):",
        "if False:",
        ("tests/integration/test_authentication.py::test_a_changed_body_is_refused_and_its_nonce_not_used_up",),
    ),
    Defence(
        "plain keys over TLS or loopback only",
        "api/authentication.py",
        'check_private(url, fields, client, f"the secret key of {key.access_key}")',
        "pass",
        ("tests/integration/test_authentication.py::test_a_plain_key_passes_over_tls_or_from_this_machine_only",),
    ),
    Defence(
        "a proxy on this machine does not make others local",
        "api/authentication.py",
        'if any(name in fields for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "via")):',
        "if False:",
        ("tests/integration/test_authentication.py::test_a_plain_key_passes_over_tls_or_from_this_machine_only",),
    ),
    Defence(
        "wrong keys are throttled",
        "api/guesses.py",
        "if count >= self.limit and rest > 0:",
        "if False:",
        ("tests/integration/test_authentication.py::test_guessing_plain_keys_is_throttled_by_address",),
    ),
    Defence(
        "the sign-in page is throttled",
        "cascade/administration.py",
        "return throttled(super().login)(request, extra_context)",
        "return super().login(request, extra_context)",
        ("tests/integration/test_sign_in.py::test_guessing_at_one_name_is_throttled_wherever_it_comes_from",),
    ),
    Defence(
        "only a signed request rotates a key",
        "nodes/keys.py",
        'if not caller.key_id or not caller.content_digest:\n        raise Forbidden("a key is rotated by',
        'if not caller.key_id:\n        raise Forbidden("a key is rotated by',
        ("tests/integration/test_own_keys.py::test_a_plain_key_a_device_and_this_server_itself_rotate_nothing",),
    ),
    Defence(
        "sockets of keys revoked by another process are closed",
        "api/revoked.py",
        "if key_id not in alive:",
        "if False:",
        (
            "tests/acceptance/test_key_rotation.py::test_the_socket_of_a_revoked_key_closes_within_seconds_and_the_other_keys_stays",
        ),
    ),
    Defence(
        "limits per key",
        "api/limits.py",
        "if wait > 0:",
        "if False:",
        ("tests/unit/test_key_limits.py::test_a_burst_passes_and_then_a_key_gets_its_rate",),
    ),
    Defence(
        "few told times are tried in a minute",
        "nodes/agent/clock.py",
        "if len(lately) >= TRIALS:",
        "if False:",
        ("tests/unit/test_agent_clock.py::test_only_so_many_times_are_tried_in_a_minute",),
    ),
    Defence(
        "a rotation that was killed is finished by the next",
        "nodes/agent/rotation.py",
        "if secret_key != config.secret_key:",
        "if True:",
        (
            "tests/acceptance/test_key_rotation.py::test_a_rotation_killed_in_the_middle_leaves_a_key_that_works_and_is_finished_by_the_next",
        ),
    ),
    Defence(
        "security headers on every answer",
        "api/middleware.py",
        "headers += [pair for pair in _wanted(scope) if pair[0] not in said]",
        "pass",
        ("tests/integration/test_security_headers.py::test_every_answer_says_what_browsers_may_do_with_it",),
    ),
    Defence(
        "a secret in the wrong place is not repeated",
        "nodes/given.py",
        'text = _KEYS.sub("***", unlocked(text))',
        "text = unlocked(text)",
        ("tests/acceptance/test_secrets.py::test_no_secret_is_in_any_log_page_answer_or_database",),
    ),
    Defence(
        "executors find no secret in their environment",
        "nodes/agent/serving.py",
        "_forget_secrets()\n    surroundings",
        "surroundings",
        ("tests/acceptance/test_secrets.py::test_what_an_executor_finds_in_its_environment_is_no_secret",),
    ),
    # The lake
    Defence(
        "a lake's commit fails if anybody committed since it looked at the ledger",
        "dispatch/results/lake_place.py",
        "ducklake_max_retry_count = 0",
        "ducklake_max_retry_count = 10",
        (
            "tests/integration/test_lake.py::test_who_was_frozen_before_its_commit_and_wakes_after_its_successor_saves_nothing",
        ),
    ),
    Defence(
        "the ledger of a lake, which has no keys, is asked in the transaction that writes",
        "dispatch/results/lake.py",
        "if ranges and (found :=",
        "if False and (found :=",
        ("tests/integration/test_lake_rows.py::test_an_entry_that_is_there_keeps_the_whole_append_out",),
    ),
    Defence(
        "the fence before abandoned files are removed",
        "dispatch/results/lake_tidying.py",
        "    write(act)\n    write(ask)",
        "    told.append(dt.datetime.now(dt.UTC))",
        ("tests/integration/test_lake.py::test_no_file_of_a_frozen_writer_is_removed_and_then_listed",),
    ),
    Defence(
        "rollback before close: else a lost PostgreSQL aborts the process (exit -6)",
        "dispatch/results/lake.py",
        "            connection.rollback()\n",
        "            pass\n",
        (
            "tests/integration/test_lake.py::test_a_reader_whose_server_goes_away_is_an_error_and_not_the_end_of_the_process",
        ),
    ),
    # Several processes
    Defence(
        "a pass locks the nodes' rows, so that two dispatchers do not grant the same room twice",
        "dispatch/queue.py",
        "Node.objects.select_for_update().filter(active=True)",
        "Node.objects.filter(active=True)",
        ("tests/scale/test_two_leaders.py::test_at_no_commit_is_more_granted_than_may_be",),
    ),
    Defence(
        "a frozen leader's sessions are ended, so that another can lead",
        "dispatch/leading.py",
        "_end_connections(lock, other)",
        "pass",
        ("tests/scale/test_leading.py::test_a_frozen_leader_is_succeeded_and_nothing_of_it_is_written_when_it_wakes",),
    ),
    Defence(
        "leadership is counted from before the question",
        "dispatch/leading.py",
        "_hold(asked + HELD_SECONDS)",
        "_hold(time.monotonic() + HELD_SECONDS)",
        ("tests/unit/test_leading.py::test_a_beat_counts_from_when_it_was_asked_and_not_from_its_answer",),
    ),
    Defence(
        "no pass without leading",
        "dispatch/dispatcher.py",
        "            if not leading.held():\n                continue\n",
        "",
        ("tests/unit/test_leading.py::test_a_loop_does_nothing_while_its_process_does_not_lead",),
    ),
    Defence(
        "a notification is never longer than PostgreSQL takes",
        "dispatch/bus.py",
        "if batch and size + len(text) + 1 > room:",
        "if False:",
        ("tests/unit/test_bus.py::test_however_much_there_is_to_say_it_is_said_in_pieces_that_fit",),
    ),
    # Networks and too much of everything
    Defence(
        "the time a request may take to arrive",
        "cascade/bounded.py",
        "        if size - self.counted < LEAST_SPEED * (now - self.began):\n            return True",
        "        if size - self.counted < LEAST_SPEED * (now - self.began):\n            return False",
        ("tests/acceptance/test_slow_clients.py::test_a_body_that_drips_is_ended",),
    ),
    Defence(
        "the limit on bodies of strangers",
        "cascade/bounded.py",
        "        return min(STRANGER_LIMIT, int(settings.CASCADE.upload_limit))",
        "        return int(settings.CASCADE.upload_limit)",
        ("tests/acceptance/test_slow_clients.py::test_a_large_body_of_a_stranger_is_refused_without_being_kept",),
    ),
    Defence(
        "answers wait for slow readers",
        "cascade/bounded.py",
        '        if message.get("more_body") and isinstance(channel, Channel) and not channel.writable.is_set():',
        "        if False:",
        ("tests/acceptance/test_slow_clients.py::test_an_answer_waits_for_a_client_that_does_not_read_it",),
    ),
    Defence(
        "pings by the parent's own pace",
        "cascade/bounded.py",
        "        self.ping_timeout = min(self.ping_timeout, max(half, 3.0))",
        "        pass",
        (
            "tests/acceptance/test_network_faults.py::test_a_half_open_socket_is_closed_by_the_parent_and_its_work_goes_to_others",
        ),
    ),
    Defence(
        "the spool limit (429)",
        "dispatch/results/room.py",
        "        if (waits := _added_up()) + size > settled.spool_limit:",
        "        if (waits := _added_up()) + size < 0:",
        ("tests/integration/test_room.py::test_segments_count_until_they_are_removed",),
    ),
    Defence(
        "what was uploaded is named though the next finds no room",
        "nodes/agent/sender.py",
        "            lacking = error\n",
        "            raise\n",
        (
            "tests/unit/test_agent_reports.py::test_a_parent_without_room_for_all_is_told_whose_it_has_or_it_would_wait_for_that_for_ever",
        ),
    ),
    Defence(
        "and by a relay as well",
        "dispatch/relay/upward.py",
        "                lacking = error\n",
        "                raise\n",
        ("tests/integration/test_relay_room.py::test_what_was_brought_is_named_though_the_next_finds_no_room",),
    ),
    Defence(
        "the disk's reserve (507)",
        "dispatch/results/room.py",
        "    if free < settled.disk_reserve + size:",
        "    if free < 0:",
        ("tests/integration/test_room.py::test_a_disk_without_its_reserve_takes_nothing",),
    ),
    Defence(
        "room asked for before an upload",
        "api/agent.py",
        '    room.check(int(request.META.get("CONTENT_LENGTH") or 0))\n',
        "",
        (
            "tests/acceptance/test_backpressure.py::test_uploads_stop_at_the_limit_while_the_saver_stands_still_and_go_on_afterwards",
        ),
    ),
    Defence(
        "beats of one moment share a transaction",
        "api/beats.py",
        '        if sent.hello or sent.leaving or connection.vendor != "sqlite":',
        "        if True:",
        ("tests/integration/test_beats_together.py::test_beats_of_one_moment_share_a_transaction",),
    ),
    # Logs
    Defence(
        "only a live allocation is heard",
        "dispatch/logs.py",
        ", state__in=LIVE).order_by",
        ").order_by",
        (f"{_INTEGRATION}logs.py::test_only_a_live_allocation_of_this_very_node_is_heard",),
    ),
    Defence(
        "only the allocation's own node is heard",
        "dispatch/logs.py",
        "                if node_id == node.pk:\n",
        "                if node_id:\n",
        (f"{_INTEGRATION}logs.py::test_only_a_live_allocation_of_this_very_node_is_heard",),
    ),
    Defence(
        "text that comes twice counts once",
        "dispatch/logs.py",
        "(text := each.text[max(mark.end - each.start, 0) :])",
        "(text := each.text)",
        (f"{_INTEGRATION}logs.py::test_what_comes_twice_counts_once_and_what_is_missing_is_known",),
    ),
    Defence(
        "a log has a limit",
        "dispatch/logs.py",
        "        _trim(changed)\n",
        "",
        (f"{_INTEGRATION}logs.py::test_of_an_allocation_the_newest_characters_are_kept",),
    ),
    Defence(
        "a run's lines are numbered by one at a time",
        "dispatch/logs.py",
        '            cursor.execute("UPDATE dispatch_runlog SET lines = lines + %s WHERE run_id = %s", [count, run])\n'
        "            if cursor.rowcount:\n"
        '                cursor.execute("SELECT lines FROM dispatch_runlog WHERE run_id = %s", [run])\n'
        "                return int(cursor.fetchone()[0]) - count\n",
        '            cursor.execute("SELECT lines FROM dispatch_runlog WHERE run_id = %s", [run])\n'
        "            if found := cursor.fetchone():\n"
        "                had = int(found[0])\n"
        '                cursor.execute("UPDATE dispatch_runlog SET lines = %s "\n'
        '                               "WHERE run_id = %s", [had + count, run])\n'
        "                return had\n",
        (
            f"{_INTEGRATION}logs.py::test_nodes_that_tell_and_report_at_once_leave_each_line_once_and_numbers_without_holes",
        ),
        postgresql=True,
    ),
    Defence(
        "a shard that runs again is told of behind its first try",
        "nodes/agent/pool.py",
        '                    self._logs.anew(shard["allocation"])\n',
        "                    pass\n",
        (f"{_UNIT}pool_logs.py::test_when_a_shared_process_dies_what_runs_again_says_so",),
    ),
    # Orders that nobody thought of, and backups
    Defence(
        "a report is accepted from a live allocation only",
        "dispatch/deciding/reports.py",
        "if held.live:",
        "if True:",
        (
            "tests/stateful/test_lifecycle.py::test_the_verbs_do_what_the_model_does",
            "tests/integration/test_report.py::test_a_late_report_after_reassignment_saves_nothing",
        ),
    ),
    Defence(
        "a revoked key changes nothing",
        "nodes/keys.py",
        '.filter(pk__among=Given("keys"), revoked_at=None)',
        '.filter(pk__among=Given("keys"))',
        ("tests/stateful/test_lifecycle.py::test_the_verbs_do_what_the_model_does",),
    ),
    Defence(
        "after a crash between the two commits the ledger decides",
        "dispatch/results/saver.py",
        "return self._in_ledger([receipt for receipt in receipts if receipt.pk <= self._doubtful])",
        "return set()",
        (
            "tests/stateful/test_lifecycle.py::test_the_verbs_do_what_the_model_does",
            "tests/integration/test_saving.py::test_a_parent_killed_between_the_two_commits_has_each_row_once",
        ),
    ),
    Defence(
        "passes hold the nodes' rows: capacity and limits at every commit",
        "dispatch/queue.py",
        "Node.objects.select_for_update().filter(active=True)",
        "Node.objects.filter(active=True)",
        ("tests/stateful/test_at_once.py::test_verbs_at_once_keep_the_promises_at_every_commit",),
        postgresql=True,
    ),
    Defence(
        "skip_locked: a lease is expired by one process",
        "dispatch/lifecycle/leases.py",
        "Allocation.objects.select_for_update(skip_locked=True).filter(state__in=LIVE, deadline__lt=now)",
        "Allocation.objects.filter(state__in=LIVE, deadline__lt=now)",
        ("tests/stateful/test_at_once.py::test_verbs_at_once_keep_the_promises_at_every_commit",),
        postgresql=True,
    ),
    Defence(
        "the cut is moved by compare-and-set",
        "dispatch/lifecycle/grants.py",
        'Run.objects.filter(pk=Given("run"), cut=Given("first"), state=RunState.RUNNING)',
        'Run.objects.filter(pk=Given("run"))',
        ("tests/stateful/test_at_once.py::test_verbs_at_once_keep_the_promises_at_every_commit",),
        postgresql=True,
    ),
    Defence(
        "IMMEDIATE: several processes on SQLite",
        "cascade/settings.py",
        '"transaction_mode": "IMMEDIATE",',
        '"transaction_mode": "DEFERRED",',
        ("tests/integration/test_claimers.py",),
    ),
    Defence(
        "a type's limit",
        "dispatch/seats.py",
        "        used = self.by_type.get(task_type, 0)\n"
        "        if rule and rule.limit is not None and used >= rule.limit:",
        "        used = self.by_type.get(task_type, 0)\n        if False:",
        ("tests/stateful/test_allocator.py::test_whatever_came_before_each_grant_is_the_one_that_the_rules_ask_for",),
    ),
    Defence(
        "capacity",
        "dispatch/allocator.py",
        "if seat.used >= seat.offer.capacity:\n            return False",
        "if seat.used > seat.offer.capacity:\n            return False",
        ("tests/stateful/test_allocator.py::test_whatever_came_before_each_grant_is_the_one_that_the_rules_ask_for",),
    ),
    Defence(
        "fair share",
        "dispatch/allocator.py",
        "queue.served += slots",
        "pass",
        ("tests/stateful/test_allocator.py::test_whatever_came_before_each_grant_is_the_one_that_the_rules_ask_for",),
    ),
    Defence(
        "quotas are served before free capacity",
        "dispatch/plans.py",
        'QUOTA = "quota"\n    FREE = "free"',
        'FREE = "free"\n    QUOTA = "quota"',
        ("tests/stateful/test_allocator.py::test_whatever_came_before_each_grant_is_the_one_that_the_rules_ask_for",),
    ),
    Defence(
        "nothing is saved while a backup is copied",
        "dispatch/results/store.py",
        "with self._writing, self._errors():\n            with closing(self._connection()) as connection:",
        "with self._errors():\n            with closing(self._connection()) as connection:",
        ("tests/integration/test_backups.py::test_what_is_saved_while_the_copy_is_made_is_in_neither_database",),
    ),
    Defence(
        "the spool is part of a backup",
        "dispatch/backups.py",
        "_link_spool(folder / SPOOL)",
        "(folder / SPOOL).mkdir()",
        ("tests/integration/test_backups.py::test_segments_that_wait_are_in_the_copy_even_if_they_go_afterwards",),
    ),
    Defence(
        "checksums of a backup are verified",
        "cascade/backup.py",
        'or _sha256(folder / member.name) != said["sha256"]',
        "or False",
        ("tests/acceptance/test_backup.py::test_what_is_in_the_way_or_not_whole_is_refused_and_nothing_is_left",),
    ),
    Defence(
        "fencing tokens are not given out again after a restore",
        "cascade/backup.py",
        "_set_ids_apart(folder / backups.CONTROL)",
        "pass",
        (
            "tests/acceptance/test_backup.py::test_a_parent_restored_from_a_backup_in_mid_run_loses_nothing_that_it_had_and_doubles_nothing",
        ),
    ),
    # Simulated worlds
    # Simulated worlds
    Defence(
        "the liveness check on reports",
        "dispatch/deciding/reports.py",
        "    if held.live:\n",
        "    if True:\n",
        ("tests/sim/test_worlds.py::test_every_promise_is_kept_in_simulated_worlds",),
    ),
    Defence(
        "the other copy is superseded",
        "dispatch/deciding/reports.py",
        "    if beaten := tuple(pk for shard in sorted(won) for pk in known.twins.get(shard, ())):",
        "    if beaten := ():",
        ("tests/sim/test_worlds.py::test_every_promise_is_kept_in_simulated_worlds",),
    ),
    Defence(
        "the ledger is asked after a crash",
        "dispatch/results/saver.py",
        "        return self._in_ledger([receipt for receipt in receipts if receipt.pk <= self._doubtful])",
        "        return {}",
        ("tests/sim/test_worlds.py::test_every_promise_is_kept_in_simulated_worlds",),
    ),
    Defence(
        "what a torn log has lost is saved again",
        "dispatch/results/saver.py",
        "            self._replay()\n",
        "            pass\n",
        ("tests/sim/test_worlds.py::test_every_promise_is_kept_in_simulated_worlds",),
    ),
    Defence(
        "a new session frees what it does not name",
        "dispatch/lifecycle/beats.py",
        "            if sent.hello:\n                release_unheld(",
        "            if False:\n                release_unheld(",
        ("tests/integration/test_beat.py::test_a_hello_hands_back_what_is_not_held_at_once",),
    ),
    Defence(
        "revocation is read again in the transaction",
        "nodes/keys.py",
        '.filter(pk__among=Given("keys"), revoked_at=None)',
        '.filter(pk__among=Given("keys"))',
        ("tests/sim/test_worlds.py::test_every_promise_is_kept_in_simulated_worlds",),
    ),
    Defence(
        "a copy that failed is not made again for the same attempt",
        "dispatch/ending.py",
        " and late.shard not in spent]",
        "]",
        ("tests/integration/test_copies.py::test_a_shard_that_nobody_can_do_is_not_copied_for_ever",),
    ),
    Defence(
        "what was let in counts before the next look at the spool",
        "dispatch/results/room.py",
        "        _waiting += size\n",
        "        _waiting += 0\n",
        ("tests/integration/test_room.py::test_what_was_let_in_counts_before_it_is_there",),
    ),
    Defence(
        "a beat written over a jump of the clock ends no lease",
        "dispatch/dispatcher.py",
        "                self._expired = time.monotonic() + settings.CASCADE.lease_seconds / 2\n",
        "",
        (f"{_INTEGRATION}expire.py",),
    ),
    Defence(
        "a part of a report counts once",
        "dispatch/deciding/reports.py",
        "    if entry.part and entry.part <= held.parts:\n",
        "    if False:\n",
        (f"{_INTEGRATION}parts.py",),
    ),
    Defence(
        "a part brings only what is left to its allocation",
        "dispatch/deciding/reports.py",
        "    if at < len(entry.ranges) + len(entry.errors):\n",
        "    if False:\n",
        (f"{_INTEGRATION}parts.py",),
    ),
    Defence(
        "what was granted above bounds what runs below",
        "dispatch/allocator.py",
        "        return min(self.ceilings[name] for name in demand.ceilings)\n",
        "        return 1000\n",
        ("tests/unit/test_allocator_relays.py",),
    ),
    Defence(
        "queued ahead, work from above waits only behind itself",
        "dispatch/allocator.py",
        "            return math.inf if demand.held.get(seat.offer.node, 0) >= seat.offer.capacity else 0\n",
        "            return math.inf\n",
        ("tests/unit/test_allocator_relays.py",),
    ),
    Defence(
        "no node is its own ancestor",
        "dispatch/relay/place.py",
        "    if any(each == child for each, _ in way):\n",
        "    if False:\n",
        (f"{_INTEGRATION}relay.py",),
    ),
    Defence(
        "nobody gets tokens in the place of those that a relay may still use",
        "dispatch/rates.py",
        "        return max(self.rate.burst - self.leased, 0)\n",
        "        return self.rate.burst\n",
        (f"{_INTEGRATION}relay_rates.py",),
    ),
    Defence(
        "room for tokens begins when a relay has used what it had",
        "dispatch/relay/leased.py",
        "    buckets.settle(now, keys)\n",
        "",
        (f"{_INTEGRATION}relay_rates.py",),
    ),
    Defence(
        "an item has one start with its token",
        "dispatch/relay/granted.py",
        "    may = above.unbegun.get(demand.run)\n",
        "    may = None\n",
        (f"{_INTEGRATION}relay_rates.py",),
    ),
    Defence(
        "what may not go on cut off is given to nobody",
        "dispatch/seats.py",
        "        if demand.stopped:\n",
        "        if False:\n",
        (f"{_INTEGRATION}relay_island.py",),
    ),
    Defence(
        "a canary is the branch that was named, and no other",
        "dispatch/configuration.py",
        "        return self.newest if node_id in self.canary else self.released\n",
        "        return self.newest\n",
        (f"{_INTEGRATION}config_releases.py",),
    ),
    Defence(
        "what a relay has is never copied",
        "dispatch/ending.py",
        "    live = live.exclude(node__role=Node.Role.RELAY)\n",
        "",
        (_TREES,),
    ),
    Defence(
        "what comes from above takes no more slots together than the parent allows",
        "dispatch/relay/granted.py",
        "        left[ALL] = here.capacity - sum(running.values())\n",
        "        left[ALL] = here.capacity\n",
        (_TREES,),
    ),
    Defence(
        "what came from another parent is nobody's here",
        "dispatch/relay/upward.py",
        "            await self._in_thread(taking.drop_others, parent)\n",
        "",
        (_TREES,),
    ),
    Defence(
        "a second copy takes a slot that was granted above",
        "dispatch/tail.py",
        "        if late.begun and any(left_under[name] < 1 for name in demand.ceilings):\n",
        "        if False:\n",
        (f"{_UNIT}tail.py::test_a_copy_takes_one_of_the_slots_that_were_granted_above",),
    ),
    Defence(
        "what a relay drops is closed last",
        "dispatch/relay/taking.py",
        "    with write():\n        waiting = Receipt",
        "    Origin.objects.filter(pk=origin.pk).update(closed_at=timezone.now())\n"
        "    with write():\n        waiting = Receipt",
        (f"{_INTEGRATION}relay.py::test_a_relay_that_dies_while_it_drops_something_drops_it_at_the_next_word",),
    ),
    Defence(
        "what a relay settles is settled as a whole",
        "dispatch/relay/forwarding.py",
        "    with write():\n        receipts = _UNSAVED",
        "    if sending.last:\n"
        "        _CLOSE.run(run=sending.origin, now=timezone.now())\n"
        "    with write():\n        receipts = _UNSAVED",
        (
            f"{_INTEGRATION}relay.py::test_a_relay_that_dies_while_it_settles_the_last_report_settles_it_at_the_next_answer",
        ),
    ),
)
