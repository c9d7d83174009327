"""Requests to an order's saga: cancel, retry and resolve. A repeated request joins the first.

An update's id follows from its content. The server takes each id once for as long as a run is open, and answers a
repeat as it answered the first; of a run that has ended, or was continued as new, the history shows whether the request
was carried out. So a caller that timed out can repeat it without a second request or a second round.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from temporalio.client import (
    Client,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from client import executions
from client.failures import ClientError, NotKnownYet, Refused
from domain.model import CheckoutStatus, Resolution, reason_problem, who_and_why
from domain.policies import checkout_workflow_id

_CANCEL, _RETRY, _RESOLVE = "cancel", "retry_compensation", "resolve_compensation"
_ASK_AGAIN_SECONDS = 0.5
# The server's error where the run was ended from outside between accepting and answering the request.
_CUT_OFF = "AcceptedUpdateCompletedWorkflow"
# The server's error where a run has taken all the updates that it may.
_IS_FULL = "limit on the total number of distinct updates"


class _WrongArguments(Refused):
    """The worker does not know the arguments: it is of another release."""


class HasEnded(ClientError):
    """The order's saga has ended, and not by this request."""


class HasEndedSince(ClientError):
    """The order's saga has carried out this request, or an earlier one that it repeats, and has ended."""


@dataclass(frozen=True)
class _Answered:
    """A request that a run has answered: carried out, or failed."""

    update: str
    is_carried_out: bool


@dataclass(frozen=True)
class Waits:
    """How long a request is waited for."""

    accept_seconds: float = 15.0
    """Until a worker has accepted it."""
    answer_seconds: float | None = None
    """From then on until it is answered; without a limit by default. An answer that comes later is not waited for."""


UNTIL_ANSWERED = Waits()


