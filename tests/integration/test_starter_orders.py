"""What starter.py does with one order: each option reaches its place, each ending has its exit status and its words."""

import asyncio
import re
from typing import Any

import pytest
from temporalio.client import Client

from adapters.temporal import connect
from client import connection, operators, order_list
from devstack.stack import DevStack
from domain import policies
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.faults.relay import Relay
from tests.integration.commands import Desk, Ran, unique
from tests.workflow.gates import Gate, Gates
from tests.workflow.sagas import BREAK_UNDO, MEND_UNDO, events_of, hasty, how_it_ended, open_incidents, reason_of, until

ACCEPTED = "EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED"
TEN_THOUSAND = ("--limit", "10000")


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undos that keep failing park their order within a second."""
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
    monkeypatch.setattr(order_list, "_ANSWERED_WITHIN_SECONDS", 1.0)


def start(order_id: str, customer: str, *lines: str) -> tuple[str, ...]:
    options = (part for line in lines or ("tea-mug:1",) for part in ("--line", line))
    return ("start", "--order-id", order_id, "--customer", customer, *options)


async def given_to(shop: Shop, order_id: str) -> dict[str, Any]:
    """Read what an order's saga was started with."""
    handle = shop.client.get_workflow_handle(checkout_workflow_id(order_id))
    [first, *_] = [event async for event in handle.fetch_history_events()]
    payloads = first.workflow_execution_started_event_attributes.input.payloads
    [given] = await shop.client.data_converter.decode(payloads)
    assert isinstance(given, dict)
    return given


# start --------------------------------------------------------------------------------------------------


async def test_the_customer_and_every_line_reach_the_order(desk: Desk) -> None:
    order_id = unique("lines")

    async with desk.shop.working():
        document = await desk.json(*start(order_id, "alice", "tea-mug:2", "poster:1", "tea-mug:1"))

    database = desk.shop.database
    lines = await database.fetch("SELECT sku, quantity FROM order_lines WHERE order_id = $1 ORDER BY sku", order_id)
    assert [tuple(line) for line in lines] == [("poster", 1), ("tea-mug", 3)]
    assert await database.value("SELECT customer FROM orders WHERE order_id = $1", order_id) == "alice"
    assert (document["order_id"], document["workflow_id"]) == (order_id, checkout_workflow_id(order_id))


@pytest.mark.parametrize("lane", ["fast", "classic"])
async def test_the_lane_of_the_settings_reaches_the_order(desk: Desk, lane: str) -> None:
    order_id = unique("lane")

    await desk(*start(order_id, "alice"), "--no-wait", CHECKOUT_LANE=lane)

    assert (await given_to(desk.shop, order_id))["lane"] == lane


async def test_an_order_that_is_not_waited_for_is_told_as_it_stands(desk: Desk) -> None:
    order_id = unique("later")

    begun = await desk(*start(order_id, "bob", "lamp:1"), "--no-wait")  # no worker is there to end it
    async with desk.shop.working():
        waited = await desk(*start(order_id, "bob", "lamp:1"))
        joined = await desk(*start(order_id, "bob", "lamp:1"), "--no-wait")

    assert (begun.code, waited.code, joined.code) == (0, 3, 3)
    assert f"order {order_id}  running" in begun.out
    assert begun.err == ""
    assert f"order {order_id}  rejected" in joined.out


async def test_who_waits_for_a_new_order_is_told_first_that_it_was_started(desk: Desk) -> None:
    order_id, quiet = unique("hint"), unique("quiet")

    async with desk.shop.working():
        started = await desk(*start(order_id, "alice"))
        joined = await desk(*start(order_id, "alice"))
        document = await desk(*start(quiet, "alice"), "--json")

    assert started.err == f"started {order_id}\n"
    assert (joined.err, document.err) == ("", "")
    assert started.out == joined.out


async def test_people_are_shown_the_total_the_parcel_each_step_and_where_to_look_on(desk: Desk) -> None:
    order_id = unique("shown")

    async with desk.shop.working():
        document = await desk.json(*start(order_id, "alice", "tea-mug:2"))
        shown = await desk("status", order_id, CHECKOUT_UI_URL="http://ui.example:9/")

    heading, *steps, link = shown.out.splitlines()
    assert heading == f"order {order_id}  completed  24.00 EUR  parcel {document['tracking_number']}"
    assert [line.split()[:2] for line in steps] == [["reserve", "done"], ["pay", "done"], ["ship", "done"]]
    assert [step["detail"] for step in document["steps"]] == [line.split(maxsplit=2)[2] for line in steps]
    assert link.strip() == f"http://ui.example:9/namespaces/default/workflows/checkout-{order_id}"


