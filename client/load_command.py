"""The command `load`: many orders at once, made up or from a file."""

import contextlib
import itertools
import secrets
from pathlib import Path
from typing import Annotated

import typer

from adapters.config import StarterSettings, load
from client import view
from client.bulk import BulkLoad, Stop
from client.checkouts import Checkouts
from client.connection import run
from client.failures import LoadFailed
from client.interrupts import on_signals
from client.load import MIXES, run_load
from client.options import Json
from client.orders_file import line_count, read_orders
from client.outcomes import OutcomeFile
from domain.bulk import MAX_BATCH

EXAMPLES = "Examples: `starter.py load --orders 500 --mix mixed`; `starter.py load --from orders.csv`"


def load_orders(  # noqa: PLR0913, PLR0917 - the options of two ways to load
    orders: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="How many orders to make up.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", help="The orders to load: a .csv or .jsonl file (docs/bulk.md).", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=1_000, help="How many orders at once; with --from, batches.", show_default="50; 4"),
    ] = None,
    mix: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {told}" for name, (told, _) in MIXES.items()) + ".")
    ] = "happy",
    outcomes: Annotated[
        Path | None,
        typer.Option(
            help="Where each order's outcome is written; the load goes on from it.",
            show_default="FROM.outcomes.csv",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="With --from: how many orders to a batch.")] = 250,
    *,
    as_json: Json = False,
) -> int:
    """Load many orders: so many that are made up, for a look at throughput; or those of a file, each to its outcome."""
    if (orders is None) == (file is None):
        raise typer.BadParameter("give either --orders, for orders that are made up, or --from, for those of a file")
    if file is not None:
        return _load_file(file, outcomes, batch, concurrency or 4, as_json)
    assert orders is not None
    return _load_made_up(orders, concurrency or 50, mix, as_json)


def _load_file(file: Path, into: Path | None, batch: int, at_once: int, as_json: bool) -> int:
    where = into or _outcomes_of(file)
    # Before anything else: a file that is none is refused, and one that is looked through can be interrupted.
    entries = read_orders(file)
    begin = list(itertools.islice(entries, 1))

    async def work(checkouts: Checkouts) -> int:
        with OutcomeFile(where) as outcomes, view.progress(as_json) as progress:
            bar = progress.add_task("lines", total=None if as_json else line_count(file))
            bulk = BulkLoad(
                checkouts,
                outcomes,
                batch_size=batch,
                at_once=at_once,
                on_done=lambda lines: progress.advance(bar, lines),
            )
            with on_signals(lambda: bulk.stop(Stop.INTERRUPTED)):
                report = await bulk.run(itertools.chain(begin, entries))
        code = view.print_bulk(report, where, as_json=as_json)
        if isinstance(report.failure, OSError):
            raise LoadFailed(f"{where} cannot be written: {report.failure.strerror}")
        if report.failure is not None:
            raise report.failure
        return code

    with contextlib.closing(entries):
        return run(work)


def _outcomes_of(file: Path) -> Path:
    """Name the outcome file beside a file of orders: one of its own, whatever its suffix."""
    into = file.with_name(f"{file.name}.outcomes.csv")
    earlier = file.with_suffix(".outcomes.csv")
    if earlier.exists() and not into.exists():
        view.errors.print(
            f"{earlier} is of an earlier version, and not gone on with: every order is asked for again, and has the "
            f"outcome that it had. To go on with it: --outcomes {earlier}",
        )
    return into


def _load_made_up(orders: int, concurrency: int, mix: str, as_json: bool) -> int:
    if mix not in MIXES:
        raise typer.BadParameter(f"{mix!a} is no mix; known are {', '.join(MIXES)}")
    lane = load(StarterSettings).lane

    async def work(checkouts: Checkouts) -> int:
        with view.progress(as_json) as progress:
            bar = progress.add_task("orders", total=orders)
            report = await run_load(
                checkouts,
                orders=orders,
                concurrency=concurrency,
                mix=mix,
                prefix=f"load-{secrets.token_hex(4)}",
                lane=lane,
                on_done=lambda: progress.advance(bar),
            )
        view.print_load(report, as_json=as_json)
        return view.UNREACHABLE if report.failures else view.COMPLETED

    return run(work)
