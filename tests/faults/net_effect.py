"""What one saga has left: stock and money in the tables, and a history that replays."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory

from tests.faults.harness import Harness
from tests.workflow.replays import replayer

_QUERY = """
SELECT (SELECT count(*) FROM transfers WHERE order_id = $1 AND kind = 'capture') AS captures,
       (SELECT count(*) FROM transfers WHERE order_id = $1 AND kind = 'refund') AS refunds,
       (SELECT count(*) FROM shipments WHERE order_id = $1 AND state <> 'cancelled') AS parcels,
       (SELECT count(*) FROM reservations WHERE order_id = $1 AND state = 'held') AS held,
       (SELECT count(*) FROM reservations WHERE order_id = $1 AND state = 'consumed') AS consumed,
       (SELECT count(*) FROM step_fence WHERE saga_id = $1 AND step = 'pay' AND phase = 'resolved') AS vouched
"""


async def assert_net_effect(harness: Harness, status: str | None) -> None:
    """Nothing at all unless the order is completed; then one capture, one parcel and its goods."""
    [row] = await harness.shop.database.fetch(_QUERY, harness.order.order_id)
    if status == "completed":
        assert tuple(row) == (1, 0, 1, 0, 1, 0), dict(row)
    else:
        assert (row["parcels"], row["held"], row["consumed"]) == (0, 0, 0), dict(row)
        # A refund that a person has settled by hand is that person's word.
        assert row["captures"] == row["refunds"] + row["vouched"], dict(row)


_ROWS = """
SELECT 'order', order_id, status, coalesce(reason, '') FROM orders WHERE order_id = $1 UNION ALL
SELECT 'transfer', transfer_id, kind, amount_minor::text FROM transfers WHERE order_id = $1 UNION ALL
SELECT 'shipment', tracking_number, state, zone FROM shipments WHERE order_id = $1 UNION ALL
SELECT 'reservation', sku, state, quantity::text FROM reservations WHERE order_id = $1 UNION ALL
SELECT 'fence', step, phase, had_effect::text FROM step_fence WHERE saga_id = $1 ORDER BY 1, 2
"""


async def rows_of(harness: Harness) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await harness.shop.database.fetch(_ROWS, harness.order.order_id)]


async def replay_all(histories: Iterable[tuple[Harness, Sequence[HistoryEvent]]]) -> None:
    """Replay them all with today's code, in the strict sandbox; name those that do not."""
    kept = [WorkflowHistory(harness.handle.id, events) for harness, events in histories]

    async def one_by_one() -> AsyncIterator[WorkflowHistory]:
        for history in kept:
            yield history

    done = await replayer().replay_workflows(one_by_one(), raise_on_replay_failure=False)

    assert done.replay_failures == {}
    assert kept