@pytest.mark.parametrize(
    ("more", "times"), [((), 2), (("--json",), 1)], ids=["before it is sent and as advice", "as advice beside JSON"]
)
async def test_a_start_without_an_answer_tells_the_id_that_a_repeat_needs(
    desk: Desk, stack: DevStack, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], times: int
) -> None:
    host, _, port = stack.temporal.address.rpartition(":")
    async with Relay(host, int(port)) as relay:

        async def connect_and_lose_the_answers(**options: Any) -> Client:
            client = await connect(**options)
            relay.mute()
            return client

        monkeypatch.setattr(connection, "connect", connect_and_lose_the_answers)
        buy = ("start", "--customer", "alice", "--line", "tea-mug:1", "--no-wait", *more)
        lost = await desk(*buy, TEMPORAL_ADDRESS=relay.address)
    monkeypatch.undo()
    told = re.findall(r"(?:--order-id|starting) (order-\w+)", lost.err)
    repeated = await desk(*buy, "--order-id", told[0])
    async with desk.shop.working():
        ended = await how_it_ended(desk.shop.newest_run(desk.shop.order(order_id=told[0])))

    assert (lost.code, lost.out) == (1, "")
    assert "not known" in lost.err
    assert len(told) == times
    assert len(set(told)) == 1
    assert repeated.code == 0
    assert ended == "completed"
    assert await desk.shop.database.value("SELECT count(*) FROM orders") == 1


async def test_an_id_that_was_made_up_is_told_before_it_is_sent_and_one_that_was_given_is_not(desk: Desk) -> None:
    buy = ("start", "--customer", "alice", "--line", "tea-mug:1", "--no-wait")

    made_up, another = await desk(*buy), await desk.json(*buy)
    given = await desk(*start(unique("given"), "alice"), "--no-wait")

    [order_id] = re.findall(r"order (order-\w+)  running", made_up.out)
    assert made_up.err == f"starting {order_id}\n"
    assert given.err == ""
    assert another["order_id"] != order_id
    assert (await given_to(desk.shop, order_id))["order_id"] == order_id


# status and list ----------------------------------------------------------------------------------------


async def test_each_status_has_its_exit_status_and_is_listed_under_its_name_alone(desk: Desk) -> None:
    shop, gates = desk.shop, Gates()
    ids = {name: unique(name) for name in ("completed", "rejected", "cancelled", "running", "unwinding", "terminated")}
    stuck = shop.order("nemo", order_id=unique("stuck"))
    gates.fail(stuck, "refund_payment")
    held = {
        name: gates.hold(shop.order(order_id=ids[name]), activity, "before")
        for name, activity in {
            "cancelled": "charge_payment",
            "running": "charge_payment",
            "unwinding": "close_order",
            "terminated": "charge_payment",
        }.items()
    }

    async with shop.working(interceptors=(gates,)):
        for name, customer in {"completed": "alice", "rejected": "bob", "unwinding": "bob"}.items():
            await desk(*start(ids[name], customer, "lamp:1" if customer == "bob" else "tea-mug:1"), "--no-wait")
        for name in ("cancelled", "running", "terminated"):
            await desk(*start(ids[name], "alice"), "--no-wait")
        await desk(*start(stuck.order_id, "nemo"))
        await asyncio.gather(*(gate.reached() for gate in held.values()))
        assert (await cancel_before(desk, held["cancelled"], ids["cancelled"])).code == 0
        await shop.client.get_workflow_handle(checkout_workflow_id(ids["terminated"])).terminate()
        ids["stuck"] = stuck.order_id
        for name in ("completed", "rejected"):
            await how_it_ended(shop.newest_run(shop.order(order_id=ids[name])))

        ran = {name: await desk("status", order_id, "--json") for name, order_id in ids.items()}
        listed = {name: await listed_as(desk, ids, name) for name in ids}
        await end(shop, *(ids[name] for name in ("running", "unwinding", "stuck")))
        for gate in held.values():
            gate.open()

    assert {name: one.document["status"] for name, one in ran.items()} == {name: name for name in ids}
    assert {name: one.code for name, one in ran.items()} == {
        "completed": 0,
        "running": 0,
        "unwinding": 0,
        "rejected": 3,
        "cancelled": 3,
        "stuck": 4,
        "terminated": 4,
    }
    assert "starter.py sweep" in ran["terminated"].document["reason"]
    assert listed == {name: {name} if name != "running" else {"running", "unwinding"} for name in ids}


