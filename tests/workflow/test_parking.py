"""What can have happened between the undo that failed and the moment in which its order is parked."""

from temporalio.exceptions import ApplicationError

from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import goods_and_money, how_it_ended, open_incidents, violations


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
