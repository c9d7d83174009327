"""A run that was started for a review ends by itself where its order has ended meanwhile."""

from dataclasses import replace

import pytest

from domain import policies
from domain.model import Ending
from tests.conftest import Shop
from tests.workflow.sagas import goods_and_money, hasty, how_it_ended, open_incidents, violations

DOUBT = "step pay was done, and the database knows nothing of it"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


@pytest.mark.parametrize("ending", list(Ending))
async def test_a_review_of_an_order_that_has_ended_since_a_sweep_listed_it_ends_as_the_order_has(
    shop: Shop, ending: Ending
) -> None:
    order, before = shop.order("nemo"), await goods_and_money(shop.database)
    if ending is Ending.CANCELLED:
        order = shop.order("carol")

    async with shop.working():
        first = await shop.start(order)
        if ending is Ending.CANCELLED:
            await first.cancel()
        await how_it_ended(first)
        was = await shop.order_status(order)
        # The sweep had read the order as stuck: an operator's retry was faster.
        ended = await how_it_ended(await shop.run_again(replace(order, repair=True, review_reason=DOUBT)))

    assert (was, ended) == (ending.value, f"Order{ending.value.capitalize()}")
    assert await shop.order_status(order) == ending.value
    assert await open_incidents(shop, order) == []
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
