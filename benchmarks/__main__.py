"""The checkout beside its peers: the same orders, on one machine, in one session, by turns.

    .venv/bin/python -m benchmarks [--orders 300] [--at-once 50] [--alone 50] [--rounds 5] [--only fast --only idle ...]
        [--mix hot]

Contenders: *idle*, *bare* and *empty activities* are Temporal workflows that do nothing (benchmarks/workers/empty.py);
*classic* and *fast* are the product; *DBOS*, *Restate* and *bare SQL* run the same three statements their own way
(benchmarks/workers). One that cannot run here is named, and the others run. Counts are over `--counted` orders. With
`--mix hot` every order wants the same SKU.

`--publish` writes the tables into docs/performance.md and the picture beside it.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import asyncpg
import psutil

from adapters.process_exit import leave
from benchmarks import harness, publish, report
from benchmarks.contenders import dbos, restate, restate_server, sql, temporal
from benchmarks.contenders.contender import Absent, Contender
from benchmarks.counts import Counts, Ledger
from benchmarks.harness import WentWrong, log
from benchmarks.measure import batch, take_turns
from devstack.stack import DevStack

Start = Callable[[DevStack], AbstractContextManager[Sequence[Contender]]]
"""Runs what its contenders need beside the stack."""
STARTS: tuple[Start, ...] = (temporal.running, temporal.running_eager, dbos.running, restate.running, sql.running)
"""In the sequence of the tables."""
_BUSY = 0.7
"""Load per core above which the measurement warns that it does not have the machine to itself."""


async def compare(stack: DevStack, contenders: Sequence[Contender], chosen: argparse.Namespace) -> int:
    """Measure and print; publish when asked to."""
    try:
        for contender in contenders:
            if contender.is_checkout:
                await harness.require_undo(contender)
        results = await take_turns(contenders, chosen, stack.postgres.pid)
        counts: dict[str, Counts] = {}
        ledger = Ledger(stack.postgres)
        with ledger.listing():
            for contender in contenders:
                counts[contender.name] = await ledger.count(contender, batch(chosen.counted, 0, chosen.mix))
                log(f"counted: {contender.name}")
        await harness.require_clean_audit(stack)
    except WentWrong as wrong:
        log(str(wrong))
        return 1
    finally:
        for contender in contenders:
            await contender.close()
    servers = [await _postgres_version(stack)]
    if "Restate" in results:
        servers.append(f"Restate {restate_server.version()}")
    mix = "" if chosen.mix == "happy" else f" of the {chosen.mix} mix"
    setting = (
        f"{chosen.orders} orders{mix} with {chosen.at_once} at once, {chosen.alone} orders alone, "
        f"medians of {chosen.rounds} rounds (least to greatest); counts over {chosen.counted} orders. "
        f"Temporal keeps its histories on a file; the machine's load was {chosen.load_before:.1f} before."
    )
    text = f"{harness.machine(servers)}\n{setting}\n\n{report.tables(results, counts)}"
    print(text)
    if chosen.publish:
        publish.publish(text, results, setting)
    return 0


async def _postgres_version(stack: DevStack) -> str:
    connection = await asyncpg.connect(stack.postgres.url(driver="postgresql"))
    try:
        return f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
    finally:
        await connection.close()


def main() -> int:
    """Start all contenders, measure, stop them."""
    parser = harness.arguments(__doc__, orders=300, at_once=50, alone=50, rounds=5, counted=100)
    parser.add_argument("--only", action="append", help="a contender's name; default: all of them")
    parser.add_argument("--mix", choices=("happy", "hot"), default="happy", help="of client/load.py; default: happy")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md and docs/performance.svg")
    chosen = parser.parse_args()
    if chosen.publish and (chosen.only or chosen.mix != "happy"):
        parser.error("only a whole comparison is published")
    cores = psutil.cpu_count() or 1
    chosen.load_before = psutil.getloadavg()[0]
    if chosen.load_before > _BUSY * cores:
        log(f"the machine is busy: load {chosen.load_before:.1f} on {cores} cores")
    with harness.running_stack() as stack, ExitStack() as running:
        contenders: list[Contender] = []
        for start in STARTS:
            try:
                contenders += running.enter_context(start(stack))
            except Absent as absent:
                log(str(absent))
        wanted = [contender for contender in contenders if not chosen.only or contender.name in chosen.only]
        if not wanted:
            parser.error(f"the contenders are {', '.join(contender.name for contender in contenders)}")
        return asyncio.run(compare(stack, wanted, chosen))


if __name__ == "__main__":
    leave(main())