class Requests:
    """Sends requests to the sagas of one namespace; each waits until it is answered, or accepted, as given.

    Every one raises:
        NoSuchOrder: Temporal has no saga of the order.
        HasEnded: it has ended, and not by this request.
        HasEndedSince: it has carried out the request, and ended.
        Refused: the saga refuses.
        NotKnownYet: no worker has accepted the request in time.
    """

    def __init__(self, client: Client, task_queue: str, waits: Waits) -> None:
        self._client = client
        self._task_queue = task_queue
        self._waits = waits

    async def cancel(self, order_id: str, reason: str, by: str = "") -> None:
        """Request that an order is undone. The same reason is the same request, whoever sends it: the first is kept."""
        name = f"cancel-{_digest(reason)}"

        def was_asked_for(answered: Mapping[str, _Answered]) -> bool:
            return _is_carried_out(answered, name)

        try:
            await self._send(order_id, _CANCEL, [reason, by] if by else [reason], name, was_asked_for)
        except _WrongArguments:
            if not by:
                raise
            # A worker of an earlier release takes the reason alone, of so many characters.
            both = who_and_why(by, reason)
            await self._send(order_id, _CANCEL, [reason if reason_problem(both) else both], name, was_asked_for)

    async def retry(self, order_id: str, *arguments: Any) -> CheckoutStatus | None:
        """Request another round of failed undos: the next one, or the requested one that has not ended."""
        answered = await self._answered(order_id)
        asked = sum(each.update == _RETRY for each in answered.values())
        # Earlier runs may be past retention, and this one may have a number of theirs.
        names = (f"retry-{number}" for number in count(asked + 1))
        name = next(each for each in names if each not in answered)

        def was_asked_for(answered: Mapping[str, _Answered]) -> bool:
            return any(each.update == _RETRY and each.is_carried_out for each in answered.values())

        answer: CheckoutStatus | None = await self._send(order_id, _RETRY, arguments, name, was_asked_for)
        return answer

    async def resolve(self, order_id: str, resolution: Resolution) -> CheckoutStatus | None:
        """Count a stuck step as undone. The same step and reason are the same request, unless it has failed."""
        base = f"resolve-{_digest(resolution.step, resolution.reason)}"
        answered = await self._answered(order_id)
        names = [base, *(f"{base}-{number}" for number in range(2, len(answered) + 2))]
        name = next(each for each in names if each not in answered or answered[each].is_carried_out)
        answer: CheckoutStatus | None = await self._send(
            order_id, _RESOLVE, [resolution], name, lambda found: _is_carried_out(found, name)
        )
        return answer

    async def _send(
        self,
        order_id: str,
        update: str,
        arguments: Sequence[Any],
        name: str,
        is_carried_out: Callable[[Mapping[str, _Answered]], bool],
    ) -> Any:
        """Send a request; return the answer, None where an earlier run gave it or it takes too long."""
        try:
            return await self._result(await self._accepted(checkout_workflow_id(order_id), update, arguments, name))
        except WorkflowUpdateFailedError as failure:
            cause = failure.cause
            if isinstance(cause, ApplicationError) and cause.type == _CUT_OFF:
                raise NotKnownYet(
                    "not known: the workflow was ended from outside before it answered; starter.py status shows "
                    "the order's status"
                ) from None
            if _is_carried_out(await self._answered(order_id), name):
                return None  # by an earlier run, which this one continues
            is_other = isinstance(cause, ApplicationError) and cause.type == TypeError.__name__
            refusal = _WrongArguments if is_other else Refused
            raise refusal(cause.message if isinstance(cause, ApplicationError) else str(cause)) from None
        except RPCError as error:
            if error.status is RPCStatusCode.FAILED_PRECONDITION:  # the workflow is paused
                raise Refused(error.message) from None
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            answered = await self._answered(order_id)
            newest = await executions.of_order(self._client, order_id)
            is_lost = newest.is_open and not _is_carried_out(answered, name)
        if is_lost:  # it was continued as new in that moment, without this request
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
            return await self._send(order_id, update, arguments, name, is_carried_out)
        if is_carried_out(answered):
            raise HasEndedSince
        raise HasEnded

    async def _accepted(
        self, workflow_id: str, update: str, arguments: Sequence[Any], name: str
    ) -> WorkflowUpdateHandle[Any]:
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            async with asyncio.timeout(self._waits.accept_seconds):
                while True:
                    try:
                        return await handle.start_update(
                            update,
                            args=arguments,
                            id=name,
                            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                            result_type=None if update == _CANCEL else CheckoutStatus,
                        )
                    except RPCError as error:
                        if _IS_FULL not in error.message:
                            raise
                    await asyncio.sleep(_ASK_AGAIN_SECONDS)  # it is continued as new in a moment
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
            _reraise_cancel()
            raise NotKnownYet(
                f"not known yet: no worker accepted the request within {self._waits.accept_seconds:g} s, and it may "
                "still happen; repeat the command for the result, which joins this request. Is a worker running on "
                f"task queue {self._task_queue}? `python worker.py` starts one"
            ) from None

    async def _result(self, accepted: WorkflowUpdateHandle[Any]) -> Any:
        """Wait for the answer; None where it takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._waits.answer_seconds):
                while True:
                    try:
                        return await accepted.result()
                    except WorkflowUpdateRPCTimeoutOrCancelledError:
                        _reraise_cancel()
                    await asyncio.sleep(_ASK_AGAIN_SECONDS)  # it was accepted, so an answer comes
        return None

    async def _answered(self, order_id: str) -> Mapping[str, _Answered]:
        """Read the answered requests from the histories of an order's newest run and of those that it continues."""
        run = await executions.of_order(self._client, order_id)
        answered, earlier = await self._answered_in(run.workflow_id, run.run_id)
        while earlier:
            try:
                found, earlier = await self._answered_in(run.workflow_id, earlier)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                break  # past Temporal's retention
            answered = {**found, **answered}
        return answered

    async def _answered_in(self, workflow_id: str, run_id: str) -> tuple[Mapping[str, _Answered], str]:
        """Read one run's history: the answered requests by id, and the run that it continues, if any."""
        names: dict[str, str] = {}
        answered: dict[str, _Answered] = {}
        earlier = ""
        async for event in self._client.get_workflow_handle(workflow_id, run_id=run_id or None).fetch_history_events():
            if event.HasField("workflow_execution_started_event_attributes"):
                earlier = event.workflow_execution_started_event_attributes.continued_execution_run_id
            elif event.HasField("workflow_execution_update_accepted_event_attributes"):
                request = event.workflow_execution_update_accepted_event_attributes.accepted_request
                names[request.meta.update_id] = request.input.name
            elif event.HasField("workflow_execution_update_completed_event_attributes"):
                done = event.workflow_execution_update_completed_event_attributes
                name = done.meta.update_id
                answered[name] = _Answered(names.get(name, ""), done.outcome.HasField("success"))
        return answered, earlier


def _is_carried_out(answered: Mapping[str, _Answered], name: str) -> bool:
    return name in answered and answered[name].is_carried_out


def _reraise_cancel() -> None:
    """Raise the caller's own cancel, which the SDK turns into a timeout."""
    caller = asyncio.current_task()
    if caller is not None and caller.cancelling():
        raise asyncio.CancelledError from None


def _digest(*content: str) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