async def listed_as(desk: Desk, ids: dict[str, str], status: str) -> set[str]:
    """Wait until visibility knows the order that has this status, and name those of ours that are listed with it."""
    names = {order_id: name for name, order_id in ids.items()}

    async def look() -> set[str]:
        listed = await desk.json("list", "--status", status, *TEN_THOUSAND)
        return {names[found["order_id"]] for found in listed if found["order_id"] in names}

    async def is_visible() -> bool:
        return status in await look()

    await until(is_visible)
    return await look()


async def end(shop: Shop, *order_ids: str) -> None:
    for order_id in order_ids:
        await shop.client.get_workflow_handle(checkout_workflow_id(order_id)).terminate()


async def test_a_list_tells_when_an_order_began_how_long_it_took_and_at_which_step_it_failed(desk: Desk) -> None:
    order_id = unique("listed")
    async with desk.shop.working():
        await desk(*start(order_id, "bob", "lamp:1"))

    async def rows() -> list[str]:
        return [
            line for line in (await desk("list", *TEN_THOUSAND, COLUMNS="200")).out.splitlines() if order_id in line
        ]

    async def is_visible() -> bool:
        return "rejected" in "".join(await rows())

    await until(is_visible)
    [row] = await rows()
    everything = (await desk("list", *TEN_THOUSAND, "--json")).document  # of Temporal: no worker is there any more
    [document] = [one for one in everything if one["order_id"] == order_id]
    heading = (await desk("list", "--limit", "1", COLUMNS="200")).out.splitlines()[0]

    assert heading.split() == ["order", "status", "failed", "step", "started", "took"]
    name, status, step, *_, took, unit = row.split()
    assert (name, status, step, unit) == (order_id, "rejected", "pay", "s")
    assert 0 <= float(took) < 60
    assert document["failed_step"] == "pay"
    assert document["ui_url"].endswith(checkout_workflow_id(order_id))
    assert document["started_at"] <= document["closed_at"]


async def test_a_list_has_no_more_orders_than_are_asked_for(desk: Desk) -> None:
    for _ in range(3):
        await desk("start", "--customer", "alice", "--line", "tea-mug:1", "--no-wait")

    async def are_visible() -> bool:
        return len((await desk("list", "--limit", "3", "--json")).document) == 3

    await until(are_visible)
    two = (await desk("list", "--limit", "2", "--status", "running", "--json")).document

    assert len(two) == 2


# cancel -------------------------------------------------------------------------------------------------


async def cancel_before(desk: Desk, gate: Gate, order_id: str, *options: str) -> Ran:
    """Cancel an order that stands before a gate, and open the gate once the cancel was accepted."""
    handle = desk.shop.client.get_workflow_handle(checkout_workflow_id(order_id))
    await gate.reached()
    asking = asyncio.create_task(
        desk("cancel", order_id, "--reason", "found it cheaper", "--by", "anna@desk", *options)
    )

    async def is_accepted() -> bool:
        return ACCEPTED in await events_of(handle)

    await until(is_accepted)
    gate.open()
    return await asking


async def test_a_cancel_gives_its_reason_and_ends_with_0_where_the_order_was_undone(desk: Desk) -> None:
    shop, gates, order = desk.shop, Gates(), desk.shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        ran = await cancel_before(desk, gate, order.order_id, "--json")
        late = await desk("cancel", order.order_id, "--reason", "once more")

    assert (ran.code, ran.document["status"]) == (0, "cancelled")
    assert ran.document["reason"] == await reason_of(shop, order) == "cancelled: anna@desk: found it cheaper"
    assert late.code == 3
    assert late.err.startswith("refused: ")


