"""Undos that keep failing: the order is parked loudly, and a retry, a person or time brings it to its end."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from domain import policies
from domain.model import CheckoutInput, CheckoutStatus, Resolution, RetryRequest
from sagafence import fence
from tests.attempts import AroundAttempts, Run
from tests.conftest import Shop
from tests.workflow.gates import Gates, lost_report, outage
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    UNDO_OF,
    failure_of,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reason_of,
    resolve,
    retry,
    status_in,
    until,
    until_status,
    violations,
)
from tests.workflow.scenes import retried_during_a_round, stuck
from workflows.checkout import CheckoutWorkflow

Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]
REVOKE = "REVOKE UPDATE (balance_minor) ON accounts FROM checkout"
GRANT = "GRANT UPDATE (balance_minor) ON accounts TO checkout"
STEPS = ("ship", "pay", "reserve")


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of undos lasts less than a second."""
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


@pytest.fixture
def ship_gives_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a label can be left behind."""
    monkeypatch.setattr(policies, "SHIP", hasty(policies.SHIP, attempts=3))


async def stuck_in_pay(shop: Shop) -> tuple[CheckoutInput, Handle]:
    """Have an order whose refund fails because the role lost a right after the payment."""
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")
    handle = await shop.start(order)
    await until_status(shop, order, "stuck")
    return order, handle


def state_of(status: CheckoutStatus, step: str) -> str:
    return next(view.state for view in status.steps if view.step == step)


# Becoming stuck -----------------------------------------------------------------------------------------


async def test_an_undo_that_fails_a_few_times_is_tried_until_it_works(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("nemo")
    gates.fail(order, "refund_payment", times=4)

    async with shop.working(interceptors=(gates,)):
        ended = await how_it_ended(await shop.start(order))

    assert ended == "OrderRejected"
    assert gates.attempts_of(order, "refund_payment") == 5
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_an_undo_that_commits_and_cannot_say_so_has_its_effect_once(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("nemo")
    for name in UNDO_OF.values():
        gates.fail(order, name, "after", times=2)

    async with shop.working(interceptors=(gates,)):
        ended = await how_it_ended(await shop.start(order))

    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_refund_that_keeps_failing_parks_the_order_with_one_incident_that_names_it(
    shop: Shop,
) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        status = await handle.query(CheckoutWorkflow.status)
        described = await handle.describe()
        await handle.terminate()

    assert await open_incidents(shop, order) == [["pay"]]
    assert described.status is not None
    assert described.status.name == "RUNNING"
    assert described.typed_search_attributes[policies.ORDER_STATUS] == "stuck"
    assert described.typed_search_attributes[policies.FAILED_STEP] == "pay"
    assert (status.status, state_of(status, "pay")) == ("stuck", "stuck")
    assert await violations(shop) == []


async def test_an_outage_before_each_refusal_does_not_end_a_round_early(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutageAtEveryOtherAttempt(AroundAttempts):
        refunds = 0

        async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:  # noqa: ARG002
            if info.activity_type == "refund_payment":
                self.refunds += 1
                if info.attempt % 2:
                    raise outage()
            return await run()

    monkeypatch.setattr(fence, "UNDO_ATTEMPTS_WHEN_REFUSED", 3)
    outages = OutageAtEveryOtherAttempt()
    async with shop.working(interceptors=(outages,)):
        _, handle = await stuck_in_pay(shop)
        await handle.terminate()

    assert outages.refunds == 6, "three outages and three refusals"


async def test_the_other_undos_are_done_although_one_fails(shop: Shop) -> None:
    async with shop.working():
        _, handle = await stuck_in_pay(shop)
        await handle.terminate()

    assert await shop.database.value("SELECT state FROM reservations") == "released"
    assert await shop.database.value("SELECT reserved FROM inventory WHERE sku = 'tea-mug'") == 0


async def test_a_stuck_order_keeps_its_first_cause_and_reports_the_undos_own_beside_it(shop: Shop) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        status = await handle.query(CheckoutWorkflow.status)
        await handle.terminate()

    assert (await reason_of(shop, order) or "").startswith("UndeliverableAddress: ")
    assert (status.reason or "").startswith("UndeliverableAddress: ")
    assert "injected" in await shop.database.value("SELECT cause FROM incidents")
    assert "injected" in next(view.detail for view in status.steps if view.step == "pay")


async def test_a_right_that_is_revoked_while_money_is_captured_parks_the_order(shop: Shop) -> None:
    gates, order = Gates(), shop.order("nemo")
    gate = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await shop.database.run(REVOKE)
        gate.open()
        await until_status(shop, order, "stuck")
        incidents = await open_incidents(shop, order)
        await shop.database.run(GRANT)
        await retry(handle)
        ended = await how_it_ended(handle)

    assert incidents == [["pay"]]
    assert ended == "OrderRejected"
    assert await violations(shop) == []


# Retry --------------------------------------------------------------------------------------------------


async def test_a_retry_while_it_is_still_broken_answers_that_it_is_still_stuck(shop: Shop) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("retry_compensation", RetryRequest("anna@desk", "x" * 201))
        status = await retry(handle)
        await handle.terminate()

    assert "200 are allowed" in str(refused.value.cause), "what is said has to fit into the log"
    assert state_of(status, "pay") == "stuck"
    assert await shop.order_status(order) == "stuck"
    assert await open_incidents(shop, order) == [["pay"]]
    assert await shop.database.value("SELECT count(*) FROM incidents") == 1
    assert await shop.database.value("SELECT count(*) FROM order_events WHERE event = 'retry_requested'") == 1


async def test_a_retry_after_the_cause_was_fixed_brings_the_order_to_its_end(shop: Shop) -> None:
    before = await goods_and_money(shop.database)

    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        await shop.database.run(MEND_UNDO["pay"])
        status = await retry(handle)
        failure = await failure_of(handle)

    assert state_of(status, "pay") == "undone"
    assert status_in(failure).status == "rejected"
    assert await shop.order_status(order) == "rejected"
    assert await open_incidents(shop, order) == []
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_retry_is_logged(shop: Shop) -> None:
    async with shop.working():
        _, handle = await stuck_in_pay(shop)
        await shop.database.run(MEND_UNDO["pay"])
        await retry(handle)
        await how_it_ended(handle)

    events = await shop.database.fetch("SELECT event, changed_by FROM order_events ORDER BY seq")
    assert ("retry_requested", "operator") in [tuple(event) for event in events]


async def test_many_retries_at_once_are_harmless(shop: Shop) -> None:
    before = await goods_and_money(shop.database)

    async with shop.working():
        _, handle = await stuck_in_pay(shop)
        await shop.database.run(MEND_UNDO["pay"])
        answers = await asyncio.gather(*(retry(handle) for _ in range(5)), return_exceptions=True)
        ended = await how_it_ended(handle)

    assert any(isinstance(answer, CheckoutStatus) for answer in answers)
    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_stuck_order_tries_again_by_itself(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # The sandbox imports workflows.checkout anew for every run, and so reads these anew.
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=50))
    monkeypatch.setattr(policies, "STUCK_RETRY_LONGEST", timedelta(milliseconds=50))
    before = await goods_and_money(shop.database)

    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        await shop.database.run(MEND_UNDO["pay"])
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_another_worker_goes_on_with_a_stuck_order(shop: Shop) -> None:
    before = await goods_and_money(shop.database)
    async with shop.working():
        _, handle = await stuck_in_pay(shop)
    await shop.database.run(MEND_UNDO["pay"])

    async with shop.working():
        await retry(handle)
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_retry_while_a_round_is_running_is_taken_or_refused_in_words_that_make_sense(
    shop: Shop,
) -> None:
    gates = Gates()
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        await shop.database.run(MEND_UNDO["pay"])
        gate = gates.hold(order, "refund_payment", "before")
        first = asyncio.create_task(retry(handle))
        await gate.reached()
        asyncio.get_running_loop().call_soon(gate.open)
        [second] = await asyncio.gather(retry(handle), return_exceptions=True)
        await first
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    if isinstance(second, WorkflowUpdateFailedError):
        assert "stuck, not stuck" not in str(second.cause)


async def test_a_retry_during_a_round_that_has_failed_at_a_step_tries_that_step_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=60_000))  # one undo waits at a gate
    before, gates = await goods_and_money(shop.database), Gates()

    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck(shop, "pay", "reserve")
        retries = await retried_during_a_round(shop, gates, order, handle)
        answer = await retries[-1]
        ended = await how_it_ended(handle)

    assert state_of(answer, "pay") == "undone"
    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


# Resolve ------------------------------------------------------------------------------------------------


async def test_a_step_that_was_settled_by_hand_is_resolved_for_good(shop: Shop) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        status = await resolve(handle, "pay")
        failure = await failure_of(handle)

    assert state_of(status, "pay") == "resolved"
    assert "pay resolved" in failure.message
    assert await shop.order_status(order) == "rejected"
    assert await open_incidents(shop, order) == []
    assert await shop.database.value("SELECT phase FROM step_fence WHERE step = 'pay'") == "resolved"
    assert await violations(shop) == []


async def test_a_resolution_is_logged_with_its_step_and_reason(shop: Shop) -> None:
    async with shop.working():
        _, handle = await stuck_in_pay(shop)
        await resolve(handle, "pay", "wired back, slip 77")
        await how_it_ended(handle)

    events = await shop.database.fetch("SELECT event, reason, changed_by FROM order_events ORDER BY seq")
    assert ("step_resolved", "pay: wired back, slip 77", "operator") in [tuple(event) for event in events]


async def test_many_resolutions_at_once_are_harmless(shop: Shop) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        answers = await asyncio.gather(*(resolve(handle, "pay") for _ in range(4)), return_exceptions=True)
        ended = await how_it_ended(handle)

    assert any(isinstance(answer, CheckoutStatus) for answer in answers)
    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await violations(shop) == []


async def test_a_retry_and_a_resolution_at_once_are_harmless(shop: Shop) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        await shop.database.run(MEND_UNDO["pay"])
        await asyncio.gather(retry(handle), resolve(handle, "pay"), return_exceptions=True)
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


@pytest.mark.parametrize(
    ("resolution", "problem"),
    [
        (Resolution("reserve", "why not"), "step 'reserve' is not stuck; stuck: pay"),
        (Resolution("nonsense", "why not"), "step 'nonsense' is not stuck; stuck: pay"),
        (Resolution("pay", ""), "a reason is needed"),
        (Resolution("pay", "x" * 201), "200 are allowed"),
        (Resolution("pay", "a\x00b"), "unprintable"),
    ],
)
async def test_a_wrong_resolution_is_refused_and_the_order_stays_stuck(
    shop: Shop, resolution: Resolution, problem: str
) -> None:
    async with shop.working():
        order, handle = await stuck_in_pay(shop)
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await resolve(handle, resolution.step, resolution.reason)
        await handle.terminate()

    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == "InvalidInput"
    assert problem in refused.value.cause.message
    assert await shop.order_status(order) == "stuck"


@pytest.mark.parametrize("ask", [retry, lambda handle: resolve(handle, "pay")], ids=["retry", "resolve"])
async def test_there_is_nothing_to_retry_or_resolve_in_a_healthy_order(
    shop: Shop, ask: Callable[[Handle], Any]
) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await ask(handle)
        gate.open()
        ended = await how_it_ended(handle)

    assert "the order is running, not stuck" in str(refused.value.cause)
    assert ended == "completed"


async def test_an_order_whose_undos_are_done_is_being_closed_and_no_longer_stuck(shop: Shop) -> None:
    gates = Gates()
    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_in_pay(shop)
        closing = gates.hold(order, "close_order", "before")
        await shop.database.run(MEND_UNDO["pay"])
        await retry(handle)
        await closing.reached()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await retry(handle)
        closing.open()
        ended = await how_it_ended(handle)

    assert "the order is being closed" in str(refused.value.cause)
    assert ended == "OrderRejected"


# Each undo, and each pair -------------------------------------------------------------------------------


BROKEN = [(step,) for step in STEPS] + list(combinations(STEPS, 2)) + [STEPS]


async def stuck_with_a_label(shop: Shop, gates: Gates, broken: tuple[str, ...]) -> tuple[CheckoutInput, Handle]:
    """Have an order whose label exists, whose ship could never say so, and whose undos are broken."""
    for step in broken:
        await shop.database.run(BREAK_UNDO[step])
    order = shop.order("carol", ("tea-mug", 2), ("poster", 1))
    gates.fail(order, "ship_order", "after", error=lost_report)
    handle = await shop.start(order)
    await until_status(shop, order, "stuck")
    return order, handle


@pytest.mark.usefixtures("ship_gives_up_soon")
@pytest.mark.parametrize("broken", BROKEN, ids="+".join)
async def test_whichever_undos_fail_the_order_is_stuck_and_a_retry_fixes_it(
    shop: Shop, broken: tuple[str, ...]
) -> None:
    before, gates = await goods_and_money(shop.database), Gates()

    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_with_a_label(shop, gates, broken)
        [incident] = await open_incidents(shop, order)
        while_stuck = await violations(shop)
        for step in broken:
            await shop.database.run(MEND_UNDO[step])
        await retry(handle)
        ended = await how_it_ended(handle)

    # While the parcel stands, neither money nor stock is given back.
    assert incident == (["ship", "pay", "reserve"] if "ship" in broken else list(broken))
    assert while_stuck == []
    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.usefixtures("ship_gives_up_soon")
async def test_resolving_ship_lets_a_retry_undo_the_rest(shop: Shop) -> None:
    gates = Gates()

    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_with_a_label(shop, gates, ("ship",))
        await resolve(handle, "ship", "carrier was called")
        await retry(handle)
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await violations(shop) == []


@pytest.mark.usefixtures("ship_gives_up_soon")
async def test_a_parcel_that_is_collected_while_its_undo_is_stuck_completes_the_order(shop: Shop) -> None:
    gates = Gates()

    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_with_a_label(shop, gates, ("ship",))
        await shop.database.run(
            "UPDATE shipments SET state = 'handed_over', handed_over_at = now();" + MEND_UNDO["ship"]
        )
        await retry(handle)
        ended = await how_it_ended(handle)

    assert ended == "completed"
    assert await shop.order_status(order) == "completed"
    assert await reason_of(shop, order) is None
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


@pytest.mark.usefixtures("ship_gives_up_soon")
async def test_a_cancel_while_the_way_forward_is_written_changes_nothing(shop: Shop) -> None:
    gates = Gates()

    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_with_a_label(shop, gates, ("ship",))
        completing = gates.fail(order, "complete_order")
        await shop.database.run(
            "UPDATE shipments SET state = 'handed_over', handed_over_at = now();" + MEND_UNDO["ship"]
        )
        await retry(handle)
        await completing.struck()
        await handle.cancel(reason="too late")
        await handle.query(CheckoutWorkflow.status)
        completing.mend()
        ended = await how_it_ended(handle)

    assert ended == "completed"
    assert await shop.order_status(order) == "completed"
    assert await violations(shop) == []


async def test_a_cancel_while_an_update_is_still_answered_changes_nothing(shop: Shop) -> None:
    gates = Gates()
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")
    noting = gates.hold(order, "note_retry", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        retrying = asyncio.create_task(retry(handle))
        await noting.reached()
        await resolve(handle, "pay")

        async def is_closed() -> bool:
            return (await handle.query(CheckoutWorkflow.status)).status == "rejected"

        await until(is_closed)
        await handle.cancel(reason="too late")
        await handle.query(CheckoutWorkflow.status)
        noting.open()
        ended = await how_it_ended(handle)
        [answer] = await asyncio.gather(retrying, return_exceptions=True)

    assert ended == "OrderRejected"
    assert isinstance(answer, CheckoutStatus)
    assert answer.status == "rejected"
    assert await violations(shop) == []


async def test_a_cancelled_order_whose_undo_is_stuck_ends_cancelled(shop: Shop) -> None:
    await shop.database.run(BREAK_UNDO["pay"])
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "after")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
        gate.open()
        await until_status(shop, order, "stuck")
        await shop.database.run(MEND_UNDO["pay"])
        await retry(handle)
        ended = await how_it_ended(handle)

    assert ended == "OrderCancelled"
    assert await shop.order_status(order) == "cancelled"
    assert await violations(shop) == []


async def test_many_stuck_orders_are_all_fixed(shop: Shop) -> None:
    before = await goods_and_money(shop.database)
    await shop.database.run(BREAK_UNDO["pay"])
    orders = [shop.order("nemo") for _ in range(8)]

    async def all_stuck() -> bool:
        return bool(await shop.database.value("SELECT count(*) = 8 FROM orders WHERE status = 'stuck'"))

    async with shop.working():
        handles = await asyncio.gather(*(shop.start(order) for order in orders))
        await until(all_stuck)
        await shop.database.run(MEND_UNDO["pay"])
        await asyncio.gather(*(retry(handle) for handle in handles))
        ends = await asyncio.gather(*(how_it_ended(handle) for handle in handles))

    assert set(ends) == {"OrderRejected"}
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
