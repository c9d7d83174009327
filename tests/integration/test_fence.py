"""The fence by itself, before an effect that nothing else protects: a counter has no key that could collide."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from domain.errors import OutOfStock
from sagafence import (
    GATE,
    DatabaseMisconfigured,
    DatabaseRefusedStatement,
    DatabaseUnavailable,
    FenceKey,
    IdempotencyConflict,
    SagaError,
    StepAlreadyCompensated,
    UndoOutcome,
    UndoResult,
    do_once,
    resolve_once,
    transaction,
    undo_once,
)
from tests.conftest import Database

_SCHEMA = """
CREATE TABLE counter (n integer NOT NULL, CONSTRAINT counter_is_full CHECK (n <= 12));
INSERT INTO counter VALUES (0);
GRANT SELECT, UPDATE ON counter TO checkout
"""
_KEY = FenceKey("saga-1", "count", "of this request")
_STRANGER = replace(_KEY, fingerprint="of another request")


def _statement(effect: str, *, fact: str = "true") -> TextClause:
    return text(f"""
        WITH outcome AS (SELECT jsonb_build_object('n', n + 1) AS result FROM counter WHERE {fact}),
        {GATE}, counted AS (UPDATE counter SET n = {effect} FROM gate) SELECT result FROM gate
    """)


_COUNT = _statement("n + 1")


async def _no_refusal(_: AsyncConnection) -> SagaError | None:
    return None


@dataclass(frozen=True)
class Counter:
    engine: AsyncEngine
    database: Database

    async def do(
        self,
        key: FenceKey = _KEY,
        statement: TextClause = _COUNT,
        explain: Callable[[AsyncConnection], Awaitable[SagaError | None]] = _no_refusal,
    ) -> dict[str, Any]:
        return await do_once(self.engine, key, statement, {}, explain=explain)

    async def undo(self, key: FenceKey = _KEY) -> UndoResult:
        async with undo_once(self.engine, key) as undoing:
            if undoing.had_effect:
                await undoing.connection.execute(text("UPDATE counter SET n = n - 1"))
        return undoing.result()

    async def resolve(self, key: FenceKey = _KEY) -> None:
        async with transaction(self.engine) as connection:
            await resolve_once(connection, key)

    async def count(self) -> int:
        return int(await self.database.value("SELECT n FROM counter"))

    async def phase(self) -> str | None:
        rows = await self.database.fetch("SELECT phase FROM step_fence")
        return rows[0][0] if rows else None


@pytest.fixture
async def counter(engine: AsyncEngine, database: Database) -> Counter:
    await database.run(_SCHEMA)
    return Counter(engine, database)


async def test_a_repeat_adds_nothing_and_answers_the_first_result(counter: Counter) -> None:
    at_once = await asyncio.gather(*(counter.do() for _ in range(10)))

    again = await counter.do()

    assert [*at_once, again] == [{"n": 1}] * 11
    assert await counter.count() == 1


async def test_undos_at_once_take_back_once(counter: Counter) -> None:
    await counter.do()

    undone = await asyncio.gather(*(counter.undo() for _ in range(10)))

    assert sorted(result.outcome for result in undone) == [UndoOutcome.ALREADY_UNDONE] * 9 + [UndoOutcome.REVERSED]
    assert await counter.count() == 0


@pytest.mark.parametrize("end", [Counter.undo, Counter.resolve], ids=["undo", "resolve"])
async def test_a_step_that_was_undone_or_resolved_never_takes_effect(
    counter: Counter, end: Callable[[Counter], Awaitable[object]]
) -> None:
    await end(counter)

    with pytest.raises(StepAlreadyCompensated):
        await counter.do()

    assert await counter.count() == 0


async def test_another_request_can_neither_do_nor_undo_nor_resolve_a_step(counter: Counter) -> None:
    await counter.do()

    with pytest.raises(IdempotencyConflict):
        await counter.do(_STRANGER)
    with pytest.raises(IdempotencyConflict):
        await counter.undo(_STRANGER)
    await counter.resolve(_STRANGER)

    assert await counter.phase() == "done"
    assert await counter.count() == 1


async def test_a_refusal_leaves_nothing(counter: Counter) -> None:
    async def explain(_: AsyncConnection) -> SagaError:
        return OutOfStock("there is nothing to count")

    with pytest.raises(OutOfStock):
        await counter.do(statement=_statement("n + 1", fact="n > 0"), explain=explain)

    assert await counter.phase() is None
    assert await counter.count() == 0


async def test_a_reason_that_has_passed_meanwhile_is_worth_another_attempt(counter: Counter) -> None:
    with pytest.raises(DatabaseUnavailable) as refused:
        await counter.do(statement=_statement("n + 1", fact="n > 0"))

    assert not refused.value.non_retryable
    assert await counter.phase() is None


async def test_a_guard_that_would_let_the_step_pass_by_now_does(counter: Counter) -> None:
    async def explain(_: AsyncConnection) -> None:
        await counter.database.run("UPDATE counter SET n = 4")

    await counter.database.run("UPDATE counter SET n = 12")

    assert await counter.do(explain=explain) == {"n": 5}
    assert await counter.count() == 5


async def test_a_guard_before_a_fact_that_has_changed_is_worth_another_attempt(counter: Counter) -> None:
    async def explain(_: AsyncConnection) -> None:
        await counter.database.run("UPDATE counter SET n = 0")

    await counter.database.run("UPDATE counter SET n = 12")

    with pytest.raises(DatabaseUnavailable, match="counter_is_full that has changed since"):
        await counter.do(statement=_statement("n + 1", fact="n > 0"), explain=explain)


async def test_a_guard_that_refuses_because_of_a_rival_again_is_worth_another_attempt(counter: Counter) -> None:
    ready = asyncio.Event()

    async def rival() -> None:
        await ready.wait()
        async with counter.database.locked("UPDATE counter SET n = 12"):
            ready.clear()
            await counter.database.until_blocked()

    async def explain(_: AsyncConnection) -> None:
        await counter.database.run("UPDATE counter SET n = 4")
        ready.set()
        while ready.is_set():
            await asyncio.sleep(0)

    await counter.database.run("UPDATE counter SET n = 12")
    rivals = asyncio.create_task(rival())

    with pytest.raises(DatabaseUnavailable, match="40001"):
        await counter.do(explain=explain)

    await rivals
    assert await counter.phase() is None


async def test_a_constraint_that_refuses_whoever_comes_needs_a_person(counter: Counter) -> None:
    with pytest.raises(DatabaseRefusedStatement, match="counter_is_full"):
        await counter.do(statement=_statement("13"))

    assert await counter.phase() is None
    assert await counter.count() == 0


async def test_a_refusal_that_is_the_work_of_a_rival_which_has_just_committed_is_the_rivals_result(
    counter: Counter,
) -> None:
    async def explain(_: AsyncConnection) -> SagaError:
        await counter.do()  # the rival commits between the look at the fence and this one
        return StepAlreadyCompensated("it is counted already")

    answer = await counter.do(statement=_statement("n + 1", fact="n > 0"), explain=explain)

    assert answer == {"n": 1}
    assert await counter.count() == 1


async def test_a_violation_that_no_guard_made_needs_a_person(counter: Counter) -> None:
    with pytest.raises(DatabaseMisconfigured, match="23502"):
        await counter.do(statement=_statement("NULL"))

    assert await counter.phase() is None
