"""cancel, retry and resolve as the starter sends them: not known yet where no worker accepted them, safe to repeat."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    WorkflowUpdateHandle,
)
from temporalio.service import RPCError, RPCStatusCode

from client import requests
from client.checkouts import Checkouts
from client.failures import NoSuchOrder, NotKnownYet, Refused
from devstack.stack import DevStack
from domain import policies
from domain.model import CheckoutInput
from tests.conftest import Shop
from tests.integration.commands import Commands
from tests.workflow.gates import Gates
from tests.workflow.sagas import BREAK_UNDO, MEND_UNDO, hasty, how_it_ended, until, until_status

REASON = "found it cheaper"
TOLD = r"not known yet.*may still happen.*repeat the command"
Ask = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


@pytest.fixture
def checkouts(shop: Shop) -> Checkouts:
    return Checkouts(shop.client, shop.task_queue, "http://ui")


@pytest.fixture
def nobody_takes(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask where no worker is, without waiting for long, and expect to be told that nothing is known."""

    async def ask(request: Callable[[], Awaitable[object]]) -> None:
        with monkeypatch.context() as patch:
            patch.setitem(vars(requests.UNTIL_ANSWERED), "accept_seconds", 1.0)  # it is frozen
            with pytest.raises(NotKnownYet, match=TOLD):
                await request()

    return ask


async def events(shop: Shop, order: CheckoutInput, event: str) -> int:
    found = await shop.database.value(
        "SELECT count(*) FROM order_events WHERE order_id = $1 AND event = $2", order.order_id, event
    )
    assert isinstance(found, int)
    return found


async def stuck(shop: Shop, *steps: str) -> CheckoutInput:
    """Have an order whose undos of these steps fail, with a worker that is there only until it is stuck."""
    for step in steps:
        await shop.database.run(BREAK_UNDO[step])
    order = shop.order("nemo")
    async with shop.working():
        await shop.start(order)
        await until_status(shop, order, "stuck")
    return order


class GoesOnElsewhere(Interceptor):
    """Answers one retry as the server does where the run that was asked is continued as new in that moment."""

    def __init__(self) -> None:
        self.is_next = False

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's name
        owner = self

        class Outbound(OutboundInterceptor):
            async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> WorkflowUpdateHandle[Any]:  # noqa: A002 - the SDK's name
                if owner.is_next:
                    owner.is_next = False
                    raise RPCError("workflow execution already completed", RPCStatusCode.NOT_FOUND, b"")
                return await super().start_workflow_update(input)

        return Outbound(next)


async def test_a_retry_that_met_the_end_of_a_stuck_run_is_asked_of_the_next_one(shop: Shop) -> None:
    moment = GoesOnElsewhere()
    client = Client(
        shop.client.service_client,
        namespace=shop.client.namespace,
        data_converter=shop.client.data_converter,
        interceptors=[moment],
    )
    checkouts = Checkouts(client, shop.task_queue, "http://ui")
    order = await stuck(shop, "pay")

    async with shop.working():
        first = await checkouts.retry(order.order_id)
        moment.is_next = True
        second = await checkouts.retry(order.order_id)
        noted = await events(shop, order, "retry_requested")
        await shop.database.run(MEND_UNDO["pay"])
        moment.is_next = True
        last = await checkouts.retry(order.order_id)

    assert (first.status, second.status, last.status) == ("stuck", "stuck", "rejected")
    assert noted == 2


# Nobody is there ----------------------------------------------------------------------------------------


async def test_a_cancel_that_nobody_took_is_not_known_yet_and_its_repeats_are_the_same_request(
    shop: Shop, checkouts: Checkouts, nobody_takes: Ask
) -> None:
    order = shop.order("alice")
    await checkouts.start(order)

    for _ in range(2):
        await nobody_takes(lambda: checkouts.cancel(order.order_id, REASON))
    async with shop.working():
        ended = await how_it_ended(shop.newest_run(order))
        await checkouts.cancel(order.order_id, REASON)
        outcome = await checkouts.outcome(order.order_id)
        with pytest.raises(Refused, match="cancelled already"):
            await checkouts.cancel(order.order_id, "another reason")

    assert ended == "OrderCancelled"
    assert (outcome.status, outcome.reason) == ("cancelled", f"cancelled: {REASON}")


async def test_a_retry_that_nobody_took_is_one_round_however_often_it_is_repeated(
    shop: Shop, checkouts: Checkouts, nobody_takes: Ask
) -> None:
    order = await stuck(shop, "pay")
    for _ in range(2):
        await nobody_takes(lambda: checkouts.retry(order.order_id))
    await shop.database.run(MEND_UNDO["pay"])

    async with shop.working():
        while_it_runs = await checkouts.retry(order.order_id)
        afterwards = await checkouts.retry(order.order_id)

    assert (while_it_runs.status, afterwards.status) == ("rejected", "rejected")
    assert await events(shop, order, "retry_requested") == 1


async def test_a_resolve_that_nobody_took_is_logged_once_however_often_it_is_repeated(
    shop: Shop, checkouts: Checkouts, nobody_takes: Ask
) -> None:
    order = await stuck(shop, "pay", "reserve")
    for _ in range(2):
        await nobody_takes(lambda: checkouts.resolve(order.order_id, "pay", "slip 77"))

    async with shop.working():
        one_left = [await checkouts.resolve(order.order_id, "pay", "slip 77") for _ in range(2)]
        await checkouts.resolve(order.order_id, "reserve", "counted")
        afterwards = await checkouts.resolve(order.order_id, "pay", "slip 77")
        with pytest.raises(Refused, match="rejected already"):
            await checkouts.resolve(order.order_id, "pay", "slip 78")

    assert [status.status for status in [*one_left, afterwards]] == ["stuck", "stuck", "rejected"]
    assert await events(shop, order, "step_resolved") == 2


