"""An order that needs a review, for so long that its history grows too long: it goes on needing one in the next run."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from domain import policies
from sagafence.devservers.temporal import TemporalServer
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.own_temporal import own_temporal
from tests.workflow.sagas import (
    goods_and_money,
    hasty,
    open_incidents,
    reason_of,
    until_another_run,
    until_parked_again,
    until_status,
    violations,
)
from tests.workflow.test_review import forget_the_payment

_MANY_EVENTS = 60


@pytest.fixture(scope="module")
def short_histories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server of our own, which soon suggests another run."""
    with own_temporal(
        tmp_path_factory.mktemp("short-histories"), **{"limit.historyCount.suggestContinueAsNew": _MANY_EVENTS}
    ) as server:
        yield server


@pytest.fixture
async def client(short_histories: TemporalServer) -> Client:
    return await Client.connect(short_histories.address, data_converter=DATA_CONVERTER)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=100))
    monkeypatch.setattr(policies, "STUCK_RETRY_LONGEST", timedelta(milliseconds=100))


async def test_an_order_that_needs_a_review_is_undone_in_no_run_before_somebody_has_looked(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("carol")

    async with shop.working(interceptors=(gates,)):
        first = await forget_the_payment(shop, gates, order)
        await until_status(shop, order, "stuck")
        reason, incidents = await reason_of(shop, order), await open_incidents(shop, order)
        await until_another_run(shop, order, first)
        await until_parked_again(shop, order)
        tried = gates.attempts_of(order, "release_inventory"), gates.attempts_of(order, "refund_payment")
        later = await reason_of(shop, order), await open_incidents(shop, order)
        ended = await Checkouts(shop.client, shop.task_queue, "http://ui").retry(order.order_id, "compared", by="op")

    assert tried == (0, 0)
    assert later == (reason, incidents)
    assert await shop.database.value("SELECT count(*) FROM incidents") == 1
    assert ended.status == "rejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
