"""What an operator asks over HTTP: accepted at once, kept with who and why, refused with a reason."""

import asyncio
from typing import Any

import pytest

from client.checkouts import Checkouts
from domain import policies
from http_api.keys import Scope
from tests.conftest import Shop
from tests.http_api.conftest import TEA, UI, Api
from tests.workflow.gates import Gates
from tests.workflow.sagas import BREAK_UNDO, MEND_UNDO, hasty, until_status


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=2000))


async def stuck_order(shop: Shop) -> str:
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")
    await shop.start(order)
    await until_status(shop, order, "stuck")
    return order.order_id


async def ask(api: Api, order_id: str, request: str, **body: Any) -> Any:
    answer = await api.call("POST", f"/v1/orders/{order_id}/{request}", json=body)
    return answer.status_code, answer.json()


async def reasons(shop: Shop, order_id: str) -> list[str]:
    rows = await shop.database.fetch(
        "SELECT reason FROM order_events WHERE order_id = $1 AND reason IS NOT NULL ORDER BY seq", order_id
    )
    return [row[0] for row in rows]


async def test_a_cancel_is_accepted_and_undoes_the_order_with_who_and_why_in_its_log(api: Api, shop: Shop) -> None:
    gates, order = Gates(), shop.order()
    gate = gates.hold(order, "charge_payment", "after")
    key = api.key_for(Scope.OPERATE, name="anna")
    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await gate.reached()

        answer = await api.call(
            "POST", f"/v1/orders/{order.order_id}/cancel", json={"reason": "found it cheaper"}, key=key
        )
        gate.open()
        await until_status(shop, order, "cancelled")

    assert answer.status_code == 202
    assert answer.json()["links"]["self"] == f"/v1/orders/{order.order_id}"
    assert "cancelled: anna: found it cheaper" in (await reasons(shop, order.order_id))[-1]


@pytest.mark.usefixtures("worker")
async def test_a_cancel_that_comes_too_late_is_refused(api: Api) -> None:
    order_id = await api.completed()

    status, problem = await ask(api, order_id, "cancel", reason="too late")

    assert (status, problem["type"]) == (409, "about:blank#refused")
    assert "completed already" in problem["detail"]


async def test_an_order_by_hand_is_cancelled_too(api: Api, shop: Shop) -> None:
    by_hand = shop.order()
    await shop.accept_by_hand(by_hand)
    async with shop.working():
        status, _ = await ask(api, by_hand.order_id, "cancel", reason="changed my mind")
        await until_status(shop, by_hand, "cancelled")

    assert status == 202


async def test_a_retry_is_accepted_before_its_round_is_over_and_ends_the_order(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, order = Gates(), shop.order("nemo")
    await shop.database.run(BREAK_UNDO["pay"])
    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await until_status(shop, order, "stuck")
        monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=20_000))
        gate = gates.hold(order, "refund_payment", "before")  # the round lasts until it opens
        await shop.database.run(MEND_UNDO["pay"])

        status, _ = await ask(api, order.order_id, "retry", reason="the bank answers again")
        await gate.reached()
        gate.open()
        await until_status(shop, order, "rejected")

    assert status == 202


async def test_a_resolution_is_accepted_and_the_rest_is_undone(api: Api, shop: Shop) -> None:
    async with shop.working():
        order_id = await stuck_order(shop)

        wrong, problem = await ask(api, order_id, "resolve", step="ship", reason="which step?")
        right, _ = await ask(api, order_id, "resolve", step="pay", reason="refunded at the bank, ref 4711")
        await until_status(shop, shop.order(order_id=order_id), "rejected")

    assert (wrong, problem["type"], right) == (409, "about:blank#refused", 202)
    assert any("refunded at the bank, ref 4711" in reason for reason in await reasons(shop, order_id))


@pytest.mark.usefixtures("worker")
async def test_what_is_not_stuck_is_neither_retried_nor_resolved(api: Api, shop: Shop) -> None:
    order_id = await api.completed()
    batched = shop.order()
    await api.services.temporal.checkouts.process([batched])

    for known in (order_id, batched.order_id):
        assert (await ask(api, known, "retry", reason="why not"))[0] == 409
        assert (await ask(api, known, "resolve", step="pay", reason="why not"))[0] == 409
    assert (await ask(api, "nobody", "cancel", reason="why not"))[0] == 404
    assert (await ask(api, "nobody", "retry", reason="why not"))[0] == 404
    assert (await ask(api, "nobody", "resolve", step="pay", reason="why not"))[0] == 404


