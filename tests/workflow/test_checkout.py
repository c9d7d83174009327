"""Every ending of a checkout, on the real server and Postgres, and what malformed requests come to."""

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.orders import OrderState
from domain import policies
from domain.model import CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.attempts import AroundAttempts, Run
from tests.conftest import Shop
from tests.workflow.gates import Gates, lost_report
from tests.workflow.sagas import (
    DOES,
    causes_of,
    events_of,
    failure_of,
    goods_and_money,
    hasty,
    how_it_ended,
    reason_of,
    status_in,
    until_status,
    violations,
    was_kept_in_memory,
)

WHOLE_ORDER = "SELECT o.*, l.sku, l.quantity FROM orders o JOIN order_lines l USING (order_id) WHERE order_id = $1"
WHOLE_FENCE = "SELECT * FROM step_fence WHERE saga_id = $1 ORDER BY step"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step give up after three attempts."""
    for name in ("RESERVE", "PAY", "SHIP"):
        monkeypatch.setattr(policies, name, hasty(getattr(policies, name), attempts=3))
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))


@pytest.fixture
def persistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step be tried again within milliseconds, and have all its time."""
    for name in ("RESERVE", "PAY", "SHIP"):
        monkeypatch.setattr(policies, name, hasty(getattr(policies, name)))


async def start_raw(shop: Shop, *arguments: Any, workflow: str = "Checkout") -> WorkflowHandle[Any, Any]:
    """Start a workflow as somebody with the CLI or the UI might, with any input at all, under the id that it names."""
    order_id = arguments[0].get("order_id") if arguments and isinstance(arguments[0], dict) else None
    if not isinstance(order_id, str) or len(order_id) > 200 or "\x00" in order_id:
        order_id = f"raw-{uuid.uuid4().hex[:8]}"
    return await shop.client.start_workflow(
        workflow,
        args=list(arguments),
        id=checkout_workflow_id(order_id),
        task_queue=shop.task_queue,
    )


# Completed ----------------------------------------------------------------------------------------------


async def test_an_order_of_several_lines_completes(shop: Shop) -> None:
    order = shop.order("alice", ("tea-mug", 2), ("poster", 1), ("lamp", 3))

    async with shop.working():
        status = await (await shop.start(order)).result()

    assert status.status == "completed"
    assert status.total_minor == 2 * 1200 + 1700 + 3 * 8900
    assert [(step.step, step.state) for step in status.steps] == [
        ("reserve", "done"),
        ("pay", "done"),
        ("ship", "done"),
    ]
    assert await shop.order_status(order) == "completed"
    assert await violations(shop) == []


async def test_a_completed_order_reports_its_parcels_number(shop: Shop) -> None:
    order = shop.order("carol")

    async with shop.working():
        status = await (await shop.start(order)).result()

    assert status.tracking_number == await shop.database.value(
        "SELECT tracking_number FROM shipments WHERE order_id = $1", order.order_id
    )


async def test_the_largest_order_completes(shop: Shop) -> None:
    order = shop.order("buyer-001", *((f"item-{n:03}", 1000) for n in range(1, 101)))

    async with shop.working():
        status = await (await shop.start(order)).result()

    assert status.status == "completed"
    assert await violations(shop) == []


async def test_many_orders_at_once_all_complete(shop: Shop) -> None:
    orders = [shop.order(f"buyer-{n:03}", ("tea-mug", 1), ("poster", 2)) for n in range(1, 21)]

    async with shop.working():
        handles = await asyncio.gather(*(shop.start(order) for order in orders))
        ends = await asyncio.gather(*(how_it_ended(handle) for handle in handles))

    assert set(ends) == {"completed"}
    assert await violations(shop) == []


async def test_the_last_unit_goes_to_exactly_one_of_many(shop: Shop) -> None:
    orders = [shop.order(f"buyer-{n:03}", ("last-one", 1)) for n in range(1, 11)]

    async with shop.working():
        handles = await asyncio.gather(*(shop.start(order) for order in orders))
        ends = await asyncio.gather(*(how_it_ended(handle) for handle in handles))

    assert sorted(ends) == ["OrderRejected"] * 9 + ["completed"]
    assert await violations(shop) == []


