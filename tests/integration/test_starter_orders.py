"""What starter.py does with one order: each option reaches its place, each ending has its exit status and its words."""

import asyncio
import re
from typing import Any

import pytest
from temporalio.client import Client

from adapters.temporal import connect
from client import connection, order_list
from devstack.stack import DevStack
from domain import policies
from domain.policies import checkout_workflow_id
from terminal import options
from tests.conftest import Shop
from tests.faults.lab.proxy import Proxy, Way
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


async def test_the_customer_and_every_line_reach_the_order(run_starter: Desk) -> None:
    order_id = unique("lines")

    async with run_starter.shop.working():
        document = await run_starter.json(*start(order_id, "alice", "tea-mug:2", "poster:1", "tea-mug:1"))

    database = run_starter.shop.database
    lines = await database.fetch("SELECT sku, quantity FROM order_lines WHERE order_id = $1 ORDER BY sku", order_id)
    assert [tuple(line) for line in lines] == [("poster", 1), ("tea-mug", 3)]
    assert await database.value("SELECT customer FROM orders WHERE order_id = $1", order_id) == "alice"
    assert (document["order_id"], document["workflow_id"]) == (order_id, checkout_workflow_id(order_id))


async def test_an_order_that_is_not_waited_for_is_reported_as_it_stands(run_starter: Desk) -> None:
    order_id = unique("later")

    begun = await run_starter(*start(order_id, "bob", "lamp:1"), "--no-wait")  # no worker is there to end it
    async with run_starter.shop.working():
        waited = await run_starter(*start(order_id, "bob", "lamp:1"))
        joined = await run_starter(*start(order_id, "bob", "lamp:1"), "--no-wait")

    assert (begun.code, waited.code, joined.code) == (0, 3, 3)
    assert f"order {order_id}  running" in begun.out
    assert begun.err == ""
    assert f"order {order_id}  rejected" in joined.out


async def test_who_waits_for_a_new_order_is_reported_first_that_it_was_started(run_starter: Desk) -> None:
    order_id, quiet = unique("hint"), unique("quiet")

    async with run_starter.shop.working():
        started = await run_starter(*start(order_id, "alice"))
        joined = await run_starter(*start(order_id, "alice"))
        document = await run_starter(*start(quiet, "alice"), "--json")

    assert started.err == f"started {order_id}\n"
    assert (joined.err, document.err) == ("", "")
    assert started.out == joined.out


async def test_people_are_shown_the_total_the_parcel_each_step_and_where_to_look_on(run_starter: Desk) -> None:
    order_id = unique("shown")

    async with run_starter.shop.working():
        document = await run_starter.json(*start(order_id, "alice", "tea-mug:2"))
        shown = await run_starter("status", order_id, CHECKOUT_UI_URL="http://ui.example:9/")

    heading, *steps, link = shown.out.splitlines()
    assert heading == f"order {order_id}  completed  24.00 EUR  parcel {document['tracking_number']}"
    assert [line.split()[:2] for line in steps] == [["reserve", "done"], ["pay", "done"], ["ship", "done"]]
    assert [step["detail"] for step in document["steps"]] == [line.split(maxsplit=2)[2] for line in steps]
    assert link.strip() == f"http://ui.example:9/namespaces/default/workflows/checkout-{order_id}"


@pytest.mark.parametrize(
    ("more", "times"), [((), 2), (("--json",), 1)], ids=["before it is sent and as advice", "as advice beside JSON"]
)
async def test_a_start_without_an_answer_reports_the_id_that_a_repeat_needs(
    run_starter: Desk, stack: DevStack, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], times: int
) -> None:
    with Proxy(stack.ports.temporal) as link:

        async def connect_and_lose_the_answers(**options: Any) -> Client:
            client = await connect(**options)
            link.swallow(Way.TO_CLIENT)
            return client

        monkeypatch.setattr(connection, "connect", connect_and_lose_the_answers)
        buy = ("start", "--customer", "alice", "--line", "tea-mug:1", "--no-wait", *more)
        lost = await run_starter(*buy, TEMPORAL_ADDRESS=f"127.0.0.1:{link.port}")
    monkeypatch.undo()
    output = re.findall(r"(?:--order-id|starting) (order-\w+)", lost.err)
    repeated = await run_starter(*buy, "--order-id", output[0])
    async with run_starter.shop.working():
        ended = await how_it_ended(run_starter.shop.newest_run(run_starter.shop.order(order_id=output[0])))

    assert (lost.code, lost.out) == (1, "")
    assert "not known" in lost.err
    assert len(output) == times
    assert len(set(output)) == 1
    assert repeated.code == 0
    assert ended == "completed"
    assert await run_starter.shop.database.value("SELECT count(*) FROM orders") == 1


