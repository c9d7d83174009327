"""Postgres goes away, runs out of connections, kills sessions or refuses to write, while orders stream in.

Each of these delays orders and costs none: they end exactly as they would have without it. Only an outage
beyond a step's whole budget may end an order, as rejected, with whatever it had done undone.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator

import asyncpg
import pytest

from devstack.stack import READER, DevStack, psql
from domain.policies import RESERVE
from tests.faults.lab.proxy import Proxy
from tests.faults.sites import Site, must_end, said, until

pytestmark = pytest.mark.timeout(600)

OUTAGE_SECONDS = 4.0
assert RESERVE.schedule_to_close is not None
BEYOND_RESERVE_SECONDS = RESERVE.schedule_to_close.total_seconds() + 6
POOL_TIMEOUT = "no answer from Postgres in time"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """Servers of this module alone: it ill-treats them."""
    with DevStack(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.mark.exhaustive
async def test_an_outage_of_postgres_delays_orders_and_costs_none(site: Site, fired: Counter[str]) -> None:
    worker = await site.ready_worker()
    async with site.under_load() as load:
        site.stack.postgres.stop(immediate=True)
        fired["orders in flight"] = len(load.open)
        await site.logged(worker, "no connection to Postgres", times=3)
        await asyncio.sleep(OUTAGE_SECONDS)
        site.stack.postgres.start()


@pytest.mark.exhaustive
async def test_an_outage_beyond_the_budget_of_reserve_ends_orders_whole_and_never_half(
    site: Site, fired: Counter[str]
) -> None:
    await site.ready_worker()
    struck = site.load(60)
    await struck.ended(10)

    site.stack.postgres.stop(immediate=True)
    fired["orders in flight"] = len(struck.open)
    # Their budget is that of their own reserve: an order of a batch waits for longer.
    hopeless = site.load(10, at_once=10, all_by_themselves=True)
    await asyncio.sleep(BEYOND_RESERVE_SECONDS)
    site.stack.postgres.start()
    # Ship waits for up to 30 s between two attempts.
    await struck.all_ended()
    await hopeless.all_ended()

    assert {end.status for end in hopeless.ends.values()} == {"rejected"}
    given_up = [end for load in (struck, hopeless) for end in load.ends.values() if "Postgres" in (end.reason or "")]
    fired["orders given up"] = len(given_up)
    assert {end.status for end in given_up} == {"rejected"}
    gone = {end.order_id for end in given_up}
    assert all(
        struck.ends[each.order_id].status == must_end(each) for each in struck.orders if each.order_id not in gone
    )
    await site.require_clean()


@pytest.mark.exhaustive
async def test_a_pool_of_one_serves_a_hundred_orders_at_once(site: Site, fired: Counter[str]) -> None:
    with Proxy(site.stack.ports.postgres) as link:
        # A hundred statements, one after the other, take longer than an attempt waits for a connection.
        link.slow(0.012)
        worker = await site.ready_worker(postgres=link, CHECKOUT_DATABASE_POOL_SIZE=1)
        async with site.under_load(100, begun=0, at_once=100) as load:
            await site.logged(worker, POOL_TIMEOUT, times=3)
            fired["orders in flight"] = len(load.open)
        fired["chunks delayed"] = link.counts.chunks_delayed


@pytest.mark.exhaustive
async def test_a_server_without_a_free_connection_delays_orders_and_costs_none(site: Site, fired: Counter[str]) -> None:
    await site.ready_worker()
    taken: list[asyncpg.Connection] = []

    async def all_taken_and_missed() -> bool:
        fired["sessions ended"] += await site.end_sessions()
        try:
            while True:
                # Of another role than the service's, whose sessions are ended.
                taken.append(
                    await asyncpg.connect(site.stack.postgres.url(site.database.name, READER, driver="postgresql"))
                )
        except asyncpg.TooManyConnectionsError:
            return site.failed_attempts("53300") >= 5

    async with site.under_load(400) as load:
        try:
            await until(all_taken_and_missed, "the service finds no connection")
            fired["orders in flight"] = len(load.open)
        finally:
            for connection in taken:
                await connection.close()
        fired["connections taken"] = len(taken)


async def test_sessions_that_are_terminated_in_the_middle_of_a_statement_cost_no_order(
    site: Site, fired: Counter[str]
) -> None:
    worker = await site.ready_worker()

    async def ended_at_work() -> bool:
        async with site.holding("item-001"):
            await until(site.is_waiting, "a statement waits for the row")
            fired["sessions ended"] += await site.end_sessions()
        return said(worker, "terminating connection due to administrator command") >= 5

    async with site.under_load(40, begun=5, mix="hot") as load:
        await until(ended_at_work, "statements have died with their sessions")
        fired["orders in flight"] = len(load.open)


@pytest.mark.exhaustive
async def test_a_primary_that_turns_read_only_delays_orders_and_costs_none(site: Site, fired: Counter[str]) -> None:
    worker = await site.ready_worker()
    async with site.under_load() as load:
        for statement in ("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"):
            psql(site.stack.postgres, "postgres", "-c", statement)
        try:
            await site.logged(worker, "(25006)", times=5)
            fired["orders in flight"] = len(load.open)
        finally:
            for statement in ("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"):
                psql(site.stack.postgres, "postgres", "-c", statement)
