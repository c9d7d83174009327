"""What a completed order costs in things that can be counted. Times depend on the machine: they are for `make bench`.

A change that makes an order dearer fails here, and says by how much. Where it is worth it, put the new figure in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle

from adapters.temporal import DATA_CONVERTER
from devstack.stack import DevStack
from tests.conftest import Database, Shop
from tests.statements import log_statements, statements_sent
from tests.workflow.bulk_scenes import start_batch


@dataclass(frozen=True)
class Costs:
    """Of one completed order with one line."""

    events: int
    """In its history."""
    history_bytes: int
    """As the server counts them."""
    round_trips: int
    """To Postgres: each statement is one, BEGIN and COMMIT included."""
    commits: int
    """On Postgres."""


EXPECTED = {
    "a saga of its own": Costs(events=24, history_bytes=4_120, round_trips=3, commits=3),
    "a batch of one": Costs(events=8, history_bytes=1420, round_trips=11, commits=1),
}
TOLERANCE = 0.01
"""How far the bytes may be off, either way, since ids and times have no fixed length.

A history that got smaller should be said to have.
"""


@pytest.mark.parametrize("way", EXPECTED)
async def test_a_completed_order_costs_what_it_did(shop: Shop, database: Database, stack: DevStack, way: str) -> None:
    # Histories name who worked for them: by default with the machine's name.
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER, identity="costs")
    shop = replace(shop, client=client)
    await log_statements(database)

    async with shop.working():
        await (await _start(shop, way)).result()  # connects, and prepares the statements
        with statements_sent(stack) as statements:
            handle = await _start(shop, way)
            await handle.result()
    history = (await handle.describe()).raw_description.workflow_execution_info

    found = Costs(history.history_length, history.history_size_bytes, len(statements), _commits(statements))
    expected = EXPECTED[way]

    assert replace(found, history_bytes=0) == replace(expected, history_bytes=0)
    assert found.history_bytes == pytest.approx(expected.history_bytes, rel=TOLERANCE)


async def _start(shop: Shop, way: str) -> WorkflowHandle[Any, Any]:
    order = shop.order("carol")
    return await (start_batch(shop, [order]) if way == "a batch of one" else shop.start(order))


def _commits(statements: Sequence[str]) -> int:
    """Count what committed: each block by its COMMIT, each statement outside of one by itself."""
    commits, is_in_block = 0, False
    for statement in statements:
        if statement == "BEGIN":
            is_in_block = True
        elif statement in {"COMMIT", "ROLLBACK"}:
            is_in_block = False
            commits += statement == "COMMIT"
        elif not is_in_block:
            commits += 1
    return commits
