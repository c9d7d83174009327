"""One interruption at one instant of one saga: brought about, carried out, and looked up in the history afterwards."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import PendingWorkflowTaskState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import UpdateRef
from temporalio.api.workflowservice.v1 import PollWorkflowExecutionUpdateRequest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from tests.conftest import Shop
from tests.faults.harness import DEADLINE_SECONDS, TASK, Harness, Stop
from tests.faults.scripts import (
    REASON,
    Course,
    history_of,
    is_brought_by_an_update,
    name_of,
    wait_for_the_end,
    waits_for_somebody,
)
from tests.workflow.sagas import until
from workflows.checkout import CheckoutWorkflow

Request = Literal["cancel", "update", "terminate"]
CANCELLED, ACCEPTED, TERMINATED = (
    f"WORKFLOW_EXECUTION_{what}" for what in ("CANCEL_REQUESTED", "UPDATE_ACCEPTED", "TERMINATED")
)
_CLOSED = {f"WORKFLOW_EXECUTION_{how}" for how in ("COMPLETED", "FAILED", "CANCELED", "TERMINATED")}
_NEXT_TASK = [f"WORKFLOW_TASK_{state}" for state in ("SCHEDULED", "STARTED", "COMPLETED")]


@dataclass(frozen=True)
class Interruption:
    """What is done to a saga, request by request, with nothing in between."""

    name: str
    requests: tuple[Request, ...]

    def __str__(self) -> str:
        return self.name


CANCELS = (
    Interruption("cancel", ("cancel",)),
    Interruption("update", ("update",)),
    Interruption("update-and-cancel", ("update", "cancel")),
    Interruption("cancel-and-cancel", ("cancel", "cancel")),
)
TERMINATE = Interruption("terminate", ("terminate",))


class Case:
    def __init__(self, shop: Shop, course: Course, interruption: Interruption, instant: Stop) -> None:
        self.course = course
        self.script = course.script
        self.interruption = interruption
        self.instant = instant
        self.harness = Harness(shop, self.script.order(shop))
        self.answer: str | None = None
        """What the `cancel` update was answered: `accepted`, or why not."""
        self.events: list[HistoryEvent] = []
        self._update_id = uuid.uuid4().hex
        self._asked: asyncio.Task[None] | None = None
        self._operator: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.script} / {self.interruption} / {self.instant}"

    @property
    def names(self) -> list[str]:
        """Name the events, without the detour that a task takes when its worker is gone, or starved of time."""
        found: list[str] = []
        for event in self.events:
            if name_of(event) == "WORKFLOW_TASK_TIMED_OUT":
                while found.pop() != "WORKFLOW_TASK_SCHEDULED":
                    assert found
            else:
                found.append(name_of(event))
        return found

    async def carry_out(self) -> None:
        """Run the saga to the instant, interrupt it, and let it go to its end."""
        async with self.harness:
            await self.bring_about()
            await self.interrupt()
            await self.let_go()
            await wait_for_the_end(self.harness)
            self.events = await history_of(self.harness)
            await self.leave()

    async def bring_about(self) -> None:
        self.script.prepare(self.harness)
        past = self.course.before(self.instant)
        if self.instant.moment != "scheduled":
            await self._run_to(self.instant)
            if self.instant.what == TASK:
                # What this task starts is not begun before the interruption has been noticed.
                await self.harness.dismiss("activities")
        elif self.instant.what != TASK:
            held = await self._run_to(Stop(TASK, self.course.last_task(self.instant), "started"))
            await self.harness.dismiss("activities")
            self.harness.hold(held).open()
            await until(self._is_activity_scheduled)
        elif not past:
            await self._start("activities")
        else:
            await self._run_to_scheduled_task(past[-1])

    async def _start(self, *roles: Literal["workflows", "activities"]) -> None:
        await self.harness.employ(*roles)
        await self.harness.shop.start(self.harness.order)
        self._operator = asyncio.create_task(self.script.operate(self.harness))

    async def _run_to(self, stop: Stop) -> Stop:
        held = self.harness.hold(stop)
        await self._start()
        await held.reached()
        return stop

    async def _run_to_scheduled_task(self, last: Stop) -> None:
        if last.what == TASK:  # then a timer brings the next
            await self._start()
            await waits_for_somebody(self.harness)
            await self.harness.dismiss("workflows")
        else:
            await self._run_to(last)
            await self.harness.dismiss("workflows")
            self.harness.hold(last).open()
        await until(self._is_task_scheduled)

    async def _is_task_scheduled(self) -> bool:
        described = (await self.harness.handle.describe()).raw_description
        scheduled = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        return described.HasField("pending_workflow_task") and described.pending_workflow_task.state == scheduled

    async def _is_activity_scheduled(self) -> bool:
        described = (await self.harness.handle.describe()).raw_description
        return [pending.activity_type.name for pending in described.pending_activities] == [self.instant.what]

    async def interrupt(self) -> None:
        """Return when the server has taken every request."""
        for request in self.interruption.requests:
            if request == "cancel":
                await self.harness.handle.cancel(reason=REASON)
            elif request == "terminate":
                await self.harness.handle.terminate(REASON)
            else:
                self._asked = asyncio.create_task(self._ask())
                await until(self._is_admitted)

    async def _ask(self) -> None:
        try:
            await self.harness.handle.execute_update(CheckoutWorkflow.cancel, REASON, id=self._update_id)
        except WorkflowUpdateFailedError as refused:
            self.answer = str(refused.cause)
        except RPCError as aborted:
            self.answer = aborted.message
        else:
            self.answer = "accepted"

    async def _is_admitted(self) -> bool:
        if self._asked is not None and self._asked.done():
            return True
        try:
            await self.harness.shop.client.workflow_service.poll_workflow_execution_update(
                PollWorkflowExecutionUpdateRequest(
                    namespace="default",
                    update_ref=UpdateRef(
                        workflow_execution=WorkflowExecution(workflow_id=self.harness.handle.id),
                        update_id=self._update_id,
                    ),
                )
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def let_go(self) -> None:
        """Have the workflow notice the interruption first, then let everything go on."""
        await self.harness.employ("workflows")
        if self.instant.what == TASK:
            self.harness.open_all()
        if "cancel" in self.interruption.requests:
            await until(self._has_noticed)
        if self._asked is not None:
            await asyncio.wait_for(self._asked, DEADLINE_SECONDS)
        await self.harness.employ("activities")
        self.harness.open_all()

    async def leave(self) -> None:
        """End what the script's person may still be waiting for; raise what went wrong there."""
        if self._operator is not None:
            self._operator.cancel()
            await self._operator

    async def _has_noticed(self) -> bool:
        names = [name_of(event) for event in await history_of(self.harness)]
        if CANCELLED not in names:
            return False
        later = names[names.index(CANCELLED) :]
        return "WORKFLOW_TASK_COMPLETED" in later or bool(_CLOSED & set(later))

    @property
    def is_closing_task(self) -> bool:
        """Whether the interruption meets the task that would have ended the saga, while it is at work."""
        return self.instant == Stop(TASK, self.course.tasks, "started")

    def expected_before(self, request: Request) -> list[str]:
        """Name the events that come before a request's own, where it comes first."""
        names = self.course.prefix(self.instant)
        if self.instant.what == TASK and self.instant.moment == "started":
            # What comes while a task is at work waits until its end. A task that would end the run is
            # refused then, and another sees what came. A termination does not wait.
            if self.is_closing_task or request == "terminate":
                names += ["WORKFLOW_TASK_FAILED"]
            else:
                completed = self.course.index_of_task("COMPLETED", self.instant.number)
                names += ["WORKFLOW_TASK_COMPLETED", *self.course.commands(completed)]
        elif self.instant.what == TASK and request == "terminate" and self._is_unwritten():
            names = names[:-1]
        if request == "update":
            is_waiting = self.instant.what == TASK and self.instant.moment == "scheduled"
            names += _NEXT_TASK[1:] if is_waiting else _NEXT_TASK
        return names

    def _is_unwritten(self) -> bool:
        names = [name_of(event) for event in self.course.events]
        return is_brought_by_an_update(names, self.course.index_of_task("STARTED", self.instant.number))

    def place_of(self, request: Request) -> int | None:
        wanted = {"cancel": CANCELLED, "update": ACCEPTED, "terminate": TERMINATED}[request]
        for place, event in enumerate(self.events):
            asked = event.workflow_execution_update_accepted_event_attributes.accepted_request.meta.update_id
            if name_of(event) == wanted and (request != "update" or asked == self._update_id):
                return place
        return None


def without(names: Sequence[str], *unwanted: str) -> list[str]:
    return [name for name in names if name not in unwanted]
