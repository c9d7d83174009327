"""Requests to checkouts, through Temporal alone: start, status, list, cancel, retry, resolve."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowQueryFailedError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from client import batch_runs, executions, maintenance
from client.executions import Execution
from client.failures import NoSuchOrder, OrderIdConflict, Refused
from client.listing import GONE, ORDERS, QUERIES, TERMINATED, Listed, listed, listed_status
from client.pollers import Watch
from client.requests import UNTIL_ANSWERED, HasEnded, HasEndedSince, Requests, Waits
from domain import policies, summaries
from domain.audit import AuditReport
from domain.bulk import Outcome
from domain.lookup import NamesInput, NamesReport
from domain.model import (
    CheckoutInput,
    CheckoutStatus,
    OrderStatus,
    Resolution,
    RetryRequest,
    order_id_conflict,
    reason_problem,
)
from domain.sweep import SweepReport

Handle = WorkflowHandle[Any, CheckoutStatus]

_NO_WORKER_ANSWERS = frozenset(
    {RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION}
)
# An overloaded server; the SDK reports a call without an answer within its limit as cancelled.
_TOO_BUSY = frozenset({RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.RESOURCE_EXHAUSTED})
# The server's error for a query to a workflow whose workflow task fails.
_TASK_FAILS = "in failed state"
# Temporal does not know whether a step was done; the database does.
_ENDED_AT_WORK = (
    "its workflow was ended from outside: starter.py sweep undoes what it has done, where it has done anything; "
    "starter.py start with the same order goes on with it instead"
)
_ENDED_UNSEEN = (
    "its workflow was ended from outside before a worker had seen it: nothing was done in it, and "
    "starter.py start with the same order begins it anew"
)
_POLL_SECONDS = 2.0
_LOOKED_UP_AT_ONCE = 20
_QUERY_TIMEOUT = timedelta(seconds=5)


class Checkouts:
    """The checkouts of one Temporal namespace and task queue.

    Every request to one order raises `NoSuchOrder` where Temporal has no history of it. `cancel`, `retry` and `resolve`
    raise `Refused` where the saga refuses or the reason is unusable, and `NotKnownYet` where no worker has accepted the
    request yet: it may still happen, and a repeat with the same content joins it.
    """

    def __init__(
        self,
        client: Client,
        task_queue: str,
        ui_url: str,
        warn: Callable[[str], None] | None = None,
        waits: Waits = UNTIL_ANSWERED,
    ) -> None:
        self.client = client
        self.task_queue = task_queue
        self._ui_url = ui_url
        self.requests = Requests(client, task_queue, waits)
        self._watch = Watch(client, task_queue, warn)

    def ui_link(self, workflow_id: str) -> str:
        """Give the address of a workflow's history in the Temporal UI."""
        return f"{self._ui_url}/namespaces/{self.client.namespace}/workflows/{quote(workflow_id, safe='')}"

    async def start(self, order: CheckoutInput) -> bool:
        """Start the order's saga, or join the one it has. Return whether a run was begun.

        One that was terminated or timed out is started again; the fences return what it has done. A repair stays a
        repair. Against a sweep, which repairs such orders, the workflow id decides which is first. Where a worker
        shares this client, the server returns the first task to it with the answer.

        Raises:
            OrderIdConflict: the id is taken by an order with other content, running or finished.
        """
        if await self._begin(order, WorkflowIDReusePolicy.REJECT_DUPLICATE):
            return True
        run = await self._describe(order.order_id)
        found = await self._input_of(order.order_id, run.run_id)
        if found is None or found.fingerprint != order.fingerprint:
            raise OrderIdConflict(f"{order_id_conflict(order.order_id)}; choose another id")
        if run.status not in GONE:
            return False
        return await self._begin(found, WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY)

    async def _begin(self, order: CheckoutInput, reuse: WorkflowIDReusePolicy) -> bool:
        try:
            await self.client.start_workflow(
                policies.CHECKOUT_WORKFLOW,
                order,
                id=policies.checkout_workflow_id(order.order_id),
                task_queue=self.task_queue,
                request_eager_start=True,
                task_timeout=policies.WORKFLOW_TASK,
                id_reuse_policy=reuse,
                static_summary=summaries.of_order(order),
            )
        except WorkflowAlreadyStartedError:
            return False
        return True

    async def undo(self, order: CheckoutInput) -> bool:
        """Start a run that undoes an order, unless one of its runs is open or has completed."""
        return await self._begin(order, WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY)

    async def has_saga_of(self, order: CheckoutInput) -> bool:
        """Return whether the newest saga of the order's id was started with this content."""
        return await self.has_saga_with(order.order_id, order.fingerprint)

    async def has_saga_with(self, order_id: str, fingerprint: str) -> bool:
        """Return the same by the content's fingerprint."""
        found = await self._input_of(order_id)
        return found is not None and found.fingerprint == fingerprint

    async def is_gone(self, order_id: str) -> bool:
        """Return whether the order's newest saga was terminated or timed out."""
        return (await self._describe(order_id)).status in GONE

    async def process(self, orders: Sequence[CheckoutInput]) -> Sequence[Outcome]:
        """Process orders together to their ends, or join the batch of the same orders that is or was under way.

        Some may have been delegated to sagas of their own; see `client.batches.delegated_outcome`.
        """
        workflow_id = batch_runs.id_of_load(orders)
        await batch_runs.begin(self.client, self.task_queue, orders, workflow_id)
        async with self._watch.over(workflow_id):
            return await batch_runs.outcomes(self.client, orders, workflow_id)

    async def outcome(self, order_id: str, *, poll_every: float = _POLL_SECONDS) -> CheckoutStatus:
        """Wait until the order has reached its end, or is stuck.

        The end is returned at once; whether the order is stuck is polled every so many seconds.
        """
        async with self._watch.over(policies.checkout_workflow_id(order_id)):
            return await self._outcome(order_id, poll_every)

    async def _outcome(self, order_id: str, poll_every: float) -> CheckoutStatus:
        result = asyncio.ensure_future(self._result(order_id))
        try:
            while True:
                done, _ = await asyncio.wait({result}, timeout=poll_every)
                if done:
                    return result.result()
                try:
                    attributes = (await self._describe(order_id)).attributes
                except RPCError as error:
                    if error.status not in _TOO_BUSY:
                        raise
                    continue  # the end is still awaited, and polled again
                if attributes.get(policies.ORDER_STATUS) == OrderStatus.STUCK:
                    # The attribute lags a moment behind an order that has just been retried.
                    status = await self.status(order_id)
                    if status.status == OrderStatus.STUCK:
                        return status
        finally:
            result.cancel()

    async def status(self, order_id: str) -> CheckoutStatus:
        """Return the status of an order."""
        run = await self._describe(order_id)
        return await (self._ask(order_id, run) if run.is_open else self._result(order_id))

    async def list(self, status: str | None, limit: int) -> AsyncIterator[Listed]:
        """List orders by their newest run, newest first where the server sorts them.

        The limit counts orders: what is not an order's newest run is skipped first.
        """
        seen: set[str] = set()
        query = ORDERS if status is None else f"{ORDERS} AND {QUERIES[status]}"
        async for page in executions.find(self.client, query):
            for first in range(0, len(page), _LOOKED_UP_AT_ONCE):
                some = page[first : first + _LOOKED_UP_AT_ONCE]
                # In a list of all runs an order's newest comes first.
                newest = [True] * len(some) if status is None else await asyncio.gather(*map(self._is_newest, some))
                for run, is_newest in zip(some, newest, strict=True):
                    order_id = policies.order_id_of(run.workflow_id)
                    if is_newest and order_id not in seen:
                        seen.add(order_id)
                        yield listed(order_id, run)
                        if len(seen) == limit:
                            return

    async def cancel(self, order_id: str, reason: str, by: str = "") -> None:
        """Request that an order is undone; refused when it is too late."""
        _require_reason(reason)
        await self._asked(order_id, self.requests.cancel(order_id, reason, by))

    async def retry(self, order_id: str, reason: str = "", by: str = "") -> CheckoutStatus:
        """Retry the failed undos of a stuck order and wait for the result. The order's log names the operator."""
        return await self._settled(order_id, await self.request_retry(order_id, reason, by))

    async def request_retry(self, order_id: str, reason: str = "", by: str = "") -> CheckoutStatus | None:
        """Request a retry; return its answer, or how the order has ended since; None where that takes too long."""
        if reason:
            _require_reason(reason)
        return await self._asked(order_id, self.requests.retry(order_id, RetryRequest(by, reason)))

    async def resolve(self, order_id: str, step: str, reason: str, by: str = "") -> CheckoutStatus:
        """Count a stuck step as undone and wait for the result."""
        return await self._settled(order_id, await self.request_resolve(order_id, step, reason, by))

    async def request_resolve(self, order_id: str, step: str, reason: str, by: str = "") -> CheckoutStatus | None:
        """Request a resolution; return the same."""
        _require_reason(reason)
        return await self._asked(order_id, self.requests.resolve(order_id, Resolution(step, reason, by)))

    async def audit(self, timeout: timedelta, *, is_at_rest: bool = False) -> AuditReport:
        """Check every invariant in the database; at rest, orders that are unfinished are not given an hour."""
        return await maintenance.audit(self.client, self.task_queue, timeout, is_at_rest=is_at_rest)

    async def sweep(self, idle_for: timedelta, timeout: timedelta) -> SweepReport:
        """Start or repair the saga of every order that needs one."""
        return await maintenance.sweep(self.client, self.task_queue, idle_for, timeout)

    async def look_up(self, asked: NamesInput, timeout: timedelta) -> NamesReport:
        """Look up in the database what is known of these names."""
        workflow_id = f"look-up-{secrets.token_hex(12)}"
        async with self._watch.over(workflow_id):
            return await maintenance.look_up(self.client, self.task_queue, asked, workflow_id, timeout)

    async def _is_newest(self, run: Execution) -> bool:
        if run.is_open:
            return True
        with contextlib.suppress(NoSuchOrder):  # deleted, and still listed for a moment
            return (await self._describe(policies.order_id_of(run.workflow_id))).run_id == run.run_id
        return False

    async def _asked(self, order_id: str, request: Awaitable[CheckoutStatus | None]) -> CheckoutStatus | None:
        """Wait for an answer; of an order that has ended since it carried out the request, return how."""
        try:
            return await request
        except HasEndedSince:
            return await self.status(order_id)
        except HasEnded:
            status = await self.status(order_id)
            raise Refused(f"order {order_id} is {status.status} already") from None

    async def _settled(self, order_id: str, answer: CheckoutStatus | None) -> CheckoutStatus:
        """Wait for the result after an answer; a repeat's is the first one's, so "stuck" is looked up again."""
        if answer is not None and _is_stuck(answer) and _is_stuck(now := await self.status(order_id)):
            return now
        return await self.outcome(order_id)

    def _handle(self, order_id: str) -> Handle:
        return self.client.get_workflow_handle(policies.checkout_workflow_id(order_id), result_type=CheckoutStatus)

    async def _describe(self, order_id: str) -> Execution:
        return await executions.of_order(self.client, order_id)

    async def _input_of(self, order_id: str, run_id: str = "") -> CheckoutInput | None:
        """Read the input of a saga of an order, by default the newest; None where that is no order."""
        return await executions.order_of(self.client, policies.checkout_workflow_id(order_id), run_id)

    async def _ask(self, order_id: str, run: Execution) -> CheckoutStatus:
        """Query the workflow, open or closed; without a worker, return what Temporal knows."""
        if run.is_paused:
            why = "its workflow is paused; the order waits until it is unpaused"
            return CheckoutStatus(order_id, listed_status(run), why)
        try:
            status: CheckoutStatus = await self._handle(order_id).query(
                "status", result_type=CheckoutStatus, rpc_timeout=_QUERY_TIMEOUT
            )
        except WorkflowQueryFailedError as failure:
            why = f"the worker cannot answer: {failure}"
        except RPCError as error:
            if error.status not in _NO_WORKER_ANSWERS:
                raise
            why = (
                "its workflow task keeps failing; the history says why, docs/upgrades.md what to do"
                if _TASK_FAILS in error.message
                else "no worker answers; start one to see the steps"
            )
        else:
            return status
        return CheckoutStatus(order_id, listed_status(run), why)

    async def _result(self, order_id: str) -> CheckoutStatus:
        while True:
            try:
                return await self._handle(order_id).result()
            except WorkflowFailureError as failure:
                cause = failure.cause
            if isinstance(cause, ApplicationError):
                if cause.details:
                    status: CheckoutStatus = value_to_type(CheckoutStatus, cause.details[0])
                    return status
                return CheckoutStatus(order_id, OrderStatus.REJECTED, f"{cause.type}: {cause.message}")
            run = await self._describe(order_id)
            if run.is_open:
                continue  # a reset, or a repair by the sweep, has started a newer run
            if run.status in GONE:
                was_taken = await executions.was_taken(self.client, run)
                return CheckoutStatus(order_id, TERMINATED, _ENDED_AT_WORK if was_taken else _ENDED_UNSEEN)
            # A cancel leaves no details in the history; the closed workflow still answers queries.
            return await self._ask(order_id, run)


def _is_stuck(status: CheckoutStatus) -> bool:
    return any(step.state == "stuck" for step in status.steps)


def _require_reason(reason: str) -> None:
    # Before sending: the refusal of a reason of megabytes would not fit into the workflow task's answer.
    if problem := reason_problem(reason):
        raise Refused(problem)
