"""What runs every minute stays driven by indexes, however many orders have ended: plans, never times.

Times, and the same plans with a million orders, are in benchmarks/million.py.
"""

import asyncpg

from benchmarks import past, plans
from tests.conftest import Database

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


async def test_the_audit_reads_every_row_a_bounded_number_of_times(database: Database) -> None:
    await past.make_up(database.admin_url, _ENDED, unfinished=_UNFINISHED)
    connection = await asyncpg.connect(database.admin_url)

    try:
        rows = sum([await connection.fetchval(f"SELECT count(*) FROM {table}") for table in plans.BIG])
        read = {each.name: await plans.rows_read(connection, each) for each in plans.audit()}
    finally:
        await connection.close()

    assert max(read.values()) < 2 * rows, read
