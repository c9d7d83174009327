"""Faults in saga.log: nothing missing, nothing twice, each order's events in their own sequence."""

from tests.mutants.killers import EVENT_LOG, at
from tests.mutants.mutant import Mutant

_FILE = "adapters/event_log.py"

MUTANTS = (
    Mutant(
        "log-reads-by-event-id",
        "an event that commits late would be skipped for ever",
        _FILE,
        "           AND txid < pg_snapshot_xmin(pg_current_snapshot())\n",
        "",
        at(EVENT_LOG, "test_an_event_is_held_back_while_an_earlier_transaction_may_still_commit"),
    ),
    Mutant(
        "log-tells-an-order-out-of-sequence",
        "an order would be told as ended before it was unwinding",
        _FILE,
        "      FROM ahead ORDER BY ahead.place_txid, ahead.place_id, ahead.seq\n",
        "      FROM ahead ORDER BY ahead.place_txid, ahead.place_id, ahead.seq DESC\n",
        at(EVENT_LOG, "test_an_orders_events_keep_their_sequence_when_its_transactions_began_in_another[False]"),
    ),
    Mutant(
        "log-keeps-a-torn-line",
        "a crash would leave half a line, and a line after it that nobody can read",
        _FILE,
        "    file.truncate(tail_begins + len(whole))\n",
        "",
        at(EVENT_LOG, "test_a_restart_goes_on_where_the_last_whole_line_ends"),
    ),
    Mutant(
        "log-begins-anew",
        "each restart would tell everything again",
        _FILE,
        "    if known:\n        return position\n",
        "",
        at(EVENT_LOG, "test_a_restart_goes_on_where_the_last_whole_line_ends"),
    ),
    Mutant(
        "log-has-two-writers",
        "two workers of one machine would tell everything twice",
        _FILE,
        "    except BlockingIOError:\n        return False\n",
        "    except BlockingIOError:\n        return True\n",
        at(EVENT_LOG, "test_one_follower_writes_and_another_takes_over"),
    ),
    Mutant(
        "log-marks-a-place-that-is-not-complete",
        "a crash between two lines that belong together would lose the second",
        _FILE,
        "        before = place if is_last else before\n",
        "        before = place if is_last or before else before\n",
        at(EVENT_LOG, "test_a_crash_among_lines_that_belong_together_loses_none_of_them"),
    ),
    Mutant(
        "log-dies-of-a-full-disk",
        "a full disk would stop the checkout",
        _FILE,
        "                except OSError as failure:\n",
        "                except KeyError as failure:\n",
        at(EVENT_LOG, "test_a_full_disk_does_not_end_the_follower_and_leaves_no_half_line"),
    ),
    Mutant(
        "log-dies-with-a-database-that-is-away",
        "a restart of Postgres would stop the worker",
        _FILE,
        "            except CheckoutError as failure:\n",
        "            except KeyError as failure:\n",
        at(EVENT_LOG, "test_a_database_that_is_away_does_not_end_the_follower"),
    ),
)
