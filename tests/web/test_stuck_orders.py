"""An operator settles orders by keyboard alone: what is stuck, what is under way, and what is refused."""

import pytest
from playwright.async_api import Route, expect

from domain import policies
from domain.model import CheckoutInput
from http_api.keys import Scope
from tests.conftest import Shop
from tests.http_api.conftest import Api
from tests.web.conftest import Desks
from tests.workflow.gates import Gates
from tests.workflow.sagas import BREAK_UNDO, MEND_UNDO, hasty, resolve, until_status, violations
from tests.workflow.test_review import needs_review


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of undos lasts less than a second."""
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


async def stuck_order(shop: Shop, *steps: str) -> CheckoutInput:
    """Have an order whose undos of these steps fail."""
    for step in steps:
        await shop.database.run(BREAK_UNDO[step])
    order = shop.order("nemo")
    await shop.start(order)
    await until_status(shop, order, "stuck")
    return order


async def test_an_operator_finds_a_stuck_order_retries_it_and_sees_it_end_by_keyboard_alone(
    shop: Shop, api: Api, desks: Desks
) -> None:
    async with shop.working(), desks.open() as operator:
        order = await stuck_order(shop, "pay")
        await operator.sign_in(api.key_for(Scope.OPERATE, name="anna"))
        await operator.sees("UndeliverableAddress")
        await operator.choose("stuck 1")
        await expect(operator.heading("Orders: stuck")).to_be_focused()
        await operator.sees("UndeliverableAddress")
        await operator.choose(order.order_id)
        await operator.sees_status("stuck")
        await operator.sees("Why it is stuck: “Refund payment” keeps failing")
        await operator.sees("Postgres refused: injected")  # the incident's cause
        await operator.sees("no carrier delivers to nemo")  # the order's reason
        await expect(operator.page.get_by_role("link", name="Open the history")).to_have_attribute(
            "href", api.services.temporal.checkouts.ui_link(f"checkout-{order.order_id}")
        )

        await operator.choose("Retry the undo")
        await operator.types("hoping")
        await operator.press("Enter")
        await operator.sees("the undo has not succeeded since")
        await operator.until_dialog_closes()
        assert await operator.focused() == "Retry the undo …"

        await shop.database.run(MEND_UNDO["pay"])
        await operator.press("Enter")
        assert await operator.focused() == "Reason"
        await operator.types("the trigger is dropped")
        await operator.press("Enter")

        await operator.until_dialog_closes()
        await operator.sees_status("rejected")
        await operator.sees("anna: the trigger is dropped")
        await operator.sees("Nothing more will happen")
        assert (await operator.events())[-5:] == [
            "Stuck: an undo keeps failing",
            "Retry requested",
            "Retry requested",
            "Undo goes on",
            "Order rejected, nothing kept",
        ]
        assert await operator.focused() == "What you can do"  # the button is gone
        await operator.page.go_back()
        await operator.page.go_back()
        await operator.sees("rejected")

    assert await violations(shop) == []


async def test_a_dialog_shows_why_a_request_is_refused_and_stays_until_it_is_accepted(
    shop: Shop, api: Api, desks: Desks
) -> None:
    async def away(route: Route) -> None:
        problem = {"title": "Service Unavailable", "status": 503, "detail": "Temporal has not answered"}
        await route.fulfill(status=503, json=problem)

    async with shop.working(), desks.open() as operator:
        order = await stuck_order(shop, "pay", "reserve")
        await operator.page.goto(f"{desks.url}#/orders/{order.order_id}")
        await operator.sign_in(api.key)
        await operator.sees_status("stuck")
        await operator.choose("Resolve by hand")
        assert "pay" in await operator.focused()  # with two steps nothing is chosen
        await operator.press("Space", "Tab", " ", "Enter")
        await expect(operator.dialog.get_by_role("alert")).to_contain_text("reason")
        assert await operator.focused() == "Reason"

        await operator.page.route("**/resolve", away)
        await operator.types("refunded at the bank")
        await operator.press("Enter")
        await expect(operator.dialog.get_by_role("alert")).to_contain_text("Temporal has not answered")
        await operator.page.unroute("**/resolve")

        await operator.press("Enter")
        await operator.until_dialog_closes()
        await operator.sees("Step resolved by hand")
        await operator.sees("Why it is stuck: “Release stock” keeps failing")
        assert await operator.focused() == "Resolve by hand …"

        await operator.press("Enter")
        await operator.types("counted and put back")
        handle = shop.newest_run(order)
        await resolve(handle, "reserve")
        await operator.press("Enter")
        await expect(operator.dialog.get_by_role("alert")).to_contain_text("Conflict")
        await operator.press("Escape")
        await operator.until_dialog_closes()
        await operator.sees_status("rejected")
        assert await operator.focused() == "What you can do"


async def test_an_order_that_waits_for_a_decision_claims_no_failure_and_is_undone_once_somebody_says_so(
    shop: Shop, api: Api, desks: Desks, axe: str
) -> None:
    gates = Gates()
    async with shop.working(interceptors=(gates,)), desks.open() as operator:
        order = await needs_review(shop, gates)
        await operator.page.goto(f"{desks.url}#/orders/{order.order_id}")
        await operator.sign_in(api.key_for(Scope.OPERATE, name="anna"))
        await operator.sees_status("stuck")
        await operator.sees("It waits for you to decide. Nothing has been undone.")
        await operator.sees("the database knows nothing of it")
        await operator.sees("If the parcel has not left")
        await operator.sees("Stopped for you to decide")
        await expect(operator.page.locator("main")).not_to_contain_text("failing")
        assert await operator.violations(axe) == []

        await operator.choose("Undo the order")
        await operator.types("the carrier has no parcel")
        await operator.press("Enter")
        await operator.until_dialog_closes()

        await operator.sees_status("rejected")
        await operator.sees("anna: the carrier has no parcel")


async def test_an_order_whose_parcel_had_left_is_settled_step_by_step_on_a_phone(
    shop: Shop, api: Api, desks: Desks, axe: str
) -> None:
    gates = Gates()
    async with shop.working(interceptors=(gates,)), desks.open(width=360, dark=True) as operator:
        order = await needs_review(shop, gates)
        await operator.page.goto(f"{desks.url}#/orders/{order.order_id}")
        await operator.sign_in(api.key)
        await operator.sees("If the parcel has left")
        await operator.choose("Resolve by hand")
        await expect(operator.dialog.get_by_role("radio")).to_have_count(3)
        assert "ship: “Ship parcel”" in await operator.focused()
        assert (await operator.violations(axe), await operator.overflow() <= 0) == ([], True)
        for left in (2, 1, 0):
            await operator.press(*(["Space", "Tab"] if left else []))
            await operator.types(f"booked by hand, {left} to go")
            await operator.press("Enter")
            await operator.until_dialog_closes()
            if left:
                await expect(operator.page.locator(".timeline strong", has_text="Step resolved")).to_have_count(
                    3 - left
                )
                await expect(operator.page.get_by_text("waits for you", exact=True)).to_have_count(left)
                assert await operator.focused() == "Resolve by hand …"
                await operator.press("Enter")

        await operator.sees_status("rejected")
        await operator.sees("But what was resolved by hand is as somebody has left it.")
        assert "Undo begun" not in await operator.events()


async def test_an_operator_cancels_an_order_that_is_under_way(shop: Shop, api: Api, desks: Desks) -> None:
    gates, order = Gates(), shop.order("carol")
    gate = gates.hold(order, "ship_order", "before")
    async with shop.working(interceptors=(gates,)), desks.open(f"#/orders/{order.order_id}") as operator:
        await shop.start(order)
        await gate.reached()
        await operator.sign_in(api.key_for(Scope.OPERATE, name="anna"))
        await operator.sees_status("running")
        await operator.choose("Cancel the order")
        await operator.types("bought twice")
        await operator.press("Enter")
        await operator.until_dialog_closes()
        await operator.sees("The cancel was accepted")
        gate.open()
        await operator.sees_status("cancelled")
        await operator.sees("cancelled: anna: bought twice")
    assert await violations(shop) == []
