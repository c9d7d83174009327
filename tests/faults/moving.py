"""A saga for the test kit: steps side by side, a point of no return in the middle, and a provider over HTTP.

Box, then van (at the provider) beside key and lift; then the deposit (at the provider), which is the point of no
return; then the letter (at the provider) beside the note. Correct, unless a fault is named: each is a mistake that
people make. Its books are in memory: what is under test is the kit.
"""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

with workflow.unsafe.imports_passed_through():
    from temporalio.client import Client, WorkflowHandle
    from temporalio.worker import Interceptor, UnsandboxedWorkflowRunner, Worker

    from sagafence import Completed, Irrevocable, RetryBackoff, Saga, StepState, UndoOutcome, UndoResult, wait_until
    from sagafence.testing import SagaUnderTest, Step, Together, provider_proxy

BOX = Step("box", "take_box", "return_box", {"boxes": +1})
KEY = Step("key", "take_key", "return_key", {"keys": +1})
LIFT = Step("lift", "take_lift", "return_lift", {"lifts": +1})
VAN = Step("van", "book_van", "cancel_van", {"vans": +1}, calls="POST /vans", undo_calls="DELETE /vans")
DEPOSIT = Step("deposit", "pay", "settle", {"deposits": +1}, is_irrevocable=True, calls="POST /deposits")
LETTER = Step("letter", "send_letter", effect={"letters": +1}, calls="POST /letters")
NOTE = Step("note", "take_note", effect={"notes": +1})
STEPS = (BOX, Together(VAN, [KEY, LIFT]), DEPOSIT, Together(LETTER, NOTE))

LOCAL_FIRST = "none: its own steps are local first"
"""Not a fault: another way to run the steps that have no provider."""


def _local(step: Step) -> Step:
    return replace(step, is_local_first=True)


STEPS_LOCAL_FIRST = (
    _local(BOX),
    Together(VAN, [_local(KEY), _local(LIFT)]),
    DEPOSIT,
    Together(LETTER, _local(NOTE)),
)

NOTHING = UndoResult(UndoOutcome.NOTHING_TO_UNDO)
REVERSED = UndoResult(UndoOutcome.REVERSED)


@dataclass(frozen=True)
class Move:
    move_id: str
    fault: str


