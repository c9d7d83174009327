"""The checkout of one order: reserve, pay, ship; or everything undone."""

from dataclasses import replace
from typing import NoReturn

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

with workflow.unsafe.imports_passed_through():
    from activities.orders import Orders
    from domain import errors, policies
    from domain.model import (
        CheckoutInput,
        CheckoutStatus,
        Ending,
        ExecutionMode,
        Shipment,
        Step,
        reason_problem,
        who_and_why,
    )
    from domain.text import tidy
    from sagafence import (
        Completed,
        InvalidInput,
        Irrevocable,
        RetryBackoff,
        Saga,
        StillStuck,
        Unwound,
        describe,
        find_cause,
        perform,
        wait_until,
    )
    from workflows import wording
    from workflows.checkout_steps import SagaStatus, is_continuation
    from workflows.checkout_stuck import CheckoutStuck


@workflow.defn(name=policies.CHECKOUT_WORKFLOW)
class CheckoutWorkflow(CheckoutStuck):
    """The saga of one order. Its workflow id is `checkout-{order_id}`.

    It ends *completed* with a `CheckoutStatus`; *failed* as `OrderRejected` or `OrderCancelled`, which carry the
    `CheckoutStatus` as their detail; or *cancelled*, without one, when the unwind began by a cancel through Temporal.
    Under another workflow id than its own it fails as `InvalidInput`, and does nothing.
    An order whose undo keeps failing stays open as *stuck*, for `retry_compensation` and
    `resolve_compensation`; where its history grows too long, in a run that goes on where this one ended.
    """

    def __init__(self) -> None:
        super().__init__(
            Saga(
                backoff=RetryBackoff(policies.STUCK_RETRY_FIRST, policies.STUCK_RETRY_LONGEST),
                on_change=self._show,
                on_unwind=self._unwind_begins,
                on_stuck=self._park,
                ends_stuck=self._ends_stuck,
                is_resumed=is_continuation(),
            )
        )

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        """Do one order, or undo it.

        Raises:
            InvalidInput: the workflow does not have the id under which every caller looks for the order.
        """
        _require_own_workflow_id(order)
        self._given, self._question = order, order.review_reason if order.repair else ""
        story = self._abandon() if order.repair else self._buy()
        outcome = await self._saga.run(story, is_partly_undone=order.is_partly_undone)
        if isinstance(outcome, Unwound):
            outcome = await self._saga.cancellation.protect(self._close(outcome))
        if isinstance(outcome, StillStuck):
            self._continue_as_new(outcome)
        if isinstance(outcome, Irrevocable):
            await self._saga.cancellation.protect(self._complete(outcome))
        return await self._end(outcome)

    async def _buy(self) -> None:
        self._reservation = await self._do(Step.RESERVE)
        await self._do(Step.PAY)
        shipment: Shipment = await self._do(Step.SHIP)
        self._tracking_number = shipment.tracking_number

    async def _abandon(self) -> None:
        """Do nothing, so that everything which an earlier, lost run may have done is undone."""
        self._must_undo([step.value for step in Step])
        if self._question:
            raise errors.DatabaseContradictsHistory(self._question)
        lost = "its workflow was terminated, timed out or lost; undone by the sweep"
        raise ApplicationError(self._order.reason or lost, type="Abandoned")

    @workflow.update(description="Cancel the order, with a reason; refused once it is being undone")
    def cancel(self, reason: str, by: str = "") -> None:
        """Ask for the order to be undone. Whether that was in time shows in how the saga ends.

        `by` says who asks. A starter of an earlier release sends the reason alone.
        """
        self._saga.cancellation.request(who_and_why(by, reason))

    @cancel.validator
    def _validate_cancel(self, reason: str, by: str = "") -> None:  # noqa: ARG002 - taken as it is, and made fit
        if problem := reason_problem(reason):
            raise InvalidInput(problem)
        if self._status is not SagaStatus.RUNNING:
            raise InvalidInput(f"the order is {self._status} already: {self._reason or 'too late to cancel'}")

    def _unwind_begins(self, cause: BaseException | None, failed_step: str | None) -> None:
        self._ending = Ending.REJECTED if cause else Ending.CANCELLED
        self._reason = tidy(describe(cause) if cause else f"cancelled: {self._saga.cancellation.reason}")
        self._is_cancelled_by_temporal = cause is None and self._saga.cancellation.is_from_temporal
        if (order := self._order).repair:  # who started it may have said why, and how the order is to end
            self._ending = order.ending or Ending.CANCELLED
            self._reason = tidy(order.reason) or self._reason
        elif contradiction := find_cause(cause, errors.DatabaseContradictsHistory.__name__):
            self._question = contradiction.message
        if not is_continuation():
            self._set_status(SagaStatus.UNWINDING, failed_step)

    def _continue_as_new(self, left: StillStuck) -> NoReturn:
        """The next run undoes, behind the fences, what is not undone yet, and parks the order again."""
        order = replace(
            self._order,
            repair=True,
            review_reason=self._question,
            reason=self._reason or "",
            ending=self._ending,
            is_partly_undone=left.is_partly_undone,
        )
        workflow.continue_as_new(order)

    async def _close(self, unwound: Unwound) -> Unwound | Irrevocable | StillStuck:
        """Write the ending; first undo what an earlier, lost run of this order may have left in effect."""
        while not self._has_id_conflict:
            try:
                summary = f"Close the order as {self._ending}"
                state = await perform(Orders.close_order, self._undo_input(), policies.RECORD, "close", summary)
            except ActivityError as error:
                self._require_id_conflict(error)
                break
            if not state.active_steps:
                self._reason = state.reason
                # A row that was changed by hand meanwhile may be at a status which no saga has.
                self._set_status(SagaStatus(state.status if state.status in {*SagaStatus} else self._ending))
                return unwound
            self._must_undo(state.active_steps)
            if other_end := await self._saga.unwind_more():
                return other_end
        self._set_status(SagaStatus(self._ending))
        return unwound

    async def _complete(self, found: Irrevocable) -> None:
        """Go forward: the parcel is gone, whatever was asked for."""
        self._reason = None
        self._tracking_number = found.stored.get("tracking_number")
        summary = "Complete the order: its parcel was handed over"
        await perform(Orders.complete_order, self._order, policies.RECORD, "complete", summary)

    async def _end(self, outcome: Completed[None] | Unwound | Irrevocable) -> CheckoutStatus:
        if isinstance(outcome, Completed) and self._order.execution_mode is ExecutionMode.LOCAL_FIRST:
            self._status = SagaStatus.COMPLETED  # that the run completed says it as well: an event less
            self._show()
        elif not isinstance(outcome, Unwound):
            self._set_status(SagaStatus.COMPLETED)
        # An update that is still being answered would be cut off by the end of the run.
        await wait_until(workflow.all_handlers_finished)
        status = self.status()
        if not isinstance(outcome, Unwound) or self._status is SagaStatus.COMPLETED:
            return status
        message = wording.failure(status, outcome)
        if self._is_cancelled_by_temporal or self._was_cancelled_later(outcome):
            raise CancelledError(message)
        if self._status is SagaStatus.CANCELLED:
            raise errors.OrderCancelled(message, details=[status]) from outcome.cause
        raise errors.OrderRejected(message, details=[status]) from outcome.cause

    def _was_cancelled_later(self, outcome: Unwound) -> bool:
        """Whether the run is from before the patch: a cancel by Temporal during the unwind then changed its end."""
        is_later = outcome.cause is None and self._saga.cancellation.is_from_temporal
        return is_later and not workflow.patched("later-cancel-changes-nothing")


def _require_own_workflow_id(order: CheckoutInput) -> None:
    """Refuse a run that `status` could not find, and that the sweep would take for lost while it lives."""
    own, given = policies.checkout_workflow_id(order.order_id), workflow.info().workflow_id
    # Nothing is recorded for a run with the right id; one that was open under another before this check goes on.
    if given != own and workflow.patched("refuse-a-foreign-workflow-id"):
        raise InvalidInput(
            f"the saga of order {order.order_id} has the workflow id {own}, not {tidy(given, 100)}: start it under that"
        )
