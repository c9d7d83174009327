"""An order id that is taken: other content is refused everywhere, the same content gets the first answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from activities.inventory import Inventory
from activities.orders import Orders, ParkInput
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.temporal import DATA_CONVERTER
from client import failures
from domain.errors import OrderIdConflict, UndeliverableAddress
from domain.model import CheckoutInput, CheckoutStatus, Ending, OrderLine, UndoInput
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.faults.callers import ask, ask_all, checkouts_of, every_row, is_known
from tests.workflow.gates import Gate, Gates
from tests.workflow.own_temporal import own_temporal
from tests.workflow.sagas import causes_of, failure_of, until, violations

OTHERS: dict[str, Callable[[CheckoutInput], CheckoutInput]] = {
    "another customer": lambda order: replace(order, customer="alice"),
    "fewer lines": lambda order: replace(order, lines=order.lines[:1]),
    "more lines": lambda order: replace(order, lines=(*order.lines, OrderLine("bag", 1))),
    "another quantity": lambda order: replace(order, lines=(OrderLine("poster", 3), *order.lines[1:])),
}
ENDED = ("completed", "rejected", "cancelled")
# A history is deleted once these queues have noted that they are done with it.
_QUEUES = ("history.transfer", "history.timer", "history.visibility")
FORGOTTEN = tuple(f"{ending} past retention" for ending in ENDED)


@dataclass
class Taken:
    """An id that belongs to an order, and the shop where it does."""

    shop: Shop
    elsewhere: Shop
    order: CheckoutInput
    gates: Gates

    async def end_as(self, state: str) -> CheckoutStatus:
        """Carry the order to one of its endings, and have Temporal forget it if that is wanted."""
        if state.startswith("rejected"):
            self.gates.fail(self.order, "ship_order", error=lambda: UndeliverableAddress("injected"))
        if state.startswith("cancelled"):
            gate = await self.stop_before_payment()
            await checkouts_of(self.shop).cancel(self.order.order_id, "found it cheaper")
            gate.open()
        outcome = (await ask(checkouts_of(self.shop), self.order)).outcome
        assert state.startswith(outcome.status)
        if state in FORGOTTEN:
            await self.forget()
        return outcome

    async def stop_before_payment(self) -> Gate:
        gate = self.gates.hold(self.order, "charge_payment", "before")
        await self.shop.start(self.order)
        await gate.reached()
        return gate

    async def forget(self) -> None:
        """Delete the saga's history, as Temporal does when its retention is over."""
        saga = WorkflowExecution(workflow_id=checkout_workflow_id(self.order.order_id))
        await self.shop.client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(namespace=self.shop.client.namespace, workflow_execution=saga)
        )

        async def is_forgotten() -> bool:
            return not await is_known(self.shop, self.order)

        await until(is_forgotten)

    async def intrude(self, other: CheckoutInput) -> ApplicationError:
        """Start a saga of another order under the id, past everything that the starter and Temporal check."""
        async with self.elsewhere.working():
            return await failure_of(await self.elsewhere.run_again(other))


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A Temporal of this module's own, which forgets what it is told to forget at once instead of within a minute."""
    intervals = {f"{queue}ProcessorUpdateAckInterval": "50ms" for queue in _QUEUES}
    with own_temporal(tmp_path_factory.mktemp("forgetful"), **intervals) as server:
        yield await Client.connect(server.address, data_converter=DATA_CONVERTER)


@pytest.fixture
async def taken(shop: Shop, elsewhere: Shop) -> AsyncIterator[Taken]:
    gates = Gates()
    async with shop.working(interceptors=(gates,)):
        yield Taken(shop, elsewhere, shop.order("carol", ("poster", 2), ("tea-mug", 1)), gates)


def operations(shop: Shop, order: CheckoutInput) -> Iterator[Awaitable[Any]]:
    undo = UndoInput(order, Ending.CANCELLED, "a reason")
    inventory, payments, shipping = Inventory(shop.engine), Payments(shop.engine), Shipping(shop.engine)
    orders = Orders(shop.engine)
    yield inventory.reserve_inventory(order)
    yield payments.charge_payment(order)
    yield shipping.ship_order(order)
    yield shipping.cancel_shipment(undo)
    yield payments.refund_payment(undo)
    yield inventory.release_inventory(undo)
    yield orders.close_order(undo)
    yield orders.park_order(ParkInput(undo, ["pay"], "a cause"))
    yield orders.complete_order(order)


async def require_refused_by_the_database(taken: Taken, other: CheckoutInput) -> None:
    for operation in operations(taken.shop, other):
        with pytest.raises(OrderIdConflict):
            await operation


