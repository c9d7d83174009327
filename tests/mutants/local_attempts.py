"""Faults in local attempts: what is tried again, what is not, and that a history replays."""

from tests.mutants.killers import LOCAL_FIRST, REPLAY, WORKER_START, at
from tests.mutants.mutant import Mutant

_FILE = "sagafence/operation.py"
_WORKER = "worker.py"
_LIMITS = at(
    WORKER_START,
    "test_no_more_orders_are_done_at_once_than_have_connections_and_idle_polls_leave_them_their_slots[20-20]",
)

MUTANTS = (
    Mutant(
        "more-orders-at-once-than-connections",
        "each would wait for the others, past the time that its task has, and be done again",
        _WORKER,
        "        max_concurrent_workflow_tasks=workflow_tasks,\n",
        "        max_concurrent_workflow_tasks=100,\n",
        _LIMITS,
    ),
    Mutant(
        "idle-polls-keep-the-slots",
        "after a burst of single orders batches would have three fifths of their rate",
        _WORKER,
        "    workflow_polls = min(_MOST_POLLS, workflow_tasks // _SLOTS_PER_POLL)\n",
        "    workflow_polls = _MOST_POLLS\n",
        _LIMITS,
    ),
    Mutant(
        "no-attempt-is-local",
        "a batch would cost two workflow tasks more, and a saga that was open at the upgrade would not replay",
        _FILE,
        "    if local_attempt is not None:\n",
        "    if local_attempt == 0:\n",
        at(LOCAL_FIRST, "test_a_completed_order_is_one_workflow_task_of_eight_events"),
    ),
    Mutant(
        "earlier-names-are-not-read",
        "open runs of an earlier build would lose their execution mode, and orders for a review would be undone",
        "adapters/temporal.py",
        "_CONVERTERS = (_WholeNumbers(), _EarlierNames())",
        "_CONVERTERS = (_WholeNumbers(),)",
        at(REPLAY, "test_a_recorded_history_replays[fast-completed]"),
    ),
    Mutant(
        "cancel-is-lost-with-its-local-attempt",
        "an order would be completed although its cancel came before ship",
        _FILE,
        "            if (caller := asyncio.current_task()) and caller.cancelling():\n",
        "            if (caller := asyncio.current_task()) and caller.cancelled():\n",
        at(
            LOCAL_FIRST,
            "test_a_cancel_during_a_local_attempt_that_then_fails_is_not_followed_by_another_attempt[False]",
        ),
    ),
    Mutant(
        "local-failure-is-final",
        "a blip of the database would cost the order",
        _FILE,
        "            if not _may_pass(error, policy):\n                raise\n",
        "            raise\n",
        at(LOCAL_FIRST, "test_what_may_pass_is_tried_again_as_an_ordinary_activity"),
    ),
    Mutant(
        "local-timeout-is-final",
        "a slow moment of the database would cost the order",
        _FILE,
        "    return isinstance(cause, TemporalTimeoutError)\n",
        "    return False\n",
        at(LOCAL_FIRST, "test_an_attempt_that_takes_too_long_is_begun_again_and_has_one_effect"),
    ),
    Mutant(
        "local-timeout-does-not-replay",
        "an order whose local attempt took too long would fail its next worker's tasks for ever",
        _FILE,
        "cause = error.cause if isinstance(error, ActivityError) else error",
        "cause = error.cause",
        at(LOCAL_FIRST, "test_an_attempt_that_takes_too_long_is_begun_again_and_has_one_effect"),
    ),
    Mutant(
        "refusal-is-asked-for-again",
        "every order that is refused would pay for its refusal twice",
        _FILE,
        "        return not cause.non_retryable and",
        "        return",
        at(LOCAL_FIRST, "test_a_refusal_is_not_asked_for_twice"),
    ),
    Mutant(
        "refused-statement-is-tried-again",
        "a local attempt would be followed by what the step's own policy gives up",
        _FILE,
        " and cause.type not in (policy.retry.non_retryable_error_types or ())",
        "",
        at(LOCAL_FIRST, "test_what_the_step_does_not_retry_is_not_begun_again"),
    ),
    Mutant(
        "local-attempts-without-end",
        "an outage would be waited out within a workflow task, in nobody's sight",
        _FILE,
        "retry_policy=RetryPolicy(maximum_attempts=1),",
        "retry_policy=RetryPolicy(),",
        at(LOCAL_FIRST, "test_what_may_pass_is_tried_again_as_an_ordinary_activity"),
    ),
    Mutant(
        "completed-is-said-twice",
        "a local-first saga that was open at the upgrade would not replay",
        "workflows/checkout.py",
        "isinstance(outcome, Completed) and self._order.execution_mode is ExecutionMode.LOCAL_FIRST",
        "self._order.repair and self._order.execution_mode is ExecutionMode.LOCAL_FIRST",
        at(LOCAL_FIRST, "test_a_completed_order_is_one_workflow_task_of_eight_events"),
    ),
    Mutant(
        "completed-is-set-in-no-mode",
        "the classic histories of open orders would not replay",
        "workflows/checkout.py",
        "isinstance(outcome, Completed) and self._order.execution_mode is ExecutionMode.LOCAL_FIRST",
        "isinstance(outcome, Completed)",
        at(REPLAY, "test_a_recorded_history_replays[completed]"),
    ),
    Mutant(
        "list-misses-the-fast",
        "nobody would find the completed orders of earlier builds",
        "client/listing.py",
        "(OrderStatus = 'completed' OR (OrderStatus IS NULL AND ExecutionStatus = 'Completed'))",
        "OrderStatus = 'completed'",
        at(LOCAL_FIRST, "test_a_completed_order_is_listed_as_completed"),
    ),
)
