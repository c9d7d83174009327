"""A batch through real workers: every order has an outcome, whatever becomes of the batch."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from activities.inventory import Inventory
from activities.sweep import Sweep
from client.batches import delegated_outcome
from client.checkouts import Checkouts
from domain import policies
from domain.bulk import DELEGATED, MAX_BATCH, ORDER_ID_CONFLICT, OWNED, UNKNOWN, Batch, CancelOrder, Outcome, pack
from domain.model import Ending, OrderLine
from domain.sweep import UnfinishedInput
from sagafence import CompensationImpossible, DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.bulk_scenes import BulkHandle, between_steps, gates_of, mixed, start_batch
from tests.workflow.gates import PATIENCE_SECONDS, Gates, Moment, lost_report, outage
from tests.workflow.replays import replayer
from tests.workflow.sagas import (
    events_of,
    goods_and_money,
    hasty,
    how_it_ended,
    reason_of,
    until,
    until_it_has_heard_of_its_cancel,
    until_tried,
    violations,
)
from workflows.bulk import BulkCheckoutWorkflow

CHECK_OUT = "check_out_orders"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=2_000))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no batch give up while the test looks, or holds it at a gate."""
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=60_000))


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
    assert await activities_of(handle) == []
    assert await violations(shop) == []
    rows = await shop.database.fetch("SELECT DISTINCT batch_workflow_id, status, shipped_by IS NOT NULL FROM orders")
    assert {tuple(row) for row in rows} == {(handle.id, "completed", True), (handle.id, "rejected", False)}


async def test_the_same_batch_is_joined_and_not_carried_twice(shop: Shop) -> None:
    orders = mixed(shop)
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working():
        first = await checkouts.process(orders)
        before = await goods_and_money(shop.database)
        second = await checkouts.process(orders)

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


@pytest.mark.parametrize(("moment", "error"), [("before", outage), ("after", outage), ("after", lost_report)])
async def test_what_may_pass_is_tried_again(shop: Shop, moment: Moment, error: Callable[[], Exception]) -> None:
    orders, gates = mixed(shop), Gates()
    gates.fail(gates_of(shop, orders), CHECK_OUT, moment, times=2, error=error)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ENDINGS
    assert await activities_of(handle) == [CHECK_OUT]
    assert await violations(shop) == []
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'capture'") == 2


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_where_a_batch_keeps_failing_its_orders_go_on_in_sagas_of_their_own(shop: Shop, moment: Moment) -> None:
    orders, gates = mixed(shop), Gates()
    gates.fail(gates_of(shop, orders), CHECK_OUT, moment, error=lambda: DatabaseRefusedStatement("no right: injected"))
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
    ("moment", "output"), [("before", [ORDER_ID_CONFLICT, "completed"]), ("after", ["completed", "completed"])]
)
async def test_the_end_of_a_strangers_saga_is_not_reported_as_that_of_an_order(
    shop: Shop, moment: Moment, output: list[str]
) -> None:
    """The stranger has the id in Temporal; whose it is in the database is a matter of who came there first."""
    orders, gates = [shop.order("alice"), shop.order("alice")], Gates()
    stranger = replace(orders[0], lines=(OrderLine("poster", 3),))
    gates.fail(gates_of(shop, orders), CHECK_OUT, moment, error=lambda: DatabaseRefusedStatement("no right: injected"))
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
    gates.fail(gates_of(shop, [order]), CHECK_OUT, "before", error=lambda: DatabaseRefusedStatement("injected"))
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
        [end] = await outcomes_of(await start_batch(shop, [order]))
        assert end.status == (DELEGATED if is_same else ORDER_ID_CONFLICT)
        if is_same:
            end = await delegated_outcome(checkouts, order)

    assert first.status == "rejected"
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
        end = (await checkouts.outcome(orders[0].order_id)).status

    assert statuses(outcomes) == [DELEGATED, *ENDINGS[1:]]
    assert end == "rejected"
    assert await violations(shop) == []