async def test_an_id_that_was_made_up_is_reported_before_it_is_sent_and_one_that_was_given_is_not(
    run_starter: Desk,
) -> None:
    buy = ("start", "--customer", "alice", "--line", "tea-mug:1", "--no-wait")

    made_up, another = await run_starter(*buy), await run_starter.json(*buy)
    given = await run_starter(*start(unique("given"), "alice"), "--no-wait")

    [order_id] = re.findall(r"order (order-\w+)  running", made_up.out)
    assert made_up.err == f"starting {order_id}\n"
    assert given.err == ""
    assert another["order_id"] != order_id
    assert (await given_to(run_starter.shop, order_id))["order_id"] == order_id


# status and list ----------------------------------------------------------------------------------------


async def test_each_status_has_its_exit_status_and_is_listed_under_its_name_alone(run_starter: Desk) -> None:
    shop, gates = run_starter.shop, Gates()
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
            await run_starter(*start(ids[name], customer, "lamp:1" if customer == "bob" else "tea-mug:1"), "--no-wait")
        for name in ("cancelled", "running", "terminated"):
            await run_starter(*start(ids[name], "alice"), "--no-wait")
        await run_starter(*start(stuck.order_id, "nemo"))
        await asyncio.gather(*(gate.reached() for gate in held.values()))
        assert (await cancel_before(run_starter, held["cancelled"], ids["cancelled"])).code == 0
        await shop.client.get_workflow_handle(checkout_workflow_id(ids["terminated"])).terminate()
        ids["stuck"] = stuck.order_id
        for name in ("completed", "rejected"):
            await how_it_ended(shop.newest_run(shop.order(order_id=ids[name])))

        ran = {name: await run_starter("status", order_id, "--json") for name, order_id in ids.items()}
        listed = {name: await listed_as(run_starter, ids, name) for name in ids}
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


async def listed_as(run_starter: Desk, ids: dict[str, str], status: str) -> set[str]:
    """Wait until visibility knows the order that has this status, and name those of ours that are listed with it."""
    names = {order_id: name for name, order_id in ids.items()}

    async def look() -> set[str]:
        listed = await run_starter.json("list", "--status", status, *TEN_THOUSAND)
        return {names[found["order_id"]] for found in listed if found["order_id"] in names}

    async def is_visible() -> bool:
        return status in await look()

    await until(is_visible)
    return await look()


async def end(shop: Shop, *order_ids: str) -> None:
    for order_id in order_ids:
        await shop.client.get_workflow_handle(checkout_workflow_id(order_id)).terminate()


async def test_a_list_reports_when_an_order_began_how_long_it_took_and_at_which_step_it_failed(
    run_starter: Desk,
) -> None:
    order_id = unique("listed")
    async with run_starter.shop.working():
        await run_starter(*start(order_id, "bob", "lamp:1"))

    async def rows() -> list[str]:
        return [
            line
            for line in (await run_starter("list", *TEN_THOUSAND, COLUMNS="200")).out.splitlines()
            if order_id in line
        ]

    async def is_visible() -> bool:
        return "rejected" in "".join(await rows())

    await until(is_visible)
    [row] = await rows()
    everything = (
        await run_starter("list", *TEN_THOUSAND, "--json")
    ).document  # of Temporal: no worker is there any more
    [document] = [one for one in everything if one["order_id"] == order_id]
    heading = (await run_starter("list", "--limit", "1", COLUMNS="200")).out.splitlines()[0]

    assert heading.split() == ["order", "status", "failed", "step", "started", "took"]
    name, status, step, *_, took, unit = row.split()
    assert (name, status, step, unit) == (order_id, "rejected", "pay", "s")
    assert 0 <= float(took) < 60
    assert document["failed_step"] == "pay"
    assert document["ui_url"].endswith(checkout_workflow_id(order_id))
    assert document["started_at"] <= document["closed_at"]


async def test_a_list_has_no_more_orders_than_are_asked_for(run_starter: Desk) -> None:
    for _ in range(3):
        await run_starter("start", "--customer", "alice", "--line", "tea-mug:1", "--no-wait")

    async def are_visible() -> bool:
        return len((await run_starter("list", "--limit", "3", "--json")).document) == 3

    await until(are_visible)
    two = (await run_starter("list", "--limit", "2", "--status", "running", "--json")).document

    assert len(two) == 2


# cancel -------------------------------------------------------------------------------------------------


async def cancel_before(run_starter: Desk, gate: Gate, order_id: str, *options: str) -> Ran:
    """Cancel an order that stands before a gate, and open the gate once the cancel was accepted."""
    handle = run_starter.shop.client.get_workflow_handle(checkout_workflow_id(order_id))
    await gate.reached()
    asking = asyncio.create_task(
        run_starter("cancel", order_id, "--reason", "found it cheaper", "--by", "anna@desk", *options)
    )

    async def is_accepted() -> bool:
        return ACCEPTED in await events_of(handle)

    await until(is_accepted)
    gate.open()
    return await asking


