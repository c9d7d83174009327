"""The checkout of one order: reserve, pay, ship; or everything undone."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.inventory import Inventory
    from activities.orders import Orders, OrderState, ParkInput
    from activities.payments import Payments
    from activities.shipping import Shipping
    from domain import errors, policies, summaries
    from domain.model import (
        CheckoutInput,
        CheckoutStatus,
        Ending,
        Lane,
        OrderStatus,
        Shipment,
        Step,
        UndoInput,
        format_money,
    )
    from domain.text import for_summary, tidy
    from domain.undo import UndoOutcome, UndoResult
    from workflows import wording
    from workflows.checkout_state import is_continuation
    from workflows.checkout_updates import CheckoutUpdates
    from workflows.compensation import (
        Compensation,
        Completed,
        Irrevocable,
        Patience,
        StillStuck,
        Unwound,
        describe,
        find_cause,
    )
    from workflows.operation import Answer, perform
    from workflows.saga import Saga, wait_until


@workflow.defn(name=policies.CHECKOUT_WORKFLOW)
class CheckoutWorkflow(CheckoutUpdates):
    """The saga of one order. Its workflow id is `checkout-{order_id}`.

    It ends *completed* with a `CheckoutStatus`, *failed* as `OrderRejected` or `OrderCancelled`, or
    *cancelled* when the cancel came through Temporal; a failure carries the `CheckoutStatus` as its detail.
    An order whose undo keeps failing stays open as *stuck*, for `retry_compensation` and
    `resolve_compensation`; where its history grows too long, in a run that goes on where this one ended.
    """

    def __init__(self) -> None:
        saga = Saga(
            patience=Patience(policies.STUCK_RETRY_FIRST, policies.STUCK_RETRY_LONGEST),
            on_change=self._show,
            on_unwind=self._unwind_begins,
            on_stuck=self._park,
            ends_stuck=self._ends_stuck,
            is_resumed=is_continuation(),
        )
        super().__init__(saga)

    # The story ------------------------------------------------------------------------------------------

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        """Carry one order to its end.

        Raises:
            InvalidInput: the workflow has not the id of the order, under which everybody looks for it.
        """
        _require_own_workflow_id(order)
        self._order = order
        story = self._abandon() if order.repair else self._buy(order)
        outcome = await self._saga.run(story, is_partly_undone=order.is_partly_undone)
        if isinstance(outcome, Unwound):
            outcome = await self._saga.protect(self._close(outcome))
        if isinstance(outcome, StillStuck):
            self._go_on_in_another_run(outcome)
        if isinstance(outcome, Irrevocable):
            await self._saga.protect(self._complete(outcome))
        return await self._end(outcome)

    async def _buy(self, order: CheckoutInput) -> None:
        self._reservation = reservation = await self._saga.step(
            Step.RESERVE,
            do=lambda: self._do(
                Step.RESERVE, Inventory.reserve_inventory, policies.RESERVE, f"Reserve {summaries.goods(order)}"
            ),
            undo=lambda: self._undo(Step.RESERVE),
            detail=lambda held: f"{order.summary}: {format_money(held.total_minor, held.currency)}",
        )
        total = format_money(reservation.total_minor, reservation.currency)
        customer = for_summary(order.customer)
        await self._saga.step(
            Step.PAY,
            do=lambda: self._do(Step.PAY, Payments.charge_payment, policies.PAY, f"Charge {total} to {customer}"),
            undo=lambda: self._undo(Step.PAY),
            detail=lambda paid: paid.transfer_id,
        )
        shipment: Shipment = await self._saga.step(
            Step.SHIP,
            do=lambda: self._do(Step.SHIP, Shipping.ship_order, policies.SHIP, f"Ship to {customer}"),
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
            Step.RESERVE: (Inventory.release_inventory, f"↩ Release {summaries.goods(order)}"),
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
        if not self._continues:
            self._set_status(OrderStatus.UNWINDING, failed_step)

    async def _park(self, stuck: Sequence[Compensation]) -> Irrevocable | None:
        self._set_status(OrderStatus.STUCK, stuck[0].step)
        steps = [entry.step for entry in stuck]
        if self._retries_being_noted and self._doubt is not None and workflow.patched("parking-after-the-retry"):
            # The operator's word, which lifts the review, is on its way to the database: this must not overtake it.
            await wait_until(lambda: not self._retries_being_noted)
        self._is_being_parked = True
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
        finally:
            self._is_being_parked = False
        if state.status == OrderStatus.COMPLETED and not state.standing:
            return Irrevocable(Step.SHIP, {"tracking_number": state.tracking_number})
        self._must_undo_all(state.standing)
        if state.status in {*Ending}:
            self._take_over_the_ending(steps, nothing_stands=state.nothing_stands)
        return None

    def _take_over_the_ending(self, stuck: Sequence[str], *, nothing_stands: bool) -> None:
        """Go on to end as the order has: it was not parked, for another run has undone it."""
        if self._doubt is not None:
            if workflow.patched("no-review-of-what-has-ended"):
                self._doubt = None  # it was on an operator's word: there is nothing left to decide
                self._must_undo_all(stuck)
        # Runs that were open at the deploy wait on; asked anew in each round, so that they end with their next one.
        elif nothing_stands and workflow.patched(f"what-has-ended-is-not-stuck-{self._saga.rounds}"):
            for step in stuck:
                self._saga.resolve(step, "the order has ended, and nothing of this step stands")

    def _ends_stuck(self) -> bool:
        """Tell whether the server wants a new run: the history, or the number of updates, nears the server's limit."""
        if not (workflow.info().is_continue_as_new_suggested() and workflow.all_handlers_finished()):
            return False
        # Runs that were open at the deploy waited on. Asked anew in each round, so that they leave in their next one.
        return workflow.patched(f"continue-as-new-when-stuck-{self._saga.rounds}")

    def _go_on_in_another_run(self, left: StillStuck) -> NoReturn:
        """Continue as new: the next run undoes behind the fences what is not undone yet, and parks the order again."""
        order = replace(
            self._known_order(),
            repair=True,
            doubt=self._doubt or "",
            reason=self._reason or "",
            ending=self._ending,
            is_partly_undone=left.is_partly_undone,
        )
        workflow.continue_as_new(order)

    async def _close(self, unwound: Unwound) -> Unwound | Irrevocable | StillStuck:
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
            if other_end := await self._saga.unwind_more():
                return other_end
        self._set_status(OrderStatus(self._ending))
        return unwound

    def _require_anothers_order(self, error: ActivityError) -> None:
        """Note that the order id belongs to another order, or raise the error where it says something else.

        No step of ours can have taken effect under such an id, or ever will.
        """
        mismatch = find_cause(error, errors.OrderIdConflict.__name__) or find_cause(
            error, errors.OrderIdConflict.earlier_name
        )
        if mismatch is None:
            raise error
        self._is_anothers_order = True
        if self._known_order().repair:  # what its batch had made of it is not how the order with this id has ended
            self._reason = tidy(describe(mismatch))

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


def _require_own_workflow_id(order: CheckoutInput) -> None:
    """Refuse a run that `status` could not find, and that the sweep would take for lost while it lives."""
    own, given = policies.checkout_workflow_id(order.order_id), workflow.info().workflow_id
    # Nothing is recorded for a run with the right id; one that was open under another before this check goes on.
    if given != own and workflow.patched("refuse-a-foreign-workflow-id"):
        raise errors.InvalidInput(
            f"the saga of order {order.order_id} has the workflow id {own}, not {tidy(given, 100)}: start it under that"
        )
