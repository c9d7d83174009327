"""Every ending of a checkout, each caused from outside: by data, by signals, by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from devstack.demo_harness import Answer, DemoHarness, Holdings


@dataclass(frozen=True)
class Scenario:
    """One order, what is tried with it, and how it should end."""

    order_id: str
    tried: str
    perform: "Callable[[DemoHarness, Scenario], Awaitable[Answer]]"
    """Returns the last answer of the starter."""
    customer: str
    lines: str
    """SKU:QTY of each, with blanks between them."""
    ends: str
    code: int = 0
    """The starter's exit status."""
    sold: int = 0
    """Units of the first line's SKU that should have left the shelf."""
    spent_minor: int = 0
    """What the customer should have paid in the end."""
    says: str = ""
    """What the reason, or the error, should contain."""

    @property
    def sku(self) -> str:
        """The SKU of the first line."""
        return self.lines.partition(":")[0]

    @property
    def order(self) -> list[str]:
        """The starter's arguments for the order."""
        lines = (part for line in self.lines.split() for part in ("--line", line))
        return ["--order-id", self.order_id, "--customer", self.customer, *lines]


async def _start(harness: DemoHarness, scenario: Scenario) -> Answer:
    return await harness.starter("start", *scenario.order)


async def _twice_at_once(harness: DemoHarness, scenario: Scenario) -> Answer:
    first, second = await asyncio.gather(_start(harness, scenario), _start(harness, scenario))
    return second if first == second else Answer(1, {"status": f"{first.status} and {second.status}"}, "")


async def _same_id_other_lines(harness: DemoHarness, scenario: Scenario) -> Answer:
    await _start(harness, scenario)
    return await harness.starter("start", *scenario.order[:-1], f"{scenario.sku}:2")


async def _by_hand(harness: DemoHarness, scenario: Scenario) -> Answer:
    await harness.run_sql(
        f"INSERT INTO orders (order_id, customer) VALUES ('{scenario.order_id}', '{scenario.customer}');"  # noqa: S608 - ours
        f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{scenario.order_id}', '{scenario.sku}', 1)"
    )
    await harness.starter("sweep")
    return await _until_ended(harness, scenario)


async def _start_and_wait_for_payment(harness: DemoHarness, scenario: Scenario) -> None:
    await harness.starter("start", *scenario.order, "--no-wait")
    await harness.until_payment_waits()


async def _cancel_while_paying(harness: DemoHarness, scenario: Scenario) -> Answer:
    async with harness.account_locked(scenario.customer):
        await _start_and_wait_for_payment(harness, scenario)
        # The account stays locked until the order has ended: the payment cannot win.
        return await harness.starter("cancel", scenario.order_id, "--reason", "found it cheaper")


async def _start_with_failing_undo(harness: DemoHarness, scenario: Scenario, event: str, condition: str) -> Answer:
    """Start the order on a database with a trigger that refuses one of its undos."""
    await harness.run_sql(
        f"""
        CREATE FUNCTION refuse_{event.replace(" ", "_")}() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'refused by the demo'; END $$;
        CREATE TRIGGER refuse BEFORE {event} FOR EACH ROW
            WHEN ({condition} AND NEW.order_id = '{scenario.order_id}')
            EXECUTE FUNCTION refuse_{event.replace(" ", "_")}();
        """
    )
    return await _start(harness, scenario)


async def _stuck_then_resolved(harness: DemoHarness, scenario: Scenario) -> Answer:
    """The parcel cannot be delivered, and the refund is refused."""
    stuck = await _start_with_failing_undo(harness, scenario, "INSERT ON transfers", "NEW.kind = 'refund'")
    if stuck.code != 4:
        return stuck
    await _until_listed(harness, scenario, "stuck")
    reason = "refunded at the bank, ref 4711"
    return await harness.starter("resolve", scenario.order_id, "--step", "pay", "--reason", reason)


async def _stuck_then_retried(harness: DemoHarness, scenario: Scenario) -> Answer:
    """The payment is refused, and so is the release, until an operator fixes that."""
    stuck = await _start_with_failing_undo(harness, scenario, "UPDATE ON reservations", "NEW.state = 'released'")
    if stuck.code != 4:
        return stuck
    await harness.run_sql("DROP TRIGGER refuse ON reservations")
    await harness.starter("retry", scenario.order_id)
    return await harness.starter("status", scenario.order_id)


