"""The compensation stack without a server: asyncio stands in for the workflow's event loop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.api.enums.v1 import RetryState
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import CancelledError as TemporalCancelledError
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

import sagafence.cancellation as cancellation_module
import sagafence.stack as saga_module
from sagafence import (
    Compensation,
    Completed,
    Irrevocable,
    RetryBackoff,
    Saga,
    StillStuck,
    UndoOutcome,
    UndoResult,
    Unwound,
    describe,
    wait_until,
)

STEPS = ("one", "two", "three")
sdks = pytest.mark.parametrize("is_later_sdk", [False, True], ids=["this SDK", "a later SDK"])
FOR_EVER = RetryBackoff(timedelta(hours=1), timedelta(hours=1))
Ended = Completed[None] | Unwound | Irrevocable | StillStuck


@dataclass
class World:
    """One workflow run: its cancel, its event loop's wait_condition, and a diary of what happened."""

    diary: list[str] = field(default_factory=list)
    parked: list[list[str]] = field(default_factory=list)
    unwinds: list[tuple[BaseException | None, str | None]] = field(default_factory=list)
    changes: int = 0
    backoff: RetryBackoff = FOR_EVER
    way_back: list[Irrevocable | None] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    reason: str | None = None
    is_later_sdk: bool = False
    """Whether wait_condition raises, in any task, once it is over, a cancel of the server's that came meanwhile."""
    main: "asyncio.Task[Any] | None" = None

    ends_stuck: bool = False
    is_patched: bool = True
    """Whether it does what `workflow.patched` asks for: False for what is replayed of a run from before the patch."""

    def __post_init__(self) -> None:
        self.begin_again()
        self._reached: dict[str, asyncio.Event] = {}

    def begin_again(self, *, is_resumed: bool = False) -> None:
        """Give the run a saga that has done nothing yet."""
        self.saga = Saga(
            backoff=self.backoff,
            on_change=self._on_change,
            on_unwind=lambda cause, step: self.unwinds.append((cause, step)),
            on_stuck=self._on_stuck,
            ends_stuck=lambda: self.ends_stuck,
            is_resumed=is_resumed,
        )

    def cancel(self, reason: str = "asked for") -> None:
        """Do as the server's cancel does: note the first reason, then strike the main task."""
        self.reason = self.reason or reason
        assert self.main is not None
        self.main.cancel()

    def evict(self) -> None:
        """Do as the worker does when it drops a run from its cache: strike without a reason."""
        assert self.main is not None
        self.main.cancel()

    def begin(self, story: Coroutine[Any, Any, None]) -> "asyncio.Task[Ended]":
        task = asyncio.create_task(self.saga.run(story))
        self.main = task
        return task

    async def run(self, story: Coroutine[Any, Any, None]) -> Ended:
        return await asyncio.wait_for(asyncio.shield(self.begin(story)), 5)

    def hold(self, entry: str) -> None:
        """Stop at this entry of the diary until `let_go`."""
        self.gates[entry] = asyncio.Event()

    def let_go(self, entry: str) -> None:
        self.gates[entry].set()

    async def at(self, entry: str) -> None:
        """Wait until the diary has this entry."""
        await asyncio.wait_for(self._reached.setdefault(entry, asyncio.Event()).wait(), 5)

    async def note(self, entry: str) -> None:
        self.diary.append(entry)
        self._reached.setdefault(entry, asyncio.Event()).set()
        if gate := self.gates.get(entry):
            await gate.wait()

    def do(self, name: str, error: BaseException | None = None) -> Callable[[], Awaitable[str]]:
        async def step() -> str:
            await self.note(f"do {name}")
            if error is not None:
                raise error
            self.diary.append(f"did {name}")
            return name

        return step

    def undo(
        self, name: str, *outcomes: UndoOutcome | Exception, stored: dict[str, Any] | None = None
    ) -> Callable[[], Awaitable[UndoResult]]:
        """Answer with these outcomes in turn, then with success for ever."""
        left = list(outcomes)

        async def step() -> UndoResult:
            await self.note(f"undo {name}")
            outcome = left.pop(0) if left else UndoOutcome.REVERSED
            if isinstance(outcome, Exception):
                raise outcome
            self.diary.append(f"undid {name}")
            return UndoResult(outcome, stored or {})

        return step

    async def story(
        self,
        failing: dict[str, BaseException] | None = None,
        undos: dict[str, Sequence[UndoOutcome | Exception]] | None = None,
    ) -> None:
        """Run steps one, two and three."""
        for name in STEPS:
            with self.saga.step(name, self.undo(name, *(undos or {}).get(name, ()))) as entry:
                value = await self.do(name, (failing or {}).get(name))()
                entry.detail = f"did {value}"

    def undone(self) -> list[str]:
        return [entry.removeprefix("undid ") for entry in self.diary if entry.startswith("undid ")]

    def tried_to_undo(self) -> list[str]:
        return [entry.removeprefix("undo ") for entry in self.diary if entry.startswith("undo ")]

    def states(self) -> dict[str, str]:
        return {entry.step: entry.state.value for entry in self.saga.compensations}

    def _on_change(self) -> None:
        self.changes += 1

    async def _on_stuck(self, stuck: Sequence[Compensation]) -> Irrevocable | None:
        self.parked.append([entry.step for entry in stuck])
        self._reached.setdefault(f"parked {len(self.parked)}", asyncio.Event()).set()
        return self.way_back.pop(0) if self.way_back else None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    # Temporal looks at conditions when nothing else is left to run: some turns stand for that.
    async def wait_condition(
        fn: Callable[[], bool], *, timeout: timedelta | None = None, timeout_summary: str = ""
    ) -> None:
        del timeout_summary
        before = made.reason

        def is_cancelled_meanwhile() -> bool:
            return made.is_later_sdk and before is None and made.reason is not None

        try:
            async with asyncio.timeout(timeout.total_seconds() if timeout else None):
                await some_turns(10)
                while not fn():
                    await some_turns(10)
        except TimeoutError:
            if is_cancelled_meanwhile():
                raise asyncio.CancelledError from None
            raise
        if is_cancelled_meanwhile():
            raise asyncio.CancelledError

    as_seen = SimpleNamespace(
        wait_condition=wait_condition,
        cancellation_reason=lambda: made.reason,
        patched=lambda _: made.is_patched,
    )
    for module in (saga_module, cancellation_module):
        monkeypatch.setattr(module, "workflow", as_seen)
    return made