# Rejected -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One business refusal, and what must be said of it."""

    kind: str
    step: str
    undone: str
    customer: str = "alice"
    lines: tuple[tuple[str, int], ...] = (("tea-mug", 2), ("poster", 1))
    prepare: str = ""


REFUSALS = [
    Case("UnknownSku", "reserve", "reserve nothing to undo", lines=(("tea-mug", 1), ("no-such", 1))),
    Case("UnknownCustomer", "reserve", "reserve nothing to undo", customer="nobody"),
    Case("UnknownCustomer", "reserve", "reserve nothing to undo", customer="shop"),
    Case("OutOfStock", "reserve", "reserve nothing to undo", lines=(("tea-mug", 1), ("last-one", 2))),
    Case(
        "CurrencyMismatch",
        "reserve",
        "reserve nothing to undo",
        prepare="UPDATE products SET currency = 'USD' WHERE sku = 'poster'",
    ),
    Case("InsufficientFunds", "pay", "pay nothing to undo; reserve undone", customer="bob"),
    Case(
        "UndeliverableAddress",
        "ship",
        "ship nothing to undo; pay undone; reserve undone",
        customer="nemo",
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.kind}-{case.customer}")
async def test_a_refused_order_is_rejected_with_everything_undone_and_explained(shop: Shop, case: Case) -> None:
    if case.prepare:
        await shop.database.run(case.prepare)
    before = await goods_and_money(shop.database)
    order = shop.order(case.customer, *case.lines)

    async with shop.working():
        failure = await failure_of(await shop.start(order))

    status = status_in(failure)
    assert failure.type == "OrderRejected"
    assert f"order {order.order_id} rejected at {case.step}: {case.kind}: " in failure.message
    assert failure.message.endswith(f"Undone: {case.undone}")
    assert causes_of(failure)[-1] == case.kind
    assert (status.order_id, status.status) == (order.order_id, "rejected")
    assert (status.reason or "").startswith(f"{case.kind}: ")
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.kind}-{case.customer}")
async def test_a_refused_order_leaves_its_row_with_reason_and_lines(shop: Shop, case: Case) -> None:
    if case.prepare:
        await shop.database.run(case.prepare)
    order = shop.order(case.customer, *case.lines)

    async with shop.working():
        await failure_of(await shop.start(order))

    rows = await shop.database.fetch(WHOLE_ORDER + " ORDER BY sku", order.order_id)
    assert {row["status"] for row in rows} == {"rejected"}
    assert {row["fingerprint"] for row in rows} == {order.fingerprint}
    assert all(row["reason"].startswith(f"{case.kind}: ") for row in rows)
    assert [(row["sku"], row["quantity"]) for row in rows] == sorted(case.lines)


async def test_a_refusal_is_not_retried(shop: Shop) -> None:
    gates, order = Gates(), shop.order("bob")

    async with shop.working(interceptors=(gates,)):
        await failure_of(await shop.start(order))

    assert gates.attempts_of(order, "charge_payment") == 1


async def test_a_refusal_of_a_hundred_long_lines_is_kept_and_ends_the_order(shop: Shop) -> None:
    order = shop.order("alice", *((f"unknown-{n:03}-{'x' * 50}", 1) for n in range(100)))

    async with shop.working():
        failure = await failure_of(await shop.start(order))

    assert failure.type == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert (await reason_of(shop, order) or "").startswith("UnknownSku: ")


# Outages ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("persistent")
@pytest.mark.parametrize("name", DOES)
async def test_a_customer_never_notices_an_outage_that_passes(shop: Shop, name: str) -> None:
    gates, order = Gates(), shop.order("carol")
    gates.fail(order, name, times=3)

    async with shop.working(interceptors=(gates,)):
        status = await (await shop.start(order)).result()

    assert status.status == "completed"
    assert gates.attempts_of(order, name) == 4
    assert await violations(shop) == []


