"""The three steps without an engine: what the database and Python's driver take. Run as a process.

python -m benchmarks.workers.sql_app PORT SHOP_DATABASE_URL
"""

import asyncio
import sys

from adapters.database import create_engine
from benchmarks.workers.server import serve
from benchmarks.workers.steps import ShopSteps, Wire, saga


async def main(port: int, shop_url: str) -> None:
    """Serve until SIGTERM."""
    engine = create_engine(shop_url)
    shop = ShopSteps(engine)

    async def checkout(wire: Wire) -> str:
        return await saga(wire, shop.do, shop.undo, shop.close)

    await serve(port, {"checkout": checkout})
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
