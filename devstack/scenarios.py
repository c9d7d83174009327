"""Every ending of a checkout, each brought about from outside: by data, by signals, by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from devstack.demo_harness import Answer, DemoHarness, Holdings

Perform = Callable[[DemoHarness, str], Awaitable[Answer]]


@dataclass(frozen=True)
class Scenario:
    """One order, what is tried with it, and how it should end.

    `perform` is given the harness and the order id, and answers with the last thing that the starter answer.
    """

    order_id: str
    tried: str
    perform: Perform
    ends: str
    code: int
    sku: str
    customer: str
    sold: int = 0
    """Units of `sku` that should have left the shelf."""
    spent_minor: int = 0
    """What the customer should have paid in the end."""
    says: str = ""
    """What the reason, or the error, should contain."""


def start(customer: str, *lines: str) -> Perform:
    """Start an order and wait for how it ends."""

    async def perform(harness: DemoHarness, order_id: str) -> Answer:
        return await harness.starter("start", *_order(order_id, customer, *lines))

    return perform


async def _twice_at_once(harness: DemoHarness, order_id: str) -> Answer:
    order = _order(order_id, "erin", "bag:1")
    first, second = await asyncio.gather(harness.starter("start", *order), harness.starter("start", *order))
    return second if first == second else Answer(1, {"status": f"{first.status} and {second.status}"}, "")


async def _same_id_other_lines(harness: DemoHarness, order_id: str) -> Answer:
    await harness.starter("start", *_order(order_id, "frank", "bottle:1"))
    return await harness.starter("start", *_order(order_id, "frank", "bottle:2"))


async def _by_hand(harness: DemoHarness, order_id: str) -> Answer:
    await harness.run_sql(
        f"INSERT INTO orders (order_id, customer) VALUES ('{order_id}', 'heidi');"  # noqa: S608 - ours
        f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{order_id}', 'cap', 1)"
    )
    await harness.starter("sweep")
    return await _until_ended(harness, order_id)


async def _cancel_while_paying(harness: DemoHarness, order_id: str) -> Answer:
    async with harness.account_locked("grace"):
        await harness.starter("start", *_order(order_id, "grace", "game:1"), "--no-wait")
        await harness.until_payment_waits()
        # The account stays locked until the order has ended: the payment cannot win.
        return await harness.starter("cancel", order_id, "--reason", "found it cheaper")


async def _stuck_then_resolved(harness: DemoHarness, order_id: str) -> Answer:
    """The parcel cannot be delivered, and a trigger refuses the refund."""
    await harness.run_sql(
        f"""
        CREATE FUNCTION no_refund() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the bank does not answer for this customer'; END $$;
        CREATE TRIGGER no_refund BEFORE INSERT ON transfers FOR EACH ROW
            WHEN (NEW.kind = 'refund' AND NEW.order_id = '{order_id}') EXECUTE FUNCTION no_refund();
        """
    )
    stuck = await harness.starter("start", *_order(order_id, "mallory", "kite:1"))
    if stuck.code != 4:
        return stuck
    await _until_listed(harness, order_id, "stuck")
    return await harness.starter("resolve", order_id, "--step", "pay", "--reason", "refunded at the bank, ref 4711")


async def _stuck_then_retried(harness: DemoHarness, order_id: str) -> Answer:
    """The service lost a right that the release needs; an operator grants it again."""
    await harness.run_sql(
        f"""
        CREATE FUNCTION no_release() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the shelf is locked'; END $$;
        CREATE TRIGGER no_release BEFORE UPDATE ON reservations FOR EACH ROW
            WHEN (NEW.state = 'released' AND NEW.order_id = '{order_id}') EXECUTE FUNCTION no_release();
        """
    )
    stuck = await harness.starter("start", *_order(order_id, "bob", "lamp:1"))
    if stuck.code != 4:
        return stuck
    await harness.run_sql("DROP TRIGGER no_release ON reservations")
    await harness.starter("retry", order_id)
    return await harness.starter("status", order_id)


async def _postgres_away(harness: DemoHarness, order_id: str) -> Answer:
    async with harness.account_locked("ivan"):
        await harness.starter("start", *_order(order_id, "ivan", "pen:1"), "--no-wait")
        await harness.until_payment_waits()
        await asyncio.to_thread(harness.stack.postgres.stop, immediate=True)
    await asyncio.sleep(2.0)  # the outage itself
    harness.stack.postgres.start()
    return await _until_ended(harness, order_id)


async def _worker_killed(harness: DemoHarness, order_id: str) -> Answer:
    async with harness.account_locked("judy"):
        await harness.starter("start", *_order(order_id, "judy", "scarf:1"), "--no-wait")
        await harness.until_payment_waits()
        for worker in harness.workers:
            worker.kill()
        harness.add_worker()
    return await _until_ended(harness, order_id)


async def _until_ended(harness: DemoHarness, order_id: str) -> Answer:
    """Ask for the order's outcome the way a second start does: it joins and waits."""
    for _ in range(300):
        answer = await harness.starter("status", order_id)
        if answer.status not in {"running", "unwinding"}:
            return answer
        await asyncio.sleep(0.1)
    return answer


