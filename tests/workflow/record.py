"""Records one history of every ending, for test_replay.py.

    python -m tests.workflow.record

Record anew when the workflow's commands change on purpose and no order of the old kind can still be open.
Otherwise the old recordings are the promise to the orders that are open, and stay.
"""

import asyncio
import json
import re
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from temporalio.client import Client, WorkflowHandle

from adapters.database import create_engine
from adapters.telemetry import leave
from adapters.temporal import DATA_CONVERTER
from domain import policies
from domain.maintenance import SweepInput
from domain.model import CheckoutStatus
from domain.policies import checkout_workflow_id
from embedded.stack import DevStack
from tests.conftest import Database, Shop
from tests.workflow.gates import Gates, lost_report
from tests.workflow.sagas import BREAK_UNDO, MEND_UNDO, hasty, how_it_ended, resolve, retry, until_status
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import SweepWorkflow

FOLDER = Path(__file__).parent / "histories"
Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]
Scene = Callable[[Shop, Gates], Awaitable[Handle]]


def rejected(customer: str, sku: str = "tea-mug") -> Scene:
    async def scene(shop: Shop, gates: Gates) -> Handle:
        del gates
        return await shop.start(shop.order(customer, (sku, 1)))

    return scene


def cancelled(name: str, *, by_update: bool) -> Scene:
    async def scene(shop: Shop, gates: Gates) -> Handle:
        order = shop.order("carol")
        gate = gates.hold(order, name, "after")
        handle = await shop.start(order)
        await gate.reached()
        if by_update:
            await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
        else:
            await handle.cancel(reason="changed my mind")
        gate.open()
        return handle

    return scene


async def cancelled_while_unwinding(shop: Shop, gates: Gates) -> Handle:
    order = shop.order("nemo")
    gate = gates.hold(order, "refund_payment", "before")
    handle = await shop.start(order)
    await gate.reached()
    await handle.cancel(reason="changed my mind")
    gate.open()
    return handle


async def stuck(shop: Shop) -> Handle:
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")
    handle = await shop.start(order)
    await until_status(shop, order, "stuck")
    await shop.database.run(MEND_UNDO["pay"])
    return handle


async def stuck_and_retried(shop: Shop, gates: Gates) -> Handle:
    del gates
    handle = await stuck(shop)
    await retry(handle)
    return handle


async def stuck_and_resolved(shop: Shop, gates: Gates) -> Handle:
    del gates
    handle = await stuck(shop)
    await resolve(handle, "pay", "wired back, slip 77")
    return handle


async def irrevocable(shop: Shop, gates: Gates) -> Handle:
    order = shop.order("alice")
    gates.fail(order, "ship_order", "after", error=lost_report)
    return await shop.start(order)


async def repaired(shop: Shop, gates: Gates) -> Handle:
    order = shop.order("carol")
    gate = gates.hold(order, "ship_order", "before")
    handle = await shop.start(order)
    await gate.reached()
    await handle.terminate()
    await shop.client.execute_workflow(
        SweepWorkflow.run, SweepInput(0), id=f"sweep-{uuid.uuid4()}", task_queue=shop.task_queue
    )
    gate.open()
    return shop.client.get_workflow_handle_for(CheckoutWorkflow.run, checkout_workflow_id(order.order_id))


SCENES: dict[str, Scene] = {
    "completed": rejected("carol"),
    "rejected-at-reserve": rejected("alice", "no-such"),
    "rejected-at-pay": rejected("bob"),
    "rejected-at-ship": rejected("nemo"),
    "cancelled-by-temporal-at-reserve": cancelled("reserve_inventory", by_update=False),
    "cancelled-by-temporal-at-pay": cancelled("charge_payment", by_update=False),
    "cancelled-by-update-at-pay": cancelled("charge_payment", by_update=True),
    "cancelled-by-update-at-ship": cancelled("ship_order", by_update=True),
    "rejected-with-a-cancel-while-unwinding": cancelled_while_unwinding,
    "stuck-and-retried": stuck_and_retried,
    "stuck-and-resolved": stuck_and_resolved,
    "completed-because-irrevocable": irrevocable,
    "cancelled-by-repair": repaired,
}


def scrubbed(history: str) -> str:
    """Take this machine, its worker and its paths out of a history."""
    plain = re.sub(r'"\d+@[^"]*"', '"somebody"', history)
    plain = re.sub(r'("stackTrace": ")(?:[^"\\]|\\.)*"', r'\1"', plain)
    return json.dumps(json.loads(plain), indent=1, ensure_ascii=False) + "\n"


async def record(stack: DevStack) -> None:
    policies.UNDO = hasty(policies.UNDO, give_up_ms=800)
    policies.SHIP = hasty(policies.SHIP, give_up_ms=500)
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)
    admin_url = stack.postgres.url("checkout", "postgres", driver="postgresql")
    engine = create_engine(stack.database_url)
    for name, scene in SCENES.items():
        gates, shop = Gates(), Shop(client, engine, Database("checkout", stack.database_url, admin_url))
        async with shop.working(interceptors=(gates,)):
            handle = await scene(shop, gates)
            ended = await how_it_ended(handle)
        history = await handle.fetch_history()
        (FOLDER / f"{name}.json").write_text(scrubbed(history.to_json()), encoding="utf-8")
        sys.stdout.write(f"{name}: {ended}, {len(history.events)} events\n")
    await engine.dispose()


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, DevStack(Path(folder)) as stack:
        asyncio.run(record(stack))
    return 0


if __name__ == "__main__":
    leave(main())
