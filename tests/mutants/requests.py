"""Faults in what an operator asks for and is shown: requests that are safe to repeat, and lists that hide nothing."""

from tests.mutants.killers import LISTING, REQUESTS, at
from tests.mutants.mutant import Mutant

_ASKING = "client/requests.py"
_TALKING = "client/checkouts.py"
_PAGES = "test_a_list_of_several_pages_has_each_order_once_and_no_more_than_are_asked_for"

MUTANTS = (
    Mutant(
        "busy-worker-is-none",
        "on a busy machine a person would be told to start a worker that runs",
        "client/pollers.py",
        "is_alone = waits_since is not None and waits_since == seen",
        "is_alone = waits_since is not None",
        at("tests/unit/test_pollers.py", "test_tasks_that_come_and_go_are_those_of_a_worker_that_is_busy"),
    ),
    Mutant(
        "retry-is-lost-with-the-run-that-was-asked",
        "an earlier retry's success would be told for one that no run has heard of, and nothing be tried",
        _ASKING,
        "            is_lost = newest.is_open and not _is_carried_out(answered, name)\n",
        "            is_lost = False\n",
        at(REQUESTS, "test_a_retry_that_met_the_end_of_a_stuck_run_is_asked_of_the_next_one"),
    ),
    Mutant(
        "request-is-a-new-one-each-time",
        "a repeat after 15 s would be a second request, refused because the first has happened",
        _ASKING,
        "                    id=name,\n",
        "                    id=None,\n",
        at(
            REQUESTS,
            "test_a_retry_that_nobody_took_is_one_round_however_often_it_is_repeated",
            "test_a_cancel_while_it_is_being_undone_is_the_first_or_is_refused",
        ),
    ),
    Mutant(
        "request-forgets-what-it-did",
        "whoever repeats a retry to learn what came of it would be told that it was refused",
        _ASKING,
        "            raise HasEndedSince\n",
        "            raise HasEnded\n",
        at(REQUESTS, "test_a_retry_that_nobody_took_is_one_round_however_often_it_is_repeated"),
    ),
    Mutant(
        "cancel-takes-every-cancel-for-its-own",
        "a cancel that came too late would be told as honoured",
        _ASKING,
        'name = f"cancel-{_digest(reason)}"\n',
        'name = f"cancel-{_digest()}"\n',
        at(REQUESTS, "test_a_cancel_while_it_is_being_undone_is_the_first_or_is_refused"),
    ),
    Mutant(
        "retry-joins-a-round-that-has-ended",
        "a stuck order could be retried once, and never again",
        _ASKING,
        "        name = next(each for each in names if each not in answered)\n",
        '        name = "retry-0"\n',
        at(REQUESTS, "test_each_retry_after_one_that_was_answered_is_another_round"),
    ),
    Mutant(
        "resolve-answers-as-it-did-then",
        "a repeat would show an order as stuck that has ended since",
        _TALKING,
        "        if answer is not None and _is_stuck(answer) and _is_stuck(now := await self.status(order_id)):\n"
        "            return now\n",
        "        if answer is not None and _is_stuck(answer):\n            return answer\n",
        at(REQUESTS, "test_a_repeated_resolve_shows_how_the_order_stands_now"),
    ),
    Mutant(
        "cancel-that-lost-exits-well",
        "a script would take an order for cancelled whose parcel is on its way",
        "starter.py",
        '        return ExitStatus.REFUSED if found.status.status == "completed" else code\n',
        "        return code\n",
        at(REQUESTS, "test_a_cancel_that_lost_to_completion_exits_with_3_and_one_that_won_with_0"),
    ),
    Mutant(
        "list-repeats-its-first-page",
        "an operator would see the newest orders, over and over",
        "client/executions.py",
        "        asked.next_page_token = page.next_page_token\n",
        "        pass\n",
        at(LISTING, f"{_PAGES}[100-5]"),
        hangs=True,
    ),
    Mutant(
        "list-knows-no-limit",
        "whoever asks for three orders would get as many as there are",
        _TALKING,
        "                        if len(seen) == limit:\n                            return\n",
        "",
        at(LISTING, f"{_PAGES}[3-3]"),
    ),
    Mutant(
        "list-looks-up-no-newer-run",
        "an order that the sweep has repaired would be listed as terminated",
        _TALKING,
        "            return (await self._describe(policies.order_id_of(run.workflow_id))).run_id == run.run_id\n",
        "            return True\n",
        at(
            LISTING,
            "test_a_limit_counts_orders_and_not_what_is_left_out",
            "test_an_order_is_not_listed_under_the_status_of_an_older_run",
        ),
    ),
    Mutant(
        "list-stops-after-a-page",
        "orders would be hidden behind others that do not count",
        "client/executions.py",
        "        if not page.next_page_token:\n",
        "        if page.next_page_token:\n",
        at(LISTING, "test_a_limit_counts_orders_and_not_what_is_left_out"),
    ),
    Mutant(
        "list-ignores-the-status",
        "whoever asks for the stuck orders would get all of them",
        _TALKING,
        '        query = ORDERS if status is None else f"{ORDERS} AND {QUERIES[status]}"\n',
        "        query = ORDERS\n",
        at(LISTING, "test_each_status_lists_its_orders_and_no_others"),
    ),
    Mutant(
        "terminated-is-no-status",
        "an order whose workflow was ended from outside would be shown as unknown",
        "client/listing.py",
        "    if found.status in GONE:\n        return TERMINATED\n",
        "",
        at(LISTING, "test_each_status_lists_its_orders_and_no_others"),
    ),
    Mutant(
        "request-to-an-earlier-run-is-forgotten",
        "a resolve that an earlier run has carried out would be refused to who repeats it",
        _ASKING,
        "                return None  # by an earlier run, which this one continues\n",
        "                pass\n",
        at(
            "tests/workflow/test_stuck_for_long.py",
            "test_a_step_that_was_resolved_stays_so_and_a_repeat_of_the_resolve_joins_the_first",
        ),
    ),
)
