"""A batch through real workers: every order has an outcome, whatever becomes of the batch."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.batch_steps import Batches
from activities.sweep import Sweep
from client.batches import delegated_outcome
from client.checkouts import Checkouts
from domain import policies
from domain.bulk import DELEGATED, MAX_BATCH, ORDER_ID_CONFLICT, UNKNOWN, Batch, Outcome, StepInput, pack
from domain.model import CheckoutInput, Ending, OrderLine
from domain.sweep import UnfinishedInput
from sagafence import CompensationImpossible, DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.bulk_scenes import BulkHandle, forget_orders, gates_of, mixed, start_batch
from tests.workflow.gates import PATIENCE_SECONDS, Gates, Moment, lost_report, outage
from tests.workflow.replays import replayer
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    events_of,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reason_of,
    retry,
    until,
    until_status,
    until_tried,
    violations,
)
from workflows.bulk import BulkCheckoutWorkflow

DOES = ("reserve_orders", "charge_orders", "ship_orders")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=2_000))


ENDINGS = ["completed", "rejected", "rejected", "rejected", "completed"]


async def outcomes_of(handle: BulkHandle) -> list[Outcome]:
    report = await handle.result()
    await replayer(BulkCheckoutWorkflow).replay_workflow(await handle.fetch_history())
    return report.unpacked()


def statuses(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


async def activities_of(handle: BulkHandle) -> list[str]:
    """Name the ordinary activities of a history."""
    return [
        event.activity_task_scheduled_event_attributes.activity_type.name
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_scheduled_event_attributes")
    ]


async def cancel_the_attempt(handle: BulkHandle) -> None:
    """Cancel a batch while a step is tried, and wait until the server knows that no other attempt is to follow."""
    await handle.cancel(reason="the supplier is gone")

    async def is_cancelled() -> bool:
        return "EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED" in await events_of(handle)

    await until(is_cancelled)


async def how_it_ended_once_fixed(shop: Shop, order: CheckoutInput) -> str:
    """Mend the undo of pay, ask the order's own saga to try it again, and give how that ends."""
    await shop.database.run(MEND_UNDO["pay"])
    await retry(shop.newest_run(order))
    return await how_it_ended(shop.newest_run(order))


# The usual ----------------------------------------------------------------------------------------------


async def test_each_order_of_a_batch_has_an_outcome_of_its_own(shop: Shop) -> None:
    orders = mixed(shop)
    async with shop.working():
        handle = await start_batch(shop, orders)
        outcomes = await outcomes_of(handle)

    assert [outcome.order_id for outcome in outcomes] == [order.order_id for order in orders]
    assert statuses(outcomes) == ENDINGS
    assert [(outcome.reason or "").split(":")[0] for outcome in outcomes] == [
        "",
        "UnknownSku",
        "InsufficientFunds",
        "UndeliverableAddress",
        "",
    ]
    assert (outcomes[0].total_minor, outcomes[0].currency) == (2400, "EUR")
    assert (outcomes[0].tracking_number or "").startswith("PX")
    assert await activities_of(handle) == ["unwind_orders"]
    assert await violations(shop) == []
    carriers = await shop.database.fetch("SELECT DISTINCT carrier FROM orders WHERE total_minor IS NOT NULL")
    assert [row[0] for row in carriers] == [handle.id]


async def test_the_same_batch_is_joined_and_not_carried_twice(shop: Shop) -> None:
    orders = mixed(shop)
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working():
        first = await checkouts.carry(orders)
        before = await goods_and_money(shop.database)
        second = await checkouts.carry(orders)

    assert first == second
    assert statuses(first) == ENDINGS
    assert await goods_and_money(shop.database) == before


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda _: [], "0 orders"),
        (lambda packed: [packed] * 2, "twice"),
        (lambda packed: [packed] * (MAX_BATCH + 1), f"{MAX_BATCH + 1} orders"),
        (lambda packed: [{**packed, "lines": {"tea-mug": 1.5}}], "not a whole number"),
        (lambda _: ["an order"], "malformed"),
    ],
)
async def test_a_batch_that_is_none_is_refused_at_once(
    shop: Shop, make: Callable[[Any], list[Any]], problem: str
) -> None:
    batch = Batch(make(pack(shop.order())))
    async with shop.working():
        with pytest.raises(WorkflowFailureError) as refused:
            await shop.client.execute_workflow(
                BulkCheckoutWorkflow.run, batch, id=f"bulk-{shop.task_queue}", task_queue=shop.task_queue
            )

    cause = refused.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "InvalidInput"
    assert problem in cause.message


# Failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOES)
@pytest.mark.parametrize(("moment", "error"), [("before", outage), ("after", outage), ("after", lost_report)])
async def test_what_may_pass_is_tried_again(
    shop: Shop, name: str, moment: Moment, error: Callable[[], Exception]
) -> None:
    orders, gates = mixed(shop), Gates()
    gates.fail(gates_of(shop, orders), name, moment, times=2, error=error)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ENDINGS
    assert await activities_of(handle) == [name, "unwind_orders"]
    assert await violations(shop) == []
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'capture'") == 3


@pytest.mark.parametrize("name", DOES)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_where_a_step_keeps_failing_its_orders_go_on_in_sagas_of_their_own(
    shop: Shop, name: str, moment: Moment
) -> None:
    orders, gates = mixed(shop), Gates()
    gates.fail(gates_of(shop, orders), name, moment, error=lambda: DatabaseRefusedStatement("no right: injected"))
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        outcomes = await outcomes_of(await start_batch(shop, orders))
        ends = [
            (await checkouts.outcome(outcome.order_id)).status if outcome.status == DELEGATED else outcome.status
            for outcome in outcomes
        ]

    assert DELEGATED in statuses(outcomes)
    assert ends == ENDINGS
    assert await violations(shop) == []


@pytest.mark.parametrize(
    ("name", "output"),
    [("reserve_orders", [ORDER_ID_CONFLICT, "completed"]), ("charge_orders", ["completed", "completed"])],
)
async def test_the_end_of_a_strangers_saga_is_not_reported_as_that_of_an_order(
    shop: Shop, name: str, output: list[str]
) -> None:
    """The stranger has the id in Temporal; whose it is in the database is a matter of who came there first."""
    orders, gates = [shop.order("alice"), shop.order("alice")], Gates()
    stranger = replace(orders[0], lines=(OrderLine("poster", 3),))
    gates.fail(gates_of(shop, orders), name, "before", error=lambda: DatabaseRefusedStatement("no right: injected"))
    gate = gates.hold(stranger, "reserve_inventory", "before")
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        await checkouts.start(stranger)
        await gate.reached()
        outcomes = await outcomes_of(await start_batch(shop, orders))
        following = [asyncio.create_task(delegated_outcome(checkouts, order)) for order in orders]
        gate.open()
        ends = await asyncio.gather(*following)
        status = await shop.order_status(orders[0])

    assert statuses(outcomes) == [DELEGATED, DELEGATED]
    assert statuses(ends) == output
    assert status == "completed"
    assert await violations(shop) == []


async def test_an_order_whose_own_saga_finds_its_id_taken_is_reported_to_be_of_other_content(shop: Shop) -> None:
    order, gates = shop.order("alice"), Gates()
    stranger = replace(order, lines=(OrderLine("no-such", 1),))
    gates.fail(gates_of(shop, [order]), "reserve_orders", "before", error=lambda: DatabaseRefusedStatement("injected"))
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        await checkouts.start(stranger)
        await checkouts.outcome(order.order_id)
        handed_over = await outcomes_of(await start_batch(shop, [order]))
        end = await delegated_outcome(checkouts, order)

    assert statuses(handed_over) == [DELEGATED]
    assert end.status == ORDER_ID_CONFLICT
    assert await shop.order_status(order) == "rejected"
    assert await violations(shop) == []