@pytest.mark.usefixtures("persistent")
@pytest.mark.parametrize("name", DOES)
async def test_a_step_that_committed_and_then_failed_has_its_effect_once(shop: Shop, name: str) -> None:
    gates, order = Gates(), shop.order("carol")
    gates.fail(order, name, "after", times=2)

    async with shop.working(interceptors=(gates,)):
        status = await (await shop.start(order)).result()

    assert status.status == "completed"
    assert gates.attempts_of(order, name) == 3
    assert await violations(shop) == []


LOST = [
    pytest.param("alice", "reserve_inventory", "OrderRejected", id="reserve"),
    pytest.param("alice", "charge_payment", "OrderRejected", id="pay"),
    pytest.param("carol", "ship_order", "OrderRejected", id="ship a label"),
    pytest.param("alice", "ship_order", "completed", id="ship by courier"),
]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("customer", "name", "end"), LOST)
async def test_a_step_that_committed_and_never_could_say_so_is_undone_unless_irrevocable(
    shop: Shop, customer: str, name: str, end: str
) -> None:
    before = await goods_and_money(shop.database)
    gates, order = Gates(), shop.order(customer)
    gates.fail(order, name, "after", error=lost_report)

    async with shop.working(interceptors=(gates,)):
        ended = await how_it_ended(await shop.start(order))

    assert ended == end
    assert (await goods_and_money(shop.database) == before) is (end != "completed")
    assert await violations(shop) == []


@pytest.mark.usefixtures("impatient")
async def test_a_parcel_found_only_by_its_undo_is_reported_of_in_the_result(shop: Shop) -> None:
    gates, order = Gates(), shop.order("alice")
    gates.fail(order, "ship_order", "after", error=lost_report)

    async with shop.working(interceptors=(gates,)):
        status = await (await shop.start(order)).result()

    assert status.tracking_number == await shop.database.value(
        "SELECT tracking_number FROM shipments WHERE order_id = $1", order.order_id
    )


@pytest.mark.usefixtures("impatient")
async def test_a_completed_order_has_no_reason_of_a_failure_that_did_not_happen(shop: Shop) -> None:
    gates, order = Gates(), shop.order("alice")
    gates.fail(order, "ship_order", "after", error=lost_report)

    async with shop.working(interceptors=(gates,)):
        status = await (await shop.start(order)).result()

    assert status.reason is None
    assert await reason_of(shop, order) is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", DOES)
async def test_an_outage_that_does_not_pass_rejects_the_order(shop: Shop, name: str) -> None:
    before = await goods_and_money(shop.database)
    gates, order = Gates(), shop.order("alice")
    gates.fail(order, name)

    async with shop.working(interceptors=(gates,)):
        failure = await failure_of(await shop.start(order))

    assert failure.type == "OrderRejected"
    assert "DatabaseUnavailable" in failure.message
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize(
    ("name", "policy"), [("reserve_inventory", "RESERVE"), ("charge_payment", "PAY"), ("ship_order", "SHIP")]
)
async def test_an_attempt_that_comes_after_its_undo_has_no_effect(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str, policy: str
) -> None:
    given_up = hasty(getattr(policies, policy), attempt_ms=400, attempts=1)
    monkeypatch.setattr(policies, policy, given_up)
    before = await goods_and_money(shop.database)
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, name, "before")

    async with shop.working(interceptors=(gates,)):
        failure = await failure_of(await shop.start(order))
        gate.open()
        await gate.passed()

    assert failure.type == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


# Workers and starts -------------------------------------------------------------------------------------


async def test_another_worker_carries_on_when_the_first_stops_in_the_middle(shop: Shop) -> None:
    gates, orders = Gates(), [shop.order("carol") for _ in DOES]
    held = [gates.hold(order, name, "after") for order, name in zip(orders, DOES, strict=True)]

    async with shop.working(interceptors=(gates,)) as first:
        handles = [await shop.start(order) for order in orders]
        await asyncio.gather(*(gate.reached() for gate in held))
        stopping = asyncio.create_task(first.shutdown())
        await asyncio.sleep(0)
        for gate in held:
            gate.open()
        await stopping
    async with shop.working():
        ends = await asyncio.gather(*(how_it_ended(handle) for handle in handles))

    assert ends == ["completed"] * 3
    assert await violations(shop) == []


