"""What Postgres was sent, by its own log: the first word of each statement, in their sequence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from devstack.stack import DevStack
from tests.conftest import Database

# As both protocols tell it: a simple query, and one that was prepared before.
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*):\s+(\w+)")


async def log_statements(database: Database) -> None:
    """Have the server log what the service sends from its next connection on."""
    await database.run(f"ALTER ROLE checkout IN DATABASE \"{database.name}\" SET log_statement = 'all'")


@contextmanager
def statements_sent(stack: DevStack) -> Iterator[list[str]]:
    """Collect what is sent inside the block; the list is filled at its end."""
    already, statements = stack.postgres.log.stat().st_size, list[str]()
    yield statements
    with stack.postgres.log.open(encoding="utf-8") as log:
        log.seek(already)
        statements += _STATEMENT.findall(log.read())