def refusal(message: str = "no") -> ApplicationError:
    return ApplicationError(message, type="Refused", non_retryable=True)


def activity_error(cause: BaseException) -> ActivityError:
    error = ActivityError(
        "Activity task failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="worker",
        activity_type="any",
        activity_id="1",
        retry_state=cast("Any", RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE),
    )
    error.__cause__ = cause
    return error


async def some_turns(count: int = 100) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Forward ------------------------------------------------------------------------------------------------


async def test_a_story_that_succeeds_undoes_nothing(world: World) -> None:
    ended = await world.run(world.story())

    assert ended == Completed(None)
    assert world.undone() == []
    assert world.states() == dict.fromkeys(STEPS, "done")


async def test_a_step_says_what_it_did(world: World) -> None:
    await world.run(world.story())

    assert [entry.detail for entry in world.saga.compensations] == ["did one", "did two", "did three"]


async def test_every_change_of_a_step_is_reported(world: World) -> None:
    await world.run(world.story())

    assert world.changes == 2 * len(STEPS)


async def test_the_undo_is_on_the_stack_before_its_step_starts(world: World) -> None:
    stack_at_start: list[list[str]] = []

    async def look() -> None:
        stack_at_start.append([entry.step for entry in world.saga.compensations])

    async def story() -> None:
        with world.saga.step("one", world.undo("one")):
            await look()

    await world.run(story())

    assert stack_at_start == [["one"]]


async def test_the_same_step_name_twice_is_refused(world: World) -> None:
    world.saga.add_compensation("one", world.undo("one"))

    with pytest.raises(ValueError, match="step one is already on the stack"):
        world.saga.add_compensation("one", world.undo("one"))


# Unwinding ----------------------------------------------------------------------------------------------


async def test_undos_run_last_in_first_out_beginning_with_the_failed_steps_own(world: World) -> None:
    await world.run(world.story(failing={"three": refusal()}))

    assert world.undone() == ["three", "two", "one"]


@pytest.mark.parametrize(("failing", "undone"), [("one", ["one"]), ("two", ["two", "one"])])
async def test_only_steps_that_began_are_undone(world: World, failing: str, undone: list[str]) -> None:
    await world.run(world.story(failing={failing: refusal()}))

    assert world.undone() == undone


async def test_the_end_of_an_unwind_reports_cause_failed_step_and_what_became_of_each(world: World) -> None:
    cause = refusal()

    ended = await world.run(world.story(failing={"two": cause}, undos={"two": [UndoOutcome.NOTHING_TO_UNDO]}))

    assert isinstance(ended, Unwound)
    assert (ended.cause, ended.failed_step) == (cause, "two")
    assert world.states() == {"one": "undone", "two": "nothing to undo"}


