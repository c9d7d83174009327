"""When the orders that come share a batch, and what those learn who wait for them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from client.batcher import Batcher, BatchPolicy
from client.checkouts import Checkouts
from client.failures import Full
from domain.bulk import BATCH_BYTES, Outcome, payload_bytes
from domain.model import CheckoutInput, OrderLine

NO_WINDOW = {"quiet_seconds": 0.0, "longest_seconds": 0.0, "longest_beside_seconds": 60.0}


class Temporal:
    """Takes batches, and ends them when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Sequence[CheckoutInput]] = []
        self.ends: list[asyncio.Event] = []
        self.ids: list[str] = []
        self.failure: Exception | None = None
        monkeypatch.setattr("client.batch_runs.begin", self.begin)
        monkeypatch.setattr("client.batch_runs.outcomes", self.outcomes)

    async def begin(self, _client: Any, _queue: str, orders: Sequence[CheckoutInput], workflow_id: str) -> None:
        if self.failure:
            raise self.failure
        self.batches.append(orders)
        self.ids.append(workflow_id)
        self.ends.append(asyncio.Event())

    async def outcomes(self, _client: Any, orders: Sequence[CheckoutInput], workflow_id: str) -> Sequence[Outcome]:
        await self.ends[self.ids.index(workflow_id)].wait()
        return [Outcome(order.order_id, "completed") for order in orders]

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@pytest.fixture
def temporal(monkeypatch: pytest.MonkeyPatch) -> Temporal:
    return Temporal(monkeypatch)


def batcher(**policy: Any) -> Batcher:
    checkouts = Checkouts(cast(Client, None), "queue", "http://ui")
    return Batcher(lambda: checkouts, BatchPolicy(**{**NO_WINDOW, **policy}))


def order(order_id: str = "", quantity: int = 1) -> CheckoutInput:
    return CheckoutInput(order_id or uuid.uuid4().hex, "alice", (OrderLine("tea-mug", quantity),))


