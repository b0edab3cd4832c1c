"""The mutants: each is a system that breaks one promise, with the words that the judge must use.

They are grouped by the run that shows them, because a run is as short as possible. A mutant that no fault shows has a
unit test, which must fail on it.
"""

from checks.soak.mutant import Edit, Mutant

_LOST = "acknowledged, and neither stored nor a dead letter"
_SKIPPED = "below the stored offset, in the log, and not stored"
_NOT_WELL = "not well after"

_ADMISSION = "ingest/admission.py"
_ERRORS = "ingest/errors.py"
_COLLECT = "ingest/collect.py"
_ROUTES = "ingest/http/routes.py"
_POSTGRES = "pipeline/sink/postgres.py"
_QUERIES = "pipeline/sink/queries.sql"
_MEASURE = "pipeline/regulate/measure.py"
_ROWS = "pipeline/sink/rows.py"
_CAS = "\n    WHERE stored.next_offset = %(expected_offset)s"

# Runs, by the faults that they have.
_BRIEF = ("client.kill",)  # some seconds of traffic, and a fault that touches nothing
_PAUSE = ("operator.pause",)  # lag comes and goes, and so does the rate
_LOG_DEAD = ("log.kill",)

_SEEN_IN_BRIEF = (
    Mutant(
        "every-41st-event-a-dead-letter",
        (
            Edit(
                _ROWS,
                "                yield row\n",
                "                if offset % 41 == 40:\n"
                '                    letters.append(RejectedRecord(offset - first_offset, "a mutant", None))\n'
                "                yield None if offset % 41 == 40 else row\n",
            ),
        ),
        _BRIEF,
        ("dead letters though PostgreSQL did not refuse them so",),
    ),
    Mutant(
        "order-reversed-within-a-group",
        (
            Edit(
                "ingest/appender.py",
                "        entries = [entry for request in group for entry in request.entries]\n",
                "        entries = [entry for request in group for entry in request.entries][::-1]\n",
            ),
        ),
        _BRIEF,
        ("in another order than in their body",),
    ),
    Mutant(
        "received-at-wrong",
        (
            Edit(
                _COLLECT,
                "record_head(int(self._clock.now() * 1000)",
                "record_head(int(self._clock.now() * 1000) - 5000",
            ),
        ),
        _BRIEF,
        ("stored with a time of arrival at which their request was not under way",),
    ),
    Mutant(
        "request-id-wrong",
        (Edit(_COLLECT, " * 1000), request.request_id)", ' * 1000), f"{request.request_id}0")'),),
        _BRIEF,
        ("stored under a request that did not bring them",),
    ),
    Mutant(
        "accepted-wrong",
        (Edit("ingest/codecs/events.py", "encode(Accepted(count))", "encode(Accepted(count + 1))"),),
        _BRIEF,
        ("responses with a wrong count of accepted events",),
    ),
    Mutant(
        "last-line-dropped",
        (
            Edit(
                "ingest/codecs/event_bodies.py",
                'for line in body.split(b"\\n") if line and not line.isspace()]\n',
                'for line in body.split(b"\\n") if line and not line.isspace()][:-1] or [body]\n',
            ),
        ),
        _BRIEF,
        ("responses with a wrong count of accepted events",),
    ),
    Mutant(
        "one-in-ten-a-500",
        (
            Edit(
                _COLLECT,
                "        try:\n            batch = await self._collect(codec, request)\n",
                "        if __import__('random').random() < 0.1:\n"
                "            raise ZeroDivisionError\n"
                "        try:\n            batch = await self._collect(codec, request)\n",
            ),
        ),
        _BRIEF,
        ("responses with a status other than 202, 429 or 503",),
    ),
    Mutant(
        "message-cut",
        (Edit(_ROWS, "message = event.message.encode()", "message = event.message[:150].encode()"),),
        _BRIEF,
        ("stored with another content than was sent",),
    ),
    Mutant(
        "attributes-without-any-are-none",
        (Edit(_ROWS, 'b"" if event.attributes is None else', 'b"" if not event.attributes else'),),
        _BRIEF,
        ("stored with another content than was sent",),
    ),
)
_SEEN_IN_PAUSE = (
    Mutant(
        "unread-entries-trimmed",
        (
            Edit(
                "pipeline/log/commit.lua",
                "string.format('0-%.0f', offset + 1))",
                "string.format('0-%.0f', offset + 200))",
            ),
        ),
        _PAUSE,
        ("where the log began behind what was stored", _LOST),
        trim=True,
    ),
    Mutant(
        "pauses-ignored",
        (
            Edit(
                "tasks/drain.py",
                "            self._pauses = state.pauses\n",
                "            self._pauses = ()\n",
            ),
            Edit("tasks/pause.py", "        if follower.paused and consuming:\n", "        if False:\n"),
            Edit("tasks/pause.py", "elif not follower.paused and not consuming:\n", "elif not consuming:\n"),
        ),
        _PAUSE,
        ("where a row was stored though consumption was paused",),
    ),
    Mutant(
        "rate-always-at-its-maximum",
        (Edit("pipeline/policies/bands.py", "self.rate_of(sample.lag)", "self.rate_of(0)"),),
        _PAUSE,
        ("where the published rate was not what the policy gives for its lag",),
    ),
    Mutant(
        "lag-always-zero",
        (
            Edit(
                _MEASURE,
                "    sample.lag = lag_by_partition(positions, sample.stored)\n",
                "    sample.lag = lag_by_partition(positions, sample.stored)\n"
                "    sample.lag = sample.lag and dict.fromkeys(sample.lag, 0)\n",
            ),
        ),
        _PAUSE,
        ("where the published lag was too low",),
        rate=1200,  # makes the lag far larger than the judge's tolerance between two readings
    ),
    Mutant(
        "health-always-healthy",
        (
            Edit(
                _ROUTES,
                "health_document(health()))",
                'health_document(health()) | {"status": "healthy", "reasons": []})',
            ),
        ),
        _PAUSE,
        ("where health said healthy though it was not",),
    ),
    Mutant(
        "health-never-paused",
        (
            Edit(
                _ROUTES,
                "health_document(health()))",
                'health_document(health()) | {"consumption": "running"})',
            ),
        ),
        _PAUSE,
        ("where health reported a wrong pause state",),
    ),
)
_SEEN_IN_LOG_DEAD = (
    Mutant(
        "no-retry-after",
        (Edit(_ERRORS, 'headers["retry-after"] = str(retry_after)', 'headers["x-retry"] = str(retry_after)'),),
        _LOG_DEAD,
        ("refusals without a valid Retry-After",),
    ),
    Mutant(
        "unavailable-told-as-indeterminate",
        (
            Edit(
                _ERRORS,
                '    RecoverableError: ErrorRow(503, "unavailable", retryable=True),\n',
                '    RecoverableError: ErrorRow(503, "indeterminate", retryable=True),\n',
            ),
        ),
        ("log.kill", "control-redis+log.kill"),
        ("indeterminate responses while the log was dead", "indeterminate responses without a fault"),
        # Requests count only from 0.7 s after the log's death. On a busy machine, the shortest fault has none of them.
        longest=True,
    ),
)
_SEEN_IN_OTHERS = (
    Mutant(
        "acknowledged-without-replicas",
        (
            Edit(
                "pipeline/log/redis_replicas.py",
                "            confirmed = int(count) if synced >= own else 0\n",
                "            confirmed = wanted\n",
            ),
        ),
        ("log-replica.freeze",),
        ("events acknowledged while no replica could have them",),
        replicated=True,
    ),
    Mutant(
        "acknowledge-before-append",
        (
            Edit(
                _COLLECT,
                "            await appended\n",
                "",
            ),
        ),
        ("log.kill", "ingest.kill", "log.freeze"),
        (_LOST,),
    ),
    Mutant(
        "offset-in-a-transaction-of-its-own",
        (
            Edit(
                _POSTGRES,
                "        if moved == 0:\n",
                '        self.session.commit()\n        self.session.count("BEGIN")\n        if moved == 0:\n',
            ),
        ),
        ("copy.terminate",),
        (_SKIPPED,),
    ),
    Mutant(
        "no-lock-no-compare-and-swap-no-unique-index",
        (
            Edit(
                _POSTGRES,
                "        if key in self._locks():\n            return True",
                "        if key:\n            return True",
            ),
            Edit(_POSTGRES, "return lock_key(log_id, partition) in self._locks()", "return True"),
            Edit(_QUERIES, _CAS, ""),
            Edit("pipeline/sink/migrations/0001_events.sql", "NOT NULL PRIMARY KEY,", "NOT NULL,"),
            Edit(
                "pipeline/sink/server_check.py",
                "    if not facts.has_unique_ids and not facts.is_by_day:\n",
                "    if False:\n",
            ),
        ),
        ("control-redis.flushall", "child.freeze"),
        ("stored more than once",),
    ),
    Mutant(
        "copy-error-swallowed",
        (
            Edit(
                _POSTGRES,
                "            except StatementRefusedError as refusal:\n",
                "            except SinkUnavailableError:\n"
                "                self._begin(log_id, partition, expected_offset, batch)\n"
                "                written = Written()\n"
                "            except StatementRefusedError as refusal:\n",
            ),
        ),
        ("copy.terminate",),
        (_SKIPPED,),
    ),
    Mutant(
        "breaker-drops-the-batch",
        (
            # A file reports it to all processes, because any of them may drain the partition after an outage.
            Edit(
                "pipeline/drain/run.py",
                "            return _ENDS[type(error)], str(error)\n",
                "            first = self._transfer._prefetch.first\n"
                "            if isinstance(error, BreakerOpenError) and first is not None:\n"
                '                with open(f"dropped-{self._partition}", "w") as file:\n'
                "                    file.write(str(first.batch.next_offset))\n"
                "            return _ENDS[type(error)], str(error)\n",
            ),
            Edit(
                "pipeline/drain/transfer.py",
                "        self._prefetch.stored_up_to(identity.log_id, stored.next_offset)\n",
                "        try:\n"
                "            with open(f'dropped-{self._partition}') as file:\n"
                "                dropped = int(file.read() or 0)\n"
                "            stored = type(stored)(max(stored.next_offset, dropped), None)\n"
                "        except OSError:\n"
                "            pass\n"
                "        self._prefetch.stored_up_to(identity.log_id, stored.next_offset)\n",
            ),
            Edit(_QUERIES, _CAS, _CAS.replace("=", "<=")),
        ),
        ("postgres.kill", "postgres.freeze"),
        (_SKIPPED,),
    ),
    Mutant(
        "append-with-maxlen",
        (
            Edit(
                "pipeline/log/append.lua",
                "redis.call('XADD', key, '0-*', 'v', ARGV[i])",
                "redis.call('XADD', key, 'MAXLEN', '=', '60', '0-*', 'v', ARGV[i])",
            ),
        ),
        ("postgres.freeze",),
        (_LOST,),
    ),
    Mutant(
        "offsets-used-again",
        (
            Edit(
                "pipeline/log/append.lua",
                "tonumber(redis.call('HGET', KEYS[2], 'f' .. p - 1) or 0)",
                "0",
            ),
        ),
        ("log.back",),
        (_LOST, "offsets that were used twice", "stored twice from one offset"),
    ),
    Mutant(
        "replay-forgets-what-it-marks",
        (
            Edit(
                "pipeline/sink/dead_letters.py",
                "            rows, letters = _encode([bytes(raw) for *_, raw in found], positions)\n",
                "            rows, letters = _encode([bytes(raw) for *_, raw in found], positions)\n"
                "            rows = [None] * len(rows)\n",
            ),
        ),
        ("operator.replay",),
        (_LOST,),
    ),
    Mutant(
        "breaker-never-closes",
        (
            Edit(
                "pipeline/probe.py",
                "        lifted = store.resume(PauseReason.BREAKER, generation=held.generation, "
                "actor=actor, why=why)\n",
                "        lifted = False\n",
            ),
        ),
        ("postgres.kill",),
        (_NOT_WELL,),
    ),
    Mutant(
        "one-partition-never-drained",
        (
            Edit(
                "tasks/drain.py",
                "if not is_paused(one)]\n",
                "if not is_paused(one) and one != 2]\n",
            ),
        ),
        _BRIEF,
        ("where a partition with lag had stood still outside a fault",),
        recovery_seconds=13,
    ),
)
_BY_DAY = "tests/integration/test_by_day.py::"
_OF_DAYS = (
    Mutant(
        "noted-id-is-no-repeat",
        (
            Edit(
                "pipeline/sink/swap.sql",
                "EXECUTE FUNCTION %1$s.note_event_ids()",
                "EXECUTE FUNCTION %1$s.copy_event_ids()",
            ),
        ),
        test=f"{_BY_DAY}test_every_writer_is_refused_an_id_that_is_stored",
    ),
    Mutant(
        "race-for-an-id-is-a-dead-letter",
        (Edit(_QUERIES, "IF %(is_by_day)s AND SQLSTATE = '23505' AND (", "IF false AND SQLSTATE = '23505' AND ("),),
        test=f"{_BY_DAY}test_two_sessions_that_store_one_id_at_once",
    ),
    Mutant(
        "ids-unnoted-and-unchecked",
        (Edit("pipeline/sink/server_check.py", "if facts.is_by_day and not facts.has_noted_ids:", "if False:"),),
        test=f"{_BY_DAY}test_a_table_that_does_not_note_ids_is_refused",
    ),
    Mutant(
        "ids-go-before-their-events",
        (
            Edit(
                "pipeline/sink/migrations/0019_partitions_of_a_user.sql",
                "* interval '1 day', @home.oldest_stored(true)) INTO",
                "* interval '1 day') INTO",
            ),
        ),
        test=f"{_BY_DAY}test_ids_expire_after_their_events_only",
    ),
)
_OF_UNIT_TESTS = (
    Mutant(
        "unknown-lag-holds-for-ever",
        (
            Edit(
                "pipeline/flow/rate.py",
                "        return max(floor, last_rate * math.pow(2.0, -max(0.0, halvings)))\n",
                "        return max(floor, last_rate * math.pow(1.0, -max(0.0, halvings)))\n",
            ),
        ),
        test="tests/unit/test_flow_rate.py::test_an_unknown_lag_holds_for_30_s_and_then_halves_the_rate_every_5_s",
    ),
    Mutant(
        "unknown-lag-is-zero",
        (
            Edit(
                "pipeline/flow/lag.py",
                "            return None\n        consumed = position.committed",
                "            continue\n        consumed = position.committed",
            ),
        ),
        test="tests/unit/test_flow_lag.py::test_lag_is_unknown_where_nobody_can_say",
    ),
    Mutant(
        "retry-after-too-short",
        (Edit(_ERRORS, "    whole = max(1, math.ceil(seconds + draw", "    whole = max(1, math.floor(seconds + draw"),),
        test="tests/unit/test_ingest_errors.py::test_retry_after_is_whole_never_too_short_and_spread",
    ),
    Mutant(
        "bucket-without-bottom",
        (
            Edit(
                _ADMISSION,
                "        left = self._left - count\n        if left < 0:\n            return False\n",
                "        left = max(self._left - count, count)\n",
            ),
        ),
        test="tests/unit/test_ingest_admission.py::test_while_a_body_waits_for_its_call_smaller_ones_do_not_use_up_its_lease",
    ),
    Mutant(
        "hints-expire",
        (Edit("tasks/hints.py", "            retry=False,\n", "            retry=False,\n            expires=2.0,\n"),),
        test="tests/unit/test_hints.py::test_a_worker_whose_clock_differs_takes_each_message",
    ),
    Mutant(
        "ticks-expire",
        (
            Edit(
                "beat_schedule.py",
                '{"queue": Queue.CONTROL.value}',
                '{"queue": Queue.CONTROL.value, "expires": seconds}',
            ),
        ),
        test="tests/unit/test_hints.py::test_a_worker_whose_clock_differs_takes_each_message",
    ),
)
_OF_PAUSES_AND_HINTS = (
    Mutant(
        "note-of-pauses-never-old",
        (
            Edit(
                "tasks/known_pauses.py",
                "return 0 <= now - noted_at <= KNOWN_SECONDS_MAX and bool(checksum == _checksum(pauses))",
                "return bool(checksum == _checksum(pauses))",
            ),
        ),
        test="tests/unit/test_hints.py::test_a_note_is_as_old_as_the_question_and_not_as_its_answer",
    ),
    Mutant(
        "note-of-unknown-pauses",
        (
            Edit("tasks/pause.py", "if self._known is not None and read.pauses is not None:", "if self._known:"),
            Edit("tasks/pause.py", "note(read.pauses, read_at)", "note(read.pauses or (), read_at)"),
        ),
        test="tests/unit/test_hints.py::test_unknown_pauses_are_noted_as_no_pauses_by_nobody",
    ),
    Mutant(
        "state-unchanged-though-paused",
        (
            Edit(
                "pipeline/control_store/redis_control.py",
                "last[0][:4] == answer[:4]",
                "last[0][3:4] == answer[3:4]",
            ),
        ),
        test="tests/contract/test_control_store_events.py::"
        "test_each_change_of_the_state_is_seen_by_a_process_that_has_read_it_before",
    ),
    Mutant(
        "follower-trusts-what-lay-in-its-socket",
        (Edit("pipeline/follower.py", "        if took_seconds > OLD_SECONDS:\n            return\n", ""),),
        test="tests/unit/test_follower.py::test_a_state_that_lay_in_the_socket_of_a_frozen_process_is_read_again",
    ),
    Mutant(
        "quiet-log-stays-quiet",
        (
            Edit(
                "tasks/beat_watch.py",
                "return quiet_at is not None and now - quiet_at <= TRUST_SECONDS",
                "return quiet_at is not None",
            ),
        ),
        test="tests/unit/test_beat_watch.py::test_a_log_that_was_quiet_before_a_freeze_is_not_known_to_be",
    ),
    Mutant(
        "messages-of-killed-workers-never-come-again",
        (
            Edit(
                "tasks/consumer.py",
                "        if found:\n            super().restore_visible",
                "        if not found:\n            super().restore_visible",
            ),
        ),
        test="tests/integration/test_queue_refused.py::"
        "test_what_a_killed_worker_took_comes_again_after_the_time_out_and_not_before",
    ),
    Mutant(
        "accepted-late-begin-hides-a-loss",
        (
            Edit(
                "pipeline/late_begin.py",
                "late.begin <= begin and late.missing_below <= end",
                "late.missing_below <= end",
            ),
        ),
        test="tests/unit/test_late_begin.py::test_what_is_accepted_is_that_of_one_partition_and_no_more_of_it",
    ),
)

MUTANTS = (
    *_SEEN_IN_BRIEF,
    *_SEEN_IN_PAUSE,
    *_SEEN_IN_LOG_DEAD,
    *_SEEN_IN_OTHERS,
    *_OF_DAYS,
    *_OF_UNIT_TESTS,
    *_OF_PAUSES_AND_HINTS,
)