async def test_the_begin_of_an_unwind_is_reported_once_with_its_cause(world: World) -> None:
    cause = refusal()

    await world.run(world.story(failing={"two": cause}))

    assert world.unwinds == [(cause, "two")]


@pytest.mark.parametrize("error", [refusal(), TimeoutError("late"), activity_error(refusal())])
async def test_every_failure_that_temporal_knows_unwinds(world: World, error: Exception) -> None:
    ended = await world.run(world.story(failing={"one": error}))

    assert isinstance(ended, Unwound)
    assert ended.cause is error


@pytest.mark.parametrize("bug", [KeyError("typo"), ValueError("wrong"), AssertionError()])
async def test_a_bug_in_the_story_comes_out_as_itself_and_undoes_nothing(world: World, bug: Exception) -> None:
    with pytest.raises(type(bug)):
        await world.run(world.story(failing={"two": bug}))

    assert world.tried_to_undo() == []


async def test_a_bug_in_an_undo_comes_out_as_itself(world: World) -> None:
    with pytest.raises(KeyError):
        await world.run(world.story(failing={"two": refusal()}, undos={"two": [KeyError("typo")]}))

    assert world.undone() == []


# Stuck --------------------------------------------------------------------------------------------------


async def test_an_unwind_goes_on_past_an_undo_that_fails(world: World) -> None:
    run = world.begin(world.story(failing={"three": refusal()}, undos={"two": [refusal("broken")]}))

    await world.at("parked 1")

    assert world.undone() == ["three", "one"]
    assert world.parked == [["two"]]
    assert world.states()["two"] == "stuck"
    run.cancel()


async def test_a_stuck_saga_keeps_the_first_cause(world: World) -> None:
    cause = refusal("first")
    run = world.begin(world.story(failing={"three": cause}, undos={"two": [refusal("second")]}))
    await world.at("parked 1")

    world.saga.retry()
    ended = await run

    assert isinstance(ended, Unwound)
    assert ended.cause is cause


async def test_the_undos_own_failure_is_kept_beside_the_first_cause(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal("first")}, undos={"one": [refusal("second")]}))

    await world.at("parked 1")

    assert next(e.detail for e in world.saga.compensations if e.step == "one") == "Refused: second"
    run.cancel()


async def test_a_retry_runs_only_the_stuck_undos(world: World) -> None:
    run = world.begin(
        world.story(failing={"three": refusal()}, undos={"three": [refusal()], "one": [refusal(), refusal()]})
    )
    await world.at("parked 1")
    world.diary.clear()

    world.saga.retry()
    await world.at("parked 2")

    assert world.tried_to_undo() == ["three", "one"]
    assert world.parked == [["three", "one"], ["one"]]
    run.cancel()


@pytest.mark.parametrize("is_patched", [True, False], ids=["a new run", "a run from before the patches"])
async def test_a_retry_is_good_for_one_round(world: World, is_patched: bool) -> None:
    world.is_patched = is_patched
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal(), refusal(), refusal()]}))
    await world.at("parked 1")

    world.saga.retry()
    await world.at("parked 2")
    await some_turns()

    assert world.parked == [["one"], ["one"]]
    run.cancel()


async def test_a_retry_during_a_round_joins_it(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal(), refusal(), refusal()]}))
    await world.at("parked 1")
    world.hold("undo one")
    world.saga.retry()
    await some_turns()

    world.saga.retry()
    world.let_go("undo one")
    await world.at("parked 2")
    await some_turns()

    assert world.parked == [["one"], ["one"]]
    run.cancel()


async def retried_when_two_has_failed_again(world: World) -> "asyncio.Task[Ended]":
    """Retry a saga that is stuck in two steps again, while a round has failed at one of them and is at the other."""
    undos: dict[str, Sequence[UndoOutcome | Exception]] = {"two": [refusal(), refusal()], "one": [refusal()]}
    run = world.begin(world.story(failing={"two": refusal()}, undos=undos))
    await world.at("parked 1")
    world.hold("undo one")
    world.saga.retry()
    await some_turns()
    assert world.states() == {"one": "undoing", "two": "stuck"}
    world.saga.retry()
    return run


async def test_a_retry_during_a_round_that_has_failed_at_a_step_tries_that_step_again_at_once(world: World) -> None:
    run = await retried_when_two_has_failed_again(world)

    world.let_go("undo one")
    ended = await asyncio.wait_for(run, 5)

    assert isinstance(ended, Unwound)
    assert world.tried_to_undo() == ["two", "one", "two", "one", "two"]


