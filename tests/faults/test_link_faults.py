"""The network between a worker and its servers is slow, deaf, one-way or cut, while orders stream in.

The worker's timeouts bound what each of them costs. What was held up arrives late, after its sender has given up,
and then meets the fence. Every order ends as it would have on a sound network.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.lab.proxy import Counts, Proxy, Way
from tests.faults.sites import Site

pytestmark = pytest.mark.timeout(600)

SERVERS = ("postgres", "temporal")


@dataclass(frozen=True)
class Outage:
    """One way in which a link fails for a while, and what it must have counted if it did."""

    name: str
    begin: Callable[[Proxy], object]
    seconds: float
    struck: Callable[[Counts], int]

    def __str__(self) -> str:
        return f"{self.name}-{self.seconds:g}s"


def held(counts: Counts) -> int:
    return counts.bytes_held + counts.connections_held


def deaf(seconds: float) -> Outage:
    return Outage("black-hole", lambda link: link.swallow(), seconds, held)


def one_way(way: Way, seconds: float) -> Outage:
    return Outage(f"black-hole-{way.value.replace(' ', '-')}", lambda link: link.swallow(way), seconds, held)


def closed(seconds: float) -> Outage:
    def cut_off(link: Proxy) -> None:
        link.refuse()
        link.reset()

    return Outage("cut-and-refused", cut_off, seconds, lambda counts: min(counts.refused, counts.reset))


CUT = Outage("cut", lambda link: link.reset(), 0.0, lambda counts: counts.reset)
OUTAGES = [CUT, closed(3), deaf(1), deaf(10), one_way(Way.TO_SERVER, 6), one_way(Way.TO_CLIENT, 6), deaf(40)]
# The share of make test: Temporal is cut off once. Sessions of Postgres are ended in test_postgres_faults.py.
BRIEFLY = {("temporal", str(CUT))}
CELLS = [
    pytest.param(
        server,
        outage,
        id=f"{server}-{outage}",
        marks=() if (server, str(outage)) in BRIEFLY else pytest.mark.exhaustive,
    )
    for server in SERVERS
    for outage in OUTAGES
]


def server_port(site: Site, server: str) -> int:
    return site.stack.ports.postgres if server == "postgres" else site.stack.ports.temporal


@pytest.mark.parametrize(("server", "outage"), CELLS)
async def test_a_link_that_fails_for_a_while_costs_no_order(
    site: Site, fired: Counter[str], server: str, outage: Outage
) -> None:
    with Proxy(server_port(site, server)) as link:
        await site.ready_worker(**{server: link})
        async with site.under_load() as load:
            outage.begin(link)
            fired["orders in flight"] = len(load.open)
            await asyncio.sleep(outage.seconds)
            fired["struck"] = outage.struck(link.counts)
            link.heal()


@pytest.mark.exhaustive  # it takes minutes, nearly all of them waiting
@pytest.mark.parametrize(
    ("server", "each_way_seconds"),
    # Half a second more for each round trip to Postgres: a cold connection spends up to fourteen in one transaction.
    [("postgres", 0.25), ("temporal", 0.5)],
)
async def test_a_slow_link_delays_orders_and_costs_none(
    site: Site, fired: Counter[str], server: str, each_way_seconds: float
) -> None:
    with Proxy(server_port(site, server)) as link:
        await site.ready_worker(**{server: link})
        async with site.under_load(40, timeout_seconds=480) as load:
            link.slow(each_way_seconds, jitter=each_way_seconds / 5)
            fired["orders in flight"] = len(load.open)
            # What is open now may not stay: the worker must be able to connect over such a link as well.
            fired["reset"] = link.reset()
        fired["chunks delayed"] = link.counts.chunks_delayed
