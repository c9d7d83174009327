"""A declared step in one transaction: the saga's row and the fence's first, then the step's own statements.

The same technique as `do_once`, for effects that are more than one statement: the fence's row is written before the
effect, and is invisible to everybody until both commit together.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from temporalio import activity

from sagafence.calls import Resolution, SagaInput, Settled, StepCall, Way
from sagafence.database import transaction
from sagafence.declare import Forward, Pivot, SagaSteps, Step
from sagafence.errors import SagaError, StepAlreadyCompensated
from sagafence.external_steps.people import say
from sagafence.fence import FenceKey, close_fence, fence_row, limited_refusals, resolve_once, stored_result
from sagafence.registry import Opening, State, begin_unwind, enter, move
from sagafence.undo import UndoOutcome, UndoResult

_ENTER = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, given, result)
    VALUES (:saga_id, :step, 'done', true, :fingerprint, CAST(:given AS jsonb), CAST(:result AS jsonb))
    ON CONFLICT DO NOTHING RETURNING true
""")
_STORE = text("""
    UPDATE step_fence SET result = CAST(:result AS jsonb) WHERE saga_id = :saga_id AND step = :step
""")
_CLOSE = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint)
    VALUES (:saga_id, :step, 'undone', false, :fingerprint) ON CONFLICT DO NOTHING
""")
_GIVEN = text("SELECT fingerprint, given FROM step_fence WHERE saga_id = :saga_id AND step = :step")


class StepLeftItsTransaction(SagaError):
    """The step's code rolled back, or ended, the transaction it was given."""

    def __init__(self) -> None:
        super().__init__("a step must not end the transaction it is given. To have no effect, it must raise")


class _WithoutCommit(AsyncConnection):
    """The connection of a step. A commit would keep its effect without its result, and no undo could take it back."""

    __slots__ = ()

    async def commit(self) -> None:
        raise StepLeftItsTransaction


