"""The command `load`: many orders at once, made up or from a file."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from adapters.config import StarterSettings, load
from client import view
from client.bulk import BulkLoad
from client.checkouts import Checkouts
from client.connection import run
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
            help="Where each order's outcome is written; the load goes on from it.", show_default="FROM.outcomes.csv"
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
        return _load_file(file, outcomes or file.with_suffix(".outcomes.csv"), batch, concurrency or 4, as_json)
    assert orders is not None
    return _load_made_up(orders, concurrency or 50, mix, as_json)


def _load_file(file: Path, into: Path, batch: int, at_once: int, as_json: bool) -> int:
    next(read_orders(file), None)  # refuse a file that is none before anything else

    async def work(checkouts: Checkouts) -> int:
        with OutcomeFile(into) as outcomes, view.progress(as_json) as progress:
            bar = progress.add_task("lines", total=None if as_json else line_count(file))
            bulk = BulkLoad(
                checkouts,
                outcomes,
                batch_size=batch,
                at_once=at_once,
                on_done=lambda lines: progress.advance(bar, lines),
            )
            report = await bulk.run(read_orders(file))
        return view.print_bulk(report, into, as_json=as_json)

    return run(work)


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
