"""Records what setup.sql makes, for adapters/schema.py.

python -m tests.record_schema
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from adapters import schema
from adapters.database import create_engine
from devstack.stack import DATABASE, ROLE, make_database
from sagafence.devservers.ports import free_port
from sagafence.devservers.postgres import PostgresServer


async def facts(url: str) -> list[str]:
    """Give a database's facts as lines of a recording."""
    engine = create_engine(url)
    try:
        async with engine.connect() as connection:
            return sorted("\t".join(fact).rstrip("\t") for fact in await schema.found(connection))
    finally:
        await engine.dispose()


def main() -> None:
    """Set up a database on a server of our own, and write down what is there."""
    with tempfile.TemporaryDirectory(prefix="checkout-schema-") as folder:
        server = PostgresServer(Path(folder) / "postgres", port=free_port(), log=Path(folder) / "log", fsync=False)
        server.start()
        try:
            make_database(server, DATABASE)
            lines = asyncio.run(facts(server.url(DATABASE, ROLE)))
        finally:
            server.remove()
    schema.RECORDING.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(lines)} facts in {schema.RECORDING}\n")


if __name__ == "__main__":
    main()