async def test_a_cancel_gives_its_reason_and_ends_with_0_where_the_order_was_undone(run_starter: Desk) -> None:
    shop, gates, order = run_starter.shop, Gates(), run_starter.shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        ran = await cancel_before(run_starter, gate, order.order_id, "--json")
        late = await run_starter("cancel", order.order_id, "--reason", "once more")

    assert (ran.code, ran.document["status"]) == (0, "cancelled")
    assert ran.document["reason"] == await reason_of(shop, order) == "cancelled: anna@desk: found it cheaper"
    assert late.code == 3
    assert late.err.startswith("refused: ")


async def test_a_cancel_that_lost_to_the_hand_over_does_not_end_with_0(run_starter: Desk) -> None:
    shop, gates, order = run_starter.shop, Gates(), run_starter.shop.order("alice")
    gate = gates.hold(order, "ship_order", "after")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        ran = await cancel_before(run_starter, gate, order.order_id)

    assert await shop.order_status(order) == "completed"
    assert ran.code == 3
    assert f"order {order.order_id}  completed" in ran.out


async def test_a_cancel_whose_order_gets_stuck_ends_with_4(run_starter: Desk) -> None:
    shop, gates, order = run_starter.shop, Gates(), run_starter.shop.order("alice")
    gate = gates.hold(order, "charge_payment", "after")
    await shop.database.run(BREAK_UNDO["pay"])

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        ran = await cancel_before(run_starter, gate, order.order_id)
        await end(shop, order.order_id)

    assert ran.code == 4
    assert f"order {order.order_id}  stuck" in ran.out


# retry and resolve --------------------------------------------------------------------------------------


async def stuck_order(run_starter: Desk) -> str:
    await run_starter.shop.database.run(BREAK_UNDO["pay"])
    order_id = unique("stuck")
    assert (await run_starter(*start(order_id, "nemo"))).code == 4
    return order_id


async def test_a_retry_ends_with_4_while_the_order_is_stuck_and_with_0_once_it_is_not(run_starter: Desk) -> None:
    async with run_starter.shop.working():
        order_id = await stuck_order(run_starter)
        in_vain = await run_starter("retry", order_id)
        await run_starter.shop.database.run(MEND_UNDO["pay"])
        settled = await run_starter("retry", order_id, "--json")
        again = await run_starter("retry", order_id)  # joins the request that has settled it

    assert (in_vain.code, settled.code, again.code) == (4, 0, 0)
    assert f"order {order_id}  stuck" in in_vain.out
    assert settled.document["status"] == "rejected"
    assert f"order {order_id}  rejected" in again.out
    assert await open_incidents(run_starter.shop, run_starter.shop.order(order_id=order_id)) == []


async def test_the_log_reports_who_retried_and_resolved_and_why(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna\x1b[1m")
    monkeypatch.setattr("socket.gethostname", lambda: "desk" * 100)

    async with run_starter.shop.working():
        order_id = await stuck_order(run_starter)
        output = await run_starter("retry", order_id, "--reason", "the bank answers again")
        untold = await run_starter("retry", order_id)
        settled = await run_starter("resolve", order_id, "--step", "pay", "--reason", "refunded, ref 4711")
        refused = await run_starter("retry", order_id, "--reason", "")

    logged = await run_starter.shop.database.fetch(
        "SELECT event, reason FROM order_events WHERE order_id = $1 AND changed_by = 'operator' ORDER BY seq", order_id
    )
    whose = f"anna [1m@{'desk' * 100}"[:97] + "..."
    assert [(row["event"], row["reason"]) for row in logged] == [
        ("retry_requested", f"{whose}: the bank answers again (request retry-1)"),
        ("retry_requested", f"{whose} (request retry-2)"),
        ("step_resolved", f"pay: {whose}: refunded, ref 4711"),
    ]
    assert (output.code, untold.code, settled.code, refused.code) == (4, 4, 0, 2)


def test_an_operator_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("socket.gethostname", lambda: "desk")

    assert options.operator() == "unknown@desk"


async def test_a_resolve_names_its_step_and_reason_and_ends_with_0_once_the_order_is_settled(run_starter: Desk) -> None:
    async with run_starter.shop.working():
        order_id = await stuck_order(run_starter)
        wrong = await run_starter("resolve", order_id, "--step", "reserve", "--reason", "at the bank")
        settled = await run_starter(
            "resolve", order_id, "--step", "pay", "--reason", "refunded at the bank, ref 4711", "--json"
        )

    assert (wrong.code, settled.code) == (3, 0)
    assert settled.document["status"] == "rejected"
    [pay] = [step for step in settled.document["steps"] if step["step"] == "pay"]
    assert (pay["state"], pay["detail"]) == ("resolved", "resolved by hand: refunded at the bank, ref 4711")
    noted = await run_starter.shop.database.fetch("SELECT reason FROM order_events WHERE order_id = $1", order_id)
    assert any("refunded at the bank, ref 4711" in (row["reason"] or "") for row in noted)