async def test_whoever_retries_such_a_step_is_answered_when_it_was_tried(world: World) -> None:
    run = await retried_when_two_has_failed_again(world)
    asker = asyncio.create_task(world.saga.round_ended())
    world.hold("undo two")

    world.let_go("undo one")
    await some_turns()
    is_answered_early = asker.done()
    world.let_go("undo two")
    await asyncio.wait_for(asker, 5)
    await asyncio.wait_for(run, 5)

    assert not is_answered_early
    assert world.states() == {"one": "undone", "two": "undone"}


async def test_a_retry_during_a_round_joined_it_before_the_patch_whatever_had_failed(world: World) -> None:
    world.is_patched = False
    run = await retried_when_two_has_failed_again(world)
    asker = asyncio.create_task(world.saga.round_ended())

    world.let_go("undo one")
    await asyncio.wait_for(asker, 5)
    await some_turns()

    assert world.parked == [["two", "one"], ["two"]]
    assert world.tried_to_undo() == ["two", "one", "two", "one"]
    run.cancel()


@pytest.mark.parametrize(("is_patched", "rounds"), [(True, 2), (False, 3)], ids=["a new run", "from before the patch"])
async def test_a_retry_that_comes_before_a_round_that_begins_at_once_causes_no_other(
    world: World, is_patched: bool, rounds: int
) -> None:
    world.is_patched = is_patched

    async def park(stuck: Sequence[Compensation]) -> None:
        world.parked.append([entry.step for entry in stuck])
        if len(world.parked) == 1:
            world.saga.retry()
            world.saga.must_undo("left by another run", world.undo("left by another run"))

    world.saga._on_stuck = park
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal()] * 4}))
    await some_turns(300)

    assert world.parked == [["one"]] * rounds
    run.cancel()


async def test_a_retry_that_came_when_all_was_undone_causes_no_round_of_what_is_found_later(world: World) -> None:
    await world.run(world.story(failing={"one": refusal()}))
    world.saga.retry()

    world.saga.must_undo("two", world.undo("two", refusal(), refusal()))
    unwinding = asyncio.create_task(world.saga.unwind_more())
    await world.at("parked 1")
    await some_turns(300)

    assert world.parked == [["two"]]
    unwinding.cancel()


async def test_rounds_are_counted_for_the_saga_and_for_each_undo(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal()]}))
    await world.at("parked 1")

    world.saga.retry()
    await run

    assert world.saga.rounds == 2
    assert [entry.rounds for entry in world.saga.compensations] == [2, 1]


async def test_a_resolved_step_is_not_undone_and_the_saga_ends(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal()]}))
    await world.at("parked 1")
    world.diary.clear()

    world.saga.resolve("one", "by hand")
    ended = await run

    assert isinstance(ended, Unwound)
    assert world.tried_to_undo() == []
    assert world.states()["one"] == "resolved"


async def test_resolving_one_of_two_stuck_steps_leaves_the_other_to_a_retry(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal()}, undos={"two": [refusal()], "one": [refusal()]}))
    await world.at("parked 1")
    world.diary.clear()

    world.saga.resolve("one", "by hand")
    await some_turns()
    assert not run.done()
    world.saga.retry()
    await run

    assert world.tried_to_undo() == ["two"]


async def test_resolving_a_step_that_is_not_stuck_changes_nothing(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal()]}))
    await world.at("parked 1")

    world.saga.resolve("two", "by hand")

    assert world.states()["two"] == "undone"
    run.cancel()


async def test_a_step_that_is_resolved_while_its_undo_runs_stays_resolved_when_that_fails(world: World) -> None:
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal(), refusal()]}))
    await world.at("parked 1")
    world.hold("undo one")
    world.saga.retry()
    await some_turns()

    world.saga.resolve("one", "by hand")
    world.let_go("undo one")
    ended = await asyncio.wait_for(run, 5)

    assert isinstance(ended, Unwound)
    assert world.states()["one"] == "resolved"
    assert world.parked == [["one"]]


async def test_a_stuck_saga_tries_again_by_itself(world: World) -> None:
    world.saga._backoff = RetryBackoff(timedelta(milliseconds=5), timedelta(milliseconds=5))

    ended = await world.run(world.story(failing={"two": refusal()}, undos={"one": [refusal(), refusal(), refusal()]}))

    assert isinstance(ended, Unwound)
    assert world.parked == [["one"], ["one"], ["one"]]
    assert world.undone() == ["two", "one"]


