"""Rehearsals of what the environment does to a working checkout: the writer moves, and the password is rotated.

    .venv/bin/python -m pytest -n 0 -m "exhaustive or not exhaustive" tests/faults/test_failover.py

Orders stream in through a real worker meanwhile, and those that have ended run again. None may be rejected, stuck,
lost or taken back because of it.
"""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from temporalio.common import WorkflowIDReusePolicy

from devstack.stack import ROLE, DevStack, psql
from domain.model import CheckoutInput
from domain.policies import CHECKOUT_WORKFLOW, checkout_workflow_id
from sagafence.devservers.ports import free_port
from sagafence.devservers.postgres import PostgresServer
from tests.conftest import Database
from tests.faults.lab.proxy import Proxy
from tests.faults.sites import Load, Site, must_end, until

_ORDERS = 120
_AWAY_SECONDS = 4.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[DevStack]:
    """Servers of its own: one of them is taken down for good."""
    with DevStack(tmp_path / "stack", fsync=False) as running:
        yield running


@pytest.fixture
def standby(servers: DevStack, tmp_path: Path) -> Iterator[PostgresServer]:
    """A standby without which nothing commits: what the old writer had promised, the new one has."""
    made = PostgresServer(
        tmp_path / "standby", port=free_port(), log=tmp_path / "standby.log", fsync=False, standby_of=servers.postgres
    )
    made.start()
    for statement in ("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"):
        psql(servers.postgres, "postgres", "-c", statement)
    yield made
    made.remove()


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["moving-name", "list-of-hosts"])
@pytest.mark.parametrize("end", ["crash", "shutdown"])
async def test_no_order_is_rejected_stuck_or_lost_by_a_failover(
    site: Site, servers: DevStack, standby: PostgresServer, way: str, end: str
) -> None:
    with Proxy(servers.ports.postgres) as name:
        ports = [name.port] if way == "moving-name" else [servers.ports.postgres, standby.port]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        await site.ready_worker(
            CHECKOUT_DATABASE_URL=f"postgresql://{ROLE}@{hosts}/{site.database.name}?target_session_attrs=read-write"
        )
        load = site.load(_ORDERS)
        await load.ended(_ORDERS // 6)
        again = await _run_again(site, load)

        if end == "crash":
            servers.postgres.kill()
        else:
            servers.postgres.stop()
        name.lead_to(standby.port)
        # The name leads to a reader for a while: its sessions must not be kept.
        await asyncio.sleep(_AWAY_SECONDS)
        assert not load.is_over
        standby.promote()
        site.database = _at(site, standby)
        await load.all_ended()
        assert await _ended_otherwise(site, again) == []
        await site.require_unharmed()


def _at(site: Site, server: PostgresServer) -> Database:
    moved = {
        name: make_url(getattr(site.database, name)).set(port=server.port).render_as_string(hide_password=False)
        for name in ("url", "admin_url")
    }
    return dataclasses.replace(site.database, **moved)


@pytest.mark.exhaustive
async def test_no_order_is_rejected_stuck_or_lost_by_a_rotated_password(site: Site, tmp_path: Path) -> None:
    secret = await _ask_for_password(site, tmp_path)
    worker = await site.ready_worker(CHECKOUT_DATABASE_PASSWORD_FILE=secret)
    load = site.load(_ORDERS)
    await load.ended(_ORDERS // 6)
    again = await _run_again(site, load)

    await _rotate(site, "second")
    await site.logged(worker, "password authentication failed", times=10)
    await asyncio.sleep(_AWAY_SECONDS)
    assert not load.is_over
    secret.write_text("second\n")
    await load.all_ended()
    assert await _ended_otherwise(site, again) == []
    assert worker.running
    site.database = dataclasses.replace(site.database, url=site.database.url.replace(f"{ROLE}@", f"{ROLE}:second@"))
    await site.require_unharmed()


async def test_a_worker_that_is_let_in_no_more_says_so_and_ends_with_1(site: Site, tmp_path: Path) -> None:
    secret = await _ask_for_password(site, tmp_path)
    worker = await site.ready_worker(
        CHECKOUT_DATABASE_PASSWORD_FILE=secret, CHECKOUT_DATABASE_REFUSED_SECONDS=2, CHECKOUT_SHUTDOWN_GRACE_SECONDS=1
    )

    await _rotate(site, "second")

    async def ended() -> bool:
        return not worker.running

    await until(ended, "the worker has ended")
    assert worker.returncode == 1
    said = worker.log.read_text()
    assert "ERROR   checkout.worker: Postgres has refused every new session for 2 s: password authentication" in said
    assert said.rstrip().endswith("The orders under way wait for a worker that can log in.")


async def _run_again(site: Site, load: Load) -> list[CheckoutInput]:
    """Begin another run of every order that has ended, as a caller can after Temporal's retention."""
    again = [order for order in load.orders if order.order_id in load.ends]
    for order in again:
        await site.client.start_workflow(
            CHECKOUT_WORKFLOW,
            order,
            id=checkout_workflow_id(order.order_id),
            task_queue=site.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        )
    return again


async def _ended_otherwise(site: Site, again: list[CheckoutInput]) -> list[str]:
    """List the orders whose second run ended in another way than the first had to; the audit sees what became of it."""
    assert again
    ends = [await site.checkouts.outcome(order.order_id) for order in again]
    return [
        f"{order.order_id}: {end.status} ({end.reason}) instead of {must_end(order)}"
        for order, end in zip(again, ends, strict=True)
        if end.status != must_end(order)
    ]


async def _ask_for_password(site: Site, folder: Path) -> Path:
    secret = folder / "password"
    await _rotate(site, "first")
    secret.write_text("first\n")
    site.stack.postgres.ask_for_password(site.database.name, ROLE)
    return secret


async def _rotate(site: Site, password: str) -> None:
    """Change the password, and end the sessions that were let in by the old one."""
    admin = await asyncpg.connect(site.database.admin_url)
    try:
        await admin.execute(f"ALTER ROLE {ROLE} PASSWORD '{password}'")
        await admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")
    finally:
        await admin.close()
