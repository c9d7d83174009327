"""An order's place among those that come at the same time, and how long its caller is kept for it."""

import asyncio
from contextlib import suppress
from typing import NamedTuple

from client.batcher import Batcher, Seat
from client.failures import Full
from domain.bulk import Outcome
from domain.model import CheckoutInput
from http_api.problems import temporal_is_away
from http_api.services import Services

PATIENCE_SECONDS = 1.0
"""How long a caller who does not wait is kept until the order gets a workflow of its own: many times what it takes."""
_LONGEST_SECONDS = 5.0
"""And where batches end all the time, only not this one: the machine is busy."""
_LONGEST_IN_LINE_SECONDS = 3.5
"""How long an order waits for its batch to begin; looked at each second."""


class Asked(NamedTuple):
    """An order, and how its caller asks for it."""

    order: CheckoutInput
    is_chosen: bool
    """Whether the caller has chosen its id."""
    until: float
    """When the caller stops waiting, by the event loop's clock."""

    @property
    def seconds_left(self) -> float:
        """How long the caller still waits; negative when no longer."""
        return self.until - asyncio.get_running_loop().time()


class Batched(NamedTuple):
    """What is known of an order that was given a seat."""

    outcome: Outcome | None = None
    """How it has ended; None where that is not known in time."""
    workflow_id: str | None = None
    """Its batch, which may still be under way."""
    is_first: bool = False
    """Whether no other caller asked for it before."""
    is_blocked: bool = False
    """Whether another order of its id was accepted, or is in a batch that has not ended."""


async def batched(services: Services, asked: Asked) -> Batched:
    """Give an order a seat in a batch, and wait for its end as long as its caller does."""
    batcher = services.batcher
    if batcher is None:
        return Batched()
    with batcher.seat(asked.order) as (seat, is_first):
        workflow_id, outcome = None, None
        with suppress(TimeoutError):
            if workflow_id := await _started(services, batcher, seat):
                async with services.waiting(max(asked.seconds_left, _patience(batcher))):
                    outcome = await asyncio.shield(seat.ended)
    if seat.order.fingerprint == asked.order.fingerprint:
        return Batched(outcome, workflow_id, is_first)
    return Batched(is_blocked=outcome is None)


def _patience(batcher: Batcher) -> float:
    """How long a caller who does not wait is kept; longer while batches end, since then the machine is only busy."""
    return _LONGEST_SECONDS if batcher.has_ended_within(_LONGEST_SECONDS) else PATIENCE_SECONDS


async def _started(services: Services, batcher: Batcher, seat: Seat) -> str | None:
    """Wait until an order's batch has started; return its workflow, or None where Temporal refuses it.

    Where Temporal is silent this ends before the batch does: the start of another workflow would take as long again.

    Raises:
        Full: others are before it, for too long. Nothing was done.
        TimeoutError: others are before it, and no batch ends.
        Problem: Temporal does not answer.
    """
    now = asyncio.get_running_loop().time
    began, was_in_line = now(), True
    while True:
        try:
            async with services.waiting(PATIENCE_SECONDS):
                return await asyncio.shield(seat.started)
        except TimeoutError:
            is_over = services.stop.is_set() or now() > began + _LONGEST_IN_LINE_SECONDS
            if not batcher.is_waiting(seat):
                # One that was in line a moment ago has just been asked for.
                if services.stop.is_set() or (is_over and not was_in_line):
                    raise temporal_is_away() from None
                was_in_line = False
            elif not batcher.has_ended_within(_LONGEST_SECONDS):
                raise
            elif is_over:
                raise Full("too many orders wait") from None
