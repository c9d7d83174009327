"""Faults in how an order answers that has no saga of its own, and in who is told to have asked."""

from tests.mutants.killers import EVENT_LOG, PLANS, STARTER_UPKEEP, at
from tests.mutants.mutant import Mutant

_ANSWERS = "tests/integration/test_every_order_answers.py"
_CANCELS = "tests/integration/test_cancel_wherever_it_is.py"
_START = "tests/integration/test_what_start_says.py"
_ACTOR = "tests/workflow/test_who_cancels.py"
_ORDERS = "client/orders.py"
_WORKFLOW = "workflows/bulk.py"
_ASKING = "client/requests.py"
_TAKEN = "test_a_saga_that_only_asked_for_a_taken_id_does_not_answer_for_the_order_that_has_it"

MUTANTS = (
    Mutant(
        "status-knows-own-sagas-alone",
        "there would be no order that was charged and shipped",
        _ORDERS,
        "            return await self.shown(await self._recorded(order_id))\n",
        "            raise\n",
        at(_ANSWERS, "test_an_order_of_a_batch_is_told_with_its_steps_and_the_batch_as_its_history"),
    ),
    Mutant(
        "status-tells-of-another-order",
        "an order that was shipped would be told as rejected, because somebody else asked for its id",
        _ORDERS,
        "        if not await self.is_own(record):\n            return await self.shown(record)\n",
        "",
        at(_ANSWERS, *(f"{_TAKEN}[{how}]" for how in ("rejected", "cancelled", "terminated"))),
    ),
    Mutant(
        "status-links-to-what-is-not-there",
        "the link below an order would lead to a history that does not exist",
        _ORDERS,
        "        workflow_id = carrier.workflow_id if carrier else None\n",
        "        workflow_id = checkout_workflow_id(record.order_id)\n",
        at(_ANSWERS, "test_an_order_by_hand_answers_before_and_after_the_sweep"),
    ),
    Mutant(
        "status-never-tells-that-a-batch-is-gone",
        "an order that waits for the sweep would be told as running",
        _ORDERS,
        "        if record.status in MOVING and (carrier is None or not carrier.is_open):\n",
        "        if record.status in MOVING and carrier is None:\n",
        at(
            _ANSWERS,
            "test_an_order_whose_batch_was_ended_from_outside_is_told_as_that_until_the_sweep_has_been",
        ),
    ),
    Mutant(
        "status-shows-no-stuck-step",
        "nobody would know what to mend of an order that Temporal has forgotten",
        "activities/lookups.py",
        '        if step in stuck and (fence is None or fence.phase == "done"):\n',
        "        if False:\n",
        at(_ANSWERS, "test_a_stuck_order_that_temporal_has_forgotten_says_which_step_is_stuck"),
    ),
    Mutant(
        "log-names-a-workflow-that-is-not-there",
        "saga.log would lead nowhere for every order of a batch",
        "adapters/event_log.py",
        "    return str(row.carrier) if is_in_batch else checkout_workflow_id(row.order_id)\n",
        "    return checkout_workflow_id(row.order_id)\n",
        at(EVENT_LOG, "test_an_event_of_a_batch_leads_to_the_batch_until_the_orders_own_saga_has_it"),
    ),
    Mutant(
        "log-keeps-to-the-batch",
        "an operator's retry would be looked for in a batch that has long ended",
        "adapters/event_log.py",
        "row.changed_by not in _OWN_SAGA_ONLY and row.previous_status != OrderStatus.STUCK",
        "row.previous_status != OrderStatus.STUCK",
        at(EVENT_LOG, "test_an_event_of_a_batch_leads_to_the_batch_until_the_orders_own_saga_has_it"),
    ),
    Mutant(
        "refused-order-forgets-its-batch",
        "an order that the first step refused would have no history",
        "activities/batch_unwind.py",
        '"carrier": activity.info().workflow_id if activity.in_activity() else None,',
        '"carrier": None,',
        at(_ANSWERS, "test_an_order_of_a_batch_is_told_with_its_steps_and_the_batch_as_its_history"),
    ),
    Mutant(
        "batch-loses-a-cancel",
        "a cancel that was taken would change nothing",
        _WORKFLOW,
        "        self._refused.update(self._cancelled_among(self._due()))\n",
        "        pass\n",
        at(
            _CANCELS,
            "test_one_order_of_a_batch_is_undone_and_the_others_complete[charge_orders-before]",
            "test_one_order_of_a_batch_is_undone_and_the_others_complete[charge_orders-after]",
        ),
    ),
    Mutant(
        "cancelled-order-goes-forward-in-its-own-saga",
        "a cancel would be lost where a step of the batch keeps failing",
        _WORKFLOW,
        "self._hand_over(due, describe(error), repairs=self._cancelled_among(due))",
        "self._hand_over(due, describe(error))",
        at(
            _CANCELS,
            "test_an_order_that_is_cancelled_while_its_batch_hands_it_over_is_undone_by_its_own_saga",
        ),
    ),
    Mutant(
        "repeated-cancel-of-a-batch-is-refused",
        "whoever repeats a cancel to learn what came of it would be told that it was refused",
        _ORDERS,
        "            if record.carrier and await self._requests.was_cancelled_in_batch(record.carrier, request):\n"
        "                return await self.shown(record)\n",
        "",
        at(_CANCELS, "test_one_order_of_a_batch_is_undone_and_the_others_complete[charge_orders-after]"),
    ),
    Mutant(
        "cancel-by-hand-buys",
        "the cancel of an order that nobody has begun would begin it",
        _ORDERS,
        "                repair=True,\n",
        "                repair=False,\n",
        at(_CANCELS, "test_an_order_by_hand_is_cancelled_before_anybody_begins_it"),
    ),
    Mutant(
        "cancel-by-hand-loses-to-a-sweep",
        "a cancel beside a sweep would be refused although the order is only begun",
        _ORDERS,
        "        except _Moved:\n            return await self._cancel(request)\n",
        "        except _Moved:\n            raise\n",
        at(_CANCELS, "test_a_cancel_beside_a_sweep_that_begins_the_order_is_the_sagas"),
    ),
    Mutant(
        "list-knows-own-sagas-alone",
        "the orders of batches and those by hand would be in no list",
        "client/order_list.py",
        "    return listed_as is None or (",
        "    return listed_as is not None and (",
        at(_ANSWERS, "test_a_list_has_the_orders_of_batches_and_those_by_hand_each_once"),
    ),
    Mutant(
        "list-hides-that-it-is-not-whole",
        "who reads a list without a worker would take it for all there is",
        "client/order_list.py",
        '        listing.note = f"orders that came in batches or by hand are not listed: {problem}"\n',
        "",
        at(_ANSWERS, "test_without_a_worker_a_list_has_what_temporal_knows_and_says_what_is_missing"),
    ),
    Mutant(
        "list-reads-every-event",
        "a list would take the longer, the more orders there ever were",
        "activities/lookups.py",
        "event_id < :before AND event_id >= :oldest AND seq = 1 ORDER BY event_id DESC",
        "event_id + 0 < :before AND event_id + 0 >= :oldest AND seq = 1 ORDER BY event_id + 0 DESC",
        at(PLANS, "test_the_sweep_and_the_log_read_by_index_and_no_more_than_they_need"),
    ),
    Mutant(
        "sweep-that-parks-ends-well",
        "a cron job would not tell that a person has to decide",
        "client/view.py",
        "    if report.parked_count:\n        return STUCK\n",
        "",
        at(STARTER_UPKEEP, "test_a_sweep_that_parks_an_order_ends_with_4"),
    ),
    Mutant(
        "sweep-that-cannot-start-ends-well",
        "a cron job would not tell of an order that nobody will ever begin",
        "client/view.py",
        "    return USAGE if report.malformed_count else COMPLETED\n",
        "    return COMPLETED\n",
        at(STARTER_UPKEEP, "test_a_sweep_names_what_it_started_and_what_cannot_be_started"),
    ),
    Mutant(
        "start-says-everything",
        "the one line that counts would be lost among advice that nobody needs",
        "client/waiting.py",
        "        if not task.done() and not is_quiet:\n",
        "        if not is_quiet:\n",
        at(_START, "test_who_sees_the_end_at_once_is_given_no_advice"),
    ),
    Mutant(
        "ctrl-c-tells-nothing",
        "whoever stops to wait would not know where to look for the order",
        "client/waiting.py",
        "    except asyncio.CancelledError:\n        view.errors.print(advice)\n        raise\n",
        "    except asyncio.CancelledError:\n        raise\n",
        at(_START, "test_ctrl_c_tells_where_to_look_for_the_order"),
    ),
    Mutant(
        "cancel-forgets-who",
        "the log would not tell who has cancelled an order",
        _ASKING,
        "[reason, by] if by else [reason]",
        "[reason]",
        at(_ACTOR, "test_who_cancels_is_kept_with_the_reason"),
    ),
    Mutant(
        "cancel-needs-a-worker-of-its-own-release",
        "no order could be cancelled while the workers are being replaced",
        _ASKING,
        "            if not by:\n                raise\n",
        "            raise\n",
        at(_ACTOR, "test_a_worker_of_an_earlier_release_is_told_who_cancels_with_the_reason"),
    ),
)
