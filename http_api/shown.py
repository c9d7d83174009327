"""An order as the API shows it: by its row where the database has it, by its saga where not."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from sqlalchemy import Row
from temporalio.service import RPCError

from adapters.order_query import FoundOrder
from client import executions
from client.failures import ClientError, NoSuchOrder
from client.orders import as_shown
from domain.bulk import Outcome
from domain.identifiers import composed, identifier_problem
from domain.lookup import OrderRecord
from domain.model import CheckoutInput, CheckoutStatus, OrderStatus, StepView
from domain.policies import checkout_workflow_id
from http_api.models import Incident, Line, Links, Order, OrderStatusWord, OrderSummary, StepState
from http_api.problems import Problem
from http_api.services import Services
from http_api.temporal import answered
from sagafence import SagaError

ENCODED_SLASH = "\uffff"
"""Stands for a slash within an id of a path, see `http_api.edge`. No id has this character."""

# Temporal keeps a history for a day at least.
_HISTORY_IS_KEPT = timedelta(hours=20)
# An order that is under way for longer than a step and its retries take may have lost its workflow.
_MAY_BE_LOST = timedelta(seconds=30)
_ASK_SECONDS = 2.0


def order_id_in(path: str) -> str:
    """Return the order id that a path names.

    Raises:
        Problem: no order can have it.
    """
    order_id = composed(path.replace(ENCODED_SLASH, "/"))
    if problem := identifier_problem(order_id):
        raise Problem(HTTPStatus.NOT_FOUND, "no-such-order", f"There is no such order: {problem}.")
    return order_id


def no_such_order(order_id: str) -> NoSuchOrder:
    """Make the error of an order that there is not; one that the caller may not see cannot be told from it."""
    return NoSuchOrder(f"There is no order {order_id}. GET /v1/orders lists those that there are.")


def links(order_id: str, history: str | None = None) -> Links:
    """Return where more of an order is."""
    place = f"/v1/orders/{quote(order_id, safe='')}"
    return Links(self=place, events=f"{place}/events", stream=f"{place}/stream", history=history)


def summary(row: Row[Any]) -> OrderSummary:
    """Show a row of a list."""
    return OrderSummary(
        order_id=row.order_id,
        customer=row.customer,
        status=OrderStatusWord(as_shown(row.status)),
        reason=row.reason,
        total_minor=row.total_minor,
        currency=row.currency,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def etag(order: Order) -> str:
    """Make a weak entity tag of all that is shown of an order."""
    return f'W/"{hashlib.sha256(order.model_dump_json().encode()).hexdigest()[:20]}"'


async def find(services: Services, order_id: str) -> Order:
    """Show an order as it is now.

    Raises:
        NoSuchOrder: neither the database nor Temporal knows it.
        Problem, SagaError: neither of the two answers.
    """
    try:
        found = await services.reads.order(order_id)
    except SagaError:
        # The database is away: its saga knows the order, too, unless it came in a batch.
        try:
            return await by_saga(services, await _order_of(services, order_id))
        except (NoSuchOrder, Problem, RPCError):
            pass
        raise
    if found is None:
        return await accepted(services, await _order_of(services, order_id))
    return await by_row(services, found)


async def _order_of(services: Services, order_id: str) -> CheckoutInput:
    client = services.temporal.client
    try:
        run = await answered(executions.of_order(client, order_id))
    except NoSuchOrder:
        raise no_such_order(order_id) from None
    order = await answered(executions.order_of(client, run.workflow_id, run.run_id))
    if order is None:  # the workflow of that id was started with something else
        raise no_such_order(order_id)
    return order


def begun(services: Services, placed: CheckoutInput) -> Order:
    """Show an order whose saga has just been started."""
    return _of_status(services, placed, CheckoutStatus(placed.order_id, OrderStatusWord.RUNNING))


async def accepted(services: Services, order: CheckoutInput) -> Order:
    """Show an order of which no more need be known than that Temporal has it."""
    try:
        return await by_saga(services, order)
    except (Problem, RPCError):
        return begun(services, order)


async def by_saga(services: Services, order: CheckoutInput) -> Order:
    """Show an order that the database does not have, or cannot be asked for, as its saga has it.

    Raises:
        Problem, RPCError: Temporal does not answer: it may have ended.
    """
    try:
        status = await answered(services.temporal.checkouts.status(order.order_id), _ASK_SECONDS)
    except ClientError:  # it is open, and no worker answers
        return begun(services, order)
    return _of_status(services, order, status)


def by_outcome(services: Services, outcome: Outcome, order: CheckoutInput, workflow_id: str) -> Order:
    """Show an order that has ended in a batch, and that the database cannot be asked for."""
    status = CheckoutStatus(
        outcome.order_id,
        outcome.status,
        outcome.reason,
        total_minor=outcome.total_minor,
        currency=outcome.currency,
        tracking_number=outcome.tracking_number,
    )
    return _of_status(services, order, status, workflow_id)


def _of_status(services: Services, order: CheckoutInput, status: CheckoutStatus, workflow_id: str = "") -> Order:
    known = {word.value for word in OrderStatusWord}
    return Order(
        order_id=order.order_id,
        customer=order.customer,
        status=OrderStatusWord(status.status if status.status in known else OrderStatusWord.RUNNING),
        reason=status.reason,
        total_minor=status.total_minor,
        currency=status.currency,
        tracking_number=status.tracking_number,
        lines=[Line(sku=line.sku, quantity=line.quantity) for line in order.lines],
        steps=_steps(status.steps),
        links=links(
            order.order_id, services.temporal.checkouts.ui_link(workflow_id or checkout_workflow_id(order.order_id))
        ),
    )


async def by_row(services: Services, found: FoundOrder, *, batch: str | None = None) -> Order:
    """Show an order by its row, with what Temporal alone knows where that matters.

    `batch` is the workflow that has just checked it out, where that is known: nothing is asked then.
    """
    record, row = found.record, found.row
    status, reason = as_shown(record.status), record.reason
    history: str | None = services.temporal.checkouts.ui_link(batch or checkout_workflow_id(record.order_id))
    age = datetime.now(UTC) - row.updated_at
    is_idle = status in {OrderStatusWord.RUNNING, OrderStatusWord.UNWINDING} and age > _MAY_BE_LOST
    if batch is None and (
        record.batch_workflow_id or is_idle or age > _HISTORY_IS_KEPT or status == OrderStatus.PENDING
    ):
        history = None
        with suppress(ClientError, Problem, RPCError):
            if is_idle:
                shown = await answered(services.temporal.orders.find(record.order_id), _ASK_SECONDS)
                place = shown.workflow_id
                if shown.status.status == OrderStatusWord.TERMINATED:
                    status, reason = OrderStatusWord.TERMINATED, shown.status.reason
            else:
                place = await answered(_place_of(services, record), _ASK_SECONDS)
            history = services.temporal.checkouts.ui_link(place) if place else None
    incident = None
    if row.cause is not None:
        incident = Incident(
            steps=list(row.stuck_steps), cause=row.cause, opened_at=row.opened_at, needs_review=row.needs_review
        )
    return Order(
        order_id=record.order_id,
        customer=record.customer,
        status=OrderStatusWord(status),
        reason=reason,
        total_minor=record.total_minor,
        currency=record.currency,
        tracking_number=record.tracking_number,
        lines=[Line(sku=line.sku, quantity=line.quantity) for line in record.lines],
        steps=_steps(record.steps),
        incident=incident,
        created_at=row.created_at,
        updated_at=row.updated_at,
        links=links(record.order_id, history),
    )


async def _place_of(services: Services, record: OrderRecord) -> str | None:
    """Return the workflow that has an order's history: its own, or its batch's; None where Temporal has neither."""
    orders, own = services.temporal.orders, checkout_workflow_id(record.order_id)
    if await orders.run_of(own) and (not record.batch_workflow_id or await orders.is_own(record)):
        return own
    return (
        record.batch_workflow_id if record.batch_workflow_id and await orders.run_of(record.batch_workflow_id) else None
    )


async def has_ended_for_good(services: Services, order_id: str) -> bool:
    """Return whether nothing will happen to an order any more: it has ended, and so has its workflow.

    A completed order may be taken back while its run is open. Where Temporal does not answer, it may be, too.
    """
    found = await services.reads.order(order_id)
    if found is not None and found.record.status != OrderStatus.COMPLETED:
        return found.record.status in {OrderStatus.REJECTED, OrderStatus.CANCELLED}
    workflow_ids = [checkout_workflow_id(order_id), *filter(None, [found.record.batch_workflow_id if found else None])]

    async def newest_run(workflow_id: str) -> executions.Execution | None:
        return await answered(services.temporal.orders.run_of(workflow_id), _ASK_SECONDS)

    try:
        newest = await asyncio.gather(*map(newest_run, workflow_ids))
    except (Problem, RPCError):
        return False
    return not any(run is not None and run.is_open for run in newest)


def _steps(steps: Sequence[StepView]) -> list[StepState]:
    return [StepState(step=each.step, state=each.state, detail=each.detail) for each in steps]
