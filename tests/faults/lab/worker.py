"""The product's worker with a connection to the control server: it asks at every boundary before it goes on.

    python -m tests.faults.lab.worker

What it runs is built by `worker.build_worker`. The lab adds an interceptor, a runner that asks before a workflow
sees an operation's result, and longer patience with a database whose answers are held back.
"""

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.exceptions import FailureError
from temporalio.worker import (
    StartActivityInput,
    StartLocalActivityInput,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInstance,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from adapters import database
from adapters.config import WorkerSettings, load
from adapters.log_setup import configure_logging
from adapters.process_exit import leave
from adapters.temporal import connect
from domain.policies import order_id_of
from sagafence import SagaError
from tests.attempts import AroundAttempts, Run
from tests.faults.lab.batch_cells import BatchOperation
from tests.faults.lab.cells import RETURNED, Boundary, Operation
from tests.faults.lab.control import Line, Report
from tests.faults.runner import ObservedInstance, ObservedRunner, let_tasks_take_long
from worker import build_worker

ATTEMPT_SECONDS = "LAB_ATTEMPT_SECONDS"
"""Environment: start-to-close of the operations that the fault meets. The others get a minute."""
CONTROL_PORT = "LAB_CONTROL_PORT"

ARMED = "armed"
"""Memo of a workflow: the operation of it that the fault meets."""

_OTHERS_SECONDS = 60.0
_OPERATIONS = frozenset(operation.value for operation in (*Operation, *BatchOperation))


class Boundaries(AroundAttempts):
    """Asks before an operation's SQL and after it, and sets the time that an attempt may take.

    An attempt goes on to its end, be it cancelled or not: a zombie can always be faster than its cancel.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002, ARG002 - the SDK passes it by this name
    ) -> type[WorkflowInboundInterceptor]:
        return _Hasten

    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:  # noqa: ARG002
        if info.activity_type not in _OPERATIONS:
            return await run()
        subject, run_id = order_id_of(info.workflow_id or ""), info.workflow_run_id or ""
        here = Report(subject, info.activity_type, info.attempt, os.getpid(), run_id=run_id)
        work = asyncio.create_task(self._work(run, here))
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        return work.result()

    async def _work(self, run: Run, here: Report) -> Any:
        await self._line.report(replace(here, boundary=Boundary.B1))
        try:
            value = await run()
        except FailureError as error:
            name = error.type if isinstance(error, SagaError) else None
            await self._line.report(replace(here, answer=name or type(error).__name__))
            raise
        await self._line.report(replace(here, boundary=Boundary.B4))
        await self._line.report(replace(here, answer=RETURNED))
        return value


class _Hasten(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Hastened(outbound))


class _Hastened(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        _set_time(input)
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        _set_time(input)
        return super().start_local_activity(input)


def _set_time(given: StartActivityInput | StartLocalActivityInput) -> None:
    if given.activity in _OPERATIONS:
        # One without a memo was begun by a batch or a sweep, and a stopped worker's open polls may get its tasks.
        is_armed = given.activity == workflow.memo_value(ARMED, given.activity)
        seconds = float(os.environ[ATTEMPT_SECONDS]) if is_armed else _OTHERS_SECONDS
        given.start_to_close_timeout = timedelta(seconds=seconds)


class _AskingInstance(ObservedInstance):
    """Asks before its workflow sees an operation's result."""

    def __init__(self, instance: WorkflowInstance, subject: str, line: Line) -> None:
        super().__init__(instance)
        self._subject = subject
        self._line = line
        self._operations: dict[int, str] = {}

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        for job in act.jobs:
            if not job.HasField("resolve_activity") or act.is_replaying:
                continue
            operation = self._operations.get(job.resolve_activity.seq)
            if operation is not None and job.resolve_activity.result.HasField("completed"):
                self._line.report_from_thread(Report(self._subject, operation, 0, os.getpid(), Boundary.B5))
        completion = super().activate(act)
        for command in completion.successful.commands:
            if command.HasField("schedule_activity") and command.schedule_activity.activity_type in _OPERATIONS:
                self._operations[command.schedule_activity.seq] = command.schedule_activity.activity_type
        return completion


def _let_it_ask(worker: Worker, line: Line) -> None:
    inside = worker._workflow_worker
    assert inside is not None
    inside._workflow_runner = ObservedRunner(
        inside._workflow_runner,
        lambda instance, workflow_id: _AskingInstance(instance, order_id_of(workflow_id), line),
    )
    let_tasks_take_long(worker)


async def _run(settings: WorkerSettings) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    line = Line(int(os.environ[CONTROL_PORT]))
    # Below the timeouts of the role, as the lab sets them.
    database._COMMAND_TIMEOUT_SECONDS = 50.0
    engine = database.create_engine(settings.database_url.get_secret_value(), pool_size=settings.database_pool_size)
    worker = build_worker(await connect(), engine, settings, interceptors=(Boundaries(line),))
    _let_it_ask(worker, line)
    async with worker:
        await stop.wait()
    await engine.dispose()


def main() -> int:
    settings = load(WorkerSettings)
    configure_logging(settings.log_level)
    asyncio.run(_run(settings))
    return 0


if __name__ == "__main__":
    leave(main())