async def require_refused_by_the_workflow(taken: Taken, other: CheckoutInput) -> None:
    failure = await taken.intrude(other)

    assert failure.type == "OrderRejected"
    assert causes_of(failure)[-1] == "OrderIdConflict"


@pytest.mark.parametrize("change", OTHERS)
async def test_other_content_is_refused_by_all_while_the_order_is_running(taken: Taken, change: str) -> None:
    other = OTHERS[change](taken.order)
    gate = await taken.stop_before_payment()
    before = await every_row(taken.shop.database)

    with pytest.raises(failures.OrderIdConflict):
        await checkouts_of(taken.shop).start(other)
    await require_refused_by_the_workflow(taken, other)
    await require_refused_by_the_database(taken, other)
    after = await every_row(taken.shop.database)
    gate.open()

    assert after == before
    assert (await ask(checkouts_of(taken.shop), taken.order)).outcome.status == "completed"
    assert await violations(taken.shop) == []


@pytest.mark.parametrize("state", ENDED)
async def test_other_content_is_refused_by_all_after_the_end(taken: Taken, state: str) -> None:
    await taken.end_as(state)
    before = await every_row(taken.shop.database)

    for change in OTHERS.values():
        other = change(taken.order)
        with pytest.raises(failures.OrderIdConflict):
            await checkouts_of(taken.shop).start(other)
        await require_refused_by_the_workflow(taken, other)
        await require_refused_by_the_database(taken, other)

    assert await every_row(taken.shop.database) == before
    assert await violations(taken.shop) == []


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ("completed past retention", "another quantity"),
        pytest.param("completed past retention", "another customer", marks=pytest.mark.exhaustive),
        pytest.param("rejected past retention", "more lines", marks=pytest.mark.exhaustive),
        pytest.param("cancelled past retention", "fewer lines", marks=pytest.mark.exhaustive),
    ],
)
async def test_other_content_is_refused_although_temporal_has_forgotten_the_order(
    taken: Taken, state: str, change: str
) -> None:
    other = OTHERS[change](taken.order)
    await taken.end_as(state)
    before = await every_row(taken.shop.database)

    answer = await ask(checkouts_of(taken.shop), other)
    await require_refused_by_the_database(taken, other)

    assert answer.outcome.status == "rejected"
    assert "OrderIdConflict" in (answer.outcome.reason or "")
    assert await every_row(taken.shop.database) == before
    assert await violations(taken.shop) == []


@pytest.mark.parametrize(
    "state", [*ENDED, FORGOTTEN[0], *(pytest.param(state, marks=pytest.mark.exhaustive) for state in FORGOTTEN[1:])]
)
async def test_the_same_content_after_the_end_changes_nothing_and_is_reported_the_same(
    taken: Taken, state: str
) -> None:
    first = await taken.end_as(state)
    before = await every_row(taken.shop.database)

    answers = (await ask_all(taken.shop, [taken.order] * 20))[taken.order.order_id]

    assert sum(answer.is_new for answer in answers) == (state in FORGOTTEN)
    output = {(answer.outcome.status, answer.outcome.reason, answer.outcome.tracking_number) for answer in answers}
    assert output == {(first.status, first.reason, first.tracking_number)}
    assert await every_row(taken.shop.database) == before
    assert await violations(taken.shop) == []


async def test_an_intruder_is_refused_although_the_first_saga_does_not_know_yet_that_it_has_reserved(
    taken: Taken,
) -> None:
    other = OTHERS["more lines"](taken.order)
    gate = taken.gates.hold(taken.order, "reserve_inventory", "after")
    asking = asyncio.create_task(ask(checkouts_of(taken.shop), taken.order))
    await gate.reached()

    await require_refused_by_the_workflow(taken, other)
    gate.open()

    assert (await asking).outcome.status == "completed"
    assert await violations(taken.shop) == []


@pytest.mark.parametrize("gone", ["terminated", "without a worker"])
async def test_the_same_content_joins_a_saga_that_cannot_tell_its_own_or_begins_one_that_is_gone_anew(
    shop: Shop, gone: str
) -> None:
    """The start of a saga leaves its input in the history."""
    order = shop.order("carol")
    handle = await shop.start(order)
    if gone == "terminated":
        await handle.terminate()

    assert await checkouts_of(shop).start(order) is (gone == "terminated")
    for change in ("another customer", "another quantity"):
        with pytest.raises(failures.OrderIdConflict):
            await checkouts_of(shop).start(OTHERS[change](order))
