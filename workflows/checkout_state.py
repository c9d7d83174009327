"""Where the checkout of one order stands, and how people see that: the state that its story and its updates share."""

from temporalio import workflow

from domain import policies
from domain.model import CheckoutInput, CheckoutStatus, Ending, OrderStatus, Reservation, StepView
from workflows import wording
from workflows.saga import Saga


class CheckoutState:
    """The state of one run, shown as a query, as search attributes and as the UI's current details."""

    def __init__(self, saga: Saga) -> None:
        self._saga = saga
        self._continues = is_continuation()
        """Whether an earlier run has left the order stuck, and this one goes on with it."""
        self._order: CheckoutInput | None = None
        self._status = OrderStatus.STUCK.value if self._continues else "running"
        self._ending = Ending.REJECTED
        self._reason: str | None = None
        self._cancel_reason: str | None = None
        self._reservation: Reservation | None = None
        self._tracking_number: str | None = None
        self._is_anothers_order = False
        self._doubt: str | None = None
        self._is_being_parked = False
        self._retries_being_noted = 0
        self._waits_for: str | None = None

    def _known_order(self) -> CheckoutInput:
        assert self._order is not None
        return self._order

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


def is_continuation() -> bool:
    """Tell whether this run was continued as new from one that was stuck."""
    return workflow.info().continued_run_id is not None