async def test_more_orders_than_are_handed_over_at_once_all_have_sagas_of_their_own(shop: Shop) -> None:
    orders, gates = [shop.order("alice", ("no-such", 1)) for _ in range(101)], Gates()
    gates.fail(gates_of(shop, orders), CHECK_OUT, error=lambda: DatabaseRefusedStatement("no right: injected"))
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


async def test_each_order_that_is_left_to_a_saga_says_why_and_has_one(shop: Shop) -> None:
    orders = [shop.order("alice"), shop.order("erin"), shop.order("carol", ("poster", 1))]
    await Inventory(shop.engine).reserve_inventory(orders[0])
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(), shop.database.locked("SELECT FROM accounts WHERE account_id = 'erin' FOR UPDATE"):
        outcomes = await outcomes_of(await start_batch(shop, orders))
        first = await checkouts.outcome(orders[0].order_id)
        begun = await checkouts.has_saga_of(orders[1])

    assert [(outcome.status, outcome.reason) for outcome in outcomes[:2]] == [
        (DELEGATED, OWNED),
        (DELEGATED, "locked by another transaction: account erin"),
    ]
    assert (outcomes[2].status, first.status, begun) == ("completed", "completed", True)


async def test_a_batch_that_a_worker_of_before_began_step_by_step_leaves_its_orders_to_their_sagas(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, checkouts = mixed(shop), Checkouts(shop.client, shop.task_queue, "http://ui")
    with monkeypatch.context() as before:
        before.setattr(workflow, "patched", lambda _: False)
        async with shop.working():
            handle = await start_batch(shop, orders)
            outcomes = (await handle.result()).unpacked()
            ends = [(await checkouts.outcome(order.order_id)).status for order in orders]

    assert statuses(outcomes) == [DELEGATED] * 5
    assert ends == ENDINGS
    await replayer(BulkCheckoutWorkflow).replay_workflow(await handle.fetch_history())


async def test_a_repair_that_was_terminated_stays_one_where_a_batch_delegates_its_order(shop: Shop) -> None:
    order = shop.order("carol")
    await Inventory(shop.engine).reserve_inventory(order)
    await shop.start(replace(order, repair=True, reason="cancelled: found it cheaper", ending=Ending.CANCELLED))
    await shop.newest_run(order).terminate()

    async with shop.working():
        [outcome] = await outcomes_of(await start_batch(shop, [order]))
        ended = await how_it_ended(shop.newest_run(order))

    assert outcome.status == DELEGATED
    assert ended == "OrderCancelled"
    assert await reason_of(shop, order) == "cancelled: found it cheaper"
    assert await violations(shop) == []


# Cancelled and lost -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_cancel_during_the_checkout_undoes_what_was_not_done(
    shop: Shop, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(milliseconds=300))
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gate = gates.hold(key, CHECK_OUT, moment)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        await cancel_the_attempt(handle)
        gate.open()
        outcomes = await outcomes_of(handle)

    rows = {row[0]: row[1] for row in await shop.database.fetch("SELECT order_id, status FROM orders")}
    assert {outcome.order_id: outcome.status for outcome in outcomes} == rows
    assert set(statuses(outcomes)) <= {"completed", "rejected", "cancelled"}
    if moment == "after":
        assert statuses(outcomes) == ENDINGS
    assert await violations(shop) == []


@pytest.mark.usefixtures("patient")
async def test_a_cancel_between_two_attempts_leaves_every_order_cancelled_for_its_reason(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    gates.fail(key, CHECK_OUT)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)

    assert {(outcome.status, outcome.reason) for outcome in outcomes} == {
        ("cancelled", "cancelled: the supplier is gone")
    }
    assert [row[0] for row in await shop.database.fetch("SELECT DISTINCT batch_workflow_id FROM orders")] == [handle.id]
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.usefixtures("patient")
async def test_a_cancel_during_an_attempt_that_then_fails_leaves_every_order_cancelled(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(milliseconds=300))
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gate = gates.hold(key, CHECK_OUT, "before")
    gates.fail(key, CHECK_OUT)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        await cancel_the_attempt(handle)
        gate.open()
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ["cancelled"] * 5
    assert await violations(shop) == []


