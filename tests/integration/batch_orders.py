"""Orders for the tests of batches, and what is left of them."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from activities.batch_checkout import BatchCheckout
from activities.inventory import Inventory
from activities.orders import Orders
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.database import create_engine
from devstack.stack import DevStack
from domain.bulk import Outcome, StepInput, pack
from domain.model import CheckoutInput, Ending, OrderLine, Step, UndoInput
from sagafence import SagaError
from tests.conftest import Database, Shop, cloned_database

# Many orders for little stock and little money, some for what is not there, for nobody, or to nowhere.
CUSTOMERS = ("alice", "alice", "bob", "carol", "erin", "erin", "frank", "nemo", "nobody", "shop")
SKUS = ("tea-mug", "tea-mug", "lamp", "lamp", "last-one", "bag", "no-such", "poster")


def drawn(seed: int, count: int) -> list[CheckoutInput]:
    draw = random.Random(seed)

    def lines() -> tuple[OrderLine, ...]:
        skus = draw.sample(SKUS, draw.choice((1, 1, 2, 3)))
        return tuple(OrderLine(sku, draw.choice((1, 1, 2, 5))) for sku in skus)

    return [CheckoutInput(f"b-{seed}-{number:03d}", draw.choice(CUSTOMERS), lines()) for number in range(count)]


async def one_by_one(shop: Shop, orders: Sequence[CheckoutInput]) -> None:
    """Do what the sagas of these orders do, step by step."""
    inventory, payments, shipping = Inventory(shop.engine), Payments(shop.engine), Shipping(shop.engine)
    does = {
        Step.RESERVE: inventory.reserve_inventory,
        Step.PAY: payments.charge_payment,
        Step.SHIP: shipping.ship_order,
    }
    undoes = {
        Step.RESERVE: inventory.release_inventory,
        Step.PAY: payments.refund_payment,
        Step.SHIP: shipping.cancel_shipment,
    }
    refused: list[tuple[Step, UndoInput]] = []
    going = list(orders)
    for step, do in does.items():
        for order in list(going):
            try:
                await do(order)
            except SagaError as refusal:
                going.remove(order)
                reason = f"{type(refusal).__name__}: {refusal.message}"
                refused.append((step, UndoInput(order, Ending.REJECTED, reason)))
    for failed, undo in refused:
        steps = list(Step)
        for step in reversed(steps[: steps.index(failed) + 1]):
            await undoes[step](undo)
        await Orders(shop.engine).close_order(undo)


def asked(orders: Sequence[CheckoutInput]) -> StepInput:
    return StepInput("bulk-test", [pack(order) for order in orders])


async def together(shop: Shop, orders: Sequence[CheckoutInput]) -> list[Outcome]:
    """Do what the workflow of a batch does with these orders."""
    return (await BatchCheckout(shop.engine).check_out_orders(asked(orders))).unpacked()


OWN = "'{created_at,updated_at,at,handed_over_at,event_id,txid,batch_workflow_id}'::text[]"
"""Instants, and numbers given in the sequence of writing: no two ways to write a row have these in common."""


async def left_behind(database: Database) -> dict[str, list[str]]:
    """Every row of every table, but for instants, and numbers given in the sequence of writing."""
    return await database.every_row(f"(to_jsonb(t) - {OWN})::text")


@asynccontextmanager
async def another_shop(stack: DevStack, shop: Shop) -> AsyncIterator[Shop]:
    with cloned_database(stack) as database:
        engine = create_engine(database.url)
        yield Shop(shop.client, engine, database)
        await engine.dispose()
