"""The steps of a checkout, one row each: how they are done and undone, and what `status` shows of them.

A new step is a row here and a line in `CheckoutWorkflow._buy`.
"""

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from domain import errors, policies, summaries
from domain.model import CheckoutInput, CheckoutStatus, Ending, Reservation, Step, StepView, UndoInput, format_money
from domain.text import for_summary, tidy
from sagafence import (
    ActivityPolicy,
    DatabaseMisconfigured,
    Saga,
    UndoOutcome,
    UndoResult,
    describe,
    find_cause,
    perform,
)
from workflows import wording


class _Row(NamedTuple):
    """One step. In a summary {goods}, {customer} and {total} are the order's."""

    do: Callable[[Any, CheckoutInput], Awaitable[Any]]
    summary: str
    undo: Callable[[Any, UndoInput], Awaitable[UndoResult]]
    undo_summary: str
    policy: Callable[[], ActivityPolicy]
    """Of the step, read when it begins; every undo has `policies.UNDO`."""
    detail: Callable[[CheckoutInput, Any], str]
    """What the step did, in a few words."""


_STEPS = {
    Step.RESERVE: _Row(
        Inventory.reserve_inventory,
        "Reserve {goods}",
        Inventory.release_inventory,
        "↩ Release {goods}",
        lambda: policies.RESERVE,
        lambda order, held: f"{order.summary}: {format_money(held.total_minor, held.currency)}",
    ),
    Step.PAY: _Row(
        Payments.charge_payment,
        "Charge {total} to {customer}",
        Payments.refund_payment,
        "↩ Refund {total}",
        lambda: policies.PAY,
        lambda _, paid: paid.transfer_id,
    ),
    Step.SHIP: _Row(
        Shipping.ship_order,
        "Ship to {customer}",
        Shipping.cancel_shipment,
        "↩ Cancel the shipment",
        lambda: policies.SHIP,
        lambda _, sent: f"{sent.tracking_number}, {sent.carrier}",
    ),
}


class SagaStatus(StrEnum):
    """The status of a saga. Its order in the database has statuses of its own (`OrderStatus`)."""

    RUNNING = "running"
    COMPLETED = "completed"
    UNWINDING = "unwinding"
    STUCK = "stuck"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


class CheckoutSteps:
    """What one run knows of its order, and its steps."""

    def __init__(self, saga: Saga) -> None:
        self._saga = saga
        self._given: CheckoutInput | None = None
        self._question = ""
        """What an operator has to decide before anything is undone: Temporal and the database contradict each other."""
        self._status = SagaStatus.STUCK if is_continuation() else SagaStatus.RUNNING
        self._ending = Ending.REJECTED
        self._reason: str | None = None
        self._reservation: Reservation | None = None
        self._tracking_number: str | None = None
        self._has_id_conflict = False
        self._waits_for: str | None = None
        self._is_cancelled_by_temporal = False

    @property
    def _order(self) -> CheckoutInput:
        assert self._given is not None
        return self._given

    async def _do(self, step: Step) -> Any:
        """Do a step, and return what its activity does."""
        order, row = self._order, _STEPS[step]
        summary, local = self._summary(row.summary), policies.local_attempt(order.execution_mode)
        with self._saga.step(step, partial(self._undo, step)) as entry:
            try:
                answer = await perform(row.do, order, row.policy(), step.value, summary, local_attempt=local)
            except FailureError as error:
                fault = find_cause(error, DatabaseMisconfigured.__name__)
                if fault is None or self._saga.cancellation.is_requested:
                    raise
                # No order is rejected because Postgres refuses the service: retried until an operator has fixed that.
                self._waits_for = tidy(f"waiting until it is fixed: {fault.message}")
                workflow.upsert_search_attributes([policies.FAILED_STEP.value_set(step.value)])
                self._show()
                try:
                    answer = await perform(row.do, order, policies.ENVIRONMENT, f"{step}-waits", summary)
                finally:
                    self._waits_for = None
                workflow.upsert_search_attributes([policies.FAILED_STEP.value_unset()])
                self._show()
            entry.detail = row.detail(order, answer)
        return answer

    def _must_undo(self, steps: Sequence[str]) -> None:
        for step in Step:
            if step in steps:
                self._saga.must_undo(step, partial(self._undo, step))

    async def _undo(self, step: Step) -> UndoResult:
        if self._question:
            raise errors.DatabaseContradictsHistory(self._question)
        row = _STEPS[step]
        # Each round has an activity id of its own: the history shows which attempt was which.
        entry = next(entry for entry in self._saga.compensations if entry.step == step)
        activity_id = f"undo-{step}" if entry.rounds == 1 else f"undo-{step}-{entry.rounds}"
        try:
            summary = self._summary(row.undo_summary)
            return await perform(row.undo, self._undo_input(), policies.UNDO, activity_id, summary)
        except ActivityError as error:
            self._require_id_conflict(error)
            return UndoResult(UndoOutcome.NOTHING_TO_UNDO)

    def _undo_input(self) -> UndoInput:
        return UndoInput(self._order, self._ending, self._reason or "")

    def _require_id_conflict(self, error: ActivityError) -> None:
        """Note that the order id belongs to another order, or raise any other error.

        No step of ours can have taken effect under such an id, or ever will.
        """
        mismatch = find_cause(error, errors.OrderIdConflict.__name__) or find_cause(
            error, errors.OrderIdConflict.earlier_name
        )
        if mismatch is None:
            raise error
        self._has_id_conflict = True
        if self._order.repair:  # the reason that its batch gave is not why the order with this id has ended
            self._reason = tidy(describe(mismatch))

    def _summary(self, template: str) -> str:
        held = self._reservation
        total = format_money(held.total_minor, held.currency) if held else ""
        goods, customer = summaries.goods(self._order), for_summary(self._order.customer)
        return template.format(goods=goods, customer=customer, total=total).rstrip()

    def _set_status(self, status: SagaStatus, failed_step: str | None = None) -> None:
        self._status = status
        attributes = [policies.ORDER_STATUS.value_set(status.value)]
        if failed_step:
            attributes.append(policies.FAILED_STEP.value_set(failed_step))
        workflow.upsert_search_attributes(attributes)
        self._show()

    def _show(self) -> None:
        """Bring the UI's current details up to date. Costs no history."""
        workflow.set_current_details(wording.details(self.status(), self._saga.stuck_steps))

    @workflow.query(description="The state of the order, step by step")
    def status(self) -> CheckoutStatus:
        """Return the state of the order, step by step."""
        order, reservation = self._given, self._reservation
        return CheckoutStatus(
            order_id=order.order_id if order else policies.order_id_of(workflow.info().workflow_id),
            status=self._status,
            reason=self._reason or self._waits_for,
            total_minor=reservation.total_minor if reservation else None,
            currency=reservation.currency if reservation else None,
            tracking_number=self._tracking_number,
            steps=[StepView(e.step, e.state, e.detail) for e in self._saga.compensations],
        )


def is_continuation() -> bool:
    """Whether an earlier run has left the order stuck and was continued as this one."""
    return workflow.info().continued_run_id is not None