# Somebody is there --------------------------------------------------------------------------------------


async def test_each_retry_after_one_that_was_answered_is_another_round(shop: Shop, checkouts: Checkouts) -> None:
    order = await stuck(shop, "pay")

    async with shop.working():
        in_vain = [await checkouts.retry(order.order_id) for _ in range(2)]
        await shop.database.run(MEND_UNDO["pay"])
        ended = await checkouts.retry(order.order_id)

    assert [status.status for status in [*in_vain, ended]] == ["stuck", "stuck", "rejected"]
    assert await events(shop, order, "retry_requested") == 3


async def test_a_repeated_resolve_shows_how_the_order_stands_now(shop: Shop, checkouts: Checkouts) -> None:
    order, gates = await stuck(shop, "pay", "reserve"), Gates()
    close = gates.hold(order, "close_order", "before")

    async with shop.working(interceptors=(gates,)):
        first = await checkouts.resolve(order.order_id, "pay", "slip 77")
        other = asyncio.create_task(checkouts.resolve(order.order_id, "reserve", "counted"))
        await close.reached()
        again = asyncio.create_task(checkouts.resolve(order.order_id, "pay", "slip 77"))
        done, _ = await asyncio.wait({again}, timeout=1)
        assert not done, "it was answered with how the order stood then"
        close.open()
        ended = [await other, await again]

    assert [status.status for status in [first, *ended]] == ["stuck", "rejected", "rejected"]


async def test_a_cancel_while_it_is_being_undone_is_the_first_or_is_refused(shop: Shop, checkouts: Checkouts) -> None:
    gates, order = Gates(), shop.order("carol")
    pay, release = gates.hold(order, "charge_payment", "before"), gates.hold(order, "release_inventory", "before")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await pay.reached()
        await checkouts.cancel(order.order_id, REASON)
        pay.open()
        await release.reached()
        await checkouts.cancel(order.order_id, REASON)
        with pytest.raises(Refused, match="unwinding already"):
            await checkouts.cancel(order.order_id, "another reason")
        release.open()
        ended = await how_it_ended(shop.newest_run(order))

    assert ended == "OrderCancelled"


@pytest.mark.parametrize("verb", ["cancel", "retry", "resolve"])
async def test_a_request_to_an_order_that_ended_by_itself_is_refused(
    shop: Shop, checkouts: Checkouts, verb: str
) -> None:
    order = shop.order("alice")
    asks: dict[str, Callable[[str], Awaitable[object]]] = {
        "cancel": lambda order_id: checkouts.cancel(order_id, REASON),
        "retry": checkouts.retry,
        "resolve": lambda order_id: checkouts.resolve(order_id, "pay", REASON),
    }
    async with shop.working():
        await how_it_ended(await shop.start(order))
        with pytest.raises(Refused, match="completed already"):
            await asks[verb](order.order_id)
    with pytest.raises(NoSuchOrder):
        await asks[verb]("nobody-knows-it")


# As commands --------------------------------------------------------------------------------------------


async def test_a_cancel_that_lost_to_completion_exits_with_3_and_one_that_won_with_0(
    shop: Shop, stack: DevStack
) -> None:
    commands = Commands(dict(stack.environment(CHECKOUT_TASK_QUEUE=shop.task_queue)), stack.folder)
    gates, sent, early = Gates(), shop.order("alice"), shop.order("carol")
    gate = {order.order_id: gates.hold(order, "ship_order", "after") for order in (sent, early)}

    async with shop.working(interceptors=(gates,)):
        for order in (sent, early):
            await shop.start(order)
            await gate[order.order_id].reached()
        ran = {}
        for order in (sent, early):
            asking = asyncio.create_task(
                asyncio.to_thread(commands.starter, "cancel", order.order_id, "--reason", REASON, "--json")
            )

            async def is_taken(order: CheckoutInput = order) -> bool:
                history = shop.newest_run(order).fetch_history_events()
                return any([e.HasField("workflow_execution_update_accepted_event_attributes") async for e in history])

            await until(is_taken)
            gate[order.order_id].open()
            ran[order.order_id] = await asking
        again = {
            order.order_id: await asyncio.to_thread(
                commands.starter, "cancel", order.order_id, "--reason", REASON, "--json"
            )
            for order in (sent, early)
        }

    for answers in (ran, again):
        assert (answers[sent.order_id].code, answers[sent.order_id].document["status"]) == (3, "completed")
        assert (answers[early.order_id].code, answers[early.order_id].document["status"]) == (0, "cancelled")


async def test_a_request_that_nobody_took_exits_with_1_and_says_that_it_may_still_happen(
    shop: Shop, stack: DevStack, checkouts: Checkouts
) -> None:
    commands = Commands(dict(stack.environment(CHECKOUT_TASK_QUEUE=shop.task_queue)), stack.folder)
    order = shop.order("alice")
    await checkouts.start(order)

    ran = await asyncio.to_thread(commands.starter, "cancel", order.order_id, "--reason", REASON)

    assert ran.code == 1
    assert "not known yet" in ran.err
    assert "may still happen" in " ".join(ran.err.split())
    await shop.newest_run(order).terminate()