async def ended(batches: Batcher, asked: CheckoutInput) -> tuple[Outcome | None, bool]:
    with batches.seat(asked) as (seat, is_first):
        await asyncio.shield(seat.started)
        return await asyncio.shield(seat.ended), is_first


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def waiting(batches: Batcher, *asked: CheckoutInput) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Callers of these orders, inside the block; those who still wait then go away."""
    callers = [asyncio.create_task(ended(batches, each)) for each in asked]
    await settle()
    yield callers
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


async def test_an_order_that_comes_alone_goes_at_once(temporal: Temporal) -> None:
    async with waiting(batcher(quiet_seconds=60, longest_seconds=60), order()):
        assert temporal.sizes == [1]


async def test_orders_that_come_while_a_batch_is_under_way_share_the_next(temporal: Temporal) -> None:
    batches = batcher(at_once=1)
    async with waiting(batches, order()), waiting(batches, *(order() for _ in range(30))) as callers:
        assert temporal.sizes == [1]
        temporal.ends[0].set()
        await settle()
        assert temporal.sizes == [1, 30]
        temporal.ends[1].set()
        answers = await asyncio.gather(*callers)

    assert [found.order_id for found, _ in answers] == [each.order_id for each in temporal.batches[1]]
    assert {is_first for _, is_first in answers} == {True}
    assert len(set(temporal.ids)) == 2


async def test_a_crowd_does_not_wait_for_the_batch_before_it_and_more_than_two_never_run(temporal: Temporal) -> None:
    batches = batcher(crowd=10, most=20, at_once=2)
    async with waiting(batches, order()), waiting(batches, *(order() for _ in range(20))):
        temporal.ends[0].set()
        await settle()
        async with waiting(batches, *(order() for _ in range(9))):
            assert temporal.sizes == [1, 20]
            async with waiting(batches, *(order() for _ in range(40))):
                assert temporal.sizes == [1, 20, 20]
                temporal.ends[1].set()
                await settle()
                assert temporal.sizes == [1, 20, 20, 20]


async def test_as_many_as_the_batch_before_them_do_not_wait_for_it(temporal: Temporal) -> None:
    batches = batcher(crowd=100)
    async with waiting(batches, order()), waiting(batches, *(order() for _ in range(5))):
        assert temporal.sizes == [1, 5]
        temporal.ends[0].set()
        await settle()
        async with waiting(batches, *(order() for _ in range(4))):
            assert temporal.sizes == [1, 5]
            async with waiting(batches, order()):
                assert temporal.sizes == [1, 5, 5]


async def test_long_orders_share_a_batch_as_far_as_temporal_takes_them(temporal: Temporal) -> None:
    lines = tuple(OrderLine(f"{number}{'é' * 120}", 1) for number in range(100))
    long = [CheckoutInput(f"long-{number}", "alice", lines) for number in range(12)]
    batches = batcher()
    async with waiting(batches, order()), waiting(batches, *long):
        temporal.ends[0].set()
        await settle()
        assert 1 < len(temporal.batches[1]) < 12
        assert sum(map(payload_bytes, temporal.batches[1])) <= BATCH_BYTES


async def test_those_who_come_within_the_window_are_waited_for_but_not_for_long(temporal: Temporal) -> None:
    batches = batcher(quiet_seconds=60.0, longest_seconds=0.2)
    async with waiting(batches, order()):
        temporal.ends[0].set()
        await settle()
        async with waiting(batches, order()), waiting(batches, order()):
            assert temporal.sizes == [1]
            async with asyncio.timeout(20):
                while len(temporal.batches) < 2:
                    await asyncio.sleep(0.01)
            assert temporal.sizes == [1, 2]


async def test_all_who_ask_for_one_order_share_its_seat_and_one_is_the_first(temporal: Temporal) -> None:
    asked = order()
    async with waiting(batcher(), *[asked] * 5) as callers:
        temporal.ends[0].set()
        answers = await asyncio.gather(*callers)

    assert temporal.sizes == [1]
    assert [is_first for _, is_first in answers] == [True, False, False, False, False]


@pytest.mark.usefixtures("temporal")
async def test_an_order_with_the_id_of_another_is_shown_the_others_seat() -> None:
    batches, first = batcher(), order("one")
    async with waiting(batches, first):
        with batches.seat(order("one", quantity=2)) as (seat, is_first):
            assert (seat.order, is_first) == (first, False)


async def test_an_order_that_nobody_waits_for_any_more_is_not_begun(temporal: Temporal) -> None:
    batches = batcher()
    kept, twice = order(), order()
    async with waiting(batches, order()), waiting(batches, kept, twice):
        async with waiting(batches, order(), twice):
            pass  # these two go away; one order is waited for by another caller still
        for end in temporal.ends:
            end.set()
        await settle()

    assert [[each.order_id for each in batch] for batch in temporal.batches[1:]] == [[kept.order_id, twice.order_id]]


async def test_an_order_in_a_batch_goes_on_without_its_caller_and_may_be_asked_for_again(temporal: Temporal) -> None:
    asked = order()
    batches = batcher()
    async with waiting(batches, asked):
        pass
    async with waiting(batches, asked) as [again]:
        assert temporal.sizes == [1]
        temporal.ends[0].set()
        found, is_first = await again
    assert (found.order_id, is_first) == (asked.order_id, False)


async def test_who_leaves_late_takes_no_seat_from_who_came_after_the_end(temporal: Temporal) -> None:
    asked = order()
    batches = batcher(at_once=1)
    with batches.seat(asked):
        await settle()
        temporal.ends[0].set()
        await settle()
        blocking = asyncio.create_task(ended(batches, order()))
        await settle()
        again = asyncio.create_task(ended(batches, asked))
        await settle()
    temporal.ends[1].set()
    await settle()
    temporal.ends[2].set()
    assert (await again)[0] is not None
    await blocking


@pytest.mark.usefixtures("temporal")
async def test_no_more_wait_than_there_is_room_for() -> None:
    batches = batcher(room=2, at_once=1)
    async with waiting(batches, order()), waiting(batches, order(), order()):
        with pytest.raises(Full), batches.seat(order()):
            pass


@pytest.mark.parametrize(
    "failure",
    [
        RPCError("away", RPCStatusCode.UNAVAILABLE, b""),
        RuntimeError("no connection"),
        TimeoutError(),
        ValueError("what nobody has foreseen"),
    ],
    ids=["refused", "unreachable", "silent", "unforeseen"],
)
async def test_where_temporal_does_not_answer_nothing_is_known_and_the_next_are_tried(
    temporal: Temporal, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    temporal.failure = failure
    batches = batcher(at_once=1)
    found, _ = await ended(batches, order())
    temporal.failure = None
    async with waiting(batches, order()) as [next_one]:
        temporal.ends[0].set()
        answer, _ = await next_one

    assert found is None
    assert answer is not None
    assert [record.name for record in caplog.records] == ["checkout.batcher"]


async def test_a_slow_batch_is_not_waited_for_by_those_who_come_after_it(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.batcher._END_SECONDS", 600.0)
    batches = batcher(longest_beside_seconds=0.05)
    async with waiting(batches, order()), waiting(batches, *(order() for _ in range(3))):
        temporal.ends[0].set()
        await settle()
        async with waiting(batches, order(), order()):
            assert temporal.sizes == [1, 3]
            async with asyncio.timeout(20):
                while len(temporal.batches) < 3:
                    await asyncio.sleep(0.01)
            assert temporal.sizes == [1, 3, 2]


async def test_a_batch_that_never_ends_keeps_no_place_for_ever(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.batcher._END_SECONDS", 0.05)
    batches = batcher(at_once=1)
    async with asyncio.timeout(20):
        first, _ = await ended(batches, order())
        async with waiting(batches, order()) as [second]:
            temporal.ends[1].set()
            found, _ = await second

    assert first is None
    assert found is not None


async def test_whether_batches_end_is_known(temporal: Temporal) -> None:
    batches = batcher()
    assert not batches.has_ended_within(1)
    async with waiting(batches, order()):
        assert not batches.has_ended_within(1)
        temporal.ends[0].set()
        await settle()
        assert batches.has_ended_within(1)