async def test_a_park_that_finds_no_way_back_goes_forward(world: World) -> None:
    world.way_back = [Irrevocable("three", {"parcel": 7})]

    ended = await world.run(world.story(failing={"three": refusal()}, undos={"three": [refusal()]}))

    assert ended == Irrevocable("three", {"parcel": 7})


async def test_whoever_waits_for_a_round_is_answered_when_a_park_finds_no_way_back(world: World) -> None:
    parking, parked = asyncio.Event(), asyncio.Event()

    async def park(_: Sequence[Compensation]) -> Irrevocable:
        parking.set()
        await parked.wait()
        return Irrevocable("three")

    world.saga._on_stuck = park
    run = world.begin(world.story(failing={"three": refusal()}, undos={"three": [refusal()]}))
    await asyncio.wait_for(parking.wait(), 5)

    asker = asyncio.create_task(world.saga.round_ended())
    await some_turns()
    waited = not asker.done()
    parked.set()
    await asyncio.wait_for(asker, 5)

    assert waited
    assert await run == Irrevocable("three")


# The point of no return ---------------------------------------------------------------------------------


async def test_an_irrevocable_pivot_goes_forward_and_nothing_else_is_undone(world: World) -> None:
    async def story() -> None:
        with world.saga.step("one", world.undo("one")):
            await world.do("one")()
        with world.saga.step("two", world.undo("two", UndoOutcome.IRREVOCABLE, stored={"parcel": 7})):
            await world.do("two", refusal())()

    ended = await world.run(story())

    assert ended == Irrevocable("two", {"parcel": 7})
    assert world.tried_to_undo() == ["two"]


async def test_irrevocable_after_another_undo_succeeded_is_stuck_and_never_forward(world: World) -> None:
    run = world.begin(world.story(failing={"three": refusal()}, undos={"two": [UndoOutcome.IRREVOCABLE]}))

    await world.at("parked 1")

    assert not run.done()
    assert world.parked == [["two"]]
    assert world.undone() == ["three", "two", "one"]
    run.cancel()


async def test_irrevocable_after_another_step_was_resolved_is_stuck_and_never_forward(world: World) -> None:
    run = world.begin(
        world.story(
            failing={"two": refusal()},
            undos={"two": [refusal(), UndoOutcome.IRREVOCABLE], "one": [refusal()]},
        )
    )
    await world.at("parked 1")

    world.saga.resolve("one", "given back by hand")
    world.saga.retry()
    await world.at("parked 2")

    assert not run.done()
    assert world.parked == [["two", "one"], ["two"]]
    run.cancel()


async def test_a_saga_that_goes_forward_after_all_has_no_stuck_steps(world: World) -> None:
    run = world.begin(
        world.story(
            failing={"two": refusal()},
            undos={"two": [refusal(), UndoOutcome.IRREVOCABLE], "one": [refusal()]},
        )
    )
    await world.at("parked 1")

    world.saga.retry()
    ended = await asyncio.wait_for(run, 5)

    assert isinstance(ended, Irrevocable)
    assert world.states() == {"one": "done", "two": "irrevocable"}
    assert world.saga.stuck_steps == []


async def test_irrevocable_beside_an_undo_that_found_nothing_goes_forward(world: World) -> None:
    ended = await world.run(
        world.story(
            failing={"three": refusal()},
            undos={"three": [UndoOutcome.NOTHING_TO_UNDO], "two": [UndoOutcome.IRREVOCABLE]},
        )
    )

    assert isinstance(ended, Irrevocable)
    assert world.tried_to_undo() == ["three", "two"]


# Cancels ------------------------------------------------------------------------------------------------

Ask = Callable[[World], None]
BOTH_WAYS = pytest.mark.parametrize(
    "ask",
    [
        pytest.param(World.cancel, id="server"),
        pytest.param(lambda w: w.saga.cancellation.request("asked for"), id="update"),
    ],
)


async def test_a_server_cancel_before_the_first_step_does_nothing_at_all(world: World) -> None:
    world.reason = "asked for"
    run = world.begin(world.story())
    # The SDK lets the main task begin before the cancel strikes it.
    asyncio.get_running_loop().call_soon(run.cancel)

    ended = await run

    assert ended == Unwound(None, None, ())
    assert world.diary == []


async def test_a_cancel_update_before_the_first_step_does_nothing_at_all(world: World) -> None:
    world.saga.cancellation.request("asked for")

    ended = await world.run(world.story())

    assert ended == Unwound(None, None, ())
    assert world.diary == []


