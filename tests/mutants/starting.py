"""Faults in how an order begins: one saga for each id, one content for each id, no malformed input."""

from tests.mutants.killers import CHECKOUT, MODEL, SECOND_RUN, STARTING, at
from tests.mutants.mutant import Mutant

_FILE = "client/checkouts.py"
_WIRE = "adapters/temporal.py"
_MODEL = "domain/model.py"

MUTANTS = (
    Mutant(
        "start-repeats-a-finished-order",
        "a second click would run a finished order again",
        _FILE,
        "id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,",
        "id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,",
        at(STARTING, "test_a_second_start_joins_the_order_running_or_finished"),
    ),
    Mutant(
        "joining-does-not-compare-the-content",
        "a customer would be shown somebody else's order as their own (P5)",
        _FILE,
        "            if not await self.has_saga_of(order):\n",
        "            if not await self._fingerprint(order.order_id):\n",
        at(STARTING, "test_a_start_with_other_content_is_refused_running_or_finished"),
    ),
    Mutant(
        "saga-with-a-timeout",
        "Temporal would end a saga in the middle, and compensate nothing",
        _FILE,
        "                request_eager_start=True,\n                task_timeout=policies.WORKFLOW_TASK,\n"
        "                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,\n",
        "                request_eager_start=True,\n                execution_timeout=timedelta(minutes=15),\n"
        "                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,\n",
        at(STARTING, "test_no_saga_has_a_timeout_of_temporals"),
    ),
    Mutant(
        "swept-saga-with-a-timeout",
        "Temporal would end a repair in the middle",
        "activities/sagas.py",
        "                task_timeout=WORKFLOW_TASK,\n",
        "                run_timeout=WORKFLOW_TASK * 3,\n                task_timeout=WORKFLOW_TASK,\n",
        at(STARTING, "test_no_saga_has_a_timeout_of_temporals"),
    ),
    Mutant(
        "outcome-stops-at-a-terminated-run",
        "whoever waits would be told that an order is lost which is being repaired",
        _FILE,
        "            if run.is_open:\n                continue",
        "            if run.is_paused:\n                continue",
        at(SECOND_RUN, "test_whoever_waits_for_a_run_that_was_replaced_waits_for_the_newer_one"),
    ),
    Mutant(
        "malformed-input-is-retried",
        "a request that does not decode would fail its workflow task for ever",
        _WIRE,
        '            raise InvalidInput(f"the input is not a',
        '            raise RuntimeError(f"the input is not a',
        at(CHECKOUT, "test_a_malformed_request_fails_at_once_as_invalid_input[a string]"),
    ),
    Mutant(
        "wrong-number-of-values-is-retried",
        "a start without input would fail its workflow task for ever",
        _WIRE,
        '            raise InvalidInput(f"{input.type.__name__} takes',
        '            raise RuntimeError(f"{input.type.__name__} takes',
        at(CHECKOUT, "test_a_malformed_request_fails_at_once_as_invalid_input[two values]"),
    ),
    Mutant(
        "fractions-are-rounded",
        "one and a half mugs would be one",
        _WIRE,
        "        if hint is int and type(value) is not int:\n",
        "        if hint is int and not isinstance(value, (int, float)):\n",
        at(CHECKOUT, "test_a_malformed_request_fails_at_once_as_invalid_input[quantity is a fraction]"),
    ),
    Mutant(
        "fingerprint-without-the-customer",
        "two customers with one id and equal carts would share an order",
        _MODEL,
        "        content = [self.customer, [[line.sku, line.quantity] for line in self.lines]]",
        "        content = [[line.sku, line.quantity] for line in self.lines]",
        at(MODEL, "test_other_content_has_another_fingerprint"),
    ),
    Mutant(
        "fingerprint-without-the-quantities",
        "two mugs and twenty would be the same order",
        _MODEL,
        "[[line.sku, line.quantity] for line in self.lines]]",
        "[line.sku for line in self.lines]]",
        at(MODEL, "test_other_content_has_another_fingerprint"),
    ),
    Mutant(
        "fingerprint-of-the-id",
        "an order's id would be part of what it asks for; a release would strand all that run",
        _MODEL,
        "        content = [self.customer, [",
        "        content = [self.order_id, self.customer, [",
        at(MODEL, "test_the_fingerprint_is_of_the_content_and_not_of_the_id"),
    ),
    Mutant(
        "lines-of-one-sku-are-not-merged",
        "the same SKU twice would count once",
        _MODEL,
        "merged[line.sku] = merged.get(line.sku, 0) + line.quantity",
        "merged[line.sku] = line.quantity",
        at(MODEL, "test_lines_of_one_sku_are_merged_and_all_are_sorted"),
    ),
    Mutant(
        "input-of-any-length-is-decoded",
        "a huge request would hold the worker up, and fail its workflow task for ever",
        _WIRE,
        "            if limit is not None and len(payload.data) > limit:\n",
        "            if limit is not None and limit < 0:\n",
        at(CHECKOUT, "test_a_request_that_is_far_too_long_is_refused_before_it_is_decoded"),
    ),
    Mutant(
        "start-by-other-means-is-a-strangers",
        "an order that the UI or the temporal command has started could not be joined",
        _FILE,
        "            return str(order.fingerprint)\n",
        '            return ""\n',
        at(STARTING, "test_a_start_joins_an_order_that_was_started_by_other_means"),
    ),
    Mutant(
        "start-that-is-no-order-breaks-the-next",
        "whoever comes to an id that holds nonsense would get a stack trace",
        _FILE,
        "            except (ApplicationError, RuntimeError, TypeError, ValueError):\n                break\n",
        "            except KeyError:\n                break\n",
        at(STARTING, "test_a_start_at_an_id_that_holds_no_order_is_refused"),
    ),
)