@pytest.mark.parametrize("ending", [Ending.REJECTED, Ending.CANCELLED])
async def test_what_a_batch_had_made_of_an_order_is_not_reported_where_its_id_was_taken_meanwhile(
    shop: Shop, ending: Ending
) -> None:
    """The batch had refused it, or been cancelled, and could not undo it; a stranger's saga was done first."""
    order = shop.order("alice")
    stranger = replace(order, lines=(OrderLine("poster", 3),))
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working():
        await (await shop.start(stranger)).result()
        await shop.run_again(replace(order, repair=True, reason="OutOfStock: tea-mug: 1 wanted, 0 free", ending=ending))
        end = await delegated_outcome(checkouts, order)

    assert end.status == ORDER_ID_CONFLICT
    assert await shop.order_status(stranger) == "completed"
    assert await violations(shop) == []


@pytest.mark.parametrize(("is_same", "output"), [(False, ORDER_ID_CONFLICT), (True, "rejected")])
async def test_the_end_of_an_order_by_hand_is_reported_only_to_whom_wants_the_same(
    shop: Shop, is_same: bool, output: str
) -> None:
    """It was refused before reserve could write down whose the id is."""
    by_hand = shop.order("alice", ("no-such", 1))
    order = by_hand if is_same else replace(by_hand, lines=(OrderLine("tea-mug", 1),))
    await shop.accept_by_hand(by_hand)
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working():
        await checkouts.start(by_hand)
        first = await checkouts.outcome(by_hand.order_id)
        handed_over = await outcomes_of(await start_batch(shop, [order]))
        end = await delegated_outcome(checkouts, order)

    assert first.status == "rejected"
    assert statuses(handed_over) == [DELEGATED]
    assert end.status == output
    assert await reason_of(shop, by_hand) == first.reason
    assert (end.reason == first.reason) == is_same
    assert await violations(shop) == []


async def test_one_order_that_cannot_be_written_does_not_take_the_others_with_it(shop: Shop) -> None:
    orders = mixed(shop)
    await shop.database.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.order_id = '{orders[0].order_id}' THEN RAISE EXCEPTION 'injected'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON shipments FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working():
        outcomes = await outcomes_of(await start_batch(shop, orders))
        ends = [(await checkouts.outcome(orders[number].order_id)).status for number in (0, 3, 4)]

    assert statuses(outcomes) == [DELEGATED, "rejected", "rejected", DELEGATED, DELEGATED]
    assert ends == ["rejected", "rejected", "completed"]
    assert await violations(shop) == []


async def test_more_orders_than_are_handed_over_at_once_all_have_sagas_of_their_own(shop: Shop) -> None:
    orders, gates = [shop.order("alice", ("no-such", 1)) for _ in range(101)], Gates()
    gates.fail(gates_of(shop, orders), "reserve_orders", error=lambda: DatabaseRefusedStatement("no right: injected"))
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        outcomes = await asyncio.wait_for(outcomes_of(handle), PATIENCE_SECONDS)
        ended = await asyncio.gather(*(how_it_ended(shop.newest_run(order)) for order in orders))

    assert [outcome.order_id for outcome in outcomes] == [order.order_id for order in orders]
    assert {(outcome.status, outcome.reason) for outcome in outcomes} == {
        (DELEGATED, "DatabaseRefusedStatement: no right: injected")
    }
    assert await activities_of(handle) == ["start_sagas", "start_sagas"]
    assert set(ended) == {"OrderRejected"}


async def test_an_undo_that_keeps_failing_is_the_business_of_the_orders_own_saga(shop: Shop) -> None:
    order = shop.order("nemo")
    await shop.database.run(BREAK_UNDO["pay"])
    async with shop.working():
        outcomes = await outcomes_of(await start_batch(shop, [order, shop.order("alice")]))
        await until_status(shop, order, "stuck")
        incidents = await open_incidents(shop, order)
        ended = await how_it_ended_once_fixed(shop, order)

    assert statuses(outcomes) == [DELEGATED, "completed"]
    assert incidents == [["pay"]]
    assert ended == "OrderRejected"
    assert await violations(shop) == []


async def test_what_the_database_has_forgotten_is_parked_and_not_guessed(shop: Shop) -> None:
    order, gates = shop.order(), Gates()
    pay = gates.hold(gates_of(shop, [order]), "charge_orders", "before")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, [order])
        await pay.reached()
        await forget_orders(shop)
        pay.open()
        outcomes = await outcomes_of(handle)
        await until_status(shop, order, "stuck")

    assert statuses(outcomes) == [DELEGATED]
    assert "was it restored to an earlier instant" in (outcomes[0].reason or "")
    assert await shop.order_status(order) == "stuck"


