"""One strike at one instant of one saga: brought about, carried out, and looked up in the history afterwards."""

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
from tests.faults.scripts import (
    REASON,
    Course,
    history_of,
    is_brought_by_an_update,
    name_of,
    wait_for_the_end,
    waits_for_somebody,
)
from tests.faults.stepping import DEADLINE_SECONDS, TASK, Stage, Stop
from tests.workflow.sagas import until
from workflows.checkout import CheckoutWorkflow

Blow = Literal["cancel", "update", "terminate"]
CANCELLED, ACCEPTED, TERMINATED = (
    f"WORKFLOW_EXECUTION_{what}" for what in ("CANCEL_REQUESTED", "UPDATE_ACCEPTED", "TERMINATED")
)
_CLOSED = {f"WORKFLOW_EXECUTION_{how}" for how in ("COMPLETED", "FAILED", "CANCELED", "TERMINATED")}
_NEXT_TASK = [f"WORKFLOW_TASK_{state}" for state in ("SCHEDULED", "STARTED", "COMPLETED")]


@dataclass(frozen=True)
class Strike:
    """What is done to a saga, blow by blow, with nothing in between."""

    name: str
    blows: tuple[Blow, ...]

    def __str__(self) -> str:
        return self.name


CANCELS = (
    Strike("cancel", ("cancel",)),
    Strike("update", ("update",)),
    Strike("update-and-cancel", ("update", "cancel")),
    Strike("cancel-and-cancel", ("cancel", "cancel")),
)
TERMINATE = Strike("terminate", ("terminate",))


