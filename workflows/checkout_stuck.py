"""An order whose undos keep failing: it is parked, and waits for an operator or the next round."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.orders import OperatorNote, Orders, ParkInput
from domain import policies
from domain.model import (
    CheckoutStatus,
    Ending,
    OrderStatus,
    Resolution,
    RetryRequest,
    Step,
    reason_problem,
    who_and_why,
)
from domain.text import tidy
from sagafence import (
    Compensation,
    InvalidInput,
    Irrevocable,
    Saga,
    StepAlreadyCompensated,
    find_cause,
    perform,
    wait_until,
)
from workflows.checkout_steps import CheckoutSteps, SagaStatus


class CheckoutStuck(CheckoutSteps):
    """Parking, and what an operator asks of a stuck order."""

    def __init__(self, saga: Saga) -> None:
        super().__init__(saga)
        self._review_lock = _ReviewLock(lambda: bool(self._question))

    async def _park(self, stuck: Sequence[Compensation]) -> Irrevocable | None:
        self._set_status(SagaStatus.STUCK, stuck[0].step)
        steps = [entry.step for entry in stuck]
        async with self._review_lock.held("parking", after="retry", patch="parking-after-the-retry"):
            try:
                park = ParkInput(self._undo_input(), steps, tidy(stuck[0].detail), bool(self._question))
                summary = f"Park: the undo of {', '.join(steps)} keeps failing"
                state = await perform(Orders.park_order, park, policies.RECORD, None, summary)
            except ActivityError as error:
                self._require_id_conflict(error)
                for step in steps:
                    self._saga.resolve(step, "the order id belongs to another order")
                return None
        if state.status == OrderStatus.COMPLETED and not state.active_steps:
            return Irrevocable(Step.SHIP, {"tracking_number": state.tracking_number})
        self._must_undo(state.active_steps)
        if state.status in {*Ending}:
            self._take_over_the_ending(steps, nothing_active=state.nothing_active)
        return None

    def _take_over_the_ending(self, stuck: Sequence[str], *, nothing_active: bool) -> None:
        """End as the order has: it was not parked, because another run has undone it."""
        if self._question:
            if workflow.patched("no-review-of-what-has-ended"):
                self._question = ""  # an operator has asked for it: there is nothing left to decide
                self._must_undo(stuck)
        # Runs that were open at the deploy wait on. Asked in each round, so that they end with their next one.
        elif nothing_active and workflow.patched(f"what-has-ended-is-not-stuck-{self._saga.rounds}"):
            for step in stuck:
                self._saga.resolve(step, "the order has ended, and nothing of this step is in effect")

    def _ends_stuck(self) -> bool:
        """Whether the server wants a new run: the history, or the number of updates, is near the server's limit."""
        if not (workflow.info().is_continue_as_new_suggested() and workflow.all_handlers_finished()):
            return False
        # As above.
        return workflow.patched(f"continue-as-new-when-stuck-{self._saga.rounds}")

    @workflow.update(description="Try the failed undos of a stuck order again, now")
    async def retry_compensation(self, request: RetryRequest | None = None) -> CheckoutStatus:
        """Run another round of the failed undos and return what came of it.

        An order that needs a review is undone from here on: who asks for it has looked at it.
        """
        await self._begun()
        info = workflow.current_update_info()
        assert info is not None
        why = who_and_why(request.by, request.reason) if request else ""
        note = OperatorNote(self._order, f"{why} (request {info.id})" if why else f"request {info.id}")
        async with self._review_lock.held("retry", after="parking", patch="retry-after-the-parking"):
            await perform(Orders.note_retry, note, policies.RECORD, None, "Log the operator's retry")
            self._question = ""
        self._saga.retry()
        await self._saga.round_ended()
        return self.status()

    @retry_compensation.validator
    def _validate_retry(self, request: RetryRequest | None = None) -> None:
        self._require_stuck()
        if request is not None and request.reason and (problem := reason_problem(request.reason)):
            raise InvalidInput(problem)

    @workflow.update(description="Count a stuck step as undone: an operator has undone it by hand")
    async def resolve_compensation(self, resolution: Resolution) -> CheckoutStatus:
        """Close the step's fence for good, log who resolved it and why, and let the saga go on."""
        await self._begun()
        note = OperatorNote(self._order, who_and_why(resolution.by, resolution.reason), resolution.step)
        summary = f"Resolve {resolution.step} on an operator's word"
        try:
            await perform(Orders.resolve_step, note, policies.RECORD, None, summary)
        except ActivityError as error:
            if not (refusal := find_cause(error, StepAlreadyCompensated.__name__)):
                raise
            raise InvalidInput(refusal.message) from None  # a round was faster
        self._saga.resolve(resolution.step, f"resolved by hand: {resolution.reason}")
        return self.status()

    @resolve_compensation.validator
    def _validate_resolve(self, resolution: Resolution) -> None:
        self._require_stuck()
        unsettled = self._saga.unsettled_steps if self._given else [step.value for step in Step]
        if resolution.step not in unsettled:
            raise InvalidInput(f"step {resolution.step!r} is not stuck; stuck: {', '.join(unsettled)}")
        if problem := reason_problem(resolution.reason):
            raise InvalidInput(problem)

    def _require_stuck(self) -> None:
        if self._saga.is_stuck:
            return
        if self._status is SagaStatus.STUCK:
            raise InvalidInput("all its undos are done by now, and the order is being closed: look again")
        raise InvalidInput(f"the order is {self._status}, not stuck: there is nothing to retry or resolve")

    async def _begun(self) -> None:
        """Wait until the run has its order: an update that came with its first task is taken before that."""
        if self._given is None:
            await wait_until(lambda: self._given is not None)


class _ReviewLock:
    """While an order needs a review, parking it and noting operators' retries take turns.

    Both write whether it needs one: a retry lifts the review, and a parking that was running must not come after it.
    Several retries may be noted at once.
    """

    def __init__(self, is_needed: Callable[[], bool]) -> None:
        self._is_needed = is_needed
        self._holders: Counter[str] = Counter()

    @asynccontextmanager
    async def held(self, by: str, *, after: str, patch: str) -> AsyncIterator[None]:
        """Hold it for one kind of write, after those of the other kind. Runs before the patch did not wait."""
        if self._holders[after] and self._is_needed() and workflow.patched(patch):
            await wait_until(lambda: not self._holders[after])
        self._holders[by] += 1
        try:
            yield
        finally:
            self._holders[by] -= 1