async def _postgres_away(harness: DemoHarness, scenario: Scenario) -> Answer:
    async with harness.account_locked(scenario.customer):
        await _start_and_wait_for_payment(harness, scenario)
        await asyncio.to_thread(harness.stack.postgres.stop, immediate=True)
    await asyncio.sleep(2.0)  # the outage itself
    harness.stack.postgres.start()
    return await _until_ended(harness, scenario)


async def _worker_killed(harness: DemoHarness, scenario: Scenario) -> Answer:
    async with harness.account_locked(scenario.customer):
        await _start_and_wait_for_payment(harness, scenario)
        for worker in harness.workers:
            worker.kill()
        harness.add_worker()
    return await _until_ended(harness, scenario)


async def _until_ended(harness: DemoHarness, scenario: Scenario) -> Answer:
    for _ in range(300):
        answer = await harness.starter("status", scenario.order_id)
        if answer.status not in {"running", "unwinding"}:
            return answer
        await asyncio.sleep(0.1)
    return answer


async def _until_listed(harness: DemoHarness, scenario: Scenario, status: str) -> None:
    """Find the order as an operator would. The list is about a second behind."""
    for _ in range(50):
        answer = await harness.starter("list", "--status", status)
        if scenario.order_id in {order["order_id"] for order in answer.document.get("found", [])}:
            return
        await asyncio.sleep(0.1)


def holdings_match(before: Holdings, after: Holdings, scenario: Scenario) -> bool:
    """Return whether stock and money are what the scenario's ending says."""
    return (
        after.on_hand == before.on_hand - scenario.sold
        and after.free == before.free - scenario.sold
        and after.balance_minor == before.balance_minor - scenario.spent_minor
    )


TOGETHER = (
    Scenario(
        "three-lines",
        "buys three things",
        _start,
        "alice",
        "tea-mug:2 poster:1 notebook:1",
        "completed",
        sold=2,
        spent_minor=5050,
    ),
    Scenario(
        "sold-out", "wants two of the last one", _start, "dave", "last-one:2", "rejected", code=3, says="OutOfStock"
    ),
    Scenario(
        "no-money",
        "cannot pay: the stock is released",
        _start,
        "bob",
        "item-001:5",
        "rejected",
        code=3,
        says="InsufficientFunds",
    ),
    Scenario(
        "no-delivery",
        "lives where nobody delivers: refunded, released",
        _start,
        "nemo",
        "item-002:1",
        "rejected",
        code=3,
        says="UndeliverableAddress",
    ),
    Scenario(
        "twice",
        "is started twice at once: one saga",
        _twice_at_once,
        "erin",
        "bag:1",
        "completed",
        sold=1,
        spent_minor=2200,
    ),
    Scenario(
        "other-lines",
        "comes again with other lines",
        _same_id_other_lines,
        "frank",
        "bottle:1",
        "refused",
        code=2,
        sold=1,
        spent_minor=1600,
        says="another customer or other lines",
    ),
    Scenario(
        "by-hand", "is inserted with SQL, then swept", _by_hand, "heidi", "cap:1", "completed", sold=1, spent_minor=1900
    ),
    Scenario(
        "stuck-resolved",
        "cannot be refunded: stuck; an operator refunds by hand and resolves",
        _stuck_then_resolved,
        "mallory",
        "kite:1",
        "rejected",
        spent_minor=2700,
        says="UndeliverableAddress",
    ),
    Scenario(
        "stuck-retried",
        "cannot be released: stuck; fixed and retried",
        _stuck_then_retried,
        "bob",
        "lamp:1",
        "rejected",
        code=3,
        says="InsufficientFunds",
    ),
)
"""These run at once."""

ONE_BY_ONE = (
    Scenario(
        "cancelled",
        "is cancelled by its buyer while paying",
        _cancel_while_paying,
        "grace",
        "game:1",
        "cancelled",
        says="found it cheaper",
    ),
    Scenario(
        "outage",
        "loses Postgres for two seconds while paying",
        _postgres_away,
        "ivan",
        "pen:1",
        "completed",
        sold=1,
        spent_minor=4500,
    ),
    Scenario(
        "worker-killed",
        "loses its worker (SIGKILL) while paying; another takes over",
        _worker_killed,
        "judy",
        "scarf:1",
        "completed",
        sold=1,
        spent_minor=3100,
    ),
)
"""Each of these disturbs all orders, so they run one after the other."""