# Cancelled and lost -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOES)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_cancel_undoes_what_has_not_been_completed(
    shop: Shop, name: str, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(milliseconds=300))
    orders, gates = mixed(shop), Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    gate = gates.hold(key, name, moment)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, name, times=2)  # where the workflow ran, and as an activity
        await handle.cancel(reason="the supplier is gone")
        gate.open()
        outcomes = await outcomes_of(handle)

    if name == "ship_orders":  # its attempt went on to its end
        assert statuses(outcomes) == ENDINGS
    else:
        assert set(statuses(outcomes)) <= {"cancelled", "rejected"}
        assert statuses(outcomes)[0] == "cancelled"
        assert outcomes[0].reason == "cancelled: the supplier is gone"
        assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_between_two_attempts_undoes_the_batch(shop: Shop, name: str) -> None:
    orders, gates = mixed(shop), Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    fault = gates.fail(key, name)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, name, times=2)
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)
        fault.mend()

    assert statuses(outcomes)[0] == "cancelled"
    assert set(statuses(outcomes)) <= {"cancelled", "rejected"}
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_during_an_attempt_that_then_fails_undoes_the_batch(
    shop: Shop, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(milliseconds=300))
    orders, gates = mixed(shop), Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    gate = gates.hold(key, name, "before")
    fault = gates.fail(key, name)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, name, times=2)
        await cancel_the_attempt(handle)
        gate.open()
        outcomes = await outcomes_of(handle)
        fault.mend()

    assert statuses(outcomes)[0] == "cancelled"
    assert set(statuses(outcomes)) <= {"cancelled", "rejected"}
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_cancel_during_an_undo_that_then_fails_changes_nothing(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gate = gates.hold(key, "unwind_orders", "before")
    gates.fail(key, "unwind_orders", times=1)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await gate.reached()
        await handle.cancel(reason="too late")
        gate.open()
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ENDINGS
    assert await violations(shop) == []


async def test_a_cancel_while_the_refused_are_undone_changes_nothing(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    fault = gates.fail(key, "unwind_orders")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, "unwind_orders", times=2)
        await handle.cancel(reason="too late")
        await until_tried(gates, key, "unwind_orders", times=3)
        fault.mend()
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ENDINGS
    assert await violations(shop) == []


async def test_an_undo_that_keeps_failing_after_a_cancel_is_the_business_of_a_repair(shop: Shop) -> None:
    order, gates = shop.order("alice"), Gates()
    key = gates_of(shop, [order])
    gates.fail(key, "ship_orders")
    await shop.database.run(BREAK_UNDO["pay"])
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, [order])
        await until_tried(gates, key, "ship_orders", times=2)
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)
        await until_status(shop, order, "stuck")
        ended = await how_it_ended_once_fixed(shop, order)

    assert statuses(outcomes) == [DELEGATED]
    assert ended == "OrderCancelled"
    assert await reason_of(shop, order) == "cancelled: the supplier is gone"
    assert await violations(shop) == []


async def test_what_a_step_refused_does_not_go_forward_after_a_cancel_because_its_undo_failed(shop: Shop) -> None:
    order, gates = shop.order("nemo"), Gates()
    unwind = gates.hold(gates_of(shop, [order]), "unwind_orders", "before")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, [order])
        await unwind.reached()
        await handle.cancel(reason="the supplier is gone")
        await shop.database.run(BREAK_UNDO["pay"])
        await shop.database.run("UPDATE delivery_zones SET is_served = true WHERE zone = 'atlantis'")
        unwind.open()
        outcomes = await outcomes_of(handle)
        await until_status(shop, order, "stuck")
        ended = await how_it_ended_once_fixed(shop, order)

    assert statuses(outcomes) == [DELEGATED]
    assert ended == "OrderRejected"
    assert (await reason_of(shop, order) or "").startswith("UndeliverableAddress: ")
    assert await violations(shop) == []


