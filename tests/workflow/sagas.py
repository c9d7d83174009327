"""What the tests of whole sagas ask about them, in words."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, TaskQueueKind
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError, RPCStatusCode

from domain.model import CheckoutInput, CheckoutStatus, Resolution
from domain.policies import checkout_workflow_id
from sagafence import ActivityPolicy
from tests.conftest import Database, Shop
from tests.resets import reset
from tests.workflow.gates import PATIENCE_SECONDS, Gates
from workflows.checkout import CheckoutWorkflow

DOES = ("reserve_inventory", "charge_payment", "ship_order")
UNDOS = ("cancel_shipment", "refund_payment", "release_inventory")
UNDO_OF = {"reserve": "release_inventory", "pay": "refund_payment", "ship": "cancel_shipment"}

# What breaks the undo of each step, and only the undo, and what mends it again.
BREAK_UNDO = {
    "reserve": "CREATE OR REPLACE FUNCTION broken_reserve() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN IF NEW.state = 'released' THEN RAISE EXCEPTION 'injected'; END IF; RETURN NEW; END $$;"
    "CREATE TRIGGER broken BEFORE UPDATE ON reservations FOR EACH ROW EXECUTE FUNCTION broken_reserve()",
    "pay": "CREATE OR REPLACE FUNCTION broken_pay() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN IF NEW.kind = 'refund' THEN RAISE EXCEPTION 'injected'; END IF; RETURN NEW; END $$;"
    "CREATE TRIGGER broken BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION broken_pay()",
    "ship": "CREATE OR REPLACE FUNCTION broken_ship() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN IF NEW.state = 'cancelled' THEN RAISE EXCEPTION 'injected'; END IF; RETURN NEW; END $$;"
    "CREATE TRIGGER broken BEFORE UPDATE ON shipments FOR EACH ROW EXECUTE FUNCTION broken_ship()",
}
MEND_UNDO = {
    "reserve": "DROP TRIGGER broken ON reservations",
    "pay": "DROP TRIGGER broken ON transfers",
    "ship": "DROP TRIGGER broken ON shipments",
}
BREAK_STEPS = "REVOKE INSERT ON step_fence FROM checkout"
MEND_STEPS = "GRANT INSERT ON step_fence TO checkout"
"""A right that every step needs."""


async def failure_of(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """Wait for a saga that must fail, and give what it failed with."""
    with pytest.raises(WorkflowFailureError) as failed:
        await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    cause = failed.value.cause
    assert isinstance(cause, ApplicationError), repr(cause)
    return cause


async def how_it_ended(handle: WorkflowHandle[Any, Any]) -> str:
    """Wait for a saga's end and name it: `completed`, `CANCELED` or the type of its failure."""
    try:
        status = await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
    except WorkflowFailureError as failed:
        if isinstance(failed.cause, CancelledError):
            return "CANCELED"
        return str(getattr(failed.cause, "type", failed.cause))
    assert isinstance(status, CheckoutStatus)
    return status.status


def status_in(failure: ApplicationError) -> CheckoutStatus:
    """Read the status that a failed saga leaves as its detail."""
    [detail] = failure.details
    status = value_to_type(CheckoutStatus, detail)
    assert isinstance(status, CheckoutStatus)
    return status


def causes_of(failure: BaseException) -> list[str]:
    """Name the types along the chain of causes."""
    found: list[str] = []
    cause = failure.__cause__
    while cause is not None:
        found.append(str(getattr(cause, "type", None) or type(cause).__name__))
        cause = cause.__cause__
    return found


