"""One saga under test: its workers, the conditions to wait for, and the checks of its end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import TerminatedError
from temporalio.exceptions import TimeoutError as WorkflowTimeoutError
from temporalio.service import RPCError, RPCStatusCode

from sagafence.testing.cases import Case, Ending
from sagafence.testing.description import Counts, Handle, SagaUnderTest
from sagafence.testing.faults import Faults, Gate
from sagafence.testing.plan import Bounds
from sagafence.testing.verdict import BrokenPromise, broken
from sagafence.testing.words import difference, in_words

T = TypeVar("T")
_POLL_SECONDS = 0.05

_QUIET_SECONDS = 2.0
"""How long an attempt that goes on after the end of its saga is waited for."""

# A worker that stops may first wait for the end of a long poll, which is a minute away at most.
_STOPS_WITHIN_SECONDS = 90.0


class Trial:
    """What the cases are played with."""

    def __init__(self, case: Case, saga: SagaUnderTest, handle: Handle, before: Counts) -> None:
        self.case = case
        self.saga = saga
        self.handle = handle
        self.faults = Faults(handle.id, (name for step in case.plan.steps for name in (step.do, step.undo) if name))
        self._before = before

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker inside the block; attempts that are still held at its end are lost."""
        worker = self.saga.worker([self.faults])
        await worker.__aenter__()
        try:
            yield
        finally:
            await self.in_time(
                self.faults.stop(worker),
                "A worker stops when it is asked to: the saga swallows its own eviction.",
                timeout_seconds=max(self.saga.timeout_seconds, _STOPS_WITHIN_SECONDS),
            )

    # What can be waited for ------------------------------------------------------------------------------

    async def held(self, gate: Gate, *, effect: Bounds | None = None) -> None:
        """Wait until an attempt is held, with this effect so far."""
        await self.happens(gate.has_held)
        if effect is not None:
            change = await self.change()
            self.require(
                effect.allow(change),
                f"The effects are as the steps describe them: {effect}.",
                in_words(change),
            )

    async def happens(self, event: asyncio.Event) -> None:
        """Wait for something that the saga has to do before it ends."""
        promise = "The saga does every step, and undoes every step that it began, before it ends."
        await self.until(event, promise)
        self.require(event.is_set(), promise, "it ended without calling the activity")

    async def until(
        self, event: asyncio.Event, promise: str = "The saga goes on.", *, at_most_seconds: float | None = None
    ) -> None:
        """Wait for something, or the end of the saga, or for a while."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._closed())]
        waiting = asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=at_most_seconds)
        try:
            await self.in_time(waiting, promise)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def let_go(self, gate: Gate) -> BaseException | None:
        """Let a late attempt act, and return what it raised."""
        gate.open()
        await self.in_time(gate.has_ended.wait(), "An activity ends.")
        return gate.error

    async def taken(self, ask: Awaitable[object]) -> bool:
        """Ask the saga for something, and return whether it took it or refused, as one that has ended does."""
        try:
            await self.in_time(ask, "The saga answers requests.")
        except WorkflowUpdateFailedError:
            return False
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True

    async def retried(self) -> None:
        """Have a stuck saga try again, as soon as it is stuck; return as well when it has ended."""
        assert self.saga.retry is not None, "undo-stuck needs SagaUnderTest.retry"
        deadline = asyncio.get_running_loop().time() + self.saga.timeout_seconds
        while await self.is_running() and not await self.taken(self.saga.retry(self.handle)):
            self.require(
                asyncio.get_running_loop().time() < deadline,
                "A saga whose undo fails for good is stuck, and takes a retry.",
                "it refuses the retry",
            )
            await asyncio.sleep(_POLL_SECONDS)

    async def is_running(self) -> bool:
        """Whether the workflow is open."""
        description = await self.handle.describe()
        return description.close_time is None

    async def change(self) -> Counts:
        """Probe by how much the world has changed."""
        return difference(self._before, await self.saga.probe(self.handle.id))

    # Checks of the end ------------------------------------------------------------------------------------

    async def ended(self) -> Ending:
        """Wait for the end of the saga, check it, and return how it ended."""
        ending = await self._ending()
        self.require(
            self.case.ending in {ending, Ending.EITHER},
            f"The saga ends {self.case.ending}.",
            f"it ended {ending}",
        )
        await self.quiet()
        await self.is_all_or_nothing(ending)
        self._require_order()
        self._require_local()
        return ending

    async def quiet(self) -> None:
        """Wait for attempts that nobody waited for, and that may act still; not for those that are held up."""
        for _ in range(int(_QUIET_SECONDS / _POLL_SECONDS)):
            if not self._is_at_work():
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _is_at_work(self) -> bool:
        held_by_provider = self.saga.provider.held_up if self.saga.provider else 0
        return self.faults.at_work > held_by_provider

    async def is_all_or_nothing(self, ending: Ending) -> None:
        """Check the world after the end."""
        change = await self.change()
        if ending is Ending.COMPLETED:
            whole = self.case.whole_effect
            promise = f"A saga that completes has each effect once: {in_words(whole)}."
            self.require(change == whole, promise, in_words(change))
        else:
            self.require(not change, "A saga that does not complete leaves nothing behind.", in_words(change))

    def _require_order(self) -> None:
        """Check that no step was undone before one that followed it: by the first attempts of the undos."""
        if not self.saga.undoes_in_order:
            return
        plan, began = self.case.plan, list(self.faults.attempts)  # the first that was seen first
        undone = sorted((step for step in plan.steps if step.undo in began), key=lambda step: began.index(step.undo))
        for n, step in enumerate(undone):
            for later in undone[n + 1 :]:
                self.require(
                    not plan.precedes(step, later),
                    "Steps are undone backwards: each before those that it followed.",
                    f"{step.undo} was called before {later.undo}",
                )

    def _require_local(self) -> None:
        """Check that a step that says so has a local attempt: it is where the fault was injected, or before that."""
        step = self.case.step
        if step is not None and step.is_local_first and self.faults.attempts[step.do]:
            self.require(
                self.faults.local_attempts[step.do] > 0,
                "A case proves nothing unless the step is tried as a local activity first: it says `is_local_first`.",
                f"every attempt of {step.do} was an ordinary one",
            )

    def require(self, is_kept: bool, promise: str, found: str) -> None:
        """Raise when a promise is broken."""
        if not is_kept:
            raise self._broken(promise, found)

    def _broken(self, promise: str, found: str) -> BrokenPromise:
        locally = self.faults.local_attempts
        seen = ", ".join(
            f"{name} {count}" + (f" ({locally[name]} local)" if locally[name] else "")
            for name, count in self.faults.attempts.items()
        )
        return broken(self.case, self.handle.id, promise, found, seen)

    async def _ending(self) -> Ending:
        try:
            result = await self.in_time(self.handle.result(), "The saga ends.")
        except WorkflowFailureError as failed:
            self.require(
                not isinstance(failed.cause, (TerminatedError, WorkflowTimeoutError)),
                "A saga ends by itself: one that is terminated or timed out undoes nothing.",
                repr(failed.cause),
            )
            return Ending.UNDONE
        return Ending.COMPLETED if self.saga.is_completed(result) else Ending.UNDONE

    async def _closed(self) -> None:
        with contextlib.suppress(WorkflowFailureError):
            await self.handle.result()

    async def in_time(self, awaitable: Awaitable[T], promise: str, *, timeout_seconds: float | None = None) -> T:
        """Wait for something that comes in time, or a promise is broken."""
        limit = timeout_seconds or self.saga.timeout_seconds
        try:
            async with asyncio.timeout(limit) as timeout:
                return await awaitable
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._broken(promise, f"not within {limit} s; {await self._pending()}") from None

    async def _pending(self) -> str:
        """Describe what the workflow waits for."""
        description = await self.handle.describe()
        raw = description.raw_description
        waits = [
            f"{one.activity_type.name}, attempt {one.attempt} {one.last_failure.message}".rstrip()
            for one in raw.pending_activities
        ]
        if raw.pending_workflow_task.attempt > 1:
            waits.append(f"its own code, which failed {raw.pending_workflow_task.attempt - 1} times: see the log")
        status = description.status.name.lower() if description.status else "gone"
        return f"the workflow is {status}, waiting for {'; '.join(waits) or 'nothing that it has begun'}"
