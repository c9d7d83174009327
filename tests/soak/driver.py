"""Starts the planned orders and batches in their sequence, and follows each order to its end.

An order costs one start and one long poll for its close event, and so does a batch; a slot is free again when its
order has ended, or when it waits for a sweep or for the operator.
"""

import asyncio
from collections.abc import Awaitable

from temporalio.client import Client

from tests.soak.book import Book
from tests.soak.harness import Harness, SoakFailed
from tests.soak.injector import FaultInjector
from tests.soak.loads import Loads
from tests.soak.plan import Plan, PlannedBatch, PlannedOrder
from tests.soak.repeats import Repeats
from tests.soak.requests import PAUSE_SECONDS, Operator, Requests
from tests.soak.sagas import Sagas

_SLOT_SECONDS = 5.0
_BATCHES_AT_ONCE = 4


class Driver:
    def __init__(self, harness: Harness, plan: Plan, client: Client, book: Book, injector: FaultInjector) -> None:
        self._plan = plan
        self._book = book
        self._injector = injector
        self._requests = Requests(harness, plan, client, book)
        self._operator = Operator(self._requests)
        self._sagas = Sagas(self._requests, self._operator)
        self._loads = Loads(self._requests, self._operator, self._sagas, injector)
        self._repeats = Repeats(self._requests, self._sagas)
        self._batches = asyncio.Semaphore(_BATCHES_AT_ONCE)
        self._begun = -1
        self.open: set[int] = set()

    async def run(self, concurrency: int) -> None:
        slots = asyncio.Semaphore(concurrency)
        async with self._requests.door, asyncio.TaskGroup() as watch:
            watching = watch.create_task(self._operator.watch())
            async with asyncio.TaskGroup() as play:
                play.create_task(self._restock())
                for unit in self._plan.units():
                    if isinstance(unit, PlannedBatch):
                        await self._batches.acquire()
                        await self._injector.reach(unit.first)
                        play.create_task(self._carry(unit, play))
                    else:
                        await slots.acquire()
                        await self._injector.reach(unit.number)
                        play.create_task(self._serve(unit, slots, play))
            watching.cancel()

    async def _serve(self, planned: PlannedOrder, slots: asyncio.Semaphore, play: asyncio.TaskGroup) -> None:
        self.open.add(planned.number)
        await self._sagas.begin(planned)
        self._acknowledge(planned)
        following = play.create_task(self._until_ended(planned, self._sagas.follow(planned)))
        # Who waits for a sweep or for the operator does not hold a slot meanwhile.
        waits_for_people = planned.broken or planned.is_by_hand or planned.interruption
        await asyncio.wait([following], timeout=_SLOT_SECONDS if waits_for_people else None)
        slots.release()

    async def _carry(self, batch: PlannedBatch, play: asyncio.TaskGroup) -> None:
        orders = [self._plan.order(number) for number in batch.numbers]
        self.open.update(batch.numbers)
        outcomes = await self._loads.process(batch, orders)
        following = []
        for planned, outcome in zip(orders, outcomes, strict=True):
            if outcome.order_id != planned.order.order_id:
                raise SoakFailed(f"a batch was asked for {planned.order.order_id}, and tells of {outcome.order_id}")
            self._acknowledge(planned)
            following.append(play.create_task(self._until_ended(planned, self._loads.follow(planned, outcome))))
        self._batches.release()
        await asyncio.gather(*following)
        await self._repeats.load_anew(batch, orders)

    def _acknowledge(self, planned: PlannedOrder) -> None:
        self._book.acknowledged.add(planned.number)
        self._begun = max(self._begun, planned.number)

    async def _until_ended(self, planned: PlannedOrder, following: Awaitable[None]) -> None:
        await following
        await self._repeats.run_again(planned)
        self.open.discard(planned.number)
        if self._book.problems:
            raise SoakFailed("; ".join(self._book.problems))

    async def _restock(self) -> None:
        for at, sku, units in self._plan.restocks():
            while self._begun < at:
                await asyncio.sleep(PAUSE_SECONDS)
            await self._requests.persist(lambda at=at, sku=sku, units=units: self._requests.deliver(at, sku, units))  # type: ignore[misc]
            self._book.model.restock(sku, units)