async def test_a_cancel_that_lost_to_the_hand_over_does_not_end_with_0(desk: Desk) -> None:
    shop, gates, order = desk.shop, Gates(), desk.shop.order("alice")
    gate = gates.hold(order, "ship_order", "after")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        ran = await cancel_before(desk, gate, order.order_id)

    assert await shop.order_status(order) == "completed"
    assert ran.code == 3
    assert f"order {order.order_id}  completed" in ran.out


async def test_a_cancel_whose_order_gets_stuck_ends_with_4(desk: Desk) -> None:
    shop, gates, order = desk.shop, Gates(), desk.shop.order("alice")
    gate = gates.hold(order, "charge_payment", "after")
    await shop.database.run(BREAK_UNDO["pay"])

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        ran = await cancel_before(desk, gate, order.order_id)
        await end(shop, order.order_id)

    assert ran.code == 4
    assert f"order {order.order_id}  stuck" in ran.out


# retry and resolve --------------------------------------------------------------------------------------


async def stuck_order(desk: Desk) -> str:
    await desk.shop.database.run(BREAK_UNDO["pay"])
    order_id = unique("stuck")
    assert (await desk(*start(order_id, "nemo"))).code == 4
    return order_id


async def test_a_retry_ends_with_4_while_the_order_is_stuck_and_with_0_once_it_is_not(desk: Desk) -> None:
    async with desk.shop.working():
        order_id = await stuck_order(desk)
        in_vain = await desk("retry", order_id)
        await desk.shop.database.run(MEND_UNDO["pay"])
        settled = await desk("retry", order_id, "--json")
        again = await desk("retry", order_id)  # joins the request that has settled it

    assert (in_vain.code, settled.code, again.code) == (4, 0, 0)
    assert f"order {order_id}  stuck" in in_vain.out
    assert settled.document["status"] == "rejected"
    assert f"order {order_id}  rejected" in again.out
    assert await open_incidents(desk.shop, desk.shop.order(order_id=order_id)) == []


async def test_the_log_tells_who_retried_and_resolved_and_why(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna\x1b[1m")
    monkeypatch.setattr("socket.gethostname", lambda: "desk" * 100)

    async with desk.shop.working():
        order_id = await stuck_order(desk)
        told = await desk("retry", order_id, "--reason", "the bank answers again")
        untold = await desk("retry", order_id)
        settled = await desk("resolve", order_id, "--step", "pay", "--reason", "refunded, ref 4711")
        refused = await desk("retry", order_id, "--reason", "")

    logged = await desk.shop.database.fetch(
        "SELECT event, reason FROM order_events WHERE order_id = $1 AND changed_by = 'operator' ORDER BY seq", order_id
    )
    whose = f"anna [1m@{'desk' * 100}"[:97] + "..."
    assert [(row["event"], row["reason"]) for row in logged] == [
        ("retry_requested", f"{whose}: the bank answers again (request retry-1)"),
        ("retry_requested", f"{whose} (request retry-2)"),
        ("step_resolved", f"pay: {whose}: refunded, ref 4711"),
    ]
    assert (told.code, untold.code, settled.code, refused.code) == (4, 4, 0, 2)


def test_an_operator_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("socket.gethostname", lambda: "desk")

    assert operators.operator() == "unknown@desk"


async def test_a_resolve_names_its_step_and_reason_and_ends_with_0_once_the_order_is_settled(desk: Desk) -> None:
    async with desk.shop.working():
        order_id = await stuck_order(desk)
        wrong = await desk("resolve", order_id, "--step", "reserve", "--reason", "at the bank")
        settled = await desk(
            "resolve", order_id, "--step", "pay", "--reason", "refunded at the bank, ref 4711", "--json"
        )

    assert (wrong.code, settled.code) == (3, 0)
    assert settled.document["status"] == "rejected"
    [pay] = [step for step in settled.document["steps"] if step["step"] == "pay"]
    assert (pay["state"], pay["detail"]) == ("resolved", "resolved by hand: refunded at the bank, ref 4711")
    noted = await desk.shop.database.fetch("SELECT reason FROM order_events WHERE order_id = $1", order_id)
    assert any("refunded at the bank, ref 4711" in (row["reason"] or "") for row in noted)
