"""One database for all cells of a module: cells that count differences need no world of their own."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from embedded.stack import DATABASE, ROLE, DevStack, psql
from tests.conftest import Database


@contextmanager
def shared_database(stack: DevStack) -> Iterator[Database]:
    """Clone the database that setup.sql made, and drop the clone in the end."""
    name = f"shared_{uuid.uuid4().hex[:12]}"
    psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}"')
    try:
        yield Database(name, stack.postgres.url(name, ROLE), stack.postgres.url(name, "postgres", driver="postgresql"))
    finally:
        psql(stack.postgres, "postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')