async def test_an_order_that_is_started_twice_has_one_run(shop: Shop) -> None:
    order = shop.order("alice")

    async with shop.working():
        handle = await shop.start(order)
        with pytest.raises(WorkflowAlreadyStartedError):
            await shop.start(order)
        await handle.result()
        with pytest.raises(WorkflowAlreadyStartedError):
            await shop.start(order)

    assert await shop.database.value("SELECT count(*) FROM order_events") == 3


async def test_a_second_run_of_a_finished_order_changes_nothing(shop: Shop) -> None:
    order = shop.order("alice")
    async with shop.working():
        await (await shop.start(order)).result()
        before = await goods_and_money(shop.database)
        ended = await how_it_ended(await shop.run_again(order))

    assert ended == "completed"
    assert await shop.order_status(order) == "completed"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


# Malformed requests -------------------------------------------------------------------------------------

LINE = {"sku": "tea-mug", "quantity": 1}
GOOD = {"order_id": "o-1", "customer": "alice", "lines": [LINE]}
MALFORMED = {
    "nothing": (),
    "null": (None,),
    "a string": ("o-1",),
    "a number": (7,),
    "a list": ([GOOD],),
    "an empty object": ({},),
    "another shape": ({"order": "o-1"},),
    "two values": (GOOD, GOOD),
    "three values": (GOOD, 1, "x"),
    "no customer": ({"order_id": "o-1", "lines": [LINE]},),
    "lines are no list": (GOOD | {"lines": "tea-mug"},),
    "lines are null": (GOOD | {"lines": None},),
    "lines are names": (GOOD | {"lines": ["tea-mug"]},),
    "no lines": (GOOD | {"lines": []},),
    "quantity is a string": (GOOD | {"lines": [LINE | {"quantity": "1"}]},),
    "quantity is a fraction": (GOOD | {"lines": [LINE | {"quantity": 1.5}]},),
    "quantity is true": (GOOD | {"lines": [LINE | {"quantity": True}]},),
    "quantity is huge": (GOOD | {"lines": [LINE | {"quantity": 10**30}]},),
    "quantity is infinite": (GOOD | {"lines": [LINE | {"quantity": float("inf")}]},),
    "quantity is negative": (GOOD | {"lines": [LINE | {"quantity": -1}]},),
    "no quantity": (GOOD | {"lines": [{"sku": "tea-mug"}]},),
    "id with NUL": (GOOD | {"order_id": "o\x00-1"},),
    "id is a number": (GOOD | {"order_id": 7},),
    "id of 300 characters": (GOOD | {"order_id": "x" * 300},),
    "sku with NUL": (GOOD | {"lines": [LINE | {"sku": "tea\x00mug"}]},),
    "too many lines": (GOOD | {"lines": [{"sku": f"s-{n}", "quantity": 1} for n in range(101)]},),
    "a megabyte of lines": (GOOD | {"lines": [{"sku": f"s-{n}", "quantity": 1} for n in range(30_000)]},),
    "repair is a word": (GOOD | {"repair": "yes"},),
    "doubt is a number": (GOOD | {"repair": True, "review_reason": 7},),
}