class Case:
    def __init__(self, shop: Shop, course: Course, strike: Strike, instant: Stop) -> None:
        self.course = course
        self.script = course.script
        self.strike = strike
        self.instant = instant
        self.stage = Stage(shop, self.script.order(shop))
        self.answer: str | None = None
        """What the `cancel` update was answered: `accepted`, or why not."""
        self.events: list[HistoryEvent] = []
        self._update_id = uuid.uuid4().hex
        self._asked: asyncio.Task[None] | None = None
        self._operator: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.script} / {self.strike} / {self.instant}"

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
        """Run the saga to the instant, strike, and let it go to its end."""
        async with self.stage:
            await self.bring_about()
            await self.hit()
            await self.let_go()
            await wait_for_the_end(self.stage)
            self.events = await history_of(self.stage)
            await self.leave()

    # Before the strike ----------------------------------------------------------------------------------

    async def bring_about(self) -> None:
        """Run the saga to the instant, and no further."""
        self.script.prepare(self.stage)
        past = self.course.before(self.instant)
        if self.instant.moment != "scheduled":
            await self._run_to(self.instant)
            if self.instant.what == TASK:
                # What this task starts is not begun before the strike has been noticed.
                await self.stage.dismiss("activities")
        elif self.instant.what != TASK:
            held = await self._run_to(Stop(TASK, self.course.last_task(self.instant), "started"))
            await self.stage.dismiss("activities")
            self.stage.hold(held).open()
            await until(self._is_activity_scheduled)
        elif not past:
            await self._start("activities")
        else:
            await self._run_to_scheduled_task(past[-1])

    async def _start(self, *roles: Literal["workflows", "activities"]) -> None:
        await self.stage.employ(*roles)
        await self.stage.shop.start(self.stage.order)
        self._operator = asyncio.create_task(self.script.operate(self.stage))

    async def _run_to(self, stop: Stop) -> Stop:
        held = self.stage.hold(stop)
        await self._start()
        await held.reached()
        return stop

    async def _run_to_scheduled_task(self, last: Stop) -> None:
        if last.what == TASK:  # then a timer brings the next
            await self._start()
            await waits_for_somebody(self.stage)
            await self.stage.dismiss("workflows")
        else:
            await self._run_to(last)
            await self.stage.dismiss("workflows")
            self.stage.hold(last).open()
        await until(self._is_task_scheduled)

    async def _is_task_scheduled(self) -> bool:
        described = (await self.stage.handle.describe()).raw_description
        scheduled = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        return described.HasField("pending_workflow_task") and described.pending_workflow_task.state == scheduled

    async def _is_activity_scheduled(self) -> bool:
        described = (await self.stage.handle.describe()).raw_description
        return [pending.activity_type.name for pending in described.pending_activities] == [self.instant.what]

    # The strike -----------------------------------------------------------------------------------------

    async def hit(self) -> None:
        """Strike; return when the server has taken every blow."""
        for blow in self.strike.blows:
            if blow == "cancel":
                await self.stage.handle.cancel(reason=REASON)
            elif blow == "terminate":
                await self.stage.handle.terminate(REASON)
            else:
                self._asked = asyncio.create_task(self._ask())
                await until(self._is_admitted)

    async def _ask(self) -> None:
        try:
            await self.stage.handle.execute_update(CheckoutWorkflow.cancel, REASON, id=self._update_id)
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
            await self.stage.shop.client.workflow_service.poll_workflow_execution_update(
                PollWorkflowExecutionUpdateRequest(
                    namespace="default",
                    update_ref=UpdateRef(
                        workflow_execution=WorkflowExecution(workflow_id=self.stage.handle.id),
                        update_id=self._update_id,
                    ),
                )
            )
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    # After the strike -----------------------------------------------------------------------------------

    async def let_go(self) -> None:
        """Have the workflow notice the strike first, then let everything go on."""
        await self.stage.employ("workflows")
        if self.instant.what == TASK:
            self.stage.open_all()
        if "cancel" in self.strike.blows:
            await until(self._has_noticed)
        if self._asked is not None:
            await asyncio.wait_for(self._asked, DEADLINE_SECONDS)
        await self.stage.employ("activities")
        self.stage.open_all()

    async def leave(self) -> None:
        """End what the script's person may still be waiting for; tell what went wrong there."""
        if self._operator is not None:
            self._operator.cancel()
            await self._operator

    async def _has_noticed(self) -> bool:
        names = [name_of(event) for event in await history_of(self.stage)]
        if CANCELLED not in names:
            return False
        later = names[names.index(CANCELLED) :]
        return "WORKFLOW_TASK_COMPLETED" in later or bool(_CLOSED & set(later))

    # What the history says ------------------------------------------------------------------------------

    @property
    def is_closing_task(self) -> bool:
        """Tell whether the strike meets the task that would have ended the saga, while it is at work."""
        return self.instant == Stop(TASK, self.course.tasks, "started")

    def expected_before(self, blow: Blow) -> list[str]:
        """Name the events that come before a blow's own, where it strikes first."""
        names = self.course.prefix(self.instant)
        if self.instant.what == TASK and self.instant.moment == "started":
            # What comes while a task is at work waits until its end. A task that would end the run is
            # refused then, and another sees what came. A termination does not wait.
            if self.is_closing_task or blow == "terminate":
                names += ["WORKFLOW_TASK_FAILED"]
            else:
                completed = self.course.index_of_task("COMPLETED", self.instant.number)
                names += ["WORKFLOW_TASK_COMPLETED", *self.course.commands(completed)]
        elif self.instant.what == TASK and blow == "terminate" and self._is_unwritten():
            names = names[:-1]
        if blow == "update":
            is_waiting = self.instant.what == TASK and self.instant.moment == "scheduled"
            names += _NEXT_TASK[1:] if is_waiting else _NEXT_TASK
        return names

    def _is_unwritten(self) -> bool:
        names = [name_of(event) for event in self.course.events]
        return is_brought_by_an_update(names, self.course.index_of_task("STARTED", self.instant.number))

    def place_of(self, blow: Blow) -> int | None:
        wanted = {"cancel": CANCELLED, "update": ACCEPTED, "terminate": TERMINATED}[blow]
        for place, event in enumerate(self.events):
            asked = event.workflow_execution_update_accepted_event_attributes.accepted_request.meta.update_id
            if name_of(event) == wanted and (blow != "update" or asked == self._update_id):
                return place
        return None


def without(names: Sequence[str], *unwanted: str) -> list[str]:
    return [name for name in names if name not in unwanted]
