"""What every step and its undo must do, whatever it is about: one suite, run for each of the three pairs."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from domain.errors import OrderIdConflict
from domain.model import CheckoutInput, Ending, Step, UndoInput
from sagafence import DatabaseUnavailable, StepAlreadyCompensated, UndoOutcome, UndoResult
from tests.conftest import Database, Shop

# What the shop has and who owns what, however many rows it took to get there.
_NET_EFFECT = """
SELECT jsonb_build_object(
    'stock', (SELECT jsonb_object_agg(sku, jsonb_build_array(on_hand, reserved)) FROM inventory),
    'reservations', (SELECT jsonb_agg(jsonb_build_array(order_id, sku, quantity, state) ORDER BY order_id, sku)
                       FROM reservations WHERE state <> 'released'),
    'balances', (SELECT jsonb_object_agg(account_id, balance_minor) FROM accounts),
    'captured', (SELECT jsonb_object_agg(order_id, amount) FROM (
                     SELECT order_id, sum(CASE kind WHEN 'capture' THEN amount_minor ELSE -amount_minor END) AS amount
                       FROM transfers WHERE order_id IS NOT NULL GROUP BY order_id) net WHERE amount <> 0),
    'parcels', (SELECT jsonb_agg(jsonb_build_array(order_id, state) ORDER BY order_id)
                  FROM shipments WHERE state <> 'cancelled'))::text
"""


@dataclass(frozen=True)
class Pair:
    """One step with its undo, and what the suite has to know about it."""

    step: Step
    before: tuple[Step, ...]
    do: Callable[[AsyncEngine, CheckoutInput], Awaitable[Any]]
    undo: Callable[[AsyncEngine, UndoInput], Awaitable[UndoResult]]
    effect: str
    """True once the step's effect stands for order $1: two posters and a tea-mug for Carol, 46.00."""
    needed_last: str
    """Locks the shared row that the step touches last."""
    facts_change: str
    """Changes everything that the step's answer was made from."""


_STOCK = "SELECT FROM inventory WHERE sku IN ('poster', 'tea-mug') FOR UPDATE"
_PAIRS = (
    Pair(
        Step.RESERVE,
        (),
        lambda engine, order: Inventory(engine).reserve_inventory(order),
        lambda engine, undo: Inventory(engine).release_inventory(undo),
        """SELECT (SELECT array_agg(sku || quantity || state ORDER BY sku) FROM reservations WHERE order_id = $1)
                  = '{poster2held,tea-mug1held}'
              AND (SELECT sum(reserved) FROM inventory) = 3
              AND (SELECT sum(initial - on_hand) FROM inventory) = 0
              AND (SELECT status FROM orders WHERE order_id = $1) = 'reserved'""",
        _STOCK,
        """UPDATE products SET unit_price_minor = 1, currency = 'USD';
           UPDATE inventory SET initial = 0, on_hand = reserved;
           UPDATE accounts SET currency = 'USD'""",
    ),
    Pair(
        Step.PAY,
        (Step.RESERVE,),
        lambda engine, order: Payments(engine).charge_payment(order),
        lambda engine, undo: Payments(engine).refund_payment(undo),
        """SELECT (SELECT amount_minor FROM transfers WHERE order_id = $1 AND kind = 'capture'
                      AND debit_account = 'carol' AND credit_account = 'shop') = 4600
              AND (SELECT balance_minor FROM accounts WHERE account_id = 'carol') + 4600
                  = (SELECT amount_minor FROM transfers WHERE transfer_id = 'deposit/carol')
              AND (SELECT status FROM orders WHERE order_id = $1) = 'paid'""",
        "SELECT FROM accounts WHERE account_id = 'carol' FOR NO KEY UPDATE",
        """UPDATE products SET unit_price_minor = 1; UPDATE orders SET total_minor = 1, currency = 'USD';
           UPDATE accounts SET balance_minor = 0, currency = 'USD' WHERE kind = 'customer'""",
    ),
    Pair(
        Step.SHIP,
        (Step.RESERVE, Step.PAY),
        lambda engine, order: Shipping(engine).ship_order(order),
        lambda engine, undo: Shipping(engine).cancel_shipment(undo),
        """SELECT (SELECT state || carrier FROM shipments WHERE order_id = $1) = 'labelYellow Post'
              AND (SELECT bool_and(state = 'consumed') FROM reservations WHERE order_id = $1)
              AND (SELECT sum(reserved) FROM inventory) = 0
              AND (SELECT sum(initial - on_hand) FROM inventory) = 3
              AND (SELECT status FROM orders WHERE order_id = $1) = 'completed'""",
        _STOCK,
        """UPDATE delivery_zones SET is_served = false, carrier = 'Nobody', hands_over_at_once = true;
           UPDATE accounts SET delivery_zone = NULL""",
    ),
)
_PAIR_OF = {pair.step: pair for pair in _PAIRS}


