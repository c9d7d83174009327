"""The checkout beside its peers: the same orders, on one machine, in one session, by turns.

    .venv/bin/python -m benchmarks [--orders 300] [--at-once 50] [--alone 50] [--rounds 5] [--only fast --only idle ...]
        [--in-memory]

Contenders: *idle*, *bare* and *empty activities* are Temporal workflows that do nothing (benchmarks/workers/empty.py);
*classic* and *fast* are the product; *DBOS*, *Restate* and *bare SQL* run the same three statements their own way
(benchmarks/workers). One that cannot be had here is named, and the others run.

`--publish` puts the tables into docs/performance.md and the picture beside it.
"""

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import asyncpg

from adapters.telemetry import leave
from benchmarks import machine, publish, report
from benchmarks.contenders import restate_server
from benchmarks.contenders.contender import Absent, Contender
from benchmarks.contenders.lineup import ROOMS
from benchmarks.counts import Counts, Ledger
from benchmarks.endings import WentWrong, require_order, require_undo
from benchmarks.ground import ground
from benchmarks.measure import Results, batch, take_turns
from benchmarks.report import tell
from devstack.stack import DevStack

_BUSY = 0.7
"""Load per core above which a measurement says that it was not alone."""


async def compare(stack: DevStack, taking_part: list[Contender], chosen: argparse.Namespace) -> int:
    """Measure and print; publish when asked to."""
    counts: dict[str, Counts] = {}
    try:
        for contender in taking_part:
            if contender.sells:
                await require_undo(contender)
        results = await take_turns(
            taking_part,
            orders=chosen.orders,
            at_once=chosen.at_once,
            alone=chosen.alone,
            rounds=chosen.rounds,
            postgres=stack.postgres.pid,
            tell=tell,
        )
        ledger = Ledger(stack.postgres)
        with ledger.listing():
            for contender in taking_part:
                counts[contender.name] = await ledger.count(contender, batch(chosen.counted, 0))
                tell(f"counted: {contender.name}")
        await require_order(stack)
    except WentWrong as wrong:
        tell(str(wrong))
        return 1
    finally:
        for contender in taking_part:
            await contender.close()
    await _show(stack, results, counts, chosen)
    return 0


async def _show(
    stack: DevStack, results: dict[str, Results], counts: dict[str, Counts], chosen: argparse.Namespace
) -> None:
    connection = await asyncpg.connect(stack.postgres.url(driver="postgresql"))
    try:
        postgres = str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()
    servers = [f"PostgreSQL {postgres}", *([f"Restate {restate_server.version()}"] if "Restate" in results else [])]
    setting = (
        f"{chosen.orders} orders with {chosen.at_once} at once, {chosen.alone} orders alone, "
        f"medians of {chosen.rounds} rounds (least to greatest); counts over {chosen.counted} orders. "
        f"Temporal keeps its histories {'in memory' if chosen.in_memory else 'on a file'}; "
        f"the machine's load was {chosen.load_before:.1f} before."
    )
    text = f"{machine.described(servers)}\n{setting}\n\n{report.tables(results, counts)}"
    print(text)
    if chosen.publish:
        publish.publish(text, results, setting)


def main() -> int:
    """Start everybody, measure, stop everybody."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--alone", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counted", type=int, default=100, help="orders over which is counted")
    parser.add_argument("--only", action="append", help="a contender's name; default: each of them")
    parser.add_argument("--in-memory", action="store_true", help="Temporal's histories end with it; default: a file")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md and docs/performance.svg")
    chosen = parser.parse_args()
    if chosen.publish and chosen.only:
        parser.error("only a whole comparison is published")
    chosen.load_before = machine.load()
    if chosen.load_before > _BUSY * machine.cores():
        tell(f"the machine is busy: load {chosen.load_before:.1f} on {machine.cores()} cores")
    with tempfile.TemporaryDirectory(prefix="checkout-bench-") as folder:
        stack = ground(Path(folder), in_memory=chosen.in_memory)
        with ExitStack() as running:
            running.enter_context(stack)
            taking_part: list[Contender] = []
            for room in ROOMS:
                try:
                    taking_part += running.enter_context(room(stack))
                except Absent as absent:
                    tell(str(absent))
            wanted = [each for each in taking_part if not chosen.only or each.name in chosen.only]
            if not wanted:
                parser.error(f"there is {', '.join(each.name for each in taking_part)}")
            return asyncio.run(compare(stack, wanted, chosen))


if __name__ == "__main__":
    leave(main())
