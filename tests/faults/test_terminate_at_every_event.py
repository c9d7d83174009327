"""A saga that is terminated at any event of its history is repaired from the database alone.

Attempts that outlive their saga are held until the first sweep is through, and let go then.
"""

import asyncio
from contextlib import AsyncExitStack

import pytest

from domain.sweep import SweepReport
from tests.conftest import Shop
from tests.faults.harness import Stop
from tests.faults.interruptions import TERMINATE, TERMINATED, Case
from tests.faults.net_effect import assert_net_effect, replay_all
from tests.faults.scripts import SCRIPTS, Course, Script, be_patient, history_of, perform, run_all, sweep
from tests.faults.share import share
from tests.workflow.sagas import UNDOS, until, violations

pytestmark = pytest.mark.timeout(600)

DONE = {"reserve_inventory": "reserved", "charge_payment": "paid", "ship_order": "completed"}


def status_at(course: Course, instant: Stop) -> str | None:
    """Follow the order's row to an instant; None is no row yet."""
    script = course.script
    status: str | None = None
    for what, _, moment in [*course.before(instant), instant]:
        if moment != "after" or what == script.refused_step:
            continue
        if what in DONE:
            status = DONE[what]
        elif what == "close_order":
            status = script.ends
        elif status is not None and script.ends != "completed":
            status = {"park_order": "stuck", **dict.fromkeys(UNDOS, "unwinding")}.get(what, status)
    return status


def after_repair(script: Script, status: str | None) -> str | None:
    """What was heading nowhere is cancelled, an unwind goes where it was heading, and an ending stays."""
    return {"reserved": "cancelled", "paid": "cancelled", "unwinding": script.ends, "stuck": script.ends}.get(
        status or "", status
    )


def after_late_attempt(case: Case, status: str | None) -> str | None:
    """What an attempt does that was held until its order was repaired: something only where nothing was."""
    if case.instant.moment == "before" and case.instant.what != case.script.refused_step:
        match case.instant.what, status:
            case "reserve_inventory", None:
                return "reserved"
            case "close_order", None:
                return case.script.ends
            case "cancel_shipment", "completed" if case.script.is_cancelled_before:
                return "unwinding"
    return status


async def terminate(case: Case, harnesses: AsyncExitStack) -> None:
    await harnesses.enter_async_context(case.harness)
    await case.bring_about()
    await case.interrupt()
    case.events = await history_of(case.harness)
    await case.leave()


async def let_late_attempts_go(case: Case) -> None:
    async def is_quiet() -> bool:
        return case.harness.alive == 0

    case.harness.open_all()
    await case.harness.employ()  # nothing of a terminated run is handed out any more
    await until(is_quiet)


def ids_of(cases: list[Case], statuses: set[str | None], output: dict[str, str | None]) -> list[str]:
    return sorted(case.harness.order.order_id for case in cases if output[str(case)] in statuses)


@pytest.mark.parametrize("script", share(SCRIPTS, every=11))
async def test_a_saga_that_is_terminated_at_any_event_is_repaired(
    shop: Shop, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, stuck_wait=script.stuck_wait)
    _, course = await perform(shop, script)
    cases = [Case(shop, course, TERMINATE, instant) for instant in course.instants()]
    unfinished: set[str | None] = {"reserved", "paid", "unwinding", "stuck"}

    async with AsyncExitStack() as harnesses, shop.working():
        await run_all(cases, lambda case: terminate(case, harnesses))
        first = await sweep(shop)
        await asyncio.gather(*(let_late_attempts_go(case) for case in cases))
        second = await sweep(shop)
        third = await sweep(shop)
    found = {str(case): await shop.order_status(case.harness.order) for case in cases}

    at_first = {str(case): status_at(course, case.instant) for case in cases}
    late = {str(case): after_late_attempt(case, after_repair(script, at_first[str(case)])) for case in cases}
    assert sorted(first.repaired) == ids_of(cases, unfinished, at_first)
    assert sorted(second.repaired) == ids_of(cases, unfinished, late)
    assert third == SweepReport()
    assert found == {name: after_repair(script, status) for name, status in late.items()}
    for case in cases:
        assert (str(case), case.names) == (str(case), [*case.expected_before("terminate"), TERMINATED])
        await assert_net_effect(case.harness, found[str(case)])
    assert await violations(shop) == []
    await replay_all((case.harness, case.events) for case in cases)
