"""Faults in what a bulk load reads, and in what it writes beside it."""

from tests.mutants.killers import BULK_FILES, BULK_STOPS, at
from tests.mutants.mutant import Mutant

_ROWS = "client/order_rows.py"
_ORDERS = "client/orders_file.py"
_OUTCOMES = "client/outcomes.py"
_CELLS = "client/cells.py"

MUTANTS = (
    Mutant(
        "stray-quote-swallows-the-file",
        "thousands of orders would be one field of a row that is none",
        _ROWS,
        "range(LONGEST_FIELD - 1)",
        "range(1_000_000)",
        at(BULK_FILES, "test_a_stray_quote_costs_its_row_however_long_the_rest_of_the_file_is"),
    ),
    Mutant(
        "field-of-several-lines-is-read-as-rows",
        "a buyer who has line breaks in the name would order for others",
        _ROWS,
        "range(LONGEST_FIELD - 1)",
        "range(0)",
        at(BULK_FILES, "test_what_stands_in_a_quoted_field_of_several_lines_is_no_order"),
    ),
    Mutant(
        "rows-apart-are-orders-each",
        "an order would ship with a part of its lines",
        _ORDERS,
        "problem = self.problem or apart",
        "problem = self.problem",
        at(BULK_FILES, "test_an_id_whose_rows_lie_apart_is_malformed_wherever_they_are_and_told_with_both_lines"),
    ),
    Mutant(
        "order-without-its-unreadable-row",
        "an order would ship without the line that nobody could read",
        _ORDERS,
        "for one in (*strays, row):",
        "for one in (row,):",
        at(BULK_FILES, "test_an_order_one_of_whose_rows_cannot_be_read_is_malformed_as_a_whole"),
    ),
    Mutant(
        "changed-file-is-read-on",
        "what was not looked through would be shipped",
        "client/text_file.py",
        "        elif number >= len(self._digests) or self._digests[number] != digest:\n",
        "        elif False:\n",
        at(
            BULK_FILES,
            "test_a_file_that_changes_while_it_is_read_is_noticed_before_what_has_changed_is_given",
            "test_a_file_that_grows_while_it_is_read_is_noticed",
        ),
    ),
    Mutant(
        "load-trusts-a-torn-line",
        "an order whose outcome was half written would be lost in one line with the next",
        _OUTCOMES,
        "            if begin + found + 1 < size:\n",
        "            if False:\n",
        at(BULK_FILES, "test_a_line_that_a_killed_load_has_begun_is_written_anew"),
    ),
    Mutant(
        "load-asks-for-the-stuck-no-more",
        "an order that was mended would stay stuck in the outcomes",
        _OUTCOMES,
        "ENDINGS | {OTHER_CONTENT}",
        'ENDINGS | {OTHER_CONTENT, "stuck"}',
        at(BULK_FILES, "test_a_load_goes_on_behind_the_outcomes_that_are_settled"),
    ),
    Mutant(
        "load-passes-over-other-content",
        "an order that was changed in the file would be taken for the one that its id had before",
        _OUTCOMES,
        'blake2b(f"{content} {order_id}".encode()',
        "blake2b(order_id.encode()",
        at(BULK_FILES, "test_an_id_that_was_settled_with_other_content_is_asked_for_again"),
    ),
    Mutant(
        "older-outcomes-lack-the-contents-for-ever",
        "a load that goes on with an older file would ask for every order again each time",
        _OUTCOMES,
        "                if has_content is False:\n",
        "                if False:\n",
        at(
            BULK_FILES,
            "test_a_file_of_an_earlier_version_gets_what_it_lacks_and_its_orders_are_asked_for_again",
        ),
    ),
    Mutant(
        "cells-run-in-a-spreadsheet",
        "whoever opens the outcomes would run what a buyer wrote",
        _CELLS,
        """return _TO_MARK.sub("'", text)""",
        "return text",
        at(BULK_FILES, "test_outcomes_are_safe_in_a_spreadsheet_and_the_load_finds_its_orders_again"),
    ),
    Mutant(
        "cells-run-where-the-separator-is-another",
        "a spreadsheet that parts cells at semicolons would run what a buyer wrote",
        _CELLS,
        r'_BEGIN = r"(?:^|(?<=[,;|\t]))"',
        '_BEGIN = "^"',
        at(BULK_FILES, "test_no_cell_runs_in_a_spreadsheet_and_each_can_be_read_back"),
    ),
    Mutant(
        "two-loads-write-one-file",
        "two loads would mix their lines",
        "client/file_lock.py",
        "fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        at(BULK_FILES, "test_one_load_at_a_time_has_an_outcome_file_and_the_other_is_told_who"),
    ),
    Mutant(
        "load-leaves-what-is-under-way",
        "batches that have ended would not be in the outcomes when another one fails",
        "client/bulk.py",
        "            while self._carrying and not left.done():\n",
        "            while False:\n",
        at(BULK_STOPS, "test_when_a_batch_fails_the_others_are_waited_for_and_written_down"),
    ),
    Mutant(
        "load-waits-for-ever",
        "nobody could leave a load that has nobody to work for it",
        "client/bulk.py",
        "            asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._left.set)\n",
        "            pass\n",
        at(BULK_STOPS, "test_a_load_leaves_what_does_not_end_and_writes_down_what_has[stops2]"),
        hangs=True,
    ),
)
