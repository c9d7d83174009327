"""The checkout of one order: reserve, pay, ship; or everything undone."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.inventory import Inventory
    from activities.orders import OperatorNote, Orders, OrderState, ParkInput
    from activities.payments import Payments
    from activities.shipping import Shipping
    from domain import errors, policies
    from domain.model import (
        CheckoutInput,
        CheckoutStatus,
        Ending,
        Lane,
        OrderStatus,
        Reservation,
        Resolution,
        RetryRequest,
        Shipment,
        Step,
        StepView,
        UndoInput,
        format_money,
        reason_problem,
        tidy,
    )
    from domain.undo import UndoOutcome, UndoResult
    from workflows import wording
    from workflows.compensation import (
        Compensation,
        Completed,
        Irrevocable,
        Patience,
        Unwound,
        describe,
        find_cause,
    )
    from workflows.operation import Answer, perform
    from workflows.saga import Saga, wait_until


@workflow.defn(name=policies.CHECKOUT_WORKFLOW)
class CheckoutWorkflow:
    """The saga of one order. Its workflow id is `checkout-{order_id}`.

    It ends *completed* with a `CheckoutStatus`, *failed* as `OrderRejected` or `OrderCancelled`, or
    *cancelled* when the cancel came through Temporal; a failure carries the `CheckoutStatus` as its detail.
    An order whose undo keeps failing stays open as *stuck*, for `retry_compensation` and
    `resolve_compensation`.
    """

    def __init__(self) -> None:
        self._saga = Saga(
            patience=Patience(policies.STUCK_RETRY_FIRST, policies.STUCK_RETRY_LONGEST),
            on_change=self._show,
            on_unwind=self._unwind_begins,
            on_stuck=self._park,
        )
        self._order: CheckoutInput | None = None
        self._status = "running"
        self._ending = Ending.REJECTED
        self._reason: str | None = None
        self._cancel_reason: str | None = None
        self._reservation: Reservation | None = None
        self._tracking_number: str | None = None
        self._is_anothers_order = False
        self._doubt: str | None = None
        self._waits_for: str | None = None

    # The story ------------------------------------------------------------------------------------------

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        """Carry one order to its end.

        Raises:
            InvalidInput: the workflow has not the id of the order, under which everybody looks for it.
        """
        _require_own_workflow_id(order)
        self._order = order
        outcome = await self._saga.run(self._abandon() if order.repair else self._buy(order))
        if isinstance(outcome, Unwound):
            outcome = await self._saga.protect(self._close(outcome))
        if isinstance(outcome, Irrevocable):
            await self._saga.protect(self._complete(outcome))
        return await self._end(outcome)

    async def _buy(self, order: CheckoutInput) -> None:
        self._reservation = reservation = await self._saga.step(
            Step.RESERVE,
            do=lambda: self._do(
                Step.RESERVE, Inventory.reserve_inventory, policies.RESERVE, f"Reserve {order.summary}"
            ),
            undo=lambda: self._undo(Step.RESERVE),
            detail=lambda held: f"{order.summary}: {format_money(held.total_minor, held.currency)}",
        )
        total = format_money(reservation.total_minor, reservation.currency)
        await self._saga.step(
            Step.PAY,
            do=lambda: self._do(Step.PAY, Payments.charge_payment, policies.PAY, f"Charge {total} to {order.customer}"),
            undo=lambda: self._undo(Step.PAY),
            detail=lambda paid: paid.transfer_id,
        )
        shipment: Shipment = await self._saga.step(
            Step.SHIP,
            do=lambda: self._do(Step.SHIP, Shipping.ship_order, policies.SHIP, f"Ship to {order.customer}"),
            undo=lambda: self._undo(Step.SHIP),
            detail=lambda sent: f"{sent.tracking_number}, {sent.carrier}",
        )
        self._tracking_number = shipment.tracking_number

    async def _do(
        self,
        step: Step,
        activity: Callable[[Any, CheckoutInput], Awaitable[Answer]],
        policy: policies.ActivityPolicy,
        summary: str,
    ) -> Answer:
        order = self._known_order()
        try:
            return await perform(activity, order, policy, step.value, summary, lane=order.lane)
        except FailureError as error:
            if self._saga.is_cancel_requested or not (
                fault := find_cause(error, errors.DatabaseMisconfigured.__name__)
            ):
                raise
            waits_for = fault.message
        # Nobody's order is rejected for what an operator has to put right: the step waits, in everybody's sight.
        self._waits_for = tidy(f"waiting until it is put right: {waits_for}")
        workflow.upsert_search_attributes([policies.FAILED_STEP.value_set(step.value)])
        self._show()
        answer = await perform(activity, order, policies.ENVIRONMENT, f"{step.value}-waits", summary)
        self._waits_for = None
        workflow.upsert_search_attributes([policies.FAILED_STEP.value_unset()])
        self._show()
        return answer

    async def _abandon(self) -> None:
        """Do nothing, so that everything which an earlier, lost run may have done is undone."""
        self._must_undo_all([step.value for step in Step])
        order = self._known_order()
        if order.doubt:
            raise errors.DatabaseContradictsHistory(order.doubt)
        lost = "its workflow was terminated, timed out or lost; undone by the sweep"
        raise ApplicationError(order.reason or lost, type="Abandoned")

    def _must_undo_all(self, standing: Sequence[str]) -> None:
        for step in Step:
            if step in standing:
                self._saga.must_undo(step, partial(self._undo, step))

    # Undos ----------------------------------------------------------------------------------------------

    async def _undo(self, step: Step) -> UndoResult:
        if self._doubt is not None:
            raise errors.DatabaseContradictsHistory(self._doubt)
        order, held = self._known_order(), self._reservation
        total = f" {format_money(held.total_minor, held.currency)}" if held else ""
        undos: dict[Step, tuple[Callable[[Any, UndoInput], Awaitable[UndoResult]], str]] = {
            Step.RESERVE: (Inventory.release_inventory, f"↩ Release {order.summary}"),
            Step.PAY: (Payments.refund_payment, f"↩ Refund{total}"),
            Step.SHIP: (Shipping.cancel_shipment, "↩ Cancel the shipment"),
        }
        undo, summary = undos[step]
        # A round of its own gets an activity id of its own: the history shows which try was which.
        entry = next(entry for entry in self._saga.compensations if entry.step == step)
        activity_id = f"undo-{step}" if entry.rounds == 1 else f"undo-{step}-{entry.rounds}"
        try:
            return await perform(undo, self._undo_input(), policies.UNDO, activity_id, summary)
        except ActivityError as error:
            self._require_anothers_order(error)
            return UndoResult(UndoOutcome.NOTHING_TO_UNDO)

    def _undo_input(self) -> UndoInput:
        return UndoInput(self._known_order(), self._ending, self._reason or "")

    def _known_order(self) -> CheckoutInput:
        assert self._order is not None
        return self._order

    # Endings --------------------------------------------------------------------------------------------

    def _unwind_begins(self, cause: BaseException | None, failed_step: str | None) -> None:
        if cause is None:
            self._ending = Ending.CANCELLED
            asked = self._cancel_reason or workflow.cancellation_reason() or "no reason given"
            self._reason = tidy(f"cancelled: {asked}")
        else:
            self._ending = Ending.REJECTED
            self._reason = tidy(describe(cause))
            if contradiction := find_cause(cause, errors.DatabaseContradictsHistory.__name__):
                self._doubt = contradiction.message
        if (order := self._known_order()).repair:  # the unwind began in an earlier run, or in a batch
            self._ending = order.ending or Ending.CANCELLED
            self._reason = tidy(order.reason) or self._reason
            self._doubt = order.doubt or None
        self._set_status(OrderStatus.UNWINDING, failed_step)

    async def _park(self, stuck: Sequence[Compensation]) -> Irrevocable | None:
        self._set_status(OrderStatus.STUCK, stuck[0].step)
        steps = [entry.step for entry in stuck]
        try:
            state = await perform(
                Orders.park_order,
                ParkInput(self._undo_input(), steps, tidy(stuck[0].detail), needs_review=self._doubt is not None),
                policies.RECORD,
                None,
                f"Park: the undo of {', '.join(steps)} keeps failing",
            )
        except ActivityError as error:
            self._require_anothers_order(error)
            for step in steps:
                self._saga.resolve(step, "the order id belongs to another order")
            return None
        if state.status == OrderStatus.COMPLETED and not state.standing:
            return Irrevocable(Step.SHIP, {"tracking_number": state.tracking_number})
        self._must_undo_all(state.standing)
        if self._doubt is not None and state.status in {*Ending} and workflow.patched("no-review-of-what-has-ended"):
            self._doubt = None  # another run has undone it, on an operator's word: there is nothing left to decide
            self._must_undo_all(steps)
        return None

    async def _close(self, unwound: Unwound) -> Unwound | Irrevocable:
        """Write the ending; first undo what an earlier, lost run of this order may have left standing."""
        while not self._is_anothers_order:
            try:
                state: OrderState = await perform(
                    Orders.close_order,
                    self._undo_input(),
                    policies.RECORD,
                    "close",
                    f"Close the order as {self._ending}",
                )
            except ActivityError as error:
                self._require_anothers_order(error)
                break
            if not state.standing:
                self._reason = state.reason
                self._set_status(OrderStatus(state.status))
                return unwound
            self._must_undo_all(state.standing)
            if found := await self._saga.unwind_more():
                return found
        self._set_status(OrderStatus(self._ending))
        return unwound

    def _require_anothers_order(self, error: ActivityError) -> None:
        """Note that the order id belongs to another order, or raise the error where it says something else.

        No step of ours can have taken effect under such an id, or ever will.
        """
        if not find_cause(error, errors.IdempotencyMismatch.__name__):
            raise error
        self._is_anothers_order = True

    async def _complete(self, found: Irrevocable) -> None:
        """Go forward: the parcel is gone, whatever somebody asked for."""
        self._reason = None
        self._tracking_number = found.stored.get("tracking_number")
        await perform(
            Orders.complete_order,
            self._known_order(),
            policies.RECORD,
            "complete",
            "Complete the order: its parcel was handed over",
        )

    async def _end(self, outcome: Completed[None] | Unwound | Irrevocable) -> CheckoutStatus:
        if isinstance(outcome, Completed) and self._known_order().lane is Lane.FAST:
            self._status = OrderStatus.COMPLETED.value  # that the run completed says it as well: an event less
            self._show()
        elif not isinstance(outcome, Unwound):
            self._set_status(OrderStatus.COMPLETED)
        # An update that is still being answered would be cut off by the end of the run.
        await wait_until(workflow.all_handlers_finished)
        status = self.status()
        if not isinstance(outcome, Unwound) or self._status == OrderStatus.COMPLETED:
            return status
        message = wording.failure(status, outcome)
        if outcome.cause is None and workflow.cancellation_reason() is not None:
            raise CancelledError(message)
        if self._status == OrderStatus.CANCELLED:
            raise errors.OrderCancelled(message, details=[status]) from outcome.cause
        raise errors.OrderRejected(message, details=[status]) from outcome.cause

    # What people see ------------------------------------------------------------------------------------

    def _set_status(self, status: OrderStatus, failed_step: str | None = None) -> None:
        self._status = status.value
        attributes = [policies.ORDER_STATUS.value_set(status.value)]
        if failed_step:
            attributes.append(policies.FAILED_STEP.value_set(failed_step))
        workflow.upsert_search_attributes(attributes)
        self._show()

    def _show(self) -> None:
        """Bring the UI's current details up to date. Costs no history."""
        workflow.set_current_details(wording.details(self.status(), self._saga.stuck_steps))

    @workflow.query(description="Where the order stands, step by step")
    def status(self) -> CheckoutStatus:
        """Answer with the order's state, step by step."""
        order = self._order
        reservation = self._reservation
        return CheckoutStatus(
            order_id=order.order_id if order else policies.order_id_of(workflow.info().workflow_id),
            status=self._status,
            reason=self._reason or self._waits_for,
            total_minor=reservation.total_minor if reservation else None,
            currency=reservation.currency if reservation else None,
            tracking_number=self._tracking_number,
            steps=[StepView(e.step, e.state, e.detail) for e in self._saga.compensations],
        )

    # What people ask for --------------------------------------------------------------------------------

    @workflow.update(description="Cancel the order, with a reason; refused once it is being undone")
    def cancel(self, reason: str) -> None:
        """Ask for the order to be undone. Whether that was in time shows in how the saga ends."""
        self._cancel_reason = self._cancel_reason or reason
        self._saga.cancel()

    @cancel.validator
    def _validate_cancel(self, reason: str) -> None:
        if problem := reason_problem(reason):
            raise errors.InvalidInput(problem)
        if self._saga.is_unwinding or self._status != "running":
            raise errors.InvalidInput(f"the order is {self._status} already: {self._reason or 'too late to cancel'}")

    @workflow.update(description="Try the failed undos of a stuck order again, now")
    async def retry_compensation(self, request: RetryRequest | None = None) -> CheckoutStatus:
        """Run another round of the failed undos and answer with what came of it.

        An order that needs a review is undone from here on: asking for it says that somebody has looked.
        """
        info = workflow.current_update_info()
        assert info is not None
        request = request or RetryRequest()
        why = ": ".join(filter(None, (request.by, request.reason)))
        await perform(
            Orders.note_retry,
            OperatorNote(self._known_order(), f"{why} (request {info.id})" if why else f"request {info.id}"),
            policies.RECORD,
            None,
            "Log the operator's retry",
        )
        self._doubt = None
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
        try:
            await perform(
                Orders.resolve_step,
                OperatorNote(self._known_order(), resolution.reason, resolution.step),
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
        if resolution.step not in self._saga.stuck_steps:
            raise errors.InvalidInput(
                f"step {resolution.step!r} is not stuck; stuck: {', '.join(self._saga.stuck_steps)}"
            )
        if problem := reason_problem(resolution.reason):
            raise errors.InvalidInput(problem)

    def _require_stuck(self) -> None:
        if not self._saga.is_stuck:
            raise errors.InvalidInput(f"the order is {self._status}, not stuck: there is nothing to retry or resolve")


def _require_own_workflow_id(order: CheckoutInput) -> None:
    """Refuse a run that `status` could not find, and that the sweep would take for lost while it lives."""
    own, given = policies.checkout_workflow_id(order.order_id), workflow.info().workflow_id
    # Nothing is recorded for a run with the right id; one that was open under another before this check goes on.
    if given != own and workflow.patched("refuse-a-foreign-workflow-id"):
        raise errors.InvalidInput(
            f"the saga of order {order.order_id} has the workflow id {own}, not {tidy(given, 100)}: start it under that"
        )
