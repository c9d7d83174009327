"""Binding declared steps to Postgres: an instance of `SagaSteps` and an engine become the activities of a worker."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from temporalio import activity

from sagafence.bound_external import BoundExternalStep
from sagafence.calls import SagaInput, Settled, StepCall, Unwinding
from sagafence.database import transaction
from sagafence.declare import External, SagaSteps, Step, declared
from sagafence.errors import IdempotencyConflict, InvalidInput
from sagafence.fence import limited_refusals
from sagafence.fingerprint import fingerprint
from sagafence.insisting import END_ACTIVITY
from sagafence.local_steps import LocalStep, from_json, opening_of
from sagafence.registry import COMPLETED, end
from sagafence.saga import UNWIND_ACTIVITY
from sagafence.saga_workflow import RESOLVE_ACTIVITY, RecordedResolution
from sagafence.signature import SagaMisuse
from sagafence.undo import UndoResult
from sagafence.unwinding import unwind

Activity = Callable[..., Awaitable[Any]]
_Bound = LocalStep | BoundExternalStep
_OURS = (UNWIND_ACTIVITY, END_ACTIVITY, RESOLVE_ACTIVITY)


class PostgresFence:
    """Binds declared steps to a database that has the library's tables (`sagafence.install`).

    Args:
        engine: where the fence is, together with the effects of local steps.
        fingerprint: what a repeat under the same workflow id must have in common with the first.
    """

    def __init__(self, engine: AsyncEngine, *, fingerprint: Callable[[Any], str] = fingerprint) -> None:
        self._engine = engine
        self._fingerprint = fingerprint

    def activities_of(self, *steps: SagaSteps) -> Sequence[Activity]:
        """Return what `Worker(activities=...)` takes. Call it once for each worker, with all of its steps.

        Raises:
            SagaMisuse: two steps have one name or one activity, or a step asks for another kind of transaction.
        """
        bound: dict[str, _Bound] = {}
        activities: dict[str, Activity] = {}
        names: dict[str, Step[Any, Any]] = {}
        owners: dict[str, str] = {}
        for owner in steps:
            if not isinstance(owner, SagaSteps):
                raise SagaMisuse(f"activities_of takes instances of SagaSteps, not {owner!r}")
            for step in declared(type(owner)):
                if step.name in names:
                    raise SagaMisuse(
                        f'two steps are named "{step.name}", in {owners[step.name]} and {type(owner).__name__}: they '
                        'would take each other\'s fence row. Give one of them another name, as in @local("...")'
                    )
                if not isinstance(step, External) and not _is_transaction(step.transaction_type):
                    raise SagaMisuse(f'the step "{step.name}": tx is an AsyncSession or an AsyncConnection')
                names[step.name], owners[step.name] = step, type(owner).__name__
                bound[step.activity] = of_step = self._bound(owner, step)
                for what, name in step.activities.items():
                    if name in _OURS:
                        raise SagaMisuse(f'the step "{step.name}": the activity {name} is the library\'s own')
                    if name in activities:
                        raise SagaMisuse(f"two steps run as the activity {name}: give one of them activity=...")
                    activities[name] = activity.defn(name=name)(_activity(what, step, of_step))
        return [*activities.values(), self._unwind(names), self._end(), _resolve(bound)]

    def _bound(self, owner: SagaSteps, step: Step[Any, Any]) -> _Bound:
        if isinstance(step, External):
            return BoundExternalStep(self._engine, owner, step, self._fingerprint)
        return LocalStep(self._engine, owner, step, self._fingerprint)

    def _unwind(self, steps: dict[str, Step[Any, Any]]) -> Activity:
        @activity.defn(name=UNWIND_ACTIVITY)
        async def unwind_saga(begun: list[str], given: SagaInput) -> Unwinding:
            saga = opening_of(given)
            assert not isinstance(saga, str), "it was given"
            async with limited_refusals(), transaction(self._engine) as connection:
                return await unwind(connection, saga, begun, steps)

        return unwind_saga

    def _end(self) -> Activity:
        @activity.defn(name=END_ACTIVITY)
        async def end_saga(outcome: str, begun: SagaInput) -> None:
            try:
                async with limited_refusals(), transaction(self._engine) as connection:
                    await end(connection, opening_of(begun), outcome)
            except (IdempotencyConflict, InvalidInput) as refused:
                if outcome == COMPLETED:
                    raise  # it must not be told so
                # The row is another request's, or an earlier run has ended in another way: it stays as it is.
                activity.logger.warning("%s", refused.message)

        return end_saga


def _activity(what: str, step: Step[Any, Any], bound: _Bound) -> Activity:
    act = {"do": bound.do, "undo": bound.undo, "settle": bound.settle}[what]
    answer = {"do": step.result_type, "undo": UndoResult, "settle": Settled}[what]

    async def run(given: Any, call: StepCall) -> Any:
        return await act(given, call)

    # What the SDK decodes the payloads to.
    run.__annotations__ = {"given": step.input_type, "call": StepCall, "return": answer}
    return run


def _resolve(bound: dict[str, _Bound]) -> Activity:
    @activity.defn(name=RESOLVE_ACTIVITY)
    async def resolve(said: RecordedResolution) -> None:
        step = bound[said.activity]
        call = StepCall(said.instance, as_stored=True)
        await step.resolve(from_json(said.given, step.input_type), call, said.resolution)

    return resolve


def _is_transaction(kind: Any) -> bool:
    return isinstance(kind, type) and (kind is AsyncConnection or issubclass(kind, AsyncSession))