@dataclass(frozen=True)
class Bench:
    """One order that stands just before the step under test."""

    pair: Pair
    order: CheckoutInput
    engine: AsyncEngine
    database: Database
    shop: Shop

    async def do(self, order: CheckoutInput | None = None) -> Any:
        return await self.pair.do(self.engine, order or self.order)

    async def undo(self, order: CheckoutInput | None = None) -> UndoResult:
        return await self.pair.undo(self.engine, UndoInput(order or self.order, Ending.REJECTED, "a reason"))

    async def has_effect(self) -> bool:
        return bool(await self.database.value(self.pair.effect, self.order.order_id))

    async def net_effect(self) -> str:
        return str(await self.database.value(_NET_EFFECT))

    async def fence(self) -> tuple[str, bool]:
        [row] = await self.database.fetch(
            "SELECT phase, had_effect FROM step_fence WHERE saga_id = $1 AND step = $2",
            self.order.order_id,
            self.pair.step.value,
        )
        return row["phase"], row["had_effect"]

    async def violations(self) -> list[Any]:
        return (await self.shop.audit(at_rest=False)).violations


@pytest.fixture(params=_PAIRS, ids=lambda pair: pair.step.value)
async def bench(request: pytest.FixtureRequest, shop: Shop, engine: AsyncEngine, database: Database) -> Bench:
    pair: Pair = request.param
    order = shop.order("carol", ("tea-mug", 1), ("poster", 2))
    # Leave time to look at who waits for whom.
    await database.run(f"ALTER ROLE checkout IN DATABASE \"{database.name}\" SET lock_timeout = '3s'")
    for step in pair.before:
        await _PAIR_OF[step].do(engine, order)
    return Bench(pair, order, engine, database, shop)


def _other_content(order: CheckoutInput) -> list[CheckoutInput]:
    return [
        replace(order, customer="alice"),
        replace(order, lines=order.lines[:1]),
        replace(order, lines=tuple(replace(line, quantity=line.quantity + 1) for line in order.lines)),
    ]


async def test_do_twice_is_done_once_with_the_same_result(bench: Bench) -> None:
    assert not await bench.has_effect()
    first = await bench.do()
    assert await bench.has_effect()
    assert await bench.fence() == ("done", True)
    after_first = await bench.database.every_row()

    second = await bench.do()

    assert second == first
    assert await bench.database.every_row() == after_first
    assert await bench.violations() == []


async def test_a_repeat_answers_the_first_result_although_the_facts_have_changed(bench: Bench) -> None:
    first = await bench.do()
    await bench.database.run(bench.pair.facts_change)
    changed = await bench.database.every_row()

    second = await bench.do()

    assert second == first
    assert await bench.database.every_row() == changed


async def test_undo_restores_what_do_changed_once(bench: Bench) -> None:
    before = await bench.net_effect()
    done = await bench.do()

    undone = await bench.undo()
    after_first = await bench.database.every_row()
    again = await bench.undo()

    assert (undone.outcome, again.outcome) == (UndoOutcome.REVERSED, UndoOutcome.ALREADY_UNDONE)
    assert type(done)(**undone.stored) == type(done)(**again.stored) == done
    assert await bench.net_effect() == before
    assert await bench.fence() == ("undone", True)
    assert await bench.database.every_row() == after_first
    assert await bench.violations() == []


async def test_undo_without_do_succeeds_and_leaves_a_tombstone(bench: Bench) -> None:
    before = await bench.net_effect()

    undone = await bench.undo()
    after_first = await bench.database.every_row()
    again = await bench.undo()

    assert (undone, again) == (UndoResult(UndoOutcome.NOTHING_TO_UNDO), UndoResult(UndoOutcome.ALREADY_UNDONE))
    assert await bench.net_effect() == before
    assert await bench.fence() == ("undone", False)
    assert await bench.database.every_row() == after_first
    assert await bench.violations() == []


@pytest.mark.parametrize("was_done", [False, True])
async def test_a_do_after_its_tombstone_is_refused(bench: Bench, was_done: bool) -> None:
    if was_done:
        await bench.do()
    await bench.undo()
    tombstoned = await bench.database.every_row()

    with pytest.raises(StepAlreadyCompensated) as refused:
        await bench.do()

    assert refused.value.non_retryable
    assert await bench.database.every_row() == tombstoned
    assert await bench.violations() == []


@pytest.mark.parametrize("operation", ["do", "undo"])
@pytest.mark.parametrize("when", ["new", "done", "undone"])
async def test_other_content_under_the_same_order_id_is_refused(bench: Bench, when: str, operation: str) -> None:
    if when == "done":
        await bench.do()
    elif when == "undone":
        await bench.undo()
    elif not bench.pair.before:  # the id is known all the same when somebody wrote the order by hand
        await bench.shop.accept_by_hand(bench.order)
    known = await bench.database.every_row()

    for other in _other_content(bench.order):
        with pytest.raises(OrderIdConflict) as refused:
            await getattr(bench, operation)(other)
        assert refused.value.non_retryable

    assert await bench.database.every_row() == known


async def test_ten_dos_at_once_have_one_effect_and_one_result(bench: Bench) -> None:
    first, *others = await asyncio.gather(*(bench.do() for _ in range(10)))

    assert others == [first] * 9
    assert await bench.has_effect()
    assert await bench.violations() == []


