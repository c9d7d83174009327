"""What people ask of an order's saga: the updates cancel, retry and resolve."""

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.orders import OperatorNote, Orders
from domain import errors, policies
from domain.model import CheckoutStatus, OrderStatus, Resolution, RetryRequest, Step, reason_problem, who_and_why
from workflows.checkout_state import CheckoutState
from workflows.compensation import find_cause
from workflows.operation import perform
from workflows.saga import wait_until


class CheckoutUpdates(CheckoutState):
    """The three updates of a checkout, each with the validator that refuses it before anything is recorded."""

    @workflow.update(description="Cancel the order, with a reason; refused once it is being undone")
    def cancel(self, reason: str, by: str = "") -> None:
        """Ask for the order to be undone. Whether that was in time shows in how the saga ends.

        `by` says who asks. A starter of an earlier release sends the reason alone.
        """
        self._cancel_reason = self._cancel_reason or who_and_why(by, reason)
        self._saga.cancel()

    @cancel.validator
    def _validate_cancel(self, reason: str, by: str = "") -> None:  # noqa: ARG002 - taken as it is, and made fit
        if problem := reason_problem(reason):
            raise errors.InvalidInput(problem)
        if self._saga.is_unwinding or self._status != "running":
            raise errors.InvalidInput(f"the order is {self._status} already: {self._reason or 'too late to cancel'}")

    @workflow.update(description="Try the failed undos of a stuck order again, now")
    async def retry_compensation(self, request: RetryRequest | None = None) -> CheckoutStatus:
        """Run another round of the failed undos and answer with what came of it.

        An order that needs a review is undone from here on: asking for it says that somebody has looked.
        """
        await self._begun()
        info = workflow.current_update_info()
        assert info is not None
        request = request or RetryRequest()
        if self._is_being_parked and self._doubt is not None and workflow.patched("retry-after-the-parking"):
            # What the parking writes, that a review is needed, would come after the operator's word that lifts it.
            await wait_until(lambda: not self._is_being_parked)
        why = who_and_why(request.by, request.reason)
        self._retries_being_noted += 1
        try:
            await perform(
                Orders.note_retry,
                OperatorNote(self._known_order(), f"{why} (request {info.id})" if why else f"request {info.id}"),
                policies.RECORD,
                None,
                "Log the operator's retry",
            )
            self._doubt = None
        finally:
            self._retries_being_noted -= 1
        self._saga.retry()
        await self._saga.round_ended()
        return self.status()

    @retry_compensation.validator
    def _validate_retry(self, request: RetryRequest | None = None) -> None:
        self._require_stuck()
        if request is not None and request.reason and (problem := reason_problem(request.reason)):
            raise errors.InvalidInput(problem)

    @workflow.update(description="Count a stuck step as undone: somebody settled it by hand")
    async def resolve_compensation(self, resolution: Resolution) -> CheckoutStatus:
        """Close the step's fence for good, log who said why, and let the saga go on."""
        await self._begun()
        try:
            await perform(
                Orders.resolve_step,
                OperatorNote(self._known_order(), who_and_why(resolution.by, resolution.reason), resolution.step),
                policies.RECORD,
                None,
                f"Resolve {resolution.step} on an operator's word",
            )
        except ActivityError as error:
            if not (refusal := find_cause(error, errors.StepAlreadyCompensated.__name__)):
                raise
            raise errors.InvalidInput(refusal.message) from None  # a round was faster
        self._saga.resolve(resolution.step, f"resolved by hand: {resolution.reason}")
        return self.status()

    @resolve_compensation.validator
    def _validate_resolve(self, resolution: Resolution) -> None:
        self._require_stuck()
        unsettled = self._saga.unsettled_steps if self._order else [step.value for step in Step]
        if resolution.step not in unsettled:
            raise errors.InvalidInput(f"step {resolution.step!r} is not stuck; stuck: {', '.join(unsettled)}")
        if problem := reason_problem(resolution.reason):
            raise errors.InvalidInput(problem)

    def _require_stuck(self) -> None:
        if not self._saga.is_stuck and self._status == OrderStatus.STUCK:
            raise errors.InvalidInput("all its undos are done by now, and the order is being closed: look again")
        if not self._saga.is_stuck:
            raise errors.InvalidInput(f"the order is {self._status}, not stuck: there is nothing to retry or resolve")

    async def _begun(self) -> None:
        """Wait until the run has its order: an update that came with its first task is taken before that."""
        if self._order is None:
            await wait_until(lambda: self._order is not None)
