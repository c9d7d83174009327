"""Steps whose code does what it should not."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from sagafence import SagaSteps, local
from tests.sagafence.trip_steps import QUICK, Attempt

Tx: TypeAlias = AsyncConnection | AsyncSession


@dataclass
class Odd:
    """What is asked for, and which story is told."""

    saga_id: str
    kind: str = ""
    note: str = ""
    notes: list[str] = field(default_factory=list)


class OddSteps(SagaSteps):
    """Each adds a row to `effects`, and does what the test wants besides."""

    def __init__(self) -> None:
        self.acts: dict[str, Callable[[Tx], Awaitable[None]]] = {}
        self.held: dict[str, Attempt] = {}

    async def _take(self, tx: Tx, odd: Odd, step: str) -> str:
        if attempt := self.held.pop(step, None):
            attempt.has_come.set()
            await attempt.may_go.wait()
        await tx.execute(text("INSERT INTO effects (saga_id, step) VALUES (:saga, :step)"), _named(odd, step))
        if act := self.acts.get(step):
            await act(tx)
        return step

    @local("one", policy=QUICK, undo_policy=QUICK)
    async def one(self, tx: AsyncConnection, odd: Odd) -> str:
        """Take one."""
        return await self._take(tx, odd, "one")

    @one.undo
    async def undo_one(self, tx: AsyncConnection, odd: Odd, done: str) -> None:
        """Give one back."""
        await tx.execute(_GIVE_BACK, _named(odd, done))

    @local("two", policy=QUICK, undo_policy=QUICK)
    async def two(self, tx: AsyncSession, odd: Odd) -> str:
        """Take two."""
        return await self._take(tx, odd, "two")

    @two.undo
    async def undo_two(self, tx: AsyncSession, odd: Odd, done: str) -> None:
        """Give two back."""
        await tx.execute(_GIVE_BACK, _named(odd, done))


_GIVE_BACK = text("""
    DELETE FROM effects WHERE number = (SELECT min(number) FROM effects WHERE saga_id = :saga AND step = :step)
""")


def _named(odd: Odd, step: str) -> dict[str, str]:
    return {"saga": odd.saga_id, "step": step}