async def test_what_is_asked_again_of_an_order_that_has_ended_since_is_answered_with_how(api: Api, shop: Shop) -> None:
    async with shop.working():
        order_id = await stuck_order(shop)
        await shop.database.run(MEND_UNDO["pay"])
        assert (await ask(api, order_id, "retry", reason="the bank answers again"))[0] == 202
        await until_status(shop, shop.order(order_id=order_id), "rejected")

        retried = await ask(api, order_id, "retry", reason="is it done?")
        resolved = await ask(api, order_id, "resolve", step="pay", reason="refunded at the bank")
        cancelled = await ask(api, order_id, "cancel", reason="why is it here")

    assert retried[0] == 202
    assert retried[1]["detail"] == "The order has ended as rejected: there is nothing left to do."
    for status, problem in (resolved, cancelled):
        assert (status, problem["type"]) == (409, "about:blank#refused")
        assert problem["detail"] == f"order {order_id} is rejected already"


async def test_a_retry_after_the_workflow_was_terminated_does_not_claim_to_try_anything(api: Api, shop: Shop) -> None:
    async with shop.working():
        order_id = await stuck_order(shop)
        run = shop.newest_run(shop.order(order_id=order_id))
        in_vain = await Checkouts(shop.client, shop.task_queue, UI).retry(order_id, "hoping")
        await run.terminate("by hand")

        status, answer = await ask(api, order_id, "retry", reason="hoping again")

    assert (in_vain.status, status) == ("stuck", 202)
    assert answer["detail"] == "Its workflow has been ended from outside since: the sweep undoes what is left."


@pytest.mark.parametrize(
    ("request_", "body", "pointer"),
    [
        ("cancel", {}, "/reason"),
        ("cancel", {"reason": ""}, "/reason"),
        ("cancel", {"reason": "two\nlines"}, "/reason"),
        ("retry", {"reason": "x" * 201}, "/reason"),
        ("retry", {}, "/reason"),
        ("resolve", {"reason": "done"}, "/step"),
        ("resolve", {"reason": "done", "step": "bill"}, "/step"),
        ("resolve", {"reason": "done", "step": "pay", "by": "me"}, "/by"),
    ],
)
async def test_a_request_without_what_its_log_needs_is_refused(
    shared: Api, request_: str, body: dict[str, str], pointer: str
) -> None:
    status, problem = await ask(shared, "any", request_, **body)

    assert (status, [fault["pointer"] for fault in problem["errors"]]) == (422, [pointer])


async def test_a_request_that_no_worker_takes_is_not_known_yet(api: Api) -> None:
    order_id = (await api.place(TEA)).json()["order_id"]

    answer = await api.call("POST", f"/v1/orders/{order_id}/cancel", json={"reason": "is anybody there"})

    assert answer.status_code == 503
    assert "not known yet" in answer.json()["detail"]
    assert answer.headers["retry-after"]


@pytest.mark.usefixtures("worker")
async def test_an_audit_on_request_says_what_is_wrong_and_what_it_found_is_kept(api: Api, shop: Shop) -> None:
    await api.completed()
    clean = await api.call("POST", "/v1/audits?wait=20")
    await shop.database.run("UPDATE accounts SET balance_minor = balance_minor + 1 WHERE account_id = 'alice'")

    wrong = await api.call("POST", "/v1/audits?wait=20")
    state = await api.get("/v1/audit")

    assert (clean.status_code, clean.json()) == (200, {"is_finished": True, "violation_count": 0})
    assert (wrong.status_code, wrong.json()["violation_count"]) == (200, 1)
    assert (state["is_clean"], [(found["subject"]) for found in state["findings"]]) == (False, ["alice"])


async def test_an_audit_that_takes_longer_goes_on_by_itself(api: Api, shop: Shop) -> None:
    begun = await api.call("POST", "/v1/audits?wait=0")  # there is no worker
    assert (begun.status_code, begun.json()) == (202, {"is_finished": False, "violation_count": None})

    async with shop.working():
        finished = await api.call("POST", "/v1/audits?wait=20")

    assert finished.status_code == 200


async def test_an_audit_whose_start_got_lost_is_not_said_to_be_under_way(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_arguments: object) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr(api.services.temporal.checkouts, "audit", lost)

    answer = await api.call("POST", "/v1/audits?wait=0")

    assert (answer.status_code, answer.json()["type"]) == (503, "about:blank#not-known")