async def events_of(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """Name the events of a history."""
    return [EventType.Name(event.event_type) async for event in handle.fetch_history_events()]


async def until_it_has_heard_of_its_cancel(handle: WorkflowHandle[Any, Any]) -> None:
    """Wait until a workflow task has taken note of Temporal's own cancel."""

    async def has_heard() -> bool:
        events, cancelled = await events_of(handle), "EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED"
        return cancelled in events and "EVENT_TYPE_WORKFLOW_TASK_COMPLETED" in events[events.index(cancelled) :]

    await until(has_heard)


async def was_kept_in_memory(handle: WorkflowHandle[Any, Any]) -> bool:
    """Tell whether a worker kept the run: its further tasks were then put into a queue of that worker's own."""
    kinds = [
        event.workflow_task_scheduled_event_attributes.task_queue.kind
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED
    ]
    return TaskQueueKind.TASK_QUEUE_KIND_STICKY in kinds


async def goods_and_money(database: Database) -> list[tuple[Any, ...]]:
    """Everything that an order without a net effect leaves as it was."""
    rows = await database.fetch(
        "SELECT 'stock', sku, on_hand, reserved FROM inventory UNION ALL "
        "SELECT 'money', account_id, balance_minor, 0 FROM accounts WHERE kind = 'customer' ORDER BY 1, 2"
    )
    return [tuple(row) for row in rows]


async def reason_of(shop: Shop, order: CheckoutInput) -> str | None:
    reason: str | None = await shop.database.value("SELECT reason FROM orders WHERE order_id = $1", order.order_id)
    return reason


async def open_incidents(shop: Shop, order: CheckoutInput) -> list[list[str]]:
    rows = await shop.database.fetch(
        "SELECT steps FROM incidents WHERE order_id = $1 AND closed_at IS NULL", order.order_id
    )
    return [row[0] for row in rows]


async def violations(shop: Shop) -> list[Any]:
    """Ask the audit, with nothing counted as still moving."""
    return (await shop.audit()).violations


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that only polling can see, with a deadline."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


async def forget(shop: Shop, order: CheckoutInput, workflow_id: str = "") -> None:
    """Take an order's saga, or another workflow, out of Temporal, as its retention does."""
    name = workflow_id or checkout_workflow_id(order.order_id)
    await shop.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=WorkflowExecution(workflow_id=name))
    )

    async def is_forgotten() -> bool:
        try:
            await shop.client.get_workflow_handle(name).describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await until(is_forgotten)


async def until_tried(gates: Gates, order: CheckoutInput, name: str, *, times: int) -> None:
    """Wait until so many attempts of an order's activity have begun, or more: they may be faster than who looks."""

    async def is_tried() -> bool:
        return gates.attempts_of(order, name) >= times

    await until(is_tried)


async def until_status(shop: Shop, order: CheckoutInput, status: str) -> None:
    async def stands_so() -> bool:
        return await shop.order_status(order) == status

    await until(stands_so)


async def until_another_run(shop: Shop, order: CheckoutInput, first: WorkflowHandle[Any, Any]) -> None:
    """Wait until an order goes on in another run than its first."""

    async def goes_on() -> bool:
        return (await shop.newest_run(order).describe()).run_id != first.first_execution_run_id

    await until(goes_on)


async def until_parked_again(shop: Shop, order: CheckoutInput) -> None:
    """Wait until the newest run of an order says that it is stuck."""

    async def is_parked() -> bool:
        status = await shop.newest_run(order).query("status")
        return any(step["state"] == "stuck" for step in status["steps"])

    await until(is_parked)


async def until_it_waits(shop: Shop, order_id: str) -> CheckoutStatus:
    """Wait until an order's saga says what it waits for, and give its status."""
    workflow_id = checkout_workflow_id(order_id)
    handle: WorkflowHandle[Any, Any] = shop.client.get_workflow_handle(workflow_id)

    async def waits() -> bool:
        return (await handle.query(CheckoutWorkflow.status)).reason is not None

    await until(waits)
    return await handle.query(CheckoutWorkflow.status)


async def reset_to(shop: Shop, workflow_id: str, run_id: str | None, finish_event_id: int) -> None:
    """Reset a run to the workflow task whose completion is, or would have been, this event; a new run begins."""
    await reset(shop.client, workflow_id, run_id, finish_event_id)


def hasty(
    policy: ActivityPolicy, *, give_up_ms: int | None = None, attempt_ms: int | None = None, attempts: int = 0
) -> ActivityPolicy:
    """Make a policy that retries within milliseconds and, if asked to, gives up soon; it retries the same failures.

    One that gives up after so many `attempts` has made them all; by the clock a slow machine may make none.
    """
    return replace(
        policy,
        start_to_close=timedelta(milliseconds=attempt_ms) if attempt_ms else policy.start_to_close,
        schedule_to_close=timedelta(milliseconds=give_up_ms) if give_up_ms else policy.schedule_to_close,
        retry=replace(
            policy.retry,
            initial_interval=timedelta(milliseconds=20),
            maximum_interval=timedelta(milliseconds=100),
            maximum_attempts=attempts or policy.retry.maximum_attempts,
        ),
    )


async def retry(handle: WorkflowHandle[CheckoutWorkflow, CheckoutStatus]) -> CheckoutStatus:
    async with asyncio.timeout(PATIENCE_SECONDS):
        status: CheckoutStatus = await handle.execute_update("retry_compensation", result_type=CheckoutStatus)
    return status


async def resolve(
    handle: WorkflowHandle[CheckoutWorkflow, CheckoutStatus], step: str, reason: str = "paid back by hand"
) -> CheckoutStatus:
    async with asyncio.timeout(PATIENCE_SECONDS):
        status: CheckoutStatus = await handle.execute_update(
            "resolve_compensation", Resolution(step, reason), result_type=CheckoutStatus
        )
    return status
