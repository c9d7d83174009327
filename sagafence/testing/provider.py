"""Faults at the boundary of a provider: between the request of a step and the other side that acts on it.

Independent of any HTTP library: give `ProviderStrikes` the few things that it must know about yours, and send through
what `around` returns. Or put the ready proxy between step and provider: `sagafence.testing.proxy`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

IN_PROGRESS = 409
FAILED = 500


class Strike(Enum):
    """What goes wrong with a request."""

    FAIL = "answers 500, and did not act"
    ACT_THEN_500 = "acts, and answers 500"
    ACT_THEN_SILENCE = "acts, and does not answer until it is let go"
    SILENCE_THEN_ACT = "does not act until it is let go, when nobody waits for its answer any more"
    ACT_TWICE = "hears the request twice, and the second answer is returned"
    IN_PROGRESS = "answers 409: a request under this key is in progress; it did not act"
    FORGET_KEY = "does not know the key any more: takes the request for a new one"


_WITHOUT_ACTING = {
    Strike.FAIL: (FAILED, "struck: it did not act"),
    Strike.IN_PROGRESS: (IN_PROGRESS, "struck: a request under this key is in progress"),
}


@dataclass(frozen=True)
class Call:
    """What is known of a request."""

    method: str
    path: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Match = str | Callable[[Call], bool]
"""How a request begins, `POST /tenants`, or what tells whether it is meant."""


class Struck:
    """One strike that is set up, and what became of it."""

    def __init__(self, kind: Strike, match: Match, times: int | None, unless: Callable[[], bool]) -> None:
        self.kind = kind
        self.hits = 0
        self.has_hit = asyncio.Event()
        """Set once the strike is under way: where the provider acts first, it has acted."""
        self.has_ended = asyncio.Event()
        """Set once a request that was held up is through."""
        self.is_holding = False
        self._match = match
        self._left = times
        self._unless = unless
        self._released = asyncio.Event()

    def let_go(self) -> None:
        """Let what is held up go on: a late request acts, a late answer is given."""
        self.is_holding = False
        self._released.set()

    def stop(self) -> None:
        """Let every later request pass."""
        self._left = 0

    def takes(self, call: Call) -> bool:
        """Whether a request is struck; counts it."""
        is_meant = str(call).startswith(self._match) if isinstance(self._match, str) else self._match(call)
        if not is_meant or self._left == 0 or self._unless():
            return False
        if self._left is not None:
            self._left -= 1
        self.hits += 1
        return True

    async def released(self) -> None:
        """Wait until it is let go."""
        self.is_holding = not self._released.is_set()
        self.has_hit.set()
        await self._released.wait()


class ProviderStrikes(Generic[Request, Answer]):
    """Strikes at the requests of one provider. A strike is for the first requests that match it, others pass.

    Args:
        call: says what a request is: its method, path and key.
        answer: makes an answer of a status and a text, as the provider would have given it.
        rekey: makes the same request with another key. Needed by `FORGET_KEY` alone.
    """

    def __init__(
        self,
        *,
        call: Callable[[Request], Call],
        answer: Callable[[int, str], Answer],
        rekey: Callable[[Request, str], Request] | None = None,
    ) -> None:
        self._call = call
        self._answer = answer
        self._rekey = rekey
        self._strikes: list[Struck] = []
        self._under_way: set[asyncio.Task[Answer]] = set()
        self._forgotten = 0

    def strike(
        self, kind: Strike, *, match: Match = "", times: int | None = 1, unless: Callable[[], bool] = lambda: False
    ) -> Struck:
        """Set up a strike for the next `times` requests that match, or all of them; `unless` is asked at each."""
        if kind is Strike.FORGET_KEY and self._rekey is None:
            raise ValueError("FORGET_KEY needs `rekey`: how to make the same request with another key")
        made = Struck(kind, match, times, unless)
        self._strikes.append(made)
        return made

    @property
    def held_up(self) -> int:
        """How many requests are held up."""
        return sum(struck.is_holding for struck in self._strikes)

    def clear(self) -> None:
        """End every strike, and let go of what is held up."""
        for struck in self._strikes:
            struck.stop()
            struck.let_go()
        self._strikes.clear()

    def around(self, send: Callable[[Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Answer]]:
        """Wrap the function that sends a request and returns its answer."""

        async def sent(request: Request) -> Answer:
            # In a task of its own: a request that left is not called back when nobody waits for its answer.
            task = asyncio.ensure_future(self._send(send, request))
            self._under_way.add(task)
            task.add_done_callback(self._end)
            return await asyncio.shield(task)

        return sent

    def _end(self, task: "asyncio.Task[Answer]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # the one who waited for it had it, or nobody waits any more

    async def _send(self, send: Callable[[Request], Awaitable[Answer]], request: Request) -> Answer:
        call = self._call(request)
        struck = next((one for one in self._strikes if one.takes(call)), None)
        if struck is None:
            return await send(request)
        try:
            return await self._struck(struck, send, request, call)
        finally:
            struck.has_hit.set()
            struck.has_ended.set()

    async def _struck(
        self, struck: Struck, send: Callable[[Request], Awaitable[Answer]], request: Request, call: Call
    ) -> Answer:
        kind = struck.kind
        if kind in _WITHOUT_ACTING:
            return self._answer(*_WITHOUT_ACTING[kind])
        if kind is Strike.SILENCE_THEN_ACT:
            await struck.released()
        elif kind is Strike.ACT_TWICE:
            await send(request)
        elif kind is Strike.FORGET_KEY:
            assert self._rekey is not None
            self._forgotten += 1
            request = self._rekey(request, f"{call.key}-forgotten-{self._forgotten}")
        answer = await send(request)
        if kind is Strike.ACT_THEN_SILENCE:
            await struck.released()
        return self._answer(FAILED, "struck: it acted") if kind is Strike.ACT_THEN_500 else answer
