"""One order, started many times at once, from many processes, or again after a lost reply: one saga, one effect."""

import asyncio
import json
import random
import sys

import pytest
from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from devstack.stack import ROOT, DevStack
from domain.model import CheckoutInput, CheckoutStatus
from tests.conftest import Shop
from tests.faults.callers import (
    COMPLETED_ONCE,
    PATIENCE_SECONDS,
    Door,
    ask,
    ask_all,
    checkouts_of,
    is_known,
    newest_run,
    traces,
)
from tests.faults.lab.proxy import Proxy, Way
from tests.workflow.sagas import until, violations

SMALL = [(1, 100), (10, 20)]
LARGE = [(1, 1_000), (100, 100)]


def orders_of(shop: Shop, count: int) -> list[CheckoutInput]:
    return [shop.order(f"buyer-{n:03d}", ("item-001", 1), ("item-002", 2)) for n in range(1, count + 1)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("keys", "starts"), [*SMALL, *(pytest.param(*size, marks=pytest.mark.exhaustive) for size in LARGE)]
)
async def test_however_often_an_order_is_started_at_once_it_has_one_saga_and_one_answer(
    shop: Shop, keys: int, starts: int
) -> None:
    orders = orders_of(shop, keys)
    asked = orders * starts
    random.Random(starts).shuffle(asked)

    async with shop.working():
        answers = await ask_all(shop, asked)

    assert {order_id: len(output) for order_id, output in answers.items()} == {o.order_id: starts for o in orders}
    for output in answers.values():
        new = sum(answer.is_new for answer in output)
        assert new == 1 or (new == 0 and any(answer.unanswered for answer in output))
        assert all(answer.outcome == output[0].outcome for answer in output)
        assert output[0].outcome.status == "completed"
    assert await traces(shop.database, *orders) == [COMPLETED_ONCE] * keys
    assert await shop.database.value("SELECT sum(initial - on_hand) FROM inventory") == 3 * keys
    assert await violations(shop) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("keys", "starts"), [*SMALL, *(pytest.param(*size, marks=pytest.mark.exhaustive) for size in LARGE)]
)
async def test_an_order_that_comes_by_the_door_and_by_itself_at_once_is_done_once_and_told_the_same(
    shop: Shop, keys: int, starts: int
) -> None:
    """As two processes of the API have it, and `starter.py` beside them: whoever is first, the fences decide."""
    orders = orders_of(shop, keys)
    asked = orders * starts
    random.Random(starts).shuffle(asked)
    checkouts = checkouts_of(shop)
    doors = [Door(checkouts), Door(checkouts)]

    async def ask_here(place: int, order: CheckoutInput) -> CheckoutStatus:
        if place % 3:
            return await doors[place % 3 - 1].outcome(order)
        return (await ask(checkouts, order)).outcome

    async with shop.working(), asyncio.timeout(PATIENCE_SECONDS):
        told = await asyncio.gather(*(ask_here(place, order) for place, order in enumerate(asked)))

    assert {status.status for status in told} == {"completed"}
    parcels = {(status.order_id, status.tracking_number, status.total_minor) for status in told}
    assert len(parcels) == keys
    assert await traces(shop.database, *orders) == [COMPLETED_ONCE] * keys
    assert await shop.database.value("SELECT sum(initial - on_hand) FROM inventory") == 3 * keys
    assert await violations(shop) == []


@pytest.mark.parametrize("processes", [3, pytest.param(8, marks=pytest.mark.exhaustive)])
async def test_starters_in_processes_of_their_own_are_all_reported_the_same(
    shop: Shop, stack: DevStack, processes: int
) -> None:
    order = shop.order("carol", ("tea-mug", 2))
    asked = ["--order-id", order.order_id, "--customer", "carol", "--line", "tea-mug:2", "--json"]

    async with shop.working(), asyncio.timeout(PATIENCE_SECONDS):
        starters = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "starter.py",
                "start",
                *asked,
                cwd=ROOT,
                env=dict(stack.environment(CHECKOUT_TASK_QUEUE=shop.task_queue)),
                stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(processes)
        ]
        printed = [(await starter.communicate())[0] for starter in starters]

    assert [starter.returncode for starter in starters] == [0] * processes
    assert [json.loads(text) for text in printed] == [json.loads(printed[0])] * processes
    assert json.loads(printed[0])["status"] == "completed"
    assert await traces(shop.database, order) == [COMPLETED_ONCE]


@pytest.mark.parametrize("again", ["by the same caller", "by another caller", "by many"])
async def test_a_start_whose_reply_is_lost_and_that_is_repeated_has_one_saga(shop: Shop, again: str) -> None:
    order = shop.order("carol")
    port = int(shop.client.service_client.config.target_host.rpartition(":")[2])

    with Proxy(port) as link:
        far = checkouts_of(shop, await Client.connect(f"127.0.0.1:{link.port}", data_converter=DATA_CONVERTER))
        link.swallow(Way.TO_CLIENT)
        start = asyncio.create_task(far.start(order))
        await until(lambda: is_known(shop, order))
        await until(lambda: asyncio.sleep(0, link.counts.bytes_held > 0))  # the reply, which may come a little later
        assert not start.done()
        run_id = await newest_run(shop, order)
        if again == "by the same caller":
            # Its connection breaks; the client library makes a new one and repeats the very same request.
            link.reset()
            link.heal()
            asked = [await asyncio.wait_for(start, PATIENCE_SECONDS)]
        else:
            start.cancel()
            callers = 1 if again == "by another caller" else 20
            asked = await asyncio.gather(*(checkouts_of(shop).start(order) for _ in range(callers)))
    async with shop.working():
        outcome = await checkouts_of(shop).outcome(order.order_id)

    assert set(asked) == ({True} if again == "by the same caller" else {False})
    assert await newest_run(shop, order) == run_id
    assert outcome.status == "completed"
    assert await traces(shop.database, order) == [COMPLETED_ONCE]
