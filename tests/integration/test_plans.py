"""What runs every minute stays driven by indexes, however many orders have ended: plans, never times."""

import re
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import create_reader_engine
from devstack.stack import READER, ROOT, DevStack, psql
from http_api.models import OrderStatusWord
from http_api.reads import Cursor, Reads, Wanted
from tests import plans
from tests.conftest import Database, Shop
from tests.ended_orders import write_ended_orders
from tests.integration.batch_orders import drawn, one_by_one, together

_ENDED, _UNFINISHED = 20_000, 2_000
"""Enough for the plans that a million get, and a few seconds to write."""
_PAGE_READS = 1_000
"""A page of 100 orders, their lines, and what a batch of index entries holds more."""


async def test_the_sweep_and_the_log_read_by_index_and_no_more_than_they_need(database: Database) -> None:
    await write_ended_orders(database.admin_url, _ENDED, unfinished=_UNFINISHED)

    async with database.connected() as connection:
        statements = await plans.bounded(connection)
        scanned = {each.name: await plans.scanned(connection, each) for each in statements}
        pages = [each for each in statements if "page" in each.name]
        read = {each.name: await plans.rows_read(connection, each) for each in pages}

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
    read: list[int] = []

    async with database.connected() as connection:
        ids = await connection.fetch("SELECT order_id, updated_at FROM orders ORDER BY updated_at, order_id")
        for place in range(0, orders, 10 * limit):
            page = plans.page_of_the_sweep(ids[place]["updated_at"], ids[place]["order_id"], limit=limit)
            read.append(await plans.rows_read(connection, page))

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


_LIMIT = 50
_LISTS = [
    (status, customers)
    for status in (None, *OrderStatusWord)
    for customers in (None, frozenset({"buyer-007"}), frozenset({"buyer-007", "buyer-008", "nobody"}))
]


async def test_a_page_of_the_apis_lists_costs_the_same_wherever_it_is_and_however_many_orders_there_are(
    database: Database,
) -> None:
    await write_ended_orders(database.admin_url, _ENDED, unfinished=_UNFINISHED)
    deep = await database.fetch(
        f"SELECT created_at, order_id FROM orders ORDER BY created_at DESC, order_id DESC OFFSET {_ENDED // 2} LIMIT 1"
    )
    at, order_id = deep[0]
    places: list[dict[str, Any]] = [
        {},
        {"after": Cursor(at, order_id)},
        {"created_from": at - timedelta(minutes=1), "created_before": at},
    ]
    wanted = [Wanted(*kind, **place, limit=_LIMIT) for kind in _LISTS for place in places]
    found: dict[str, int] = {}

    async def ask(api: Reads) -> None:
        for each in wanted:
            found[str(each)] = len(await api.page(each))

    pages = await _sent_by_the_api(database, ask)
    async with database.connected() as connection:
        scanned = [page for page in pages if await plans.scanned(connection, page)]
        read = [await plans.rows_read(connection, page) for page in pages]

    assert len(found) == len(wanted)
    # But for terminated, which the database does not know.
    asked = [each for each in wanted if each.status is not OrderStatusWord.TERMINATED]
    assert len(pages) == len(asked)
    assert found[str(wanted[0])] == found[str(wanted[1])] == found[str(wanted[2])] == _LIMIT
    assert scanned == []
    # Of each status and customer one page, and the row after it.
    assert {
        page.name: rows
        for page, each, rows in zip(pages, asked, read, strict=True)
        if rows > (page.text.count("UNION ALL") + 1) * len(each.customers or "1") * (_LIMIT + 1)
    } == {}


async def test_what_the_api_reads_of_one_order_it_reads_by_index(database: Database) -> None:
    await write_ended_orders(database.admin_url, _ENDED, unfinished=_UNFINISHED)
    order_id = await database.value("SELECT order_id FROM orders WHERE status = 'completed' LIMIT 1")

    async def ask(api: Reads) -> None:
        assert await api.order(order_id)
        assert await api.events(order_id, 1)
        assert await api.newest_events([order_id, "nobody"])

    asked = await _sent_by_the_api(database, ask)
    async with database.connected() as connection:
        scanned = [each for each in asked if await plans.scanned(connection, each)]
        read = [await plans.rows_read(connection, each) for each in asked]

    assert len(asked) >= 4, "the row, the fences, the events, the tail"
    assert scanned == []
    assert max(read) < 20, read


async def _sent_by_the_api(database: Database, ask: Callable[[Reads], Awaitable[None]]) -> list[plans.Statement]:
    """Give what the API's engine sends, to be explained as whoever has no limits on the planner."""
    sent: list[plans.Statement] = []
    url = make_url(database.url).set(username=READER, password=None).render_as_string(hide_password=False)
    engine = create_reader_engine(url)
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda *said: sent.append(plans.Statement(f"{len(sent)}: {said[3]}", said[2], arguments=said[3])),
    )
    try:
        await ask(Reads(engine))
    finally:
        await engine.dispose()
    return sent


async def test_the_audit_reads_every_row_a_bounded_number_of_times(database: Database) -> None:
    await write_ended_orders(database.admin_url, _ENDED, unfinished=_UNFINISHED)

    async with database.connected() as connection:
        rows = sum([await connection.fetchval(f"SELECT count(*) FROM {table}") for table in plans.BIG])
        read = {each.name: await plans.rows_read(connection, each) for each in plans.audit()}

    assert max(read.values()) < 2 * rows, read


async def test_a_plan_that_a_step_keeps_while_the_tables_grow_reads_by_index(shop: Shop, engine: AsyncEngine) -> None:
    sent: dict[str, None] = {}
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *said: sent.setdefault(said[2]))
    await one_by_one(shop, drawn(1, 30))
    await together(shop, drawn(2, 30))
    # As small as it is now, every table is one page: by their numbers nothing is cheaper than to read all of it.
    await shop.database.run("ANALYZE")
    url = make_url(shop.database.url).set(drivername="postgresql").render_as_string()
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
