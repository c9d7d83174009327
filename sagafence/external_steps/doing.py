"""The way forward: intent, permission, call, record."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence.database import transaction
from sagafence.external_steps import sql
from sagafence.external_steps.answers import Heard, hear_do
from sagafence.external_steps.forward import begin_do, heard_do, looked_do
from sagafence.external_steps.state import Act, Answer, Phase, Step
from sagafence.external_steps.work import ROUNDS, Work
from sagafence.provider import Out

Enter = Callable[[AsyncConnection], Awaitable[bool]]


async def do(work: Work[Out], enter: Enter) -> Out:
    """Have the effect, at most once. Every transaction enters the saga first, which says whether a call may be sent."""
    for _ in range(ROUNDS):
        async with transaction(work.engine) as connection:
            may_call = await enter(connection)
            opened = await work.open(connection)
            if not may_call and opened.step.phase is Phase.INTENDED:
                raise work.too_late()
            step, following = begin_do(work.facts, opened.step, opened.now)
            await work.save(connection, opened, step, permits=following, forward=True)
            failure = await work.failure(connection, opened, step, following)
        if failure is not None:
            raise failure
        if following.act is Act.STORED:
            return work.calls.load(opened.result)
        if following.act is Act.LOOK:
            await _look(work, opened)
            continue
        # Committed: from here on the call may act, whatever becomes of this attempt.
        heard = await hear_do(work.calls, opened.key, opened.request)
        after, result = await _record(work, following.n, heard)
        if heard.answer in {Answer.KEY_REUSED, Answer.STORED_FAILURE} and after.phase is Phase.INTENDED:
            continue
        if heard.error is not None:
            raise heard.error
        if after.phase is not Phase.DONE:
            raise work.too_late()
        return work.calls.load(result)
    raise work.restless()


async def _look(work: Work[Out], opened: sql.Opened) -> None:
    assert work.calls.look is not None
    found = await work.calls.look(opened.key, opened.request)
    result = None if found is None else sql.as_jsonb(work.calls.dump(found))
    async with transaction(work.engine) as connection:
        now, token = await work.lock(connection), opened.step.token()
        step, following = looked_do(work.facts, now.step, found=found is not None, token=token, looked_at=opened.now)
        await work.save(connection, now, step, result=None if now.step.known else result)
        failure = await work.failure(connection, now, step, following)
    if failure is not None:
        raise failure


async def _record(work: Work[Out], n: int, heard: Heard) -> tuple[Step, Any]:
    async def record(connection: AsyncConnection) -> tuple[Step, Any]:
        opened = await work.lock(connection)
        step = heard_do(work.facts, opened.step, n, heard.answer, opened.now)
        result = heard.result if not opened.step.known else None
        refusal = heard.refusal() if step.phase is Phase.NEVER else None
        evidence = heard.evidence(n)
        await work.save(connection, opened, step, evidence=evidence, result=result, refusal=refusal)
        return step, (await work.lock(connection)).result

    return await work.recorded(record)
