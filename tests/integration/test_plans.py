"""What runs every minute stays driven by indexes, however many orders have ended: plans, never times.

Times, and the same plans with a million orders, are in benchmarks/million.py.
"""

import re
import uuid

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks import past, plans
from devstack.stack import ROOT, DevStack, psql
from tests.conftest import Database, Shop
from tests.integration.test_batches import drawn, one_by_one, together

_ENDED, _UNFINISHED = 20_000, 2_000
"""Enough for the plans that a million get, and a few seconds to write."""
_PAGE_READS = 1_000
"""A page of 100 orders, their lines, and what a batch of index entries holds more."""


async def test_the_sweep_and_the_log_read_by_index_and_no_more_than_they_need(database: Database) -> None:
    await past.make_up(database.admin_url, _ENDED, unfinished=_UNFINISHED)
    connection = await asyncpg.connect(database.admin_url)

    try:
        statements = await plans.bounded(connection)
        scanned = {each.name: await plans.scanned(connection, each) for each in statements}
        pages = [each for each in statements if "page" in each.name]
        read = {each.name: await plans.rows_read(connection, each) for each in pages}
    finally:
        await connection.close()

    assert scanned == {each.name: set() for each in statements}
    assert max(read.values()) < _PAGE_READS, read


async def test_a_sweep_of_orders_that_one_statement_wrote_reads_each_of_them_once(database: Database) -> None:
    orders, limit = 3_000, 100
    await database.run(
        "INSERT INTO orders (order_id, customer)"
        f" SELECT 'by-hand-' || md5(n::text), 'alice' FROM generate_series(1, {orders}) n;"
        "INSERT INTO order_lines (order_id, sku, quantity) SELECT order_id, 'lamp', 1 FROM orders;"
        "ANALYZE orders, order_lines"
    )
    connection = await asyncpg.connect(database.admin_url)
    read: list[int] = []

    try:
        ids = await connection.fetch("SELECT order_id, updated_at FROM orders ORDER BY updated_at, order_id")
        for place in range(0, orders, 10 * limit):
            page = plans.page_of_the_sweep(ids[place]["updated_at"], ids[place]["order_id"], limit=limit)
            read.append(await plans.rows_read(connection, page))
    finally:
        await connection.close()

    assert len({row["updated_at"] for row in ids}) == 1
    assert max(read) < _PAGE_READS, read


async def test_an_index_of_unfinished_orders_without_their_ids_makes_way(stack: DevStack, database: Database) -> None:
    of_now = "SELECT pg_get_indexdef('orders_unfinished'::regclass)"
    wanted = await database.value(of_now)
    await database.run(
        "DROP INDEX orders_unfinished; CREATE INDEX orders_unfinished ON orders (updated_at)"
        " WHERE status IN ('pending', 'reserved', 'paid', 'unwinding', 'stuck')"
    )

    psql(stack.postgres, database.name, "-v", "ON_ERROR_STOP=1", "-f", str(ROOT / "setup.sql"))

    assert "(updated_at, order_id)" in wanted
    assert await database.value(of_now) == wanted


async def test_the_audit_reads_every_row_a_bounded_number_of_times(database: Database) -> None:
    await past.make_up(database.admin_url, _ENDED, unfinished=_UNFINISHED)
    connection = await asyncpg.connect(database.admin_url)

    try:
        rows = sum([await connection.fetchval(f"SELECT count(*) FROM {table}") for table in plans.BIG])
        read = {each.name: await plans.rows_read(connection, each) for each in plans.audit()}
    finally:
        await connection.close()

    assert max(read.values()) < 2 * rows, read


async def test_a_plan_that_a_step_keeps_while_the_tables_grow_reads_by_index(
    shop: Shop, database: Database, engine: AsyncEngine
) -> None:
    sent: dict[str, None] = {}
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *said: sent.setdefault(said[2]))
    await one_by_one(shop, drawn(1, 30))
    await together(shop, drawn(2, 30))
    # As small as it is now, every table is one page: by their numbers nothing is cheaper than to read all of it.
    await database.run("ANALYZE")
    url = make_url(database.url).set(drivername="postgresql").render_as_string()
    connection = await asyncpg.connect(url)

    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        kept = {statement: await _scanned_when_kept(connection, statement) for statement in sent}
    finally:
        await connection.close()

    assert len([statement for statement in kept if "step_fence" in statement]) >= 6
    assert {statement: tables for statement, tables in kept.items() if tables} == {}


async def _scanned_when_kept(connection: "asyncpg.Connection[asyncpg.Record]", statement: str) -> set[str]:
    """Name the big tables that a statement's plan for any values reads from end to end."""
    prepared = await connection.prepare(statement, name=f"kept_{uuid.uuid4().hex}")
    values = ", ".join(["NULL"] * len(prepared.get_parameters()))
    explained = await connection.fetchval(
        f"EXPLAIN (FORMAT JSON) EXECUTE {prepared.get_name()}{f'({values})' if values else ''}"
    )
    return set(re.findall(r'"Node Type": "Seq Scan"[^{}]*?"Relation Name": "(\w+)"', explained)) & plans.BIG
