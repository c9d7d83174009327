"""The options of the command `load`, and what it does with them."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from client.checkouts import Checkouts
from client.failures import ClientError, ExitStatus
from domain.bulk import MAX_BATCH
from domain.lookup import NamesInput, NamesReport
from terminal import view
from terminal.load.bulk import BulkLoad, BulkReport, Stop, print_bulk
from terminal.load.dry_run import dry_run, print_dry_run
from terminal.load.made_up import MIXES, print_load, run_load
from terminal.load.orders_file import Entry, line_count, read_orders
from terminal.load.outcomes import OutcomeFile, Settled
from terminal.options import Json
from terminal.session import run
from terminal.waiting import on_signals

EXAMPLES = "Example: `starter.py load --orders 500 --mix mixed`; `starter.py load --from orders.csv`"
_LOOK_UP_SECONDS = 300.0


class LoadFailed(ClientError):
    """A load cannot go on."""


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
        str, typer.Option(help="; ".join(f"{name}: {what}" for name, (what, _) in MIXES.items()) + ".")
    ] = "happy",
    outcomes: Annotated[
        Path | None,
        typer.Option(
            help="Where each order's outcome is written; a repeat continues from it.",
            show_default="FROM.outcomes.csv",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="With --from: how many orders to a batch.")] = 250,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=1, help="Seconds to wait for outcomes; nothing is cancelled then.", show_default="no limit"
        ),
    ] = None,
    *,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="With --from: check every order of the file, and start nothing.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Load many orders: made-up ones, to measure throughput; or those of a file, each to its outcome."""
    if (orders is None) == (file is None):
        raise typer.BadParameter("give either --orders, for orders that are made up, or --from, for those of a file")
    if file is not None:
        given = _Given(file, outcomes, batch, concurrency or 4, timeout, as_json)
        return _check_file(given) if is_dry else _load_file(given)
    if is_dry:
        raise typer.BadParameter("--dry-run checks a file; give --from")
    assert orders is not None
    return _load_made_up(orders, concurrency or 50, mix, timeout, as_json)


@dataclass(frozen=True)
class _Given:
    """How a file is to be loaded."""

    file: Path
    outcomes: Path | None
    batch: int
    at_once: int
    timeout: float | None
    as_json: bool


def _load_file(given: _Given) -> int:
    into = given.outcomes or _outcomes_of(given.file)

    async def work(checkouts: Checkouts) -> int:
        try:
            with OutcomeFile(into) as outcomes:
                report = await _process(checkouts, entries, outcomes, given)
        except OSError as error:
            raise LoadFailed(_cannot_be_written(into, error)) from None
        code = print_bulk(report, into, as_json=given.as_json)
        if isinstance(report.failure, OSError):
            raise LoadFailed(_cannot_be_written(into, report.failure))
        if report.failure is not None:
            raise report.failure
        return code

    with _opened(given.file) as entries:
        return run(work)


async def _process(checkouts: Checkouts, entries: Iterable[Entry], outcomes: OutcomeFile, given: _Given) -> BulkReport:
    with view.progress(given.as_json) as progress:
        bar = progress.add_task("lines", total=None if given.as_json else line_count(given.file))
        bulk = BulkLoad(
            checkouts,
            outcomes,
            batch_size=given.batch,
            at_once=given.at_once,
            on_done=lambda lines: progress.advance(bar, lines),
        )
        if given.timeout is not None:
            asyncio.get_running_loop().call_later(given.timeout, bulk.stop, Stop.LATE)
        with on_signals(lambda: bulk.stop(Stop.INTERRUPTED)):
            return await bulk.run(entries)


def _check_file(given: _Given) -> int:
    settled = Settled.peek(given.outcomes or _outcomes_of(given.file))

    async def work(checkouts: Checkouts) -> int:
        async def look_up(asked: NamesInput) -> NamesReport:
            return await checkouts.look_up(asked, timedelta(seconds=given.timeout or _LOOK_UP_SECONDS))

        found = await dry_run(entries, look_up, settled)
        return print_dry_run(found, given.file, as_json=given.as_json)

    with _opened(given.file) as entries:
        return run(work)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Iterator[Entry]]:
    """Open a file of orders; one that is malformed as a whole is refused before anything is sent."""
    with contextlib.closing(read_orders(file)) as entries:
        yield itertools.chain(list(itertools.islice(entries, 1)), entries)


def _cannot_be_written(path: Path, error: OSError) -> str:
    return (
        f"{path} cannot be written: {error.strerror or error}. Orders that were started go on; make room, and the same "
        "command goes on from there"
    )


def _outcomes_of(file: Path) -> Path:
    """Name the outcome file beside a file of orders, whatever its suffix."""
    into = file.with_name(f"{file.name}.outcomes.csv")
    earlier = file.with_suffix(".outcomes.csv")
    if earlier.exists() and not into.exists():
        view.errors.print(
            f"{earlier} is of an earlier version and is not continued: every order is requested again, and has the "
            f"outcome that it had. To continue it: --outcomes {earlier}",
        )
    return into


def _load_made_up(orders: int, concurrency: int, mix: str, timeout: float | None, as_json: bool) -> int:
    if mix not in MIXES:
        raise typer.BadParameter(f"{mix!a} is no mix; known are {', '.join(MIXES)}")

    async def work(checkouts: Checkouts) -> int:
        with view.progress(as_json) as progress:
            bar = progress.add_task("orders", total=orders)
            report = await run_load(
                checkouts,
                orders=orders,
                concurrency=concurrency,
                mix=mix,
                prefix=f"load-{secrets.token_hex(4)}",
                timeout=timeout,
                on_done=lambda: progress.advance(bar),
            )
        print_load(report, as_json=as_json)
        return ExitStatus.UNREACHABLE if report.failures else ExitStatus.COMPLETED

    return run(work)