async def test_ten_undos_at_once_reverse_once(bench: Bench) -> None:
    before = await bench.net_effect()
    await bench.do()

    undone = await asyncio.gather(*(bench.undo() for _ in range(10)))

    outcomes = sorted(result.outcome for result in undone)
    assert outcomes == [UndoOutcome.ALREADY_UNDONE] * 9 + [UndoOutcome.REVERSED]
    assert await bench.net_effect() == before
    assert await bench.violations() == []


async def test_dos_and_undos_at_once_leave_no_effect(bench: Bench) -> None:
    before = await bench.net_effect()

    answers = await asyncio.gather(*(bench.do() if n % 2 else bench.undo() for n in range(12)), return_exceptions=True)

    unexpected = [
        answer
        for answer in answers
        if isinstance(answer, BaseException) and not isinstance(answer, StepAlreadyCompensated)
    ]
    assert unexpected == []
    assert await bench.net_effect() == before
    assert (await bench.fence())[0] == "undone"
    assert await bench.violations() == []


async def test_an_undo_waits_for_a_do_in_flight_and_then_reverses_it_completely(bench: Bench) -> None:
    before = await bench.net_effect()

    async with bench.database.locked(bench.pair.needed_last):
        do = asyncio.create_task(bench.do())
        await bench.database.until_blocked(1)
        undo = asyncio.create_task(bench.undo())
        await bench.database.until_blocked(2)
    done, undone = await asyncio.gather(do, undo)

    assert undone.outcome == UndoOutcome.REVERSED
    assert type(done)(**undone.stored) == done
    assert await bench.net_effect() == before
    assert await bench.fence() == ("undone", True)
    assert await bench.violations() == []


async def test_a_second_do_waits_for_the_one_in_flight_and_answers_its_result(bench: Bench) -> None:
    async with bench.database.locked(bench.pair.needed_last):
        first = asyncio.create_task(bench.do())
        await bench.database.until_blocked(1)
        second = asyncio.create_task(bench.do())
        await bench.database.until_blocked(2)
    results = await asyncio.gather(first, second)

    assert results[0] == results[1]
    assert await bench.has_effect()
    assert await bench.violations() == []


async def test_a_do_is_refused_when_its_undo_is_already_in_flight(bench: Bench) -> None:
    if not bench.pair.before:
        await bench.shop.accept_by_hand(bench.order)
    before = await bench.net_effect()

    async with bench.database.locked(f"SELECT FROM orders WHERE order_id = '{bench.order.order_id}' FOR UPDATE"):
        undo = asyncio.create_task(bench.undo())
        await bench.database.until_blocked(1)
        do = asyncio.create_task(bench.do())
        await bench.database.until_blocked(2)
    undone = await undo
    with pytest.raises(StepAlreadyCompensated):
        await do

    assert undone.outcome == UndoOutcome.NOTHING_TO_UNDO
    assert await bench.net_effect() == before
    assert await bench.fence() == ("undone", False)
    assert await bench.violations() == []


async def test_a_do_whose_session_is_killed_leaves_nothing_and_can_be_repeated(bench: Bench) -> None:
    before = await bench.database.every_row()

    async with bench.database.locked(bench.pair.needed_last):
        do = asyncio.create_task(bench.do())
        await bench.database.until_blocked(1)
        await _kill_sessions(bench.database)
        with pytest.raises(DatabaseUnavailable) as lost:
            await do
    rows = await bench.database.every_row()
    await bench.do()

    assert not lost.value.non_retryable
    assert rows == before
    assert await bench.has_effect()


async def test_an_undo_whose_session_is_killed_leaves_everything_and_can_be_repeated(bench: Bench) -> None:
    before = await bench.net_effect()
    await bench.do()
    done = await bench.database.every_row()

    async with bench.database.locked(bench.pair.needed_last):
        undo = asyncio.create_task(bench.undo())
        await bench.database.until_blocked(1)
        await _kill_sessions(bench.database)
        with pytest.raises(DatabaseUnavailable) as lost:
            await undo
    rows = await bench.database.every_row()
    repeated = await bench.undo()

    assert not lost.value.non_retryable
    assert rows == done
    assert repeated.outcome == UndoOutcome.REVERSED
    assert await bench.net_effect() == before


async def test_a_do_that_its_caller_gave_up_in_flight_leaves_nothing_behind_its_undo(bench: Bench) -> None:
    before = await bench.net_effect()

    async with bench.database.locked(bench.pair.needed_last):
        do = asyncio.create_task(bench.do())
        await bench.database.until_blocked(1)
        do.cancel()
        undo = asyncio.create_task(bench.undo())
        with pytest.raises(asyncio.CancelledError):
            await do
    await undo

    assert await bench.net_effect() == before
    assert (await bench.fence())[0] == "undone"
    assert await bench.violations() == []


async def _kill_sessions(database: Database) -> None:
    """End the service's sessions that wait for a lock, as a failover would."""
    await database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = 'checkout' AND wait_event_type = 'Lock'"
    )
