"""Ids of other people's systems: the database accepts and refuses what Python does, character by character."""

import random

import asyncpg
import pytest

from devstack.stack import ROOT
from domain.identifiers import REFUSED_CHARACTERS, is_identifier
from tests.conftest import Database
from tests.identifiers import ILLEGAL, LEGAL, any_text, disagreements

_WRITTEN = {
    "orders_id_is_printable": "INSERT INTO orders (order_id, customer) VALUES ($1, 'alice')",
    "orders_customer_is_printable": "INSERT INTO orders (order_id, customer) VALUES ('o-1', $1)",
    "order_lines_sku_is_printable": "INSERT INTO order_lines VALUES ('o-0', $1, 1)",
    "products_sku_is_printable": "INSERT INTO products VALUES ($1, 'A product', 100)",
    "accounts_id_is_printable": "INSERT INTO accounts VALUES ($1, 'customer', 'Somebody', 0)",
}


def test_setup_sql_lists_the_characters_that_python_refuses() -> None:
    # Postgres keeps no NUL in a text, nor takes one in a pattern.
    in_sql = REFUSED_CHARACTERS.replace(r"\u0000", r"\u0001", 1)

    assert f"'[{in_sql}]'" in (ROOT / "setup.sql").read_text("utf-8")


@pytest.mark.parametrize(("around", "in_sql"), [("{}", "chr(c)"), ("a{}b", "'a' || chr(c) || 'b'")])
async def test_every_character_there_is_means_the_same_to_the_database(
    database: Database, around: str, in_sql: str
) -> None:
    assert await disagreements(database, around.format, in_sql) == set()


async def test_made_up_texts_are_ids_to_both_or_to_neither(database: Database) -> None:
    rng = random.Random(16)
    texts = [text.replace("\x00", "\x01") for text in (any_text(rng) for _ in range(20_000))]

    found = await database.fetch("SELECT t, is_identifier(t) FROM unnest($1::text[]) AS t", texts)

    assert [text for text, is_one in found if is_one != is_identifier(text)] == []
    assert 2_000 < sum(is_one for _, is_one in found) < 18_000


@pytest.mark.parametrize("constraint", _WRITTEN)
async def test_wherever_an_id_stands_the_rule_holds(database: Database, constraint: str) -> None:
    connection = await asyncpg.connect(database.admin_url)
    refused = set()

    await connection.execute("INSERT INTO orders (order_id, customer) VALUES ('o-0', 'alice')")
    for value in [*LEGAL, *ILLEGAL]:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(_WRITTEN[constraint], value)
        except asyncpg.CheckViolationError as error:
            refused.add((value, error.constraint_name))
        except (asyncpg.DataError, UnicodeEncodeError):  # NUL and half of a pair are no text at all to Postgres
            refused.add((value, constraint))
        await transaction.rollback()
    await connection.close()

    assert refused == {(value, constraint) for value in ILLEGAL}