async def test_an_undo_that_fails_after_a_cancel_leaves_each_order_its_own_reason_and_ending(shop: Shop) -> None:
    refused, called_off, gates = shop.order("bob"), shop.order("alice"), Gates()
    key = gates_of(shop, [refused, called_off])
    gates.fail(key, "ship_orders")
    gates.fail(key, "unwind_orders", error=lambda: CompensationImpossible("injected"))
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, [refused, called_off])
        await until_tried(gates, key, "ship_orders", times=2)
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)
        ended = [await how_it_ended(shop.newest_run(order)) for order in (refused, called_off)]

    assert statuses(outcomes) == [DELEGATED, DELEGATED]
    assert ended == ["OrderRejected", "OrderCancelled"]
    assert (await reason_of(shop, refused) or "").startswith("InsufficientFunds: ")
    assert await reason_of(shop, called_off) == "cancelled: the supplier is gone"
    assert await violations(shop) == []


async def test_a_batch_that_is_cancelled_before_its_first_step_leaves_every_order_cancelled(shop: Shop) -> None:
    orders = mixed(shop)
    handle = await start_batch(shop, orders)
    await handle.cancel(reason="too early")
    async with shop.working():
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ["cancelled"] * 5
    assert await violations(shop) == []


async def test_a_batch_that_is_cancelled_before_it_knows_of_its_earlier_run_undoes_what_that_has_done(
    shop: Shop,
) -> None:
    orders = mixed(shop)
    before, given = await goods_and_money(shop.database), StepInput("bulk-lost", [pack(order) for order in orders])
    await Batches(shop.engine).reserve_orders(given)
    await Batches(shop.engine).charge_orders(replace(given, orders=[given.orders[n] for n in (0, 2, 3, 4)]))

    handle = await start_batch(shop, orders)
    await handle.cancel(reason="the supplier is gone")
    async with shop.working():
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ["cancelled"] * 5
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_the_sweep_leaves_orders_alone_while_their_batch_is_under_way_and_repairs_them_once_it_is_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH))
    orders, gates = [shop.order("alice"), shop.order("erin")], Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    fault = gates.fail(key, "charge_orders")
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, "charge_orders", times=2)
        under_way = await shop.sweep()
        await handle.terminate(reason="lost")
        lost = await shop.sweep()
        ended = [await how_it_ended(shop.newest_run(order)) for order in orders]
        fault.mend()
        output = await checkouts.carry(orders)

    assert under_way.repaired == []
    assert sorted(lost.repaired) == sorted(order.order_id for order in orders)
    assert ended == ["OrderCancelled"] * 2
    assert statuses(output) == ["cancelled"] * 2
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_the_sweep_repairs_orders_whose_carrier_nobody_knows_any_more(shop: Shop) -> None:
    order = shop.order()
    await Batches(shop.engine).reserve_orders(StepInput("bulk-long-forgotten", [pack(order)]))
    async with shop.working():
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))

    assert report.repaired == [order.order_id]
    assert ended == "OrderCancelled"


async def test_a_sweep_that_gets_no_answer_about_the_carrier_repairs_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = await Client.connect("127.0.0.1:9", lazy=True)
    for client, carrier in (nowhere, "bulk-somewhere"), (shop.client, ""):  # no id that it could be asked by
        await Batches(shop.engine).reserve_orders(StepInput(carrier, [pack(shop.order())]))
        monkeypatch.setattr("activities.sweep.activity.client", lambda client=client: client)

        with pytest.raises((RPCError, RuntimeError)):
            await Sweep(shop.engine).find_unfinished(UnfinishedInput(10, 0.0))


async def test_a_batch_that_is_ended_from_outside_leaves_its_orders_outcomes_unknown(shop: Shop) -> None:
    orders = [shop.order()]
    handle = shop.client.get_workflow_handle(gates_of(shop, orders).order_id)
    carrying = asyncio.create_task(Checkouts(shop.client, shop.task_queue, "http://ui").carry(orders))

    async def is_begun() -> bool:
        with contextlib.suppress(RPCError):
            await handle.terminate(reason="pulled the plug")
            return True
        return False

    await until(is_begun)
    outcomes = await carrying

    assert statuses(outcomes) == [UNKNOWN]
    assert "was ended" in (outcomes[0].reason or "")
