"""The test kit on sagas that are broken on purpose: it fails in the cells that show the fault, and in no other."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    import pytest
    from temporalio.client import Client, WorkflowHandle
    from temporalio.worker import Interceptor, UnsandboxedWorkflowRunner, Worker

    from sagafence import (
        Cancellation,
        Compensation,
        Completed,
        RetryBackoff,
        Saga,
        StepState,
        UndoOutcome,
        UndoResult,
        wait_until,
    )
    from sagafence.testing import BrokenPromise, Case, Kind, SagaUnderTest, Step, check, matrix

THINGS = ("key", "van")
STEPS = tuple(Step(thing, f"take_{thing}", f"return_{thing}", {thing: -1}) for thing in THINGS)


class HastySaga(Saga):
    """Registers an undo after its step, as most examples on the net do."""

    @contextmanager
    def step(self, name: str, undo: Callable[[], Awaitable[UndoResult]]) -> Iterator[Compensation]:
        yield Compensation(name, undo, StepState.RUNNING)
        self.add_compensation(name, undo).state = StepState.DONE


class DeafCancellation(Cancellation):
    """Swallows every cancel."""

    @property
    def is_requested(self) -> bool:
        return False

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        await wait_until(condition)


@dataclass(frozen=True)
class Errand:
    errand_id: str
    fault: str


@workflow.defn
class ErrandWorkflow:
    """Take the key, then the van; or have neither."""

    @workflow.run
    async def run(self, errand: Errand) -> str:
        kind = HastySaga if errand.fault == "undo registered after the do" else Saga
        self._saga = kind(backoff=RetryBackoff(timedelta(hours=1), timedelta(hours=1)), on_stuck=self._on_stuck)
        if errand.fault == "cancel swallowed":
            self._saga.cancellation = DeafCancellation()
        self._forgets = errand.fault == "failed undo forgotten"
        outcome = await self._saga.run(self._story(errand))
        await wait_until(workflow.all_handlers_finished)
        return "completed" if isinstance(outcome, Completed) else "undone"

    async def _story(self, errand: Errand) -> None:
        for thing in THINGS:
            with self._saga.step(thing, undo=partial(self._call, f"return_{thing}", errand)):
                await self._call(f"take_{thing}", errand)

    async def _call(self, name: str, errand: Errand) -> UndoResult:
        called: UndoResult = await workflow.execute_activity(
            name,
            errand,
            result_type=UndoResult,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100)),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        return called

    async def _on_stuck(self, stuck: Sequence[Compensation]) -> None:
        for entry in stuck if self._forgets else ():
            self._saga.resolve(entry.step, "logged and forgotten")

    @workflow.update
    async def retry(self) -> None:
        self._saga.retry()
        await self._saga.round_ended()

    @retry.validator
    def _validate_retry(self) -> None:
        if not self._saga.is_stuck:
            raise ApplicationError("not stuck")


@dataclass
class Depot:
    """The world: one key and one van, and a fence unless it is left out."""

    fault: str
    things: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(THINGS, 10)))
    phases: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, errand: Errand, thing: str) -> UndoResult:
        key = (errand.errand_id, thing)
        if self.fault != "effect without fence":
            if self.phases.get(key) == "undone":
                raise ApplicationError(f"{thing} was returned already", non_retryable=True)
            if self.phases.get(key) == "done":
                return UndoResult(UndoOutcome.REVERSED)
        self.phases[key] = "done"
        self.things[thing] -= 1
        return UndoResult(UndoOutcome.REVERSED)

    def give_back(self, errand: Errand, thing: str) -> UndoResult:
        key = (errand.errand_id, thing)
        phase = self.phases.get(key)
        self.phases[key] = "undone"
        if phase == "done" or (phase == "undone" and self.fault == "undo not idempotent"):
            self.things[thing] += 1
        return UndoResult(UndoOutcome.REVERSED if phase else UndoOutcome.NOTHING_TO_UNDO)

    def activities(self) -> list[Callable[[Errand], Awaitable[UndoResult]]]:
        def make(name: str, act: Callable[[Errand, str], UndoResult], thing: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
            @activity.defn(name=name)
            async def called(errand: Errand) -> UndoResult:
                return act(errand, thing)

            return called

        return [
            make(f"{verb}_{thing}", act, thing)
            for thing in THINGS
            for verb, act in (("take", self.take), ("return", self.give_back))
        ]


@dataclass(frozen=True)
class Errands:
    """Where an errand is run: a task queue and a world of its own."""

    client: Client
    fault: str
    depot: Depot
    task_queue: str

    async def start(self) -> WorkflowHandle[ErrandWorkflow, str]:
        errand = Errand(f"errand-{uuid.uuid4().hex[:12]}", self.fault)
        return await self.client.start_workflow(
            ErrandWorkflow.run, errand, id=errand.errand_id, task_queue=self.task_queue
        )

    def worker(self, interceptors: Sequence[Interceptor]) -> Worker:
        return Worker(
            self.client,
            task_queue=self.task_queue,
            workflows=[ErrandWorkflow],
            activities=self.depot.activities(),
            interceptors=interceptors,
            workflow_runner=UnsandboxedWorkflowRunner(),  # nothing here needs the sandbox, and it takes its time
        )

    async def count(self, _workflow_id: str) -> dict[str, int]:
        return dict(self.depot.things)


def under_test(client: Client, fault: str) -> SagaUnderTest:
    errands = Errands(client, fault, Depot(fault), f"errands-{uuid.uuid4().hex[:12]}")
    return SagaUnderTest(
        start=errands.start,
        worker=errands.worker,
        probe=errands.count,
        is_completed=lambda result: result == "completed",
        retry=lambda handle: handle.execute_update(ErrandWorkflow.retry),
        timeout_seconds=60.0,
    )


Kinds = dict[Kind, bool]
MATRIX = matrix(STEPS, can_be_retried=True)


async def broken_in(client: Client, fault: str, cases: Sequence[Case]) -> dict[str, str]:
    """Play the cases, four at a time, and give those in which a promise broke, with the message."""
    found: dict[str, str] = {}
    seats = asyncio.Semaphore(4)

    async def play(case: Case) -> None:
        async with seats:
            try:
                await check(case, under_test(client, fault))
            except BrokenPromise as broken:
                found[str(case)] = str(broken)

    await asyncio.gather(*(play(case) for case in cases))
    return found


UNDOS = [kind for kind in Kind if kind.value.startswith("undo-")]

# In which kinds of case each fault shows: always (True), or when the cancel comes at the worst moment (False).
SHOWS: dict[str, Kinds] = {
    "undo registered after the do": {
        Kind.DO_GIVES_UP: True,
        Kind.DO_REPORT_LOST_FOR_GOOD: True,
        Kind.DO_LATE: True,
        Kind.CANCEL_BEFORE_EFFECT: False,
        Kind.CANCEL_AFTER_EFFECT: False,
        Kind.CANCEL_BESIDE_REPORT: False,
        **dict.fromkeys(UNDOS, True),  # the unwind begins with a step that took effect and reported a failure
    },
    "cancel swallowed": {
        Kind.CANCEL_AT_THE_START: True,
        Kind.CANCEL_BEFORE_EFFECT: True,
        Kind.CANCEL_AFTER_EFFECT: True,
    },
    "undo not idempotent": {
        Kind.UNDO_REPEATED: True,
        Kind.UNDO_LATE: True,
        Kind.UNDO_RESTARTED_AFTER: True,
    },
    "effect without fence": {
        Kind.DO_REPORT_LOST: True,
        Kind.DO_LATE: True,
        Kind.DO_LATE_AFTER_A_REPEAT: True,
        Kind.DO_RESTARTED_AFTER: True,
    },
    "failed undo forgotten": {Kind.UNDO_STUCK: True},
    "none": {},
}


@pytest.mark.parametrize("fault", [fault for fault, kinds in SHOWS.items() if kinds])
async def test_a_fault_is_caught_and_reported_in_words(client: Client, fault: str) -> None:
    kind = next(kind for kind, always in SHOWS[fault].items() if always)
    case = next(case for case in MATRIX if case.kind is kind)

    [message] = (await broken_in(client, fault, [case])).values()

    assert message.splitlines()[0].endswith(".")
    assert case.story in message
    assert "\n  workflow       errand-" in message
    assert f"\n  case           {case}\n  last failure" in message


async def test_a_case_whose_fault_cannot_be_injected_is_no_proof(client: Client) -> None:
    misspelt = (Step("key", "take_kye", "return_key", {"key": -1}), STEPS[1])
    case = next(case for case in matrix(misspelt) if str(case) == "key-do-fails-then-works")

    [message] = (await broken_in(client, "none", [case])).values()

    assert message.startswith("A case proves nothing unless its fault is injected.")


async def test_an_effect_that_is_not_as_described_is_reported(client: Client) -> None:
    wrong = (Step("key", "take_key", "return_key", {"key": -2}), STEPS[1])

    [message] = (await broken_in(client, "none", matrix(wrong)[:1])).values()

    assert message.startswith("A saga that completes has each effect once: key -2, van -1.")
    assert "found          key -1, van -1" in message


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", SHOWS)
@pytest.mark.timeout(600)
async def test_a_fault_shows_in_every_cell_where_it_should_and_in_no_other(client: Client, fault: str) -> None:
    found = await broken_in(client, fault, MATRIX)

    always = {str(case) for case in MATRIX if SHOWS[fault].get(case.kind) is True}
    sometimes = {str(case) for case in MATRIX if SHOWS[fault].get(case.kind) is False}
    assert always - set(found) == set()
    assert set(found) - always - sometimes == set()