@BOTH_WAYS
@pytest.mark.parametrize("step", STEPS[:-1])
async def test_a_cancel_between_two_steps_undoes_what_was_done(world: World, ask: Ask, step: str) -> None:
    async def story() -> None:
        for name in STEPS:
            with world.saga.step(name, world.undo(name)):
                await world.do(name)()
            if name == step:
                ask(world)

    ended = await world.run(story())

    done = STEPS[: STEPS.index(step) + 1]
    assert isinstance(ended, Unwound)
    assert (ended.cause, ended.failed_step) == (None, None)
    assert world.undone() == list(reversed(done))


@BOTH_WAYS
async def test_a_cancel_after_the_last_step_undoes_everything(world: World, ask: Ask) -> None:
    async def story() -> None:
        await world.story()
        ask(world)

    ended = await world.run(story())

    assert isinstance(ended, Unwound)
    assert world.undone() == ["three", "two", "one"]


@BOTH_WAYS
@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_during_a_step_unwinds_from_that_step(world: World, ask: Ask, step: str) -> None:
    world.hold(f"do {step}")
    run = world.begin(world.story())
    await world.at(f"do {step}")

    ask(world)
    ended = await run

    assert isinstance(ended, Unwound)
    assert (ended.cause, ended.failed_step) == (None, step)
    assert world.undone() == list(reversed(STEPS[: STEPS.index(step) + 1]))


@BOTH_WAYS
@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_that_a_step_swallows_unwinds_before_the_next_step(world: World, ask: Ask, step: str) -> None:
    async def story() -> None:
        for name in STEPS:
            with world.saga.step(name, world.undo(name)):
                await (swallowing if name == step else world.do(name))()

    async def swallowing() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await world.note(f"do {step}")

    world.hold(f"do {step}")
    run = world.begin(story())
    await world.at(f"do {step}")

    ask(world)
    ended = await run

    begun = STEPS[: STEPS.index(step) + 1]
    assert isinstance(ended, Unwound)
    assert ended.cause is None
    assert [entry for entry in world.diary if entry.startswith("do ")] == [f"do {name}" for name in begun]
    assert world.undone() == list(reversed(begun))


@BOTH_WAYS
async def test_a_step_that_fails_although_a_cancel_was_asked_for_keeps_its_failure(world: World, ask: Ask) -> None:
    cause = refusal()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await world.note("do one")
        raise cause

    async def story() -> None:
        with world.saga.step("one", world.undo("one")):
            await stubborn()

    world.hold("do one")
    run = world.begin(story())
    await world.at("do one")

    ask(world)
    ended = await run

    assert isinstance(ended, Unwound)
    assert ended.cause is cause


@BOTH_WAYS
async def test_a_refusal_that_arrives_together_with_a_cancel_keeps_its_failure(world: World, ask: Ask) -> None:
    cause = refusal()
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def attempt() -> str:
        await world.note("do one")
        return await answer

    async def story() -> None:
        with world.saga.step("one", world.undo("one")):
            await asyncio.create_task(attempt())  # as an activity: its answer takes more than one turn

    run = world.begin(story())
    await world.at("do one")
    await some_turns()

    answer.set_exception(cause)
    ask(world)
    ended = await run

    assert isinstance(ended, Unwound)
    assert ended.cause is cause
    assert world.undone() == ["one"]


async def test_a_cancelled_activity_counts_as_a_cancel_and_not_as_a_failure(world: World) -> None:
    async def step() -> None:
        try:
            await world.note("do one")
        except asyncio.CancelledError:
            cancelled = TemporalCancelledError("Activity cancelled")
            raise activity_error(cancelled) from cancelled

    async def story() -> None:
        with world.saga.step("one", world.undo("one")):
            await step()

    world.hold("do one")
    run = world.begin(story())
    await world.at("do one")

    world.cancel()
    ended = await run

    assert isinstance(ended, Unwound)
    assert ended.cause is None
    assert ended.failed_step == "one"


@pytest.mark.parametrize("during", STEPS)
@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_cancels_during_an_unwind_change_nothing(world: World, during: str, cancels: int) -> None:
    cause = refusal()
    world.hold(f"undo {during}")
    run = world.begin(world.story(failing={"three": cause}))
    await world.at(f"undo {during}")

    for _ in range(cancels):
        world.cancel()
        world.saga.cancellation.request("asked for")
        await some_turns()
    world.let_go(f"undo {during}")
    ended = await run

    assert isinstance(ended, Unwound)
    assert ended.cause is cause
    assert world.tried_to_undo() == ["three", "two", "one"]
    assert world.undone() == ["three", "two", "one"]


