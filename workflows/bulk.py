"""The checkout of many orders in one run, for imports and flash sales: each with an outcome of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

with workflow.unsafe.imports_passed_through():
    from activities.batch_checkout import BatchCheckout
    from activities.batch_steps import BatchSteps
    from activities.sagas import Sagas
    from domain import policies
    from domain.bulk import (
        DELEGATED,
        MAX_BATCH,
        OWNED,
        Batch,
        BatchReport,
        CancelOrder,
        Outcome,
        Packed,
        StepInput,
        StepReport,
        UnwindInput,
        unpack,
    )
    from domain.errors import DatabaseContradictsHistory
    from domain.model import CheckoutInput, Ending, Step, who_and_why
    from domain.sweep import StartInput
    from domain.text import tidy
    from sagafence import Cancellation, InvalidInput, describe, failure_of, perform
    from workflows import wording

_STEPS: Sequence[tuple[Step, Callable[[Any, StepInput], Awaitable[StepReport]], str]] = (
    (Step.RESERVE, BatchSteps.reserve_orders, "Reserve"),
    (Step.PAY, BatchSteps.charge_orders, "Charge"),
    (Step.SHIP, BatchSteps.ship_orders, "Ship"),
)
_DELEGATED_AT_ONCE = 100
_Report = TypeVar("_Report")


class _Undo(NamedTuple):
    """Why an order of the batch is not to complete."""

    reason: str
    ending: Ending


@workflow.defn(name=policies.BULK_WORKFLOW)
class BulkCheckoutWorkflow:
    """The sagas of many orders in one run; its workflow id is `bulk-` and a digest of the orders.

    All orders are checked out in one transaction, which completes or refuses each. Orders that another saga owns, or
    that cannot be written, are delegated to sagas of their own.

    It completes with a `BatchReport`, also when it is cancelled: what has not ended by then is ended without an effect.
    """

    def __init__(self) -> None:
        self._cancellation = Cancellation()
        self._orders: dict[str, Packed] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._refused: dict[str, _Undo] = {}
        self._cancels: dict[str, str] = {}
        """The orders to be cancelled, each with the reason. One that is being checked out may complete all the same."""

    @workflow.run
    async def run(self, batch: Batch) -> BatchReport:
        """Bring every order of the batch to its end, or delegate it to its own saga."""
        self._take(batch)
        # What an earlier build began step by step replays so.
        forward = self._together if workflow.patched("together") else self._step_by_step
        failure_of(await self._cancellation.interruptible(forward()))  # what has not ended is undone
        await self._cancellation.protect(self._undo_the_rest())
        return BatchReport.of([self._outcomes[order_id] for order_id in self._orders])

    def _take(self, batch: Batch) -> None:
        if not 1 <= len(batch.orders) <= MAX_BATCH:
            raise InvalidInput(f"the batch has {len(batch.orders)} orders; 1 to {MAX_BATCH} are allowed")
        for packed in batch.orders:
            order_id = unpack(packed).order_id
            if order_id in self._orders:
                raise InvalidInput(f"the batch has order {order_id} twice")
            self._orders[order_id] = packed

    # Forward --------------------------------------------------------------------------------------------

    async def _together(self) -> None:
        """Check all orders out in one transaction, and delegate those that need sagas of their own."""
        if (given := self._due_input()) is None:
            return
        summary = f"Check out {len(given.orders)} orders together"
        if report := await self._tried(BatchCheckout.check_out_orders, given, "check out", summary):
            await self._cancellation.protect(self._note_together(report.unpacked()))

    async def _note_together(self, outcomes: Sequence[Outcome]) -> None:
        self._note_ended([outcome for outcome in outcomes if outcome.status != DELEGATED])
        delegated = [outcome for outcome in outcomes if outcome.status == DELEGATED]
        await self._delegate([outcome.order_id for outcome in delegated], OWNED, stops=True)
        self._note_ended([each for each in delegated if each.order_id in self._outcomes])  # each with its own reason

    async def _step_by_step(self) -> None:
        for step, activity, verb in _STEPS:
            if (given := self._due_input()) is None:
                break
            if report := await self._tried(activity, given, step.value, f"{verb} {len(given.orders)} orders"):
                await self._cancellation.protect(self._note(step, report))

    async def _tried(
        self, activity: Callable[[Any, StepInput], Awaitable[_Report]], given: StepInput, activity_id: str, summary: str
    ) -> _Report | None:
        """Run an activity for orders of the batch; None where it keeps failing, and the orders were delegated."""
        try:
            return await perform(
                activity, given, policies.BATCH, activity_id, summary, local_attempt=policies.LOCAL_ATTEMPT
            )
        except FailureError as error:
            if self._cancellation.is_requested:  # whatever the failure: nothing is to go on
                raise
            # A local failure is raised bare. Batches that were open at the deploy took it for a cancel of theirs.
            if not isinstance(error, ActivityError) and not workflow.patched("hand-over-what-failed-locally"):
                raise
            order_ids = [packed["order_id"] for packed in given.orders]
            await self._cancellation.protect(self._delegate(order_ids, describe(error), stops=True))
            return None

    def _due_input(self) -> StepInput | None:
        """Return the orders for which the next activity is due; None for none.

        Raises:
            CancelledError: the batch was cancelled.
        """
        self._take_out_what_is_cancelled()
        self._show()
        if self._cancellation.is_requested:
            raise asyncio.CancelledError
        due = [self._orders[order_id] for order_id in self._due()]
        return StepInput(workflow.info().workflow_id, due) if due else None

    def _due(self) -> list[str]:
        return [
            order_id for order_id in self._orders if order_id not in self._outcomes and order_id not in self._refused
        ]

    async def _note(self, step: Step, report: StepReport) -> None:
        for order_id, reason in report.refused.items():
            self._refused[order_id] = _Undo(tidy(reason), Ending.REJECTED)
        self._note_ended(report.ended)
        await self._delegate(report.delegated, OWNED, stops=True)
        if report.missing_step:
            before = {Step.PAY: Step.RESERVE, Step.SHIP: Step.PAY}[step]
            lost = f"step {before} was done, and the database knows nothing of it"
            question = f"{lost}; {DatabaseContradictsHistory.question}"
            await self._delegate(report.missing_step, question, question=question)

    def _is_called_off(self) -> bool:
        """Whether the batch was cancelled while it was at work: nothing is bought by a saga of its own then."""
        return self._cancellation.is_requested and workflow.patched("no-saga-buys-after-a-cancel")

    def _note_ended(self, ended: Sequence[Outcome]) -> None:
        for outcome in ended:
            self._outcomes[outcome.order_id] = outcome
            self._refused.pop(outcome.order_id, None)

    # Back -----------------------------------------------------------------------------------------------

    async def _undo_the_rest(self) -> None:
        """Undo what a step has refused and, after a cancel, all that has not ended."""
        self._take_out_what_is_cancelled()
        reason = tidy(f"cancelled: {self._cancellation.reason}")
        cancelled = {order_id: _Undo(reason, Ending.CANCELLED) for order_id in self._due()}
        if undos := {**self._refused, **cancelled}:
            await self._unwind(undos)
        self._show()

    async def _unwind(self, undos: Mapping[str, _Undo]) -> None:
        given = UnwindInput(
            [self._orders[order_id] for order_id in undos],
            [undo.reason for undo in undos.values()],
            [undo.ending.value for undo in undos.values()],
        )
        try:
            report = await perform(
                BatchCheckout.unwind_orders, given, policies.UNDO, None, f"↩ Undo {len(undos)} orders"
            )
        except ActivityError as error:
            delegated, why = list(undos), describe(error)
        else:
            self._note_ended(report.ended)
            delegated, why = report.delegated, OWNED  # its own saga goes on with each, unless it is lost
        # A saga of its own tries a refused order again, and it may succeed this time: not after a cancel.
        await self._delegate(delegated, why, undos if self._cancellation.is_requested else None)

    async def _delegate(
        self,
        order_ids: Sequence[str],
        why: str,
        undos: Mapping[str, _Undo] | None = None,
        *,
        question: str = "",
        stops: bool = False,
    ) -> None:
        """Give orders to sagas of their own; one that has one keeps it. Their outcomes say why.

        Those in `undos`, or else those that were cancelled one by one, are undone; with a `question`, not before
        an operator has decided it. If it `stops`, those whose turn has not come when the batch is cancelled keep none.
        """
        repairs = self._cancelled_among(order_ids) if undos is None else undos

        def delegated(order_id: str) -> CheckoutInput:
            packed, undo = self._orders[order_id], repairs.get(order_id)
            if undo is None:
                return unpack(packed, repair=bool(question), review_reason=question)
            return unpack(packed, repair=True, review_reason=question, reason=undo.reason, ending=undo.ending)

        for first in range(0, len(order_ids), _DELEGATED_AT_ONCE):
            if stops and self._is_called_off():
                return  # nothing was done for the rest here: what nobody has begun is ended
            some = order_ids[first : first + _DELEGATED_AT_ONCE]
            given = StartInput([delegated(order_id) for order_id in some], even_completed=bool(question))
            summary = f"Delegate {len(some)} orders to sagas of their own"
            await perform(Sagas.start_sagas, given, policies.RECORD, None, summary)
            self._note_ended([Outcome(order_id, DELEGATED, tidy(why)) for order_id in some])

    # Cancels of single orders -------------------------------------------------------------------------------

    @workflow.update(description="Cancel one order of the batch, unless it has ended")
    def cancel_order(self, request: CancelOrder) -> None:
        """Ask for one order to be undone. Whether that was in time shows in how it ends.

        Callers of an earlier build ask so; those of today can name an order only once it has ended or has a saga.
        """
        self._cancels.setdefault(request.order_id, tidy(f"cancelled: {who_and_why(request.by, request.reason)}"))

    def _cancelled_among(self, order_ids: Iterable[str]) -> Mapping[str, _Undo]:
        return {
            order_id: _Undo(self._cancels[order_id], Ending.CANCELLED)
            for order_id in order_ids
            if order_id in self._cancels
        }

    def _take_out_what_is_cancelled(self) -> None:
        """Do no further step for the orders that were cancelled: they are undone with the refused ones."""
        self._refused.update(self._cancelled_among(self._due()))

    def _show(self) -> None:
        """Bring the UI's current details up to date. Costs no history."""
        states = [self._state(order_id) for order_id in self._orders]
        workflow.set_current_details(wording.batch_details(states))

    def _state(self, order_id: str) -> Outcome:
        if outcome := self._outcomes.get(order_id):
            return outcome
        if undo := self._refused.get(order_id):
            return Outcome(order_id, "refused", undo.reason)
        return Outcome(order_id, "under way")
