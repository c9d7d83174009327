"""The checkout under the test kit: each step and undo fails, is repeated, comes late, is cancelled or loses its worker.

With a label, which can be cancelled, every step can be undone; with a courier, ship is the point of no return.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Interceptor

from adapters.database import create_engine
from devstack.stack import DevStack
from domain.policies import order_id_of
from sagafence.testing import Case, SagaUnderTest, Step, check, matrix
from tests.conftest import Shop
from tests.faults.share import share, shared_database
from tests.workflow.sagas import violations
from workflows.checkout import CheckoutWorkflow

PRICE = 1200  # of one tea-mug
RESERVE = Step(
    "reserve", do="reserve_inventory", undo="release_inventory", effect={"reserved": +1, "steps that stand": +1}
)
PAY = Step(
    "pay",
    do="charge_payment",
    undo="refund_payment",
    effect={"customer's money": -PRICE, "shop's money": +PRICE, "steps that stand": +1},
)
SHIP_EFFECT = {"on hand": -1, "reserved": -1, "parcels": +1, "steps that stand": +1}
LABEL = (RESERVE, PAY, Step("ship", do="ship_order", undo="cancel_shipment", effect=SHIP_EFFECT))
COURIER = (RESERVE, PAY, Step("ship", "ship_order", "cancel_shipment", SHIP_EFFECT, is_irrevocable=True))

LABEL_CASES = matrix(LABEL, can_be_retried=True)
# What comes before the point of no return is the same for both.
COURIER_CASES = [case for case in matrix(COURIER) if case.step is None or case.step.is_irrevocable]

_PROBE = """
SELECT (SELECT on_hand FROM inventory WHERE sku = 'tea-mug') AS "on hand",
       (SELECT reserved FROM inventory WHERE sku = 'tea-mug') AS "reserved",
       (SELECT sum(balance_minor) FROM accounts WHERE kind = 'customer')::bigint AS "customer's money",
       (SELECT coalesce(sum(CASE WHEN credit_account = 'shop' THEN amount_minor ELSE -amount_minor END), 0)
          FROM transfers WHERE 'shop' IN (credit_account, debit_account))::bigint AS "shop's money",
       (SELECT count(*) FROM shipments WHERE order_id = $1 AND state <> 'cancelled') AS "parcels",
       (SELECT count(*) FROM step_fence WHERE saga_id = $1 AND phase = 'done') AS "steps that stand"
"""


@pytest.fixture(scope="module")
async def shop(client: Client, stack: DevStack) -> AsyncIterator[Shop]:
    async with shared_database(stack) as database:
        engine = create_engine(database.url, pool_size=5)
        yield Shop(client, engine, database)
        await engine.dispose()


@pytest.fixture
def checkouts(shop: Shop) -> Callable[[str], SagaUnderTest]:
    async def count(workflow_id: str) -> dict[str, int]:
        [row] = await shop.database.fetch(_PROBE, order_id_of(workflow_id))
        return dict(row)

    def worker(interceptors: Sequence[Interceptor]) -> AbstractAsyncContextManager[Any]:
        return shop.working(interceptors=tuple(interceptors))

    def cancel(handle: WorkflowHandle[Any, Any]) -> Awaitable[Any]:
        return handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")

    def retry(handle: WorkflowHandle[Any, Any]) -> Awaitable[Any]:
        return handle.execute_update(CheckoutWorkflow.retry_compensation)

    def of(customer: str) -> SagaUnderTest:
        return SagaUnderTest(
            start=lambda: shop.start(shop.order(customer)), worker=worker, probe=count, cancel=cancel, retry=retry
        )

    return of


@pytest.mark.parametrize("case", share(LABEL_CASES, every=7))
async def test_a_checkout_with_a_label_keeps_its_promises(
    case: Case, checkouts: Callable[[str], SagaUnderTest], shop: Shop
) -> None:
    await check(case, checkouts("carol"))

    assert await violations(shop) == []


@pytest.mark.parametrize("case", share(COURIER_CASES, every=5))
async def test_a_checkout_with_a_courier_keeps_its_promises(
    case: Case, checkouts: Callable[[str], SagaUnderTest], shop: Shop
) -> None:
    await check(case, checkouts("alice"))

    assert await violations(shop) == []


def test_no_two_cases_are_the_same() -> None:
    for cases in (LABEL_CASES, COURIER_CASES):
        assert len({str(case) for case in cases}) == len(cases)
