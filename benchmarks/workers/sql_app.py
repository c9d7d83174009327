"""The three steps and nothing that remembers them: what the database and Python's driver take. Run as a process.

python -m benchmarks.workers.sql_app PORT SHOP_DATABASE_URL
"""

import asyncio
import sys

from adapters.database import create_engine
from benchmarks.workers.door import serve
from benchmarks.workers.steps import STEPS, Refused, ShopSteps, Wire


async def main(port: int, shop_url: str) -> None:
    """Answer until SIGTERM."""
    engine = create_engine(shop_url)
    shop = ShopSteps(engine)

    async def checkout(wire: Wire) -> str:
        begun: list[str] = []
        try:
            for step in STEPS:
                begun.append(step)
                await shop.do(step, wire)
        except Refused as refused:
            for step in reversed(begun):
                await shop.undo(step, wire, str(refused))
            return await shop.close(wire, str(refused))
        return "completed"

    await serve(port, {"checkout": checkout})
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
