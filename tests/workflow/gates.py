"""What a test puts between Temporal and the activities of its worker: gates, faults and a count of attempts."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from temporalio import activity
from temporalio.exceptions import ApplicationError

from domain.model import CheckoutInput
from domain.policies import order_id_of
from sagafence import DatabaseUnavailable
from tests.attempts import AroundAttempts, Run

Moment = Literal["before", "after"]
Place = tuple[str, str, Moment]

PATIENCE_SECONDS = float(os.environ.get("TEST_PATIENCE_SECONDS", "60"))
"""How long a test waits for what must come: long, for a slow machine; shorter where most tests are meant to fail."""


class Gate:
    """Holds up every attempt that comes to its place until the test opens it."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()
        self._passed = asyncio.Event()

    async def reached(self) -> None:
        """Wait until an attempt stands before the gate."""
        await asyncio.wait_for(self._reached.wait(), PATIENCE_SECONDS)

    def open(self) -> None:
        """Let everybody pass, now and later."""
        self._opened.set()

    async def passed(self) -> None:
        """Wait until the first attempt that was held up has come to its end."""
        await asyncio.wait_for(self._passed.wait(), PATIENCE_SECONDS)

    async def hold(self) -> None:
        self._reached.set()
        await self._opened.wait()

    def note_the_end(self) -> None:
        if self._opened.is_set():
            self._passed.set()


class Fault:
    """Makes attempts fail: the next `times`, or all of them until `mend`."""

    def __init__(self, times: int | None, error: Callable[[], Exception]) -> None:
        self._left = times
        self._error = error
        self._struck = asyncio.Event()

    def mend(self) -> None:
        """Let every later attempt pass."""
        self._left = 0

    async def struck(self) -> None:
        """Wait until an attempt has failed."""
        await asyncio.wait_for(self._struck.wait(), PATIENCE_SECONDS)

    def strike(self) -> None:
        if self._left == 0:
            return
        if self._left is not None:
            self._left -= 1
        self._struck.set()
        raise self._error()


def outage() -> Exception:
    return DatabaseUnavailable("no connection to Postgres: injected")


def lost_report() -> Exception:
    return ApplicationError("the report was lost", type="ReportLost")


class Gates(AroundAttempts):
    """One worker's gates and faults, by order and activity. `before` the real call, or `after` it."""

    def __init__(self) -> None:
        self.attempts: Counter[tuple[str, str]] = Counter()
        self._gates: dict[Place, Gate] = {}
        self._faults: dict[Place, Fault] = {}

    def hold(self, order: CheckoutInput, name: str, moment: Moment) -> Gate:
        return self._gates.setdefault((order.order_id, name, moment), Gate())

    def fail(
        self,
        order: CheckoutInput,
        name: str,
        moment: Moment = "before",
        *,
        times: int | None = None,
        error: Callable[[], Exception] = outage,
    ) -> Fault:
        return self._faults.setdefault((order.order_id, name, moment), Fault(times, error))

    def attempts_of(self, order: CheckoutInput, name: str) -> int:
        return self.attempts[order.order_id, name]

    async def come_to(self, place: Place) -> None:
        if gate := self._gates.get(place):
            await gate.hold()
        if fault := self._faults.get(place):
            fault.strike()

    def leave(self, order_id: str, name: str) -> None:
        for (held_order, held_name, _), gate in self._gates.items():
            if (held_order, held_name) == (order_id, name):
                gate.note_the_end()

    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:  # noqa: ARG002
        order_id, name = order_id_of(info.workflow_id or ""), info.activity_type
        self.attempts[order_id, name] += 1
        try:
            await self.come_to((order_id, name, "before"))
            answer = await run()
            await self.come_to((order_id, name, "after"))
        finally:
            self.leave(order_id, name)
        return answer
