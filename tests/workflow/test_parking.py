"""Parking an order, and closing one: what can have happened since its undo, and what keeps it from being written."""

import pytest
from temporalio.exceptions import ApplicationError

from domain import policies
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    retry,
    until_status,
    until_tried,
    violations,
)


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))


def for_good() -> Exception:
    return ApplicationError("the carrier does not answer", type="Broken", non_retryable=True)


async def test_an_order_whose_parcel_was_collected_meanwhile_is_completed_instead(shop: Shop) -> None:
    order, gates = shop.order("carol"), Gates()
    gates.fail(order, "ship_order", "after", error=lambda: ApplicationError("lost", type="Lost", non_retryable=True))
    gates.fail(order, "cancel_shipment", error=for_good)
    parking = gates.hold(order, "park_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await parking.reached()
        await shop.database.run("UPDATE shipments SET state = 'handed_over', handed_over_at = now()")
        parking.open()
        ended = await how_it_ended(handle)

    assert ended == "completed"
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


async def test_an_order_whose_id_somebody_else_took_meanwhile_is_not_parked_in_his_place(shop: Shop) -> None:
    order, gates, before = shop.order("alice", ("no-such", 1)), Gates(), await goods_and_money(shop.database)
    gates.fail(order, "release_inventory", error=for_good)
    parking = gates.hold(order, "park_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await parking.reached()
        await shop.database.run(
            f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', 'erin');"
            f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{order.order_id}', 'lamp', 1)"
        )
        parking.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "pending"
    assert await shop.database.value("SELECT count(*) FROM incidents") == 0
    assert await goods_and_money(shop.database) == before


@pytest.mark.parametrize(("status", "writing"), [("rejected", "close_order"), ("stuck", "park_order")])
async def test_an_ending_that_the_database_cannot_store_is_tried_until_it_can(
    shop: Shop, status: str, writing: str
) -> None:
    """A text in a database of another encoding, or somebody's trigger: the run must not fail and leave it unwritten."""
    order, gates, before = shop.order("nemo"), Gates(), await goods_and_money(shop.database)
    if status == "stuck":
        await shop.database.run(BREAK_UNDO["pay"])
    await shop.database.run(
        f"CREATE FUNCTION unstorable() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.status = '{status}'"
        " THEN RAISE EXCEPTION 'injected' USING ERRCODE = '22P05'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER unstorable BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION unstorable()"
    )
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await until_tried(gates, order, writing, times=3)
        await shop.database.run("DROP TRIGGER unstorable ON orders")
        await until_status(shop, order, status)
        if status == "stuck":
            await shop.database.run(MEND_UNDO["pay"])
            await retry(handle)
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
