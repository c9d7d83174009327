"""Faults in saga.log: nothing missing, nothing twice, each order's events in their own sequence."""

from tests.mutants.killers import EVENT_LOG, LOG_FILE, PLANS, RESTORED_LOG, WORKER_LOG, at
from tests.mutants.mutant import Mutant

_FILE = "adapters/event_log.py"
_LOG_FILE = "adapters/log_file.py"
_GROUP = at(
    EVENT_LOG,
    *(
        f"test_a_crash_among_lines_that_belong_together_loses_none_of_them_and_repeats_none[{is_first}]"
        for is_first in (False, True)
    ),
)

MUTANTS = (
    Mutant(
        "log-reads-by-event-id",
        "an event that commits late would be skipped for ever",
        _FILE,
        "            AND txid < pg_snapshot_xmin(pg_current_snapshot())\n            AND NOT EXISTS",
        "            AND NOT EXISTS",
        at(EVENT_LOG, "test_an_event_is_held_back_while_an_earlier_transaction_may_still_commit"),
    ),
    Mutant(
        "log-tells-an-order-out-of-sequence",
        "an order would be told as ended before it was unwinding",
        _FILE,
        "     ORDER BY told.place_txid, told.place_id, told.seq\n",
        "     ORDER BY told.place_txid, told.place_id, told.seq DESC\n",
        at(EVENT_LOG, "test_an_orders_events_keep_their_sequence_when_its_transactions_began_in_another[False]"),
    ),
    Mutant(
        "log-keeps-a-torn-line",
        "a crash would leave half a line, and a line after it that nobody can read",
        _LOG_FILE,
        "    file.truncate(begins + sum(map(len, lines[:kept])))\n",
        "",
        at(EVENT_LOG, "test_a_restart_goes_on_where_the_last_whole_line_ends"),
    ),
    Mutant(
        "log-never-asks-for-its-bookmark",
        "whatever a database writes again after it went back would be missing for good",
        _FILE,
        "              OR EXISTS (SELECT FROM mark WHERE starts_with(:line, begins)) THEN 'same'\n",
        "              THEN 'same'\n",
        at(
            RESTORED_LOG,
            "test_all_that_a_restored_database_has_is_told_after_a_note[between two looks-fewer events]",
            "test_all_that_a_restored_database_has_is_told_after_a_note[between two workers-fewer events]",
        ),
    ),
    Mutant(
        "log-has-two-writers",
        "two workers of one machine would tell everything twice",
        _LOG_FILE,
        "    except BlockingIOError:\n        return False\n",
        "    except BlockingIOError:\n        return True\n",
        at(EVENT_LOG, "test_one_follower_writes_and_another_takes_over"),
    ),
    Mutant(
        "log-marks-a-place-that-is-not-complete",
        "a crash between two lines that belong together would lose the second",
        _LOG_FILE,
        "        mark = place if is_last else mark\n",
        "        mark = place if is_last or mark else mark\n",
        _GROUP,
    ),
    Mutant(
        "log-keeps-a-torn-group",
        "a crash between two lines that belong together would tell the first of them twice",
        _LOG_FILE,
        "    torn = run[:-1] if is_complete else run\n",
        "    torn = run[:0]\n",
        _GROUP,
    ),
    Mutant(
        "log-takes-the-beginning-for-complete",
        "a crash between the first two lines of a log would tell the first of them twice",
        _LOG_FILE,
        "    torn = run[:-1] if is_complete else run\n",
        "    torn = run[:-1]\n",
        _GROUP,
    ),
    Mutant(
        "log-cuts-off-whole-lines",
        "each restart would tell the newest event again, and have lost what was written behind it",
        _LOG_FILE,
        "    torn = run[:-1] if is_complete else run\n",
        "    torn = run\n",
        at(EVENT_LOG, "test_a_restart_goes_on_where_the_last_whole_line_ends"),
    ),
    Mutant(
        "log-dies-of-a-full-disk",
        "a full disk would stop the checkout",
        _FILE,
        "        except OSError as failure:\n",
        "        except KeyError as failure:\n",
        at(EVENT_LOG, "test_a_full_disk_does_not_end_the_follower_and_leaves_no_half_line"),
    ),
    Mutant(
        "log-dies-with-a-database-that-is-away",
        "a restart of Postgres would stop the worker",
        _FILE,
        "        except CheckoutError as failure:\n",
        "        except KeyError as failure:\n",
        at(EVENT_LOG, "test_a_database_that_is_away_does_not_end_the_follower"),
    ),
    Mutant(
        "log-tells-no-findings",
        "whoever reads the log would take a broken invariant for none",
        _FILE,
        "          FROM due JOIN audit_events a USING (txid, event_id)\n",
        "          FROM due JOIN audit_events a USING (txid, event_id) WHERE a.event = 'told'\n",
        at(EVENT_LOG, "test_what_the_audit_found_is_told_between_the_orders_events"),
    ),
    Mutant(
        "log-does-not-know-a-findings-place",
        "a log that ends with a finding would be told from the beginning again",
        _FILE,
        "                SELECT at, 'audit ' || check_id FROM audit_events\n                 WHERE",
        "                SELECT at, 'audit ' || check_id FROM audit_events\n                 WHERE event = 'told' AND",
        at(EVENT_LOG, "test_a_log_that_ends_with_a_finding_goes_on_after_it"),
    ),
    Mutant(
        "finding-is-marked-at-a-wrong-place",
        "each restart would tell the newest finding again",
        _FILE,
        "        SELECT a.txid, a.event_id, NULL, NULL, a.event,",
        "        SELECT a.txid, a.event_id - 1, NULL, NULL, a.event,",
        at(EVENT_LOG, "test_a_log_that_ends_with_a_finding_goes_on_after_it"),
    ),
    Mutant(
        "finding-overtakes-an-event",
        "an event that commits after a finding would be skipped for ever",
        _FILE,
        "            AND txid < pg_snapshot_xmin(pg_current_snapshot())\n          ORDER BY",
        "          ORDER BY",
        at(EVENT_LOG, "test_a_finding_is_held_back_while_an_earlier_transaction_may_still_commit"),
    ),
    Mutant(
        "log-reads-all-for-each-batch",
        "a worker on a new machine would never catch up with a million orders",
        _FILE,
        "                   AND (later.txid, later.event_id) < (e.txid, e.event_id))\n"
        "          ORDER BY txid, event_id LIMIT :limit)",
        "                   AND (later.txid, later.event_id) < (e.txid, e.event_id)))",
        at(PLANS, "test_the_sweep_and_the_log_read_by_index_and_no_more_than_they_need"),
    ),
    Mutant(
        "log-is-cut-to-its-tail",
        "a restart would leave the last 64 KiB of the log, and lose the rest for good",
        _LOG_FILE,
        "    file.truncate(begins + sum(map(len, lines[:kept])))\n",
        "    file.truncate(sum(map(len, lines[:kept])))\n",
        at(
            LOG_FILE,
            "test_a_file_keeps_every_whole_line_and_its_last_one_is_the_bookmark"
            "[whole-longer than what is read at first]",
        ),
    ),
    Mutant(
        "log-reads-no-further-back",
        "a bookmark in a long line would name no event, and everything would be told again with each restart",
        _LOG_FILE,
        "        if not is_whole:\n            return None\n",
        "",
        at(
            LOG_FILE,
            "test_a_bookmark_says_how_its_own_line_begins_however_long_that_is"
            "[lines before it-longer than what is read at first]",
        ),
    ),
    Mutant(
        "log-knows-events-by-their-number-alone",
        "behind a restored database, which uses the numbers again, events would be missing for good",
        _FILE,
        "              OR EXISTS (SELECT FROM mark WHERE starts_with(:line, begins)) THEN 'same'\n",
        "              OR EXISTS (SELECT FROM mark) THEN 'same'\n",
        at(
            RESTORED_LOG,
            "test_all_that_a_restored_database_has_is_told_after_a_note[between two looks-another order's event]",
            "test_a_finding_that_a_restored_database_has_not_is_missed_as_an_event_is"
            "[UPDATE audit_events SET check_id = 'A3']",
        ),
    ),
    Mutant(
        "log-takes-a-standby-for-a-restore",
        "after a failover everything would be told again because one connection leads to the old primary",
        _FILE,
        "            WHEN pg_is_in_recovery() THEN 'behind'\n",
        "",
        at(RESTORED_LOG, "test_a_standby_that_has_not_come_as_far_is_waited_for"),
    ),
    Mutant(
        "log-goes-on-behind-a-dump",
        "events with lower transaction ids than those of the dump would be missing for good",
        _FILE,
        "        if found.database in {Standing.OTHER, Standing.AHEAD} and self._bookmark != BEGINNING:\n",
        "        if found.database is Standing.OTHER and self._bookmark != BEGINNING:\n",
        at(RESTORED_LOG, "test_a_dump_that_its_server_catches_up_with_is_told_whole_too"),
    ),
    Mutant(
        "log-forgets-that-another-database-began",
        "a restart right after the note would go on behind the bookmark of the database before",
        _LOG_FILE,
        "        is_note = lines[number] == OTHER_DATABASE.encode()\n",
        "        is_note = False\n",
        at(LOG_FILE, "test_after_a_note_the_next_database_begins"),
    ),
    Mutant(
        "log-begins-anew",
        "each restart would tell everything again",
        _LOG_FILE,
        '        return cls(*place, line[:_BEGINNING_OF_A_LINE].replace("\\x00", "?"))\n',
        '        return cls(*place, "")\n',
        at(EVENT_LOG, "test_a_restart_goes_on_where_the_last_whole_line_ends"),
    ),
    Mutant(
        "worker-goes-on-without-its-log",
        "saga.log would end, and nobody would know until they needed it",
        "worker.py",
        "= {stopped, follower, locked_out, failure.known}\n",
        "= {stopped, locked_out, failure.known}\n",
        at(WORKER_LOG, "test_a_worker_whose_log_follower_ends_drains_and_leaves_with_1[raises]"),
        hangs=True,
    ),
    Mutant(
        "worker-ends-well-without-its-log",
        "a worker whose saga.log has ended would look as if somebody had stopped it",
        "worker.py",
        "    if has_ended or not isinstance(ended, asyncio.CancelledError):\n",
        "    if not has_ended and not isinstance(ended, asyncio.CancelledError):\n",
        at(WORKER_LOG, "test_a_worker_whose_log_follower_ends_drains_and_leaves_with_1[returns]"),
    ),
)
