"""The soak: many orders, random overlapping faults, and everything that was promised checked all the while.

    python -m tests.soak --orders 10000 --seed 1

Orders and faults derive from the seed alone: the same seed, the same plan (see --plan).
Exit status: 0 everything holds; 1 something does not, or nothing moved any more: the folder that is named then holds
the reasons; 2 wrong usage; 130 interrupted.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from temporalio.service import RPCError

from adapters.process_exit import leave
from client.checkouts import Checkouts
from client.failures import NoWorker, Refused
from tests.soak.auditor import Auditor
from tests.soak.book import Book
from tests.soak.catalogue import catalogue
from tests.soak.driver import Driver
from tests.soak.harness import Harness, SoakFailed
from tests.soak.injector import FaultInjector
from tests.soak.model import ShopModel
from tests.soak.plan import Plan
from tests.soak.report import Report
from tests.soak.verdict import Verdict
from tests.soak.watchdog import Watchdog, dump

_SWEEP_EVERY_SECONDS = 0.3
_STOOD_STILL = (timedelta(0), timedelta(milliseconds=1), timedelta(milliseconds=2))
"""Each has a sweep of its own: one that lost its worker waits, and the others go on."""
_SWEEP_TIMEOUT = timedelta(seconds=10)
_RECENT = 300
"""How many of the orders that ended last a partial audit looks at, beside the open ones."""


async def sweep(checkouts: Checkouts, book: Book, idle_for: timedelta) -> None:
    """Sweep all the time, whatever stands still or not: every order under way is looked at, beside its batch or saga.

    Whatever is not broken on purpose must be left alone. Where a sweep has repaired an order that was not terminated,
    its ending shows it; where it has parked one, its incident does.
    """
    while True:
        with contextlib.suppress(RPCError, NoWorker, Refused):
            report = await checkouts.sweep(idle_for, _SWEEP_TIMEOUT)
            book.counts["sweeps"] += 1
            book.counts["orders started by a sweep"] += report.started_count
            book.counts["orders repaired by a sweep"] += report.repaired_count
            if odd := [*report.malformed, *report.parked]:
                raise SoakFailed(f"a sweep found orders that it cannot repair: {odd[:5]}")
        await asyncio.sleep(_SWEEP_EVERY_SECONDS)


async def soak(harness: Harness, plan: Plan, chosen: argparse.Namespace) -> Report:
    shop = catalogue(plan.orders)
    book = Book(plan, ShopModel(shop))
    client = await harness.client()
    checkouts = harness.checkouts(client)
    injector = FaultInjector(harness, plan, client)
    driver = Driver(harness, plan, client, book, injector)

    def lately() -> list[str]:
        numbers = {*driver.open, *list(book.endings)[-_RECENT:]}
        return [plan.order_id(number) for number in numbers]

    auditor = Auditor(harness, lately, lambda: injector.has_downtime)
    watchdog = Watchdog(book, injector, timeout_seconds=chosen.patience)
    broken = [(planned.order.order_id, step) for planned in plan.all_orders() for step in planned.broken]
    await harness.seed(shop, broken)
    await auditor.prepare()
    if harness.workers:
        await injector.until_ready()
    begun = time.monotonic()
    report = Report(plan, book, injector.injected, auditor.counts, 0.0, watchdog.windows, {})
    verdict = Verdict(harness, client, checkouts, plan, book)
    try:
        async with asyncio.TaskGroup() as background:
            tasks = [
                background.create_task(work)
                for work in (
                    *(auditor.run(), watchdog.run(), injector.watch_processes()),
                    *(sweep(checkouts, book, idle_for) for idle_for in _STOOD_STILL),
                )
            ]
            async with asyncio.TaskGroup() as play:
                play.create_task(driver.run(chosen.concurrency))
                play.create_task(injector.run())
            report.seconds = time.monotonic() - begun
            report.cpu_seconds = harness.cpu_seconds()
            for task in tasks:
                task.cancel()
        await verdict.reach(chosen.replay_every)
        report.verdict = verdict
    except* SoakFailed as failures:
        report.failure = "; ".join(sorted({str(failure) for failure in _leaves(failures)}))
    report.seconds = report.seconds or time.monotonic() - begun
    report.sizes = harness.sizes()
    if report.failure is None:
        report.judge(unplanned_percent=chosen.unplanned_percent)
    if not report.is_clean:
        why = report.failure or "; ".join(report.problems) or "something does not hold at rest"
        await dump(chosen.dump, why, harness, client, plan, book, injector, driver.open)
        (chosen.dump / "report.json").write_text(json.dumps(report.document(), indent=1) + "\n", encoding="utf-8")
    return report


def _leaves(group: BaseExceptionGroup[SoakFailed]) -> list[BaseException]:
    found: list[BaseException] = []
    for failure in group.exceptions:
        found += _leaves(failure) if isinstance(failure, BaseExceptionGroup) else [failure]
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batched", type=float, default=Plan.batched, help="the share of the orders in batches")
    parser.add_argument("--concurrency", type=int, default=60)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--faults-per-thousand", type=int, default=36)
    parser.add_argument(
        "--patience", type=float, default=100.0, help="seconds without an ending until it is broken off"
    )
    parser.add_argument("--unplanned-percent", type=float, default=2.0, help="refusals that faults may cost")
    parser.add_argument("--replay-every", type=int, default=50, help="replay one of so many histories")
    parser.add_argument("--dump", type=Path, help="where to write why it failed")
    parser.add_argument("--plan", action="store_true", help="print the planned faults and stop")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the report as a Markdown table")
    chosen = parser.parse_args()
    chosen.dump = chosen.dump or Path(tempfile.gettempdir()) / f"soak-{chosen.seed}-{int(time.time())}"
    return chosen


def print_plan(plan: Plan) -> None:
    faults = plan.faults()
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fault.kind for fault in faults).most_common())
    lines = [f"seed {plan.seed}: {plan.orders} orders, {len(faults)} faults: {kinds or 'none'}"]
    lines += [f"  at order {one.at:6}: {one.kind} #{one.target} for {one.seconds} s" for one in faults]
    sys.stderr.write("\n".join(lines) + "\n")


def main() -> int:
    chosen = arguments()
    logging.getLogger("temporalio").setLevel(logging.ERROR)
    faults = chosen.faults_per_thousand if chosen.workers else 0
    plan = Plan(chosen.seed, chosen.orders, faults, chosen.workers > 1, chosen.batched)
    print_plan(plan)
    if chosen.plan:
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    harness = Harness(Path(tempfile.mkdtemp(prefix="soak-harness-")), workers=chosen.workers)
    try:
        harness.start()
        report = asyncio.run(soak(harness, plan, chosen))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        harness.stop()
        harness.remove()
    if chosen.json:
        sys.stdout.write(json.dumps(report.document(), indent=1) + "\n")
    else:
        sys.stdout.write((report.markdown() if chosen.markdown else report.table()) + "\n")
    if not report.is_clean:
        sys.stderr.write(f"seed {chosen.seed} FAILED; what tells why is in {chosen.dump}\n")
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
