"""Group commit: one transaction for many orders, and who shares it."""

from tests.mutants.killers import at
from tests.mutants.mutant import Mutant

_TOGETHER = "activities/batch_together.py"
_CHECKOUT = "activities/batch_checkout.py"
_DECISIONS = "activities/batch_decisions.py"
_BATCHER = "client/batcher.py"
_PLACE = "http_api/placing.py"
_WORKFLOW = "workflows/bulk.py"
_ROWS = "tests/integration/test_batch_together.py"
_FLOW = "tests/workflow/test_together.py"
_SEATS = "tests/unit/test_batcher.py"
_DOOR = "tests/http_api/test_grouping.py"
_SAME = "test_orders_that_are_checked_out_together_leave_what_they_leave_one_by_one"

MUTANTS = (
    # The transaction -------------------------------------------------------------------------------------
    Mutant(
        "group-does-what-a-saga-has-begun",
        "an order that its own saga holds stock for would be bought twice",
        _TOGETHER,
        "if order.order_id in taken and (row is None or is_due(report, order, row)):",
        "if order.order_id in taken and row is not None and is_due(report, order, row):",
        at(_ROWS, "test_orders_of_other_sagas_are_left_to_them"),
    ),
    Mutant(
        "group-is-first-with-half-its-fences",
        "a saga that was first with a step would find the others done by nobody",
        _TOGETHER,
        "    if len(written) < sum(len(each.steps) for each in decisions):\n",
        "    if not written:\n",
        at(_ROWS, "test_an_order_that_comes_while_its_fence_is_taken_is_looked_at_again"),
    ),
    Mutant(
        "group-sends-where-nobody-delivers",
        "a parcel would go where the carrier stopped to deliver a moment before",
        _TOGETHER,
        "     WHERE o.zone IS NULL OR z.is_served\n",
        "",
        at(_ROWS, "test_a_zone_that_is_no_longer_served_when_the_fences_are_written_is_decided_again"),
    ),
    Mutant(
        "group-spends-money-that-has-gone",
        "a customer whose money went meanwhile would stop the whole batch",
        _TOGETHER,
        "    if any(money.get(customer, 0) < amount for customer, amount in spent.items()):\n",
        "    if money is None:\n",
        at(_ROWS, "test_what_goes_while_a_batch_decides_is_decided_again"),
    ),
    Mutant(
        "group-sells-stock-that-has-gone",
        "stock that went meanwhile would stop the whole batch",
        _TOGETHER,
        "    if any(stock.get(sku, 0) < quantity for sku, quantity in wanted.items()):\n",
        "    if stock is None:\n",
        at(_ROWS, "test_what_goes_while_a_batch_decides_is_decided_again"),
    ),
    Mutant(
        "group-holds-what-it-refuses",
        "the stock of refused orders would be gone",
        _TOGETHER,
        "'consumed' FROM lines WHERE unit_price_minor IS NOT NULL\n",
        "'consumed' FROM lines\n",
        at(_ROWS, _SAME),
    ),
    Mutant(
        "group-forgets-which-run-shipped",
        "the run could not take its own order back, and another's undo would be taken for its own",
        _TOGETHER,
        "CASE WHEN reason IS NULL THEN :run END",
        "CASE WHEN reason IS NULL AND :run = '' THEN :run END",
        at(_FLOW, "test_each_order_has_its_outcome_and_no_activity_is_a_task_of_its_own"),
    ),
    Mutant(
        "group-waits-as-long-as-a-step",
        "all of a batch would wait for the lock of one customer until their attempt is over",
        _TOGETHER,
        "'700ms'",
        "'20s'",
        at(_ROWS, "test_a_locked_row_makes_its_own_order_wait_and_not_the_others"),
    ),
    Mutant(
        "group-takes-a-lock-for-an-outage",
        "one customer's locked account would fail the whole batch",
        _TOGETHER,
        "            raise LockTimeout from None\n",
        "            pass\n",
        at(_ROWS, "test_a_locked_row_makes_its_own_order_wait_and_not_the_others"),
    ),
    # What is decided ------------------------------------------------------------------------------------
    Mutant(
        "group-sells-the-last-one-twice",
        "the batch would be rolled back for ever over its last piece",
        _DECISIONS,
        "            free.subtract({line.sku: line.quantity for line in order.lines})\n",
        "",
        at(_ROWS, "test_what_is_sold_out_within_the_batch_is_refused_to_the_later_order"),
    ),
    Mutant(
        "group-spends-the-last-money-twice",
        "the batch would be rolled back for ever over a customer's last money",
        _DECISIONS,
        "            money[order.customer] -= total\n",
        "",
        at(_ROWS, _SAME),
    ),
    Mutant(
        "refused-order-shuts-no-step",
        "a step of a refused order that arrives late would act",
        _DECISIONS,
        "every[: every.index(self.refused_by) + 1]",
        "every[: every.index(self.refused_by)]",
        at(_ROWS, "test_a_refused_order_has_shut_its_steps_and_had_no_effect"),
    ),
    # Neighbours -----------------------------------------------------------------------------------------
    Mutant(
        "order-of-a-locked-row-is-tried-with-the-others",
        "its neighbours would wait for it, try after try",
        _CHECKOUT,
        "                orders = [order for order in orders if order.order_id not in waiting]\n",
        "",
        at(_ROWS, "test_a_locked_row_makes_its_own_order_wait_and_not_the_others"),
    ),
    Mutant(
        "row-locked-for-an-instant-is-locked",
        "orders would be left to sagas of their own, a whole sale of them, because another batch was at it",
        _CHECKOUT,
        "locked = first & await self._locked(orders)",
        "locked = first | await self._locked(orders)",
        at(_ROWS, "test_a_row_that_is_locked_for_an_instant_only_does_not_count_as_locked"),
    ),
    Mutant(
        "poison-order-takes-its-neighbours-along",
        "one order that cannot be written would send its whole batch into sagas of their own",
        _CHECKOUT,
        "                if len(orders) == 1:\n",
        "                if len(orders) >= 1:\n",
        at(_ROWS, "test_a_poison_order_is_left_alone_and_the_others_are_completed"),
    ),
    Mutant(
        "group-leaves-an-order-to-nobody",
        "an order that a batch cannot do would have no saga, and its caller no answer",
        _WORKFLOW,
        "        for reason, order_ids in reasons.items():\n            await self._delegate(order_ids, reason)\n",
        "",
        at(_FLOW, "test_each_order_that_is_left_to_a_saga_says_why_and_has_one"),
    ),
    Mutant(
        "batch-of-a-worker-of-before-changes-its-way",
        "a batch that an older worker has begun could not go on, and its orders would stand still",
        _WORKFLOW,
        'batch.is_together and workflow.patched("together")',
        "batch.is_together",
        at(_FLOW, "test_a_batch_that_a_worker_of_before_began_step_by_step_goes_on_so"),
    ),
    # Seats ----------------------------------------------------------------------------------------------
    Mutant(
        "order-alone-waits-for-others",
        "every order of a quiet hour would take longer",
        _BATCHER,
        "        if is_alone:\n            self._start()\n        elif",
        "        if",
        at(_SEATS, "test_an_order_that_comes_alone_goes_at_once"),
    ),
    Mutant(
        "every-order-has-a-batch-of-its-own",
        "a crowd would be as slow as one workflow for each order",
        _BATCHER,
        "        is_alone = not self._under_way and not self._waiting\n",
        "        is_alone = True\n",
        at(_SEATS, "test_orders_that_come_while_a_batch_is_under_way_share_the_next"),
    ),
    Mutant(
        "batches-without-limit",
        "a hundred batches at once would fight for the same rows",
        _BATCHER,
        "len(self._under_way) >= self._policy.at_once or ",
        "",
        at(_SEATS, "test_a_crowd_does_not_wait_for_the_batch_before_it_and_more_than_two_never_run"),
    ),
    Mutant(
        "crowd-larger-than-a-batch",
        "small batches would go one after the other, however many orders wait",
        _BATCHER,
        "needed = min(self._policy.crowd, self._policy.most)",
        "needed = self._policy.crowd",
        at(_SEATS, "test_a_batch_smaller_than_a_crowd_is_never_waited_for_in_vain"),
    ),
    Mutant(
        "batch-longer-than-temporal-takes",
        "a batch of long orders would be refused, with all that are in it",
        _BATCHER,
        "            if room < 0 and seats:\n",
        "            if False:\n",
        at(_SEATS, "test_long_orders_share_a_batch_as_far_as_temporal_takes_them"),
    ),
    Mutant(
        "seat-of-another-order",
        "who sends another order under the same id would be answered with the first one",
        _BATCHER,
        "        if known and known.order.fingerprint != order.fingerprint:\n",
        "        if known is False:\n",
        at(_SEATS, "test_an_order_with_the_id_of_another_has_no_seat_beside_it"),
    ),
    Mutant(
        "order-that-nobody-waits-for-is-begun",
        "in an outage orders whose callers were told to come again would pile up",
        _BATCHER,
        "            if not seat.callers and self._waiting.get(order.order_id) is seat:\n",
        "            if False:\n",
        at(_SEATS, "test_an_order_that_nobody_waits_for_any_more_is_not_begun"),
    ),
    Mutant(
        "who-leaves-late-takes-anothers-seat",
        "an order would be dropped, and its caller never be answered",
        _BATCHER,
        "self._waiting.get(order.order_id) is seat:",
        "self._waiting.get(order.order_id):",
        at(_SEATS, "test_who_leaves_late_takes_no_seat_from_who_came_after_the_end"),
    ),
    Mutant(
        "no-end-of-who-waits",
        "in an outage the process would grow without limit",
        _BATCHER,
        "        if len(self._waiting) >= self._policy.room:\n",
        "        if False:\n",
        at(_SEATS, "test_no_more_wait_than_there_is_room_for"),
    ),
    Mutant(
        "batch-that-fails-keeps-its-place",
        "after two outages no batch would ever start again",
        _BATCHER,
        "        self._under_way.discard(batch)\n",
        "",
        at(_SEATS, "test_where_temporal_does_not_answer_nothing_is_known_and_the_next_are_tried"),
    ),
    # The door -------------------------------------------------------------------------------------------
    Mutant(
        "own-workflow-is-not-given",
        "nobody could have a history of an order of its own",
        _PLACE,
        "(None, False) if own_workflow else await",
        "await",
        at(_DOOR, "test_an_order_has_a_workflow_of_its_own_for_those_who_ask"),
    ),
    Mutant(
        "delegated-order-is-a-repeat",
        "a caller would be told of a new order that it was there before",
        _PLACE,
        "ended is not None and is_first and ended.is_new and ended.outcome.reason != OWNED",
        "False",
        at(_DOOR, "test_a_locked_row_makes_its_own_order_wait_and_not_the_others"),
    ),
    Mutant(
        "id-of-another-order-is-answered-with-it",
        "a caller would be shown another's order as theirs",
        _PLACE,
        "    if ended.outcome.status == ORDER_ID_CONFLICT:\n",
        "    if False:\n",
        at("tests/http_api/test_orders.py", "test_a_chosen_id_that_another_order_has_is_a_conflict[together]"),
    ),
    Mutant(
        "full-is-a-fault",
        "who comes when there is no room would not know that nothing was done",
        "http_api/problems.py",
        "        case Full():\n",
        "        case Full() if False:\n",
        at(_DOOR, "test_a_crowd_without_room_is_told_to_come_again"),
    ),
    # The schema -----------------------------------------------------------------------------------------
    Mutant(
        "order-begins-completed-without-its-fences",
        "one statement by hand could complete an order that nobody paid for",
        "setup.sql",
        "NEW.status = 'completed' AND 3 = (",
        "NEW.status = 'completed' AND 0 <= (",
        at("tests/integration/test_setup_sql.py", "test_an_order_begins_only_where_it_may[completed]"),
    ),
    Mutant(
        "order-completed-at-once-has-one-event",
        "the log of an order would begin in its middle",
        "setup.sql",
        "    IF TG_OP = 'INSERT' AND NEW.status = 'completed' THEN\n        INSERT INTO public.order_events",
        "    IF TG_OP = 'INSERT' AND NEW.status = 'none' THEN\n        INSERT INTO public.order_events",
        at(_ROWS, _SAME),
    ),
)
