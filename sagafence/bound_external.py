"""A declared external step: the protocol of `sagafence.external_steps`, with the saga's row taken first.

The row holds the stack while a pivot's outcome is unknown, whichever run of the saga asks: it is `at_pivot` from the
permission of the first call until the pivot is settled, and nothing is undone meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sagafence.calls import Resolution, Settled, StepCall, Way
from sagafence.database import single_statement
from sagafence.declare import External, Forward, Pivot, SagaSteps
from sagafence.errors import VerdictRefused
from sagafence.external_steps import Calls, ExternalSteps
from sagafence.external_steps.state import Phase, Step
from sagafence.fence import FenceKey
from sagafence.local_steps import from_json, opening_of, refuse_while_unwinding, step_key, to_json
from sagafence.provider import Happened, Key, Seen
from sagafence.registry import Opening, State, begin_unwind, enter, lock, move
from sagafence.resolutions import instant
from sagafence.signature import may_be_none
from sagafence.undo import UndoOutcome, UndoResult

_FINGERPRINT = text("SELECT fingerprint FROM external_steps WHERE saga_id = :saga_id AND step = :step")


class _NoWayBack(Exception):
    def __init__(self, way: Way) -> None:
        super().__init__(way)
        self.way = way


@dataclass(frozen=True)
class _Pivot:
    """Tells the saga's row what its pivot has come to."""

    saga_id: str

    async def lock(self, connection: AsyncConnection) -> None:
        """Lock the saga's row, before the step's."""
        await lock(connection, self.saga_id)

    async def note(self, connection: AsyncConnection, step: Step) -> None:
        """Note what the pivot has come to."""
        if step.phase is Phase.DONE:
            await move(connection, self.saga_id, State.PAST_PIVOT, State.OPEN, State.AT_PIVOT)
        elif step.phase is Phase.NEVER:
            await move(connection, self.saga_id, State.OPEN, State.AT_PIVOT)
        elif step.permitted:
            await move(connection, self.saga_id, State.AT_PIVOT, State.OPEN)


class BoundExternalStep:
    """One declared step, with the instance that calls its provider and the database that knows of it."""

    def __init__(
        self, engine: AsyncEngine, owner: SagaSteps, step: External[Any, Any], fingerprint: Callable[[Any], str]
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._step = step
        self._fingerprint = fingerprint
        self.input_type = step.input_type
        self._protocol = ExternalSteps(engine, step.provider)
        may_act_in = {State.OPEN, State.AT_PIVOT} if isinstance(step, Pivot) else {State.OPEN}
        self._may_act_in = {State.PAST_PIVOT} if isinstance(step, Forward) else may_act_in
        self._calls: Calls[Any] = Calls(
            self._do, self._undo if step.undo_fn else None, self._look if step.lookup_fn else None, to_json, self._load
        )

    async def do(self, given: Any, call: StepCall) -> Any:
        """Have the effect at the provider, or return the result of the first time."""
        saga = opening_of(call.opening)

        key = self._key(given, call)

        async def may_call(connection: AsyncConnection) -> bool:
            state = await enter(connection, saga)
            refuse_while_unwinding(state, key)
            return state in self._may_act_in

        return await self._protocol.do(key, to_json(given), self._calls, enter=may_call, pivot=self._pivot_of(key))

    async def undo(self, given: Any, call: StepCall) -> UndoResult:
        """Settle what is unknown, and reverse what happened."""
        saga: Opening | str = opening_of(call.opening)

        async def unwind(connection: AsyncConnection) -> None:
            if (way := await begin_unwind(connection, saga)) is not Way.BACK:
                raise _NoWayBack(way)

        key = await self._stored_key(given, call)
        try:
            return await self._protocol.undo(key, to_json(given), self._calls, mark=unwind)
        except _NoWayBack as found:
            is_undone = found.way is Way.NOWHERE
            return UndoResult(UndoOutcome.ALREADY_UNDONE if is_undone else UndoOutcome.IRREVOCABLE)

    async def settle(self, given: Any, call: StepCall) -> Settled:
        """Find out whether a pivot happened."""
        key = self._key(given, call)
        found = await self._protocol.settle(key, to_json(given), self._calls, pivot=self._pivot_of(key))
        if isinstance(found, Happened):
            return Settled(happened=True, result=to_json(found.result))
        return Settled(happened=False)

    async def resolve(self, given: Any, call: StepCall, said: Resolution) -> None:
        """Record an operator's word."""
        if (looked_at := instant(said.looked_at)) is None:  # a workflow of an earlier release has let it through
            raise VerdictRefused(f"{said.step}: say it again, with when you looked (looked_at)")
        key, kind = await self._stored_key(given, call), self._step.result_type
        await self._protocol.resolve(
            key,
            said.verdict,
            who=said.who,
            why=said.why,
            looked_at=looked_at,
            result=said.result,
            needs_result=kind is not Any and not may_be_none(kind),
            pivot=self._pivot_of(key),
        )

    def _key(self, given: Any, call: StepCall) -> FenceKey:
        return step_key(self._step, given, call, self._fingerprint)

    async def _stored_key(self, given: Any, call: StepCall) -> FenceKey:
        key = self._key(given, call)
        if call.as_stored:  # it never changes once it is written; the protocol reads the request from the row
            async with single_statement(self._engine) as connection:
                stored = (await connection.execute(_FINGERPRINT, key.parameters())).scalar_one_or_none()
            key = replace(key, fingerprint=stored or key.fingerprint)
        return key

    def _pivot_of(self, key: FenceKey) -> _Pivot | None:
        return _Pivot(key.saga_id) if isinstance(self._step, Pivot) else None

    def _given(self, request: Any) -> Any:
        return from_json(request, self._step.input_type)

    def _load(self, result: Any) -> Any:
        return from_json(result, self._step.result_type)

    async def _do(self, key: Key, request: Any) -> Any:
        return await self._step.fn(self._owner, key, self._given(request))

    async def _undo(self, key: Key, request: Any, seen: Seen[Any]) -> Any:
        assert self._step.undo_fn is not None, "it is called only where there is one"
        return await self._step.undo_fn(self._owner, key, self._given(request), seen)

    async def _look(self, key: Key, request: Any) -> Any:
        assert self._step.lookup_fn is not None, "it is called only where there is one"
        return await self._step.lookup_fn(self._owner, key, self._given(request))