@workflow.defn
class MoveWorkflow:
    @workflow.run
    async def run(self, move: Move) -> str:
        self._fault = move.fault
        self._is_parked = False
        self._retries = 0
        self._saga = Saga(backoff=RetryBackoff(timedelta(hours=1), timedelta(hours=1)), on_stuck=self._on_stuck)
        outcome = await self._saga.run(self._story(move))
        if isinstance(outcome, Completed | Irrevocable):
            forward = asyncio.gather(self._forward("send_letter", move), self._forward("take_note", move))
            await self._saga.cancellation.protect(_awaited(forward))
        await wait_until(workflow.all_handlers_finished)
        return "completed" if isinstance(outcome, Completed | Irrevocable) else "undone"

    async def _story(self, move: Move) -> None:
        await self._step(BOX, move)
        both = self._step(VAN, move), self._branch(move)
        if self._fault == "a sibling is not awaited":
            await asyncio.gather(*both)
        else:
            await self._together(both)
        await self._step(DEPOSIT, move)

    async def _together(self, branches: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Run branches side by side. All of them have ended when the first failure is raised."""
        tasks, cancellation = [asyncio.create_task(branch) for branch in branches], self._saga.cancellation
        await cancellation.wait_until(lambda: cancellation.is_requested or all(task.done() for task in tasks))
        for task in tasks:
            task.cancel()  # nothing, where all of them have ended
        await cancellation.wait_until(lambda: all(task.done() for task in tasks))
        for task in tasks:
            task.result()

    async def _branch(self, move: Move) -> None:
        await self._step(KEY, move)
        await self._step(LIFT, move)

    async def _step(self, step: Step, move: Move) -> None:
        undo = partial(self._undo, step.undo, move)
        if self._fault == "a sibling is not awaited":  # nor on the stack before it has ended
            try:
                await _call(step.do, move)
            finally:
                self._saga.add_compensation(step.name, undo).state = StepState.DONE
            return
        with self._saga.step(step.name, undo=undo):
            await self._do(step.do, move)

    async def _do(self, name: str, move: Move) -> None:
        is_local_first = self._fault == LOCAL_FIRST and name in {step.do for step in (BOX, KEY, LIFT, NOTE)}
        if not (is_local_first and await _done_locally(name, move)):
            await _call(name, move)

    async def _undo(self, name: str, move: Move) -> UndoResult:
        if self._fault == "undone in the order of the steps" and name == VAN.undo:
            await _call(BOX.undo, move)
        return await _call(name, move)

    async def _forward(self, name: str, move: Move) -> None:
        while True:
            try:
                await self._do(name, move)
            except FailureError:
                if self._fault == "a step after the pivot is given up":
                    return
                self._is_parked = True
                await wait_until(partial(self._is_retried, self._retries))
                self._is_parked = False
            else:
                return

    def _is_retried(self, before: int) -> bool:
        return self._retries > before

    async def _on_stuck(self, _stuck: Sequence[Any]) -> None:
        """Wait for a retry."""

    @workflow.update
    async def retry(self) -> None:
        self._retries += 1
        self._saga.retry()
        await self._saga.round_ended()

    @retry.validator
    def _validate_retry(self) -> None:
        if not (self._saga.is_stuck or self._is_parked):
            raise ApplicationError("not stuck")


async def _awaited(waiting: Awaitable[Any]) -> None:
    await waiting


async def _done_locally(name: str, move: Move) -> bool:
    """Try a step once as a local activity; return whether that was enough."""
    try:
        await workflow.execute_local_activity(
            name,
            move,
            result_type=UndoResult,
            start_to_close_timeout=timedelta(seconds=2),
            retry_policy=RetryPolicy(maximum_attempts=1),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
    except FailureError as error:
        cause = error.cause if isinstance(error, ActivityError) else error
        if not isinstance(cause, TemporalTimeoutError) and getattr(cause, "non_retryable", True):
            raise
        if (caller := asyncio.current_task()) and caller.cancelling():
            raise asyncio.CancelledError from error  # the cancel went to the attempt that failed
        return False
    return True


async def _call(name: str, move: Move) -> UndoResult:
    called: UndoResult = await workflow.execute_activity(
        name,
        move,
        result_type=UndoResult,
        start_to_close_timeout=timedelta(seconds=20),
        retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100)),
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )
    return called


@dataclass
class Provider:
    """The other side: remembers for ever what it did under a key."""

    by_key: dict[str, str] = field(default_factory=dict)
    there: dict[str, set[str]] = field(default_factory=lambda: {"vans": set(), "deposits": set(), "letters": set()})
    voided: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, key: str) -> tuple[int, dict[str, Any]]:
        kind, _, name = path.strip("/").partition("/")
        if method == "DELETE":
            self.there[kind].discard(name)
            return 200, {}
        if method == "GET":
            return (200, {"id": self.by_key[key]}) if key in self.by_key else (404, {})
        if kind == "voids":
            if key in self.by_key:
                return 200, {"stands": True}
            self.voided.add(key)
            return 200, {"stands": False}
        if key in self.voided:
            return 422, {}
        if key not in self.by_key:
            self.by_key[key] = f"{kind}-{len(self.by_key) + 1}"
            self.there[kind].add(self.by_key[key])
        return 200, {"id": self.by_key[key]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        key = next((line.partition(": ")[2] for line in head if line.startswith("Idempotency-Key")), "")
        status, answer = self.answer(method, path, key)
        body = json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


@dataclass
class Row:
    """What the books know of one step of one move."""

    key: str
    phase: str = "intended"
    remote_id: str = ""


@dataclass
class Movers:
    """The activities, and their books."""

    url: str
    fault: str
    things: Counter[str] = field(default_factory=Counter)
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    async def send(self, method: str, path: str, key: str = "") -> tuple[int, dict[str, Any]]:
        at = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: it\r\nIdempotency-Key: {key}\r\n\r\n".encode())
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        status = int(head.split(b" ")[1])
        return status, json.loads(body) if status < 300 else {}

    def permit(self, move: Move, step: str) -> Row:
        """Begin an attempt: no step is begun that is undone."""
        row = self.rows.setdefault((move.move_id, step), Row(f"{move.move_id}-{step}"))
        if row.phase == "undone":
            raise ApplicationError(f"{step} is undone", non_retryable=True)
        return row

    def close(self, move: Move, step: str) -> Row | None:
        """Begin an undo: return what there was, and leave a row that lets no attempt begin any more."""
        row = self.rows.get((move.move_id, step))
        if row is not None or self.fault != "no tombstone":
            self.rows[move.move_id, step] = Row(row.key if row else "", "undone", row.remote_id if row else "")
        return row

    async def take(self, step: Step, move: Move) -> UndoResult:
        row = self.permit(move, step.name)
        if row.phase != "done":
            row.phase = "done"
            self.things.update(step.effect)
        return REVERSED

    async def give_back(self, step: Step, move: Move) -> UndoResult:
        row = self.close(move, step.name)
        if row is None or row.phase != "done":
            return NOTHING
        self.things.subtract(step.effect)
        return REVERSED

    async def act(self, step: Step, move: Move) -> UndoResult:
        """Do a step at the provider."""
        row = self.permit(move, step.name)
        if row.phase == "done":
            return REVERSED
        key = uuid.uuid4().hex if self.fault == "a new key per attempt" else row.key
        method, _, path = step.calls.partition(" ")
        status, body = await self.send(method, path, key)
        if status == 500 and self.fault == "500 means not done":
            self.rows[move.move_id, step.name] = Row(key, "never")
            raise ApplicationError("the provider failed", non_retryable=True)
        if status == 422:
            raise ApplicationError("the provider refused", non_retryable=True)
        if status != 200:
            raise ApplicationError(f"the provider answered {status}")
        row.remote_id = body["id"]
        if row.phase == "intended":
            row.phase = "done"
        return REVERSED

    async def cancel_van(self, move: Move) -> UndoResult:
        row = self.close(move, VAN.name)
        if row is None or not row.key or (row.phase == "never" and self.fault == "500 means not done"):
            return NOTHING
        if not row.remote_id and self.fault == "an undo trusts the id that it remembers":
            return NOTHING
        if self.fault == "an undo looks, and believes that there is nothing":
            status, body = await self.send("GET", "/vans", row.key)
            if status == 404:
                return NOTHING
        else:  # the same request under the same key: from now on nothing that is late can act
            status, body = await self.send("POST", "/vans", row.key)
        if status != 200:
            raise ApplicationError(f"the provider answered {status}")
        status, _ = await self.send("DELETE", f"/vans/{body['id']}")
        if status != 200:
            raise ApplicationError(f"the provider answered {status}")
        return REVERSED

    async def settle(self, move: Move) -> UndoResult:
        row = self.close(move, DEPOSIT.name)
        if row is None or not row.key:
            return NOTHING
        if not row.remote_id and self.fault == "the stack is undone while the pivot is unknown":
            return NOTHING
        status, body = await self.send("POST", "/voids", row.key)
        if status != 200:
            raise ApplicationError(f"the provider answered {status}")
        return UndoResult(UndoOutcome.IRREVOCABLE) if body["stands"] else NOTHING

    def activities(self) -> list[Callable[[Move], Awaitable[UndoResult]]]:
        def make(name: str, work: Callable[[Move], Awaitable[UndoResult]]):  # type: ignore[no-untyped-def]  # noqa: ANN202
            @activity.defn(name=name)
            async def called(move: Move) -> UndoResult:
                return await work(move)

            return called

        works: dict[str, Callable[[Move], Awaitable[UndoResult]]] = {
            **{step.do: partial(self.take, step) for step in (BOX, KEY, LIFT, NOTE)},
            **{step.undo: partial(self.give_back, step) for step in (BOX, KEY, LIFT)},
            **{step.do: partial(self.act, step) for step in (VAN, DEPOSIT, LETTER)},
            VAN.undo: self.cancel_van,
            DEPOSIT.undo: self.settle,
        }
        return [make(name, work) for name, work in works.items()]


@asynccontextmanager
async def moves(client: Client, fault: str = "none") -> AsyncIterator[SagaUnderTest]:
    """Run a provider with a proxy before it, and describe the saga that uses it."""
    provider, task_queue = Provider(), f"moves-{uuid.uuid4().hex[:12]}"
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    async with provider_proxy(f"http://{host}:{port}") as proxy:
        movers = Movers(proxy.url, fault)

        async def start() -> WorkflowHandle[MoveWorkflow, str]:
            move = Move(f"move-{uuid.uuid4().hex[:12]}", fault)
            return await client.start_workflow(MoveWorkflow.run, move, id=move.move_id, task_queue=task_queue)

        def worker(interceptors: Sequence[Interceptor]) -> Worker:
            return Worker(
                client,
                task_queue=task_queue,
                workflows=[MoveWorkflow],
                activities=movers.activities(),
                interceptors=interceptors,
                workflow_runner=UnsandboxedWorkflowRunner(),
            )

        async def count(_workflow_id: str) -> dict[str, int]:
            return {**movers.things, **{kind: len(there) for kind, there in provider.there.items()}}

        yield SagaUnderTest(
            start=start,
            worker=worker,
            probe=count,
            is_completed=lambda result: result == "completed",
            retry=lambda handle: handle.execute_update(MoveWorkflow.retry),
            provider=proxy.strikes,
            timeout_seconds=60.0,
        )
    server.close()