class LocalStep:
    """One declared step, with the instance that has its code and the database that has its effect."""

    def __init__(
        self, engine: AsyncEngine, owner: SagaSteps, step: Step[Any, Any], fingerprint: Callable[[Any], str]
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._step = step
        self._fingerprint = fingerprint
        self.input_type = step.input_type

    async def do(self, given: Any, call: StepCall) -> Any:
        """Take effect, or return the result of the first time."""
        key = step_key(self._step, given, call, self._fingerprint)
        async with _errors_of_the_step(), transaction(self._engine) as connection:
            state = await enter(connection, opening_of(call.opening))
            refuse_while_unwinding(state, key)
            may_act = state is (State.PAST_PIVOT if isinstance(self._step, Forward) else State.OPEN)
            if not may_act or not await _entered(connection, key, given, "{}"):
                return from_json((await _stored(connection, key))["result"], self._step.result_type)
            async with self._transaction_of(connection) as tx:
                result = await _called(self._step.fn, self._owner, tx, given)
            stored = json.dumps({"result": to_json(result)})
            row = {"saga_id": key.saga_id, "step": key.step, "result": stored}
            if (await connection.execute(_STORE, row)).rowcount != 1:
                raise StepLeftItsTransaction  # by SQL of its own
            if isinstance(self._step, Pivot):
                await move(connection, key.saga_id, State.PAST_PIVOT, State.OPEN)
        return result

    async def undo(self, given: Any, call: StepCall) -> UndoResult:
        """Reverse the effect, if there was one, and refuse the step from now on."""
        key = step_key(self._step, given, call, self._fingerprint)
        async with _errors_of_the_step(), limited_refusals(), transaction(self._engine) as connection:
            way = await begin_unwind(connection, opening_of(call.opening))
            if way is not Way.BACK:
                return UndoResult(UndoOutcome.ALREADY_UNDONE if way is Way.NOWHERE else UndoOutcome.IRREVOCABLE)
            if call.as_stored:
                key, given = await _as_stored(connection, key, given, self._step)
            undoing = await close_fence(connection, key)
            if undoing.had_effect:
                done = from_json(undoing.stored["result"], self._step.result_type)
                assert self._step.undo_fn is not None, "it was declared with one"
                async with self._transaction_of(connection) as tx:
                    await _called(self._step.undo_fn, self._owner, tx, given, done)
            return undoing.result()

    async def settle(self, given: Any, call: StepCall) -> Settled:
        """Find out whether a pivot took effect; if not, it never will."""
        key = step_key(self._step, given, call, self._fingerprint)
        async with transaction(self._engine) as connection:
            # Waits for an attempt under way, which then has committed or never will.
            await enter(connection, opening_of(call.opening))
            await connection.execute(_CLOSE, key.parameters())
            row = await fence_row(connection, key)
        if row is None or row.phase != "done":
            return Settled(happened=False)
        return Settled(happened=True, result=stored_result(key, row)["result"])

    async def resolve(self, given: Any, call: StepCall, said: Resolution) -> None:
        """Record an operator's word: from now on neither the step nor its undo has any effect for this saga.

        Of a step after the pivot it is the result, which every later attempt returns.
        """
        key = step_key(self._step, given, call, self._fingerprint)
        async with transaction(self._engine) as connection:
            if call.as_stored:
                key, given = await _as_stored(connection, key, given, self._step)
            if isinstance(self._step, Forward):
                await _entered(connection, key, given, json.dumps({"result": said.result}))
            else:
                await resolve_once(connection, key)
            await say(connection, key, said.verdict, who=said.who, why=said.why, result=json.dumps(said.result))

    @asynccontextmanager
    async def _transaction_of(self, connection: AsyncConnection) -> AsyncIterator[AsyncConnection | AsyncSession]:
        """Yield the transaction as the step wants it: one that its `commit` cannot end."""
        if self._step.transaction_type is AsyncConnection:
            yield _WithoutCommit(connection.engine, connection.sync_connection)
        else:
            kind = self._step.transaction_type
            async with kind(connection, join_transaction_mode="rollback_only", expire_on_commit=False) as session:
                yield session
                await session.flush()
                session.expunge_all()
        if not connection.in_transaction():
            raise StepLeftItsTransaction


def step_key(step: Step[Any, Any], given: Any, call: StepCall, fingerprint: Callable[[Any], str]) -> FenceKey:
    """Name a call of a step to the fence: by its workflow's id, which outlives retries and resets."""
    saga_id = activity.info().workflow_id
    assert saga_id is not None, "a step is called by a workflow"
    name = f"{step.name}/{call.instance}" if call.instance else step.name
    is_in_its_row = call.as_stored and given is None
    return FenceKey(saga_id, name, "" if is_in_its_row else fingerprint(given))


async def _as_stored(
    connection: AsyncConnection, key: FenceKey, given: Any, step: Step[Any, Any]
) -> tuple[FenceKey, Any]:
    """Return a step's identity and input as its row has them, where there is one."""
    row = (await connection.execute(_GIVEN, {"saga_id": key.saga_id, "step": key.step})).one_or_none()
    if row is None:
        return key, given
    return replace(key, fingerprint=row.fingerprint), from_json(row.given, step.input_type)


def refuse_while_unwinding(state: State, key: FenceKey) -> None:
    """Let no do answer any more, not even by its stored result: an unwind that was accepted is carried through.

    Raises:
        StepAlreadyCompensated: the saga unwinds.
    """
    if state is State.UNWINDING:
        raise StepAlreadyCompensated(f"{key.step} of {key.saga_id} came too late: the saga is being undone")


async def _entered(connection: AsyncConnection, key: FenceKey, given: Any, result: str) -> bool:
    """Write the step's row and return whether this is the first time."""
    row = {**key.parameters(), "given": json.dumps(to_json(given)), "result": result}
    return bool((await connection.execute(_ENTER, row)).scalar_one_or_none())


async def _stored(connection: AsyncConnection, key: FenceKey) -> dict[str, Any]:
    """Return what a step stored the first time.

    Raises:
        StepAlreadyCompensated: it never acted, and now the saga is past it.
    """
    row = await fence_row(connection, key)
    if row is None:
        raise StepAlreadyCompensated(f"{key.step} of {key.saga_id} came too late: it is being undone, or has ended")
    return stored_result(key, row)


def opening_of(begun: SagaInput | None) -> Opening | str:
    """Return what the saga's row is made of, or the saga's id where a step has made it already."""
    info = activity.info()
    assert info.workflow_id is not None, "a step is called by a workflow"
    assert info.workflow_type is not None, "and so is this one"
    if begun is None:
        return info.workflow_id
    return Opening(
        info.workflow_id,
        info.workflow_type,
        info.task_queue,
        begun.content,
        fingerprint=begun.fingerprint,
        namespace=info.namespace,
    )


def to_json(value: Any) -> Any:
    """Return a result as it is stored: as Temporal's converter would write it."""
    return json.loads(activity.payload_converter().to_payload(value).data or "null")


def from_json(value: Any, kind: Any) -> Any:
    """Return a stored result as its type."""
    converter = activity.payload_converter()
    return converter.from_payload(converter.to_payload(value), kind)


class _OfTheStep(Exception):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


async def _called(fn: Callable[..., Any], *arguments: Any) -> Any:
    """Call the step's code. A timeout or a socket that is its own says nothing about the database."""
    try:
        return await fn(*arguments)
    except OSError as error:  # TimeoutError among them
        raise _OfTheStep(error) from error


@asynccontextmanager
async def _errors_of_the_step() -> AsyncIterator[None]:
    try:
        yield
    except _OfTheStep as carried:
        raise carried.error from None
