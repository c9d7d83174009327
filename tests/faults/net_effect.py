"""What one order has done to stock and money, looked up in the tables."""

from tests.faults.stepping import Stage

_QUERY = """
SELECT (SELECT count(*) FROM transfers WHERE order_id = $1 AND kind = 'capture') AS captures,
       (SELECT count(*) FROM transfers WHERE order_id = $1 AND kind = 'refund') AS refunds,
       (SELECT count(*) FROM shipments WHERE order_id = $1 AND state <> 'cancelled') AS parcels,
       (SELECT count(*) FROM reservations WHERE order_id = $1 AND state = 'held') AS held,
       (SELECT count(*) FROM reservations WHERE order_id = $1 AND state = 'consumed') AS consumed,
       (SELECT count(*) FROM step_fence WHERE saga_id = $1 AND step = 'pay' AND phase = 'resolved') AS vouched
"""


async def assert_net_effect(stage: Stage, status: str | None) -> None:
    """Nothing at all unless the order is completed; then one capture, one parcel and its goods."""
    [row] = await stage.shop.database.fetch(_QUERY, stage.order.order_id)
    if status == "completed":
        assert tuple(row) == (1, 0, 1, 0, 1, 0), dict(row)
    else:
        assert (row["parcels"], row["held"], row["consumed"]) == (0, 0, 0), dict(row)
        # A refund that a person has settled by hand is that person's word.
        assert row["captures"] == row["refunds"] + row["vouched"], dict(row)
