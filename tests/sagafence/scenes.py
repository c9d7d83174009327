"""The ways of a declared saga, one scene each, for record.py: every ending, and every way there."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateStage

from sagafence import Resolution, Verdict, purge
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.http_provider import Fault
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import Trips

Handle = WorkflowHandle[Any, Any]
Scene = Callable[[Trips, Elsewhere], Awaitable[Handle]]

REFUSE_ENDS = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.state = 'ended' THEN RAISE EXCEPTION 'injected'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER refuse BEFORE UPDATE ON sagas FOR EACH ROW EXECUTE FUNCTION refuse()
"""
ALLOW_ENDS = "DROP FUNCTION refuse CASCADE"


def booked(*fails: str) -> Scene:
    async def scene(trips: Trips, _: Elsewhere) -> Handle:
        return await trips.start(*fails)

    return scene


def cancelled(*, by_update: bool) -> Scene:
    """Cancel it while both seats are being booked."""

    async def scene(trips: Trips, _: Elsewhere) -> Handle:
        attempt = trips.steps.hold("before seat/back")
        handle = await trips.start()
        await attempt.has_come.wait()
        if by_update:
            accepted = WorkflowUpdateStage.ACCEPTED
            await handle.start_update(BookTrip.cancel, "changed my mind", wait_for_stage=accepted)
        else:
            await handle.cancel()
        attempt.may_go.set()
        return handle

    return scene


def stuck(broken: str, *fails: str, resolution: Resolution | None = None) -> Scene:
    """Have it stuck; retry in vain, and then with success, or resolve it."""

    async def scene(trips: Trips, _: Elsewhere) -> Handle:
        trips.steps.broken.add(broken)
        handle = await trips.start(*fails)
        await trips.until(handle, "stuck")
        if resolution:
            await handle.execute_update(BookTrip.resolve, resolution)
            return handle
        await handle.execute_update(BookTrip.retry)
        trips.steps.broken.clear()
        await handle.execute_update(BookTrip.retry)
        return handle

    return scene


async def end_refused(trips: Trips, _: Elsewhere) -> Handle:
    """Have Postgres refuse its end until it is retried."""
    await trips.database.run(REFUSE_ENDS)
    handle = await trips.start("seat")
    await trips.until(handle, "stuck")
    await trips.database.run(ALLOW_ENDS)
    await handle.execute_update(BookTrip.retry)
    return handle


async def told_again(trips: Trips, _: Elsewhere) -> Handle:
    """Lose it past its pivot, and cancel the run that follows."""
    trips.steps.broken.add("greeting")
    handle = await trips.start()
    await trips.until(handle, "stuck")
    await handle.terminate("lost")
    trips.steps.broken.clear()
    return await trips.start_again(handle, is_cancelled=True)


async def undone_for_an_earlier_run(trips: Trips, _: Elsewhere) -> Handle:
    """Lose it before its pivot, and cancel the run that follows before it has begun."""
    attempt = trips.steps.hold("before ticket")
    handle = await trips.start()
    await attempt.has_come.wait()
    await handle.terminate("lost")
    return await trips.start_again(handle, is_cancelled=True)


async def purged(trips: Trips, _: Elsewhere) -> Handle:
    """Run it again once retention has deleted its rows."""
    handle = await trips.start()
    await handle.result()
    await purge(trips.engine, timedelta(0))
    return await trips.start_again(handle)


def unknown_pivot(*, happened: bool) -> Scene:
    """Have its pivot's outcome unknown, and settled on a retry."""

    async def scene(_: Trips, elsewhere: Elsewhere) -> Handle:
        elsewhere.billing.faults.extend([Fault.ACTS_AND_HANGS_UP if happened else Fault.LATE, *[Fault.REJECTS_429] * 3])
        elsewhere.billing.is_shipped = happened
        handle = await elsewhere.start()
        await elsewhere.until(handle, "stuck")
        await handle.execute_update(Fulfil.retry)
        return handle

    return scene


async def settled_by_a_person(_: Trips, elsewhere: Elsewhere) -> Handle:
    """Have the outcome of what comes after the pivot said by an operator."""
    elsewhere.mail.faults.append(Fault.ACTS_AND_500)
    handle = await elsewhere.start()
    await elsewhere.until(handle, "stuck")
    said = Resolution("mail", Verdict.HAPPENED, "ann", "it is in their log", 1, just_now())
    await handle.execute_update(Fulfil.resolve, said)
    return handle


def just_now() -> str:
    """Say when an operator has looked."""
    return datetime.now(UTC).isoformat()


async def ended(handle: Handle) -> None:
    """Wait for the end of a run, whatever it is."""
    with suppress(WorkflowFailureError):
        await handle.result()


SCENES: dict[str, Scene] = {
    "completed": booked(),
    "unwound-at-the-first-step": booked("room"),
    "unwound-side-by-side": booked("seat"),
    "unwound-at-the-pivot": booked("ticket"),
    "cancelled-by-update": cancelled(by_update=True),
    "cancelled-by-temporal": cancelled(by_update=False),
    "stuck-and-retried": stuck("undo-seat", "ticket"),
    "stuck-and-resolved": stuck(
        "undo-room", "seat", resolution=Resolution("room", Verdict.UNDONE_BY_HAND, "ann", "called the hotel")
    ),
    "stuck-past-the-pivot": stuck("greeting"),
    "stuck-at-its-end": end_refused,
    "told-again-past-the-pivot": told_again,
    "undone-for-an-earlier-run": undone_for_an_earlier_run,
    "purged": purged,
    "pivot-unknown-that-happened": unknown_pivot(happened=True),
    "pivot-unknown-that-never-happened": unknown_pivot(happened=False),
    "settled-by-a-person": settled_by_a_person,
}