async def test_cancels_while_stuck_neither_end_the_wait_nor_the_saga(world: World) -> None:
    run = world.begin(world.story(failing={"one": refusal()}, undos={"one": [refusal()]}))
    await world.at("parked 1")

    for _ in range(3):
        world.cancel()
        world.saga.cancellation.request("asked for")
        await some_turns()

    assert not run.done()
    assert world.parked == [["one"]]
    world.saga.retry()
    assert isinstance(await run, Unwound)


async def test_protect_carries_its_work_to_the_end_through_cancels(world: World) -> None:
    async def work() -> str:
        await world.note("work")
        return "done"

    world.hold("work")
    world.main = task = asyncio.create_task(world.saga.cancellation.protect(work()))
    await world.at("work")

    for _ in range(3):
        world.cancel()
        await some_turns()
    world.let_go("work")

    assert await task == "done"


async def test_protect_gives_its_works_failure(world: World) -> None:
    async def work() -> None:
        raise refusal("broken")

    with pytest.raises(ApplicationError, match="broken"):
        await world.saga.cancellation.protect(work())


@BOTH_WAYS
async def test_what_a_story_protects_ends_before_the_unwind_begins(world: World, ask: Ask) -> None:
    async def work() -> None:
        await world.do("work")()

    async def story() -> None:
        with world.saga.step("one", world.undo("one")):
            await world.do("one")()
        await world.saga.cancellation.protect(work())

    world.hold("do work")
    run = world.begin(story())
    await world.at("do work")
    ask(world)
    await some_turns()
    world.let_go("do work")
    await run

    assert world.diary == ["do one", "did one", "do work", "did work", "undo one", "undid one"]


# The waits of a later SDK -------------------------------------------------------------------------------


async def stuck_in_one(world: World, *, is_later_sdk: bool) -> "asyncio.Task[Ended]":
    world.is_later_sdk = is_later_sdk
    run = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal()]}))
    await world.at("parked 1")
    await some_turns()
    return run


@sdks
async def test_a_round_begins_although_a_cancel_came_while_stuck(world: World, is_later_sdk: bool) -> None:
    run = await stuck_in_one(world, is_later_sdk=is_later_sdk)

    world.cancel()
    await some_turns()
    world.saga.retry()
    ended = await asyncio.wait_for(run, 5)

    assert isinstance(ended, Unwound)
    assert world.states() == {"one": "undone", "two": "undone"}


@sdks
async def test_a_round_begins_by_itself_although_a_cancel_came_while_stuck(world: World, is_later_sdk: bool) -> None:
    world.saga._backoff = RetryBackoff(timedelta(milliseconds=20), timedelta(milliseconds=20))
    run = await stuck_in_one(world, is_later_sdk=is_later_sdk)

    world.cancel()
    ended = await asyncio.wait_for(run, 5)

    assert isinstance(ended, Unwound)
    assert world.states() == {"one": "undone", "two": "undone"}


@sdks
async def test_a_resolution_ends_the_saga_although_a_cancel_came_while_stuck(world: World, is_later_sdk: bool) -> None:
    run = await stuck_in_one(world, is_later_sdk=is_later_sdk)

    world.cancel()
    await some_turns()
    world.saga.resolve("one", "by hand")
    ended = await asyncio.wait_for(run, 5)

    assert isinstance(ended, Unwound)
    assert world.states()["one"] == "resolved"


@sdks
async def test_whoever_waits_for_a_round_is_answered_although_a_cancel_comes(world: World, is_later_sdk: bool) -> None:
    run = await stuck_in_one(world, is_later_sdk=is_later_sdk)
    world.hold("undo one")
    world.saga.retry()
    waiting = asyncio.create_task(world.saga.round_ended())
    await some_turns()

    world.cancel()
    await some_turns()
    assert not waiting.done()
    world.let_go("undo one")
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(run, 5)

    assert world.states()["one"] == "undone"


async def test_eviction_gets_out_of_a_wait(world: World) -> None:
    world.main = task = asyncio.create_task(wait_until(lambda: False))
    await some_turns()

    world.evict()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_an_eviction_while_stuck_begins_no_round(world: World) -> None:
    before = asyncio.all_tasks()
    await stuck_in_one(world, is_later_sdk=True)
    world.diary.clear()

    for task in asyncio.all_tasks() - before:  # an eviction strikes them all
        task.cancel()
    await some_turns()

    assert world.tried_to_undo() == []


# Eviction -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["do two", "undo two"])
async def test_eviction_gets_out_of_a_run(world: World, entry: str) -> None:
    world.hold(entry)
    run = world.begin(world.story(failing={"three": refusal()}))
    await world.at(entry)

    world.evict()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, 5)