@pytest.mark.usefixtures("patient")
async def test_no_saga_buys_what_was_locked_when_its_batch_was_cancelled(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel comes while the orders are checked out; what that leaves to sagas, nobody has begun or is lost."""
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(milliseconds=300))
    orders, gates = [shop.order("alice"), shop.order("erin"), shop.order("carol", ("poster", 1))], Gates()
    key = gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders[2:])
    gate = gates.hold(key, CHECK_OUT, "before")
    async with shop.working(interceptors=(gates,)):
        async with shop.database.locked("SELECT FROM accounts WHERE account_id = 'erin' FOR UPDATE"):
            handle = await start_batch(shop, orders)
            await until_tried(gates, key, CHECK_OUT, times=2)
            await cancel_the_attempt(handle)
            gate.open()
            outcomes = await outcomes_of(handle)
        lost = await how_it_ended(shop.newest_run(orders[2]))

    assert statuses(outcomes) == ["completed", "cancelled", DELEGATED]
    assert lost == "OrderCancelled"
    assert {await reason_of(shop, order) for order in orders[1:]} == {"cancelled: the supplier is gone"}
    assert await violations(shop) == []


@pytest.mark.usefixtures("patient")
async def test_a_cancel_while_orders_are_given_to_sagas_ends_those_whose_turn_has_not_come(shop: Shop) -> None:
    orders, gates = [shop.order("alice", ("no-such", 1)) for _ in range(101)], Gates()
    key = gates_of(shop, orders)
    gates.fail(key, CHECK_OUT, error=lambda: DatabaseRefusedStatement("no right: injected"))
    gate = gates.hold(key, "start_sagas", "before")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await gate.reached()
        await handle.cancel(reason="the supplier is gone")
        await until_it_has_heard_of_its_cancel(handle)
        gate.open()
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == [DELEGATED] * 100 + ["cancelled"]
    assert await shop.order_status(orders[100]) == "cancelled"
    assert await activities_of(handle) == ["start_sagas", "unwind_orders"]


async def test_a_second_cancel_changes_nothing(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gate = gates.hold(key, "unwind_orders", "before")
    gates.fail(key, "unwind_orders", times=1)
    handle = await start_batch(shop, orders)
    await handle.cancel(reason="the supplier is gone")
    async with shop.working(interceptors=(gates,)):
        await gate.reached()
        await handle.cancel(reason="once more")
        gate.open()
        outcomes = await outcomes_of(handle)

    assert {(outcome.status, outcome.reason) for outcome in outcomes} == {
        ("cancelled", "cancelled: the supplier is gone")
    }
    assert await violations(shop) == []


async def test_an_order_that_is_cancelled_while_its_batch_keeps_failing_is_undone_by_its_own_saga(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gates.fail(key, CHECK_OUT)
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        await handle.execute_update(
            BulkCheckoutWorkflow.cancel_order, CancelOrder(orders[0].order_id, "found it cheaper", "anna@desk")
        )
        outcomes = await outcomes_of(handle)
        ends = [(await checkouts.outcome(order.order_id)).status for order in orders]

    assert set(statuses(outcomes)) == {DELEGATED}
    assert ends == ["cancelled", *ENDINGS[1:]]
    assert await violations(shop) == []


@pytest.mark.usefixtures("patient")
async def test_orders_whose_end_cannot_be_written_after_a_cancel_are_repaired_each_for_its_reason(shop: Shop) -> None:
    first, second = orders = [shop.order("bob"), shop.order("alice")]
    gates, key = Gates(), gates_of(shop, orders)
    gates.fail(key, CHECK_OUT)
    gates.fail(key, "unwind_orders", error=lambda: CompensationImpossible("injected"))
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        await handle.execute_update(
            BulkCheckoutWorkflow.cancel_order, CancelOrder(first.order_id, "found it cheaper", "anna@desk")
        )
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)
        ended = [await how_it_ended(shop.newest_run(order)) for order in orders]

    assert statuses(outcomes) == [DELEGATED, DELEGATED]
    assert ended == ["OrderCancelled", "OrderCancelled"]
    assert await reason_of(shop, first) == "cancelled: anna@desk: found it cheaper"
    assert await reason_of(shop, second) == "cancelled: the supplier is gone"
    assert await violations(shop) == []


async def test_a_batch_that_is_cancelled_before_its_first_step_leaves_every_order_cancelled(shop: Shop) -> None:
    orders = mixed(shop)
    handle = await start_batch(shop, orders)
    await handle.cancel(reason="too early")
    async with shop.working():
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ["cancelled"] * 5
    assert await violations(shop) == []


@pytest.mark.usefixtures("patient")
async def test_a_cancelled_batch_has_repaired_what_was_left_of_its_orders_and_leaves_what_is_under_way(
    shop: Shop,
) -> None:
    lost, owned = orders = [shop.order("alice"), shop.order("erin")]
    gates, key = Gates(), gates_of(shop, orders)
    await between_steps(shop, key.order_id, [lost], are_paid=True)
    gates.fail(key, CHECK_OUT)
    pay = gates.hold(owned, "charge_payment", "before")
    async with shop.working(interceptors=(gates,)):
        own = await shop.start(owned)
        await pay.reached()
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)
        pay.open()
        ended = [await how_it_ended(shop.newest_run(lost)), await how_it_ended(own)]

    assert statuses(outcomes) == [DELEGATED, DELEGATED]
    assert ended == ["OrderCancelled", "completed"]
    assert await reason_of(shop, lost) == "cancelled: the supplier is gone"
    assert await violations(shop) == []


async def test_the_sweep_leaves_orders_alone_while_their_batch_is_under_way_and_repairs_them_once_it_is_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH))
    orders, gates = [shop.order("alice"), shop.order("erin")], Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    fault = gates.fail(key, CHECK_OUT)
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    await between_steps(shop, key.order_id, orders)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders)
        await until_tried(gates, key, CHECK_OUT, times=2)
        under_way = await shop.sweep()
        await handle.terminate(reason="lost")
        lost = await shop.sweep()
        ended = [await how_it_ended(shop.newest_run(order)) for order in orders]
        fault.mend()
        output = await checkouts.process(orders)

    assert under_way.repaired == []
    assert sorted(lost.repaired) == sorted(order.order_id for order in orders)
    assert ended == ["OrderCancelled"] * 2
    assert statuses(output) == ["cancelled"] * 2
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_the_sweep_repairs_orders_whose_batch_nobody_knows_any_more(shop: Shop) -> None:
    order = shop.order()
    await between_steps(shop, "bulk-long-forgotten", [order])
    async with shop.working():
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))

    assert report.repaired == [order.order_id]
    assert ended == "OrderCancelled"


async def test_a_sweep_that_gets_no_answer_about_the_batch_repairs_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = await Client.connect("127.0.0.1:9", lazy=True)
    for client, workflow_id in (nowhere, "bulk-somewhere"), (shop.client, ""):  # no id that it could be asked by
        await between_steps(shop, workflow_id, [shop.order()])
        monkeypatch.setattr("activities.sweep.activity.client", lambda client=client: client)

        with pytest.raises((RPCError, RuntimeError)):
            await Sweep(shop.engine).find_unfinished(UnfinishedInput(10, 0.0))


async def test_a_batch_that_is_ended_from_outside_leaves_its_orders_outcomes_unknown(shop: Shop) -> None:
    orders = [shop.order()]
    handle = shop.client.get_workflow_handle(gates_of(shop, orders).order_id)
    processing = asyncio.create_task(Checkouts(shop.client, shop.task_queue, "http://ui").process(orders))

    async def is_begun() -> bool:
        with contextlib.suppress(RPCError):
            await handle.terminate(reason="pulled the plug")
            return True
        return False

    await until(is_begun)
    outcomes = await processing

    assert statuses(outcomes) == [UNKNOWN]
    assert "was ended" in (outcomes[0].reason or "")