async def _until_listed(harness: DemoHarness, order_id: str, status: str) -> None:
    """Find the order as an operator would. The list is about a second behind."""
    for _ in range(50):
        answer = await harness.starter("list", "--status", status)
        if order_id in {order["order_id"] for order in answer.document.get("found", [])}:
            return
        await asyncio.sleep(0.1)


def _order(order_id: str, customer: str, *lines: str) -> list[str]:
    return ["--order-id", order_id, "--customer", customer, *(part for line in lines for part in ("--line", line))]


def holdings_match(before: Holdings, after: Holdings, scenario: Scenario) -> bool:
    """Tell whether stock and money are what the scenario's ending says."""
    return (
        after.on_hand == before.on_hand - scenario.sold
        and after.free == before.free - scenario.sold
        and after.balance_minor == before.balance_minor - scenario.spent_minor
    )


TOGETHER = (
    Scenario(
        "three-lines",
        "buys three things",
        start("alice", "tea-mug:2", "poster:1", "notebook:1"),
        "completed",
        0,
        "tea-mug",
        "alice",
        sold=2,
        spent_minor=5050,
    ),
    Scenario(
        "sold-out",
        "wants two of the last one",
        start("dave", "last-one:2"),
        "rejected",
        3,
        "last-one",
        "dave",
        says="OutOfStock",
    ),
    Scenario(
        "no-money",
        "cannot pay: the stock is released",
        start("bob", "item-001:5"),
        "rejected",
        3,
        "item-001",
        "bob",
        says="InsufficientFunds",
    ),
    Scenario(
        "no-delivery",
        "lives where nobody delivers: refunded, released",
        start("nemo", "item-002:1"),
        "rejected",
        3,
        "item-002",
        "nemo",
        says="UndeliverableAddress",
    ),
    Scenario(
        "twice",
        "is started twice at once: one saga",
        _twice_at_once,
        "completed",
        0,
        "bag",
        "erin",
        sold=1,
        spent_minor=2200,
    ),
    Scenario(
        "other-lines",
        "comes again with other lines",
        _same_id_other_lines,
        "refused",
        2,
        "bottle",
        "frank",
        sold=1,
        spent_minor=1600,
        says="another customer or other lines",
    ),
    Scenario(
        "by-hand",
        "is inserted with SQL, then swept",
        _by_hand,
        "completed",
        0,
        "cap",
        "heidi",
        sold=1,
        spent_minor=1900,
    ),
    Scenario(
        "stuck-resolved",
        "cannot be refunded: stuck; an operator refunds by hand and resolves",
        _stuck_then_resolved,
        "rejected",
        0,
        "kite",
        "mallory",
        spent_minor=2700,
        says="UndeliverableAddress",
    ),
    Scenario(
        "stuck-retried",
        "cannot be released: stuck; fixed and retried",
        _stuck_then_retried,
        "rejected",
        3,
        "lamp",
        "bob",
        says="InsufficientFunds",
    ),
)
"""These do not disturb each other and run at once."""

ONE_BY_ONE = (
    Scenario(
        "cancelled",
        "is cancelled by its buyer while paying",
        _cancel_while_paying,
        "cancelled",
        0,
        "game",
        "grace",
        says="found it cheaper",
    ),
    Scenario(
        "outage",
        "loses Postgres for two seconds while paying",
        _postgres_away,
        "completed",
        0,
        "pen",
        "ivan",
        sold=1,
        spent_minor=4500,
    ),
    Scenario(
        "worker-killed",
        "loses its worker (SIGKILL) while paying; another takes over",
        _worker_killed,
        "completed",
        0,
        "scarf",
        "judy",
        sold=1,
        spent_minor=3100,
    ),
)
"""These take something away from everybody, so each has the harness for itself."""
