"""The checkout beside its peers: the same orders, on one machine, in one session, by turns.

    .venv/bin/python -m benchmarks [--orders 300] [--at-once 50 200 ...] [--alone 50] [--rounds 5]
        [--only group --only DBOS ...] [--mix hot]

Contenders: *idle*, *bare* and *empty activities* are Temporal workflows that do nothing (benchmarks/workers/empty.py);
*activity* is the product by its client, each order a saga of its own; *group* is the product by its HTTP API, where
orders that come at once share a batch; *DBOS*, *Restate* and *bare SQL* run the same three statements their own way
(benchmarks/workers). One that cannot run here is named, and the others run. With several numbers after `--at-once` each
has tables of its own. Counts are over `--counted` orders, or more where more come at once; what is kept, and Temporal
Cloud's actions (benchmarks/actions.py), over the orders of the last round. With `--mix hot` every order wants the same
SKU.

`--publish` writes the tables into docs/performance.md and the picture beside it.
"""

import argparse
import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import asyncpg
import psutil

from adapters.process_exit import leave
from benchmarks import harness, publish, report
from benchmarks.contenders import dbos, group, restate, restate_server, sql, temporal
from benchmarks.contenders.contender import Absent, Contender
from benchmarks.counts import Ledger, enough
from benchmarks.harness import WentWrong, log
from benchmarks.measure import Results, batch, take_turns
from devstack.stack import DevStack

Start = Callable[[DevStack], AbstractContextManager[Sequence[Contender]]]
"""Runs what its contenders need beside the stack."""
STARTS: tuple[Start, ...] = (temporal.running, group.running, dbos.running, restate.running, sql.running)
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
        text = "\n\n".join(
            [await _tables(stack, contenders, chosen, at_once, found) for at_once, found in results.items()]
        )
        await harness.require_clean_audit(stack)
    except WentWrong as wrong:
        log(str(wrong))
        return 1
    finally:
        for contender in contenders:
            await contender.close()
    servers = [await _postgres_version(stack)]
    if "Restate" in results[chosen.at_once[0]]:
        servers.append(f"Restate {restate_server.version()}")
    mix = "" if chosen.mix == "happy" else f" of the {chosen.mix} mix"
    setting = (
        f"{chosen.orders} orders{mix} with {_listed(chosen.at_once)} at once, {chosen.alone} orders alone, "
        f"medians of {chosen.rounds} rounds (least to greatest). "
        f"Temporal keeps its histories on a file; the machine's load was {chosen.load_before:.1f} before."
    )
    text = f"{harness.machine(servers)}\n{setting}\n\n{text}"
    print(text)
    if chosen.publish:
        publish.publish(text, results[chosen.at_once[0]], setting)
    return 0


async def _tables(
    stack: DevStack,
    contenders: Sequence[Contender],
    chosen: argparse.Namespace,
    at_once: int,
    results: Mapping[str, Results],
) -> str:
    """Count what an order costs with so many at once, and return the tables."""
    number, ledger = enough(chosen.counted, at_once), Ledger(stack.postgres)
    counts = {}
    with ledger.listing():
        for contender in contenders:
            orders = batch(number, 0, chosen.mix)
            counts[contender.name] = await ledger.count(contender, orders, at_once, results[contender.name].orders)
            log(f"counted: {contender.name}, {at_once} at once")
    heading = f"{at_once} orders at once; commits, statements and WAL over {number} orders."
    return f"{heading}\n\n{report.tables(results, counts)}"


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def wanted(contenders: Sequence[Contender], only: Sequence[str]) -> list[Contender]:
    """Return those that are named: `DBOS` names both of its forms. All, where none is named."""
    return [
        contender
        for contender in contenders
        if not only or {contender.name, contender.name.partition(", ")[0]} & set(only)
    ]


async def _postgres_version(stack: DevStack) -> str:
    connection = await asyncpg.connect(stack.postgres.url(driver="postgresql"))
    try:
        return f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
    finally:
        await connection.close()


def main() -> int:
    """Start all contenders, measure, stop them."""
    parser = harness.arguments(__doc__, orders=300, alone=50, rounds=5, counted=100)
    parser.add_argument(
        "--at-once", type=int, nargs="+", action="extend", metavar="N", help="orders under way; default: 50"
    )
    parser.add_argument("--only", action="append", default=[], help="a contender's name; default: all of them")
    parser.add_argument("--mix", choices=("happy", "hot"), default="happy", help="of `starter.py load`; default: happy")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md and docs/performance.svg")
    chosen = parser.parse_args()
    chosen.at_once = list(dict.fromkeys(chosen.at_once or [50]))
    if min(chosen.at_once) < 1 or max(chosen.at_once) > chosen.orders:
        parser.error(f"--at-once is from 1 to as many orders as a round has, which are {chosen.orders}")
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
        if not (compared := wanted(contenders, chosen.only)):
            parser.error(f"the contenders are {', '.join(contender.name for contender in contenders)}")
        return asyncio.run(compare(stack, compared, chosen))


if __name__ == "__main__":
    leave(main())
