"""Every ending of a checkout, each brought about from outside: by data, by signals, by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from demo.stage import Holdings, Said, Stage

Perform = Callable[[Stage, str], Awaitable[Said]]


@dataclass(frozen=True)
class Scenario:
    """One order, what is tried with it, and how it should end.

    `perform` is given the stage and the order id, and answers with the last thing that the starter said.
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
    """What the reason, or the complaint, should contain."""


def start(customer: str, *lines: str) -> Perform:
    """Start an order and wait for how it ends."""

    async def perform(stage: Stage, order_id: str) -> Said:
        return await stage.starter("start", *_order(order_id, customer, *lines))

    return perform


async def _twice_at_once(stage: Stage, order_id: str) -> Said:
    order = _order(order_id, "erin", "bag:1")
    first, second = await asyncio.gather(stage.starter("start", *order), stage.starter("start", *order))
    return second if first == second else Said(1, {"status": f"{first.status} and {second.status}"}, "")


async def _same_id_other_lines(stage: Stage, order_id: str) -> Said:
    await stage.starter("start", *_order(order_id, "frank", "bottle:1"))
    return await stage.starter("start", *_order(order_id, "frank", "bottle:2"))


async def _by_hand(stage: Stage, order_id: str) -> Said:
    await stage.run_sql(
        f"INSERT INTO orders (order_id, customer) VALUES ('{order_id}', 'heidi');"  # noqa: S608 - ours
        f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{order_id}', 'cap', 1)"
    )
    await stage.starter("sweep")
    return await _until_ended(stage, order_id)


async def _cancel_while_paying(stage: Stage, order_id: str) -> Said:
    async with stage.purse_held("grace"):
        await stage.starter("start", *_order(order_id, "grace", "game:1"), "--no-wait")
        await stage.until_paying()
        # The purse stays locked until the order has ended: the payment cannot win.
        return await stage.starter("cancel", order_id, "--reason", "found it cheaper")


async def _stuck_then_resolved(stage: Stage, order_id: str) -> Said:
    """The parcel cannot be delivered, and a trigger of somebody else's refuses the refund."""
    await stage.run_sql(
        f"""
        CREATE FUNCTION no_refund() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the bank does not answer for this customer'; END $$;
        CREATE TRIGGER no_refund BEFORE INSERT ON transfers FOR EACH ROW
            WHEN (NEW.kind = 'refund' AND NEW.order_id = '{order_id}') EXECUTE FUNCTION no_refund();
        """
    )
    stuck = await stage.starter("start", *_order(order_id, "mallory", "kite:1"))
    if stuck.code != 4:
        return stuck
    await _until_listed(stage, order_id, "stuck")
    return await stage.starter("resolve", order_id, "--step", "pay", "--reason", "refunded at the bank, ref 4711")


async def _stuck_then_retried(stage: Stage, order_id: str) -> Said:
    """The service lost a right that the release needs; somebody grants it again."""
    await stage.run_sql(
        f"""
        CREATE FUNCTION no_release() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the shelf is locked'; END $$;
        CREATE TRIGGER no_release BEFORE UPDATE ON reservations FOR EACH ROW
            WHEN (NEW.state = 'released' AND NEW.order_id = '{order_id}') EXECUTE FUNCTION no_release();
        """
    )
    stuck = await stage.starter("start", *_order(order_id, "bob", "lamp:1"))
    if stuck.code != 4:
        return stuck
    await stage.run_sql("DROP TRIGGER no_release ON reservations")
    await stage.starter("retry", order_id)
    return await stage.starter("status", order_id)


async def _postgres_away(stage: Stage, order_id: str) -> Said:
    async with stage.purse_held("ivan"):
        await stage.starter("start", *_order(order_id, "ivan", "pen:1"), "--no-wait")
        await stage.until_paying()
        await asyncio.to_thread(stage.stack.postgres.stop, immediate=True)
    await asyncio.sleep(2.0)  # the outage itself
    stage.stack.postgres.start()
    return await _until_ended(stage, order_id)


async def _worker_killed(stage: Stage, order_id: str) -> Said:
    async with stage.purse_held("judy"):
        await stage.starter("start", *_order(order_id, "judy", "scarf:1"), "--no-wait")
        await stage.until_paying()
        for worker in stage.workers:
            worker.kill()
        stage.add_worker()
    return await _until_ended(stage, order_id)


async def _until_ended(stage: Stage, order_id: str) -> Said:
    """Ask for the order's outcome the way a second start does: it joins and waits."""
    for _ in range(300):
        said = await stage.starter("status", order_id)
        if said.status not in {"running", "unwinding"}:
            return said
        await asyncio.sleep(0.1)
    return said


async def _until_listed(stage: Stage, order_id: str, status: str) -> None:
    """Find the order as an operator would. The list is about a second behind."""
    for _ in range(50):
        said = await stage.starter("list", "--status", status)
        if order_id in {order["order_id"] for order in said.document.get("found", [])}:
            return
        await asyncio.sleep(0.1)


def _order(order_id: str, customer: str, *lines: str) -> list[str]:
    return ["--order-id", order_id, "--customer", customer, *(part for line in lines for part in ("--line", line))]


def unspoiled(before: Holdings, after: Holdings, scenario: Scenario) -> bool:
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
        "cannot be released: stuck; mended and retried",
        _stuck_then_retried,
        "rejected",
        3,
        "lamp",
        "bob",
        says="InsufficientFunds",
    ),
)
"""These do not disturb each other and are told at once."""

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
"""These take something away from everybody, so each has the stage for itself."""