async def test_eviction_gets_out_of_protect(world: World) -> None:
    world.hold("work")
    world.main = task = asyncio.create_task(world.saga.cancellation.protect(world.note("work")))
    await world.at("work")

    world.evict()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_an_eviction_undoes_nothing(world: World) -> None:
    world.hold("do two")
    run = world.begin(world.story())
    await world.at("do two")

    world.evict()
    with contextlib.suppress(asyncio.CancelledError):
        await run
    await some_turns()

    assert world.tried_to_undo() == []


# Words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refusal("tea-mug: 5 wanted, 2 free"), "Refused: tea-mug: 5 wanted, 2 free"),
        (activity_error(refusal("no")), "Refused: no"),
        (activity_error(activity_error(refusal("no"))), "Refused: no"),
        (
            activity_error(TemporalTimeoutError("late", type=TimeoutType.START_TO_CLOSE, last_heartbeat_details=[])),
            "TimeoutError: late",
        ),
        (TimeoutError(), "TimeoutError"),
        (ApplicationError("untyped"), "ApplicationError: untyped"),
    ],
)
def test_a_failure_is_described_from_its_innermost_cause(error: BaseException, said: str) -> None:
    assert describe(error) == said


def test_a_timeout_that_has_a_cause_is_described_by_that_cause() -> None:
    timeout = TemporalTimeoutError("late", type=TimeoutType.SCHEDULE_TO_CLOSE, last_heartbeat_details=[])
    timeout.__cause__ = refusal("away")

    assert describe(activity_error(timeout)) == "Refused: away"


def test_patience_doubles_up_to_its_cap() -> None:
    backoff = RetryBackoff(timedelta(hours=1), timedelta(hours=24))

    assert [backoff.after(n) // timedelta(hours=1) for n in range(1, 8)] == [1, 2, 4, 8, 16, 24, 24]


def test_patience_holds_for_any_number_of_rounds() -> None:
    backoff = RetryBackoff(timedelta(milliseconds=1), timedelta(hours=24))

    assert backoff.after(10_000) == timedelta(hours=24)


# Ending while stuck ---------------------------------------------------------------------------------------


async def test_a_run_that_is_to_end_while_stuck_says_so_and_tries_nothing_more(world: World) -> None:
    world.ends_stuck = True

    ended = await world.run(world.story(failing={"two": refusal()}, undos={"one": [refusal(), refusal()]}))

    assert ended == StillStuck(is_partly_undone=True)
    assert world.diary.count("undo one") == 1
    assert world.saga.stuck_steps == ["one"]


@pytest.mark.parametrize("is_later_sdk", [False, True], ids=["this SDK", "a later SDK"])
async def test_a_run_ends_while_stuck_although_it_was_cancelled(world: World, is_later_sdk: bool) -> None:
    world.is_later_sdk = is_later_sdk
    task = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal(), refusal()]}))
    while not world.parked:
        await asyncio.sleep(0)
    world.cancel()
    await asyncio.sleep(0.01)
    world.ends_stuck = True

    assert await asyncio.wait_for(task, 5) == StillStuck(is_partly_undone=True)
    assert world.diary.count("undo one") == 1


async def test_a_retry_that_was_asked_for_comes_before_the_end_of_the_run(world: World) -> None:
    task = world.begin(world.story(failing={"two": refusal()}, undos={"one": [refusal()]}))
    while not world.parked:
        await asyncio.sleep(0)
    world.ends_stuck = True
    world.saga.retry()

    assert isinstance(await asyncio.wait_for(task, 5), Unwound)
    assert world.diary.count("undo one") == 2


async def test_a_resumed_saga_is_stuck_from_its_first_round_on(world: World) -> None:
    world.begin_again(is_resumed=True)
    world.hold("undo one")
    assert world.saga.is_stuck
    task = world.begin(world.story(failing={"one": refusal()}))
    await world.at("undo one")
    assert world.saga.is_stuck
    assert world.saga.unsettled_steps == ["one"]
    world.let_go("undo one")
    await task

    assert not world.saga.is_stuck


async def test_what_is_irrevocable_leads_nowhere_once_an_earlier_run_has_undone_something(world: World) -> None:
    world.ends_stuck = True
    story = world.story(failing={"one": refusal()}, undos={"one": [UndoOutcome.IRREVOCABLE]})

    ended = await asyncio.wait_for(world.saga.run(story, is_partly_undone=True), 5)

    assert ended == StillStuck(is_partly_undone=True)