@pytest.mark.parametrize("arguments", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_request_fails_at_once_as_invalid_input(shop: Shop, arguments: tuple[Any, ...]) -> None:
    async with shop.working():
        handle = await start_raw(shop, *arguments)
        failure = await failure_of(handle)

    assert failure.type == "InvalidInput"
    assert "workflow id" not in failure.message  # that of another order would be refused whatever it asks for
    assert len(failure.message) < 1_000
    assert "EVENT_TYPE_WORKFLOW_TASK_FAILED" not in await events_of(handle)
    assert await shop.database.value("SELECT count(*) FROM orders") == 0
    assert await shop.database.value("SELECT count(*) FROM step_fence") == 0


async def test_a_request_that_is_far_too_long_is_refused_before_it_is_decoded(shop: Shop) -> None:
    async with shop.working():
        failure = await failure_of(await start_raw(shop, "x" * 1_000_000))

    assert failure.message.startswith("the input has 1000002 bytes; a CheckoutInput has ")


@pytest.mark.parametrize("workflow", ["Sweep", "Audit"])
@pytest.mark.parametrize("arguments", [(), ("now",), ([],), ({"a": 1}, 2)], ids=str)
async def test_a_malformed_request_for_maintenance_fails_at_once_too(
    shop: Shop, workflow: str, arguments: tuple[Any, ...]
) -> None:
    async with shop.working():
        handle = await start_raw(shop, *arguments, workflow=workflow)
        failure = await failure_of(handle)

    assert failure.type == "InvalidInput"
    assert "EVENT_TYPE_WORKFLOW_TASK_FAILED" not in await events_of(handle)


# Somebody else's order id -------------------------------------------------------------------------------


async def test_an_id_of_a_finished_order_with_other_content_is_refused(shop: Shop) -> None:
    first = shop.order("carol", ("tea-mug", 1))
    second = shop.order("alice", ("poster", 2), order_id=first.order_id)
    async with shop.working():
        await (await shop.start(first)).result()
        row = await shop.database.fetch(WHOLE_ORDER, first.order_id)
        fence = await shop.database.fetch(WHOLE_FENCE, first.order_id)
        before = await goods_and_money(shop.database)

        failure = await failure_of(await shop.run_again(second))

    assert failure.type == "OrderRejected"
    assert failure.message.endswith("Undone: reserve nothing to undo")
    assert causes_of(failure)[-1] == "OrderIdConflict"
    assert await shop.database.fetch(WHOLE_ORDER, first.order_id) == row
    assert await shop.database.fetch(WHOLE_FENCE, first.order_id) == fence
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_an_id_of_a_pending_order_with_other_content_is_refused_and_the_first_can_still_start(
    shop: Shop,
) -> None:
    first = shop.order("carol", ("lamp", 1))
    await shop.accept_by_hand(first)
    row = await shop.database.fetch(WHOLE_ORDER, first.order_id)
    intruder = shop.order("alice", ("poster", 2), order_id=first.order_id)

    async with shop.working():
        failure = await failure_of(await shop.start(intruder))
        untouched = await shop.database.fetch(WHOLE_ORDER, first.order_id)
        fence = await shop.database.fetch(WHOLE_FENCE, first.order_id)
        await shop.sweep()
        swept: WorkflowHandle[Any, CheckoutStatus] = shop.client.get_workflow_handle(
            checkout_workflow_id(first.order_id), result_type=CheckoutStatus
        )
        ended = await how_it_ended(swept)

    assert causes_of(failure)[-1] == "OrderIdConflict"
    assert untouched == row
    assert fence == []
    assert ended == "completed"
    assert await violations(shop) == []


async def test_an_intruder_that_is_cancelled_during_an_outage_leaves_the_pending_order_alone(
    shop: Shop,
) -> None:
    first = shop.order("carol", ("lamp", 1))
    await shop.accept_by_hand(first)
    row = await shop.database.fetch(WHOLE_ORDER, first.order_id)
    intruder = shop.order("alice", ("poster", 2), order_id=first.order_id)
    gates = Gates()
    fault = gates.fail(intruder, "reserve_inventory")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(intruder)
        await fault.struck()
        await handle.cancel()
        ended = await how_it_ended(handle)

    assert ended == "CANCELED"
    assert await shop.database.fetch(WHOLE_ORDER, first.order_id) == row
    assert await shop.database.fetch(WHOLE_FENCE, first.order_id) == []


async def test_an_intruder_that_is_cancelled_while_it_is_refused_leaves_the_pending_order_alone(
    shop: Shop,
) -> None:
    first = shop.order("carol", ("lamp", 1))
    await shop.accept_by_hand(first)
    row = await shop.database.fetch(WHOLE_ORDER, first.order_id)
    intruder = shop.order("alice", ("poster", 2), order_id=first.order_id)
    gates = Gates()
    gate = gates.hold(intruder, "reserve_inventory", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(intruder)
        await gate.reached()
        await handle.cancel()
        gate.open()
        failure = await failure_of(handle)

    assert causes_of(failure)[-1] == "OrderIdConflict"
    assert await shop.database.fetch(WHOLE_ORDER, first.order_id) == row
    assert await shop.database.fetch(WHOLE_FENCE, first.order_id) == []


async def test_an_intruder_that_is_cancelled_leaves_a_completed_order_alone(shop: Shop) -> None:
    first = shop.order("carol", ("tea-mug", 1))
    intruder = shop.order("alice", ("poster", 2), order_id=first.order_id)
    gates = Gates()
    async with shop.working(interceptors=(gates,)):
        await (await shop.start(first)).result()
        row = await shop.database.fetch(WHOLE_ORDER, first.order_id)
        fault = gates.fail(intruder, "reserve_inventory", "before")

        other = await shop.client.start_workflow(
            "Checkout", intruder, id=checkout_workflow_id(first.order_id), task_queue=shop.task_queue
        )
        await fault.struck()
        await other.cancel()
        ended = await how_it_ended(other)

    assert ended == "CANCELED"
    assert await shop.database.fetch(WHOLE_ORDER, first.order_id) == row
    assert await violations(shop) == []


# Watching -----------------------------------------------------------------------------------------------


async def test_the_status_query_reports_how_far_an_order_is(shop: Shop) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        status = await handle.query("status", result_type=CheckoutStatus)
        gate.open()
        await handle.result()

    assert status.status == "running"
    assert [(step.step, step.state) for step in status.steps] == [("reserve", "done"), ("pay", "running")]
    assert (status.total_minor, status.currency) == (1200, "EUR")


async def test_the_events_of_an_order_are_gap_free_and_in_order(shop: Shop) -> None:
    order = shop.order("nemo")

    async with shop.working():
        await failure_of(await shop.start(order))
    await until_status(shop, order, "rejected")

    events = await shop.database.fetch("SELECT seq, status FROM order_events ORDER BY event_id")
    assert [tuple(event) for event in events] == [
        (1, "reserved"),
        (2, "paid"),
        (3, "unwinding"),
        (4, "rejected"),
    ]


# Without a cache ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("customer", "end"), [("alice", "completed"), ("nemo", "OrderRejected")])
async def test_a_worker_that_keeps_no_workflow_in_memory_comes_to_the_same_end(
    shop: Shop, caplog: pytest.LogCaptureFixture, customer: str, end: str
) -> None:
    order = shop.order(customer)

    async with shop.working(max_cached_workflows=0):
        handle = await shop.start(order)
        ended = await how_it_ended(handle)

    assert ended == end
    assert not await was_kept_in_memory(handle)
    assert await violations(shop) == []
    assert [record.message for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
    assert "Failed running eviction" not in caplog.text


async def test_an_unwind_that_is_cancelled_survives_a_worker_without_memory(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    gates, order = Gates(), shop.order("nemo")
    gate = gates.hold(order, "refund_payment", "before")

    async with shop.working(interceptors=(gates,), max_cached_workflows=0):
        handle = await shop.start(order)
        await gate.reached()
        await handle.cancel()
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert not await was_kept_in_memory(handle)
    assert await violations(shop) == []
    assert [record.message for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
    assert "Failed running eviction" not in caplog.text


class _AnswersWith(AroundAttempts):
    def __init__(self, operation: str, answer: object) -> None:
        self._operation, self._answer = operation, answer

    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:  # noqa: ARG002 - the hook's
        return self._answer if info.activity_type == self._operation else await run()


@pytest.mark.parametrize("status", ["pending", "reserved", "paid", "rejected"])
async def test_an_order_whose_row_was_changed_by_hand_while_it_was_closed_ends_all_the_same(
    shop: Shop, status: str
) -> None:
    async with shop.working(interceptors=(_AnswersWith("close_order", OrderState(status)),)):
        handle = await shop.start(shop.order("bob", ("lamp", 1)))  # who cannot pay for it

        assert await how_it_ended(handle) == "OrderRejected"
