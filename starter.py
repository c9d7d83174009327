"""The starter: begins checkouts, looks at them, cancels and mends them. Talks to Temporal alone.

Exit status: 0 completed, or the command did its job; 1 the server cannot be reached or nobody works;
2 wrong usage; 3 rejected, cancelled or refused; 4 stuck; 5 the audit found violations.
"""

import secrets
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from adapters.config import ConfigurationError, StarterSettings, load
from adapters.telemetry import leave
from client import view
from client.bulk import BulkLoad
from client.checkouts import Checkouts
from client.connection import Unreachable, run, starting
from client.failures import NoSuchOrder, NoWorker, OtherContent, Refused
from client.listing import LISTABLE
from client.load import MIXES, run_load
from client.options import Json, OrderId, Timeout, Version, order_line
from client.orders_file import line_count, read_orders
from client.outcomes import OutcomeFile
from domain.bulk import MAX_BATCH
from domain.errors import InvalidInput
from domain.identifiers import composed, typed
from domain.model import CheckoutInput, CheckoutStatus, reason_problem

app = typer.Typer(
    help=__doc__,
    epilog="Examples: `starter.py start --customer alice --line tea-mug:2`, `starter.py list --status stuck`",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def _every_command(*, version: Version = False) -> None:
    """Take what stands before the command's name."""


@app.command(epilog="Example: `starter.py start --customer alice --line tea-mug:2 --line poster:1`")
def start(
    customer: Annotated[str, typer.Option(help="Who buys.", show_default=False)],
    line: Annotated[
        list[str],
        typer.Option(metavar="SKU:QTY", help="What and how many. Repeat it; lines of one SKU are merged."),
    ],
    order_id: Annotated[
        str | None,
        typer.Option(help="The order's id. Starting the same id again joins the order.", show_default="new"),
    ] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the outcome.")] = True,
    as_json: Json = False,
) -> int:
    """Start the checkout of one order, and wait for how it ends."""
    lines = tuple(order_line(composed(text)) for text in line)
    lane = load(StarterSettings).lane
    chosen = f"order-{secrets.token_hex(6)}" if order_id is None else composed(order_id)
    order = CheckoutInput(chosen, composed(customer), lines, lane=lane)

    async def work(checkouts: Checkouts) -> int:
        if order_id is None and not as_json:  # before it is sent: whoever has to repeat this needs to know it
            view.errors.print(f"the order's id is {order.order_id}; a repeat needs --order-id {order.order_id}")
        with starting(order.order_id):
            is_new = await checkouts.start(order)
        if not as_json and wait and is_new:
            view.errors.print(
                f"started {order.order_id}; if this is interrupted: starter.py status {typed(order.order_id)}"
            )
        if wait:
            return _show(checkouts, await checkouts.outcome(order.order_id), as_json)
        status = CheckoutStatus(order.order_id, "running") if is_new else await checkouts.status(order.order_id)
        return _show(checkouts, status, as_json)

    return run(work)


@app.command(epilog="Example: `starter.py status order-1`")
def status(order_id: OrderId, *, as_json: Json = False) -> int:
    """Show where an order stands, step by step."""

    async def work(checkouts: Checkouts) -> int:
        return _show(checkouts, await checkouts.status(order_id), as_json)

    return run(work)


@app.command("list", epilog="Example: `starter.py list --status stuck`")
def list_orders(
    with_status: Annotated[
        str | None, typer.Option("--status", help=f"Only these: {', '.join(LISTABLE)}.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    *,
    as_json: Json = False,
) -> int:
    """List orders. What changed within the last second may not show yet."""
    if with_status is not None and with_status not in LISTABLE:
        raise typer.BadParameter(f"{with_status!a} is no status; known are {', '.join(LISTABLE)}")

    async def work(checkouts: Checkouts) -> int:
        found = [(order, checkouts.ui_link(order.order_id)) async for order in checkouts.list(with_status, limit)]
        if as_json:
            view.print_json([{**vars(order), "ui_url": link} for order, link in found])
        else:
            view.print_list(found)
        return view.COMPLETED

    return run(work)


@app.command(epilog='Example: `starter.py cancel order-1 --reason "found it cheaper"`')
def cancel(
    order_id: OrderId,
    reason: Annotated[str, typer.Option(help="Why; kept in the order's log.", show_default=False)],
    *,
    as_json: Json = False,
) -> int:
    """Cancel an order that is under way: everything done so far is undone. Refused once it has ended."""
    _require_reason(reason)

    async def work(checkouts: Checkouts) -> int:
        await checkouts.cancel(order_id, reason)
        outcome = await checkouts.outcome(order_id)
        _show(checkouts, outcome, as_json)
        if outcome.status == "cancelled":
            return view.COMPLETED
        return view.REFUSED if outcome.status == "completed" else view.exit_status(outcome.status)

    return run(work)


@app.command(epilog='Example: `starter.py retry order-1 --reason "the bank answers again"`')
def retry(
    order_id: OrderId,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the order's log.", show_default="none")] = None,
    *,
    as_json: Json = False,
) -> int:
    """Try the failed undos of a stuck order again, after the cause was mended; also of one that needs a review."""
    _require_reason(reason)

    async def work(checkouts: Checkouts) -> int:
        return _mended(checkouts, await checkouts.retry(order_id, reason or ""), as_json)

    return run(work)


@app.command(epilog='Example: `starter.py resolve order-1 --step pay --reason "refunded at the bank, ref 4711"`')
def resolve(
    order_id: OrderId,
    step: Annotated[str, typer.Option(help="The stuck step: reserve, pay or ship.", show_default=False)],
    reason: Annotated[str, typer.Option(help="What was done by hand; kept for good.", show_default=False)],
    *,
    as_json: Json = False,
) -> int:
    """Declare a stuck step settled by hand. Neither it nor its undo will ever act for this order again."""
    _require_reason(reason)

    async def work(checkouts: Checkouts) -> int:
        return _mended(checkouts, await checkouts.resolve(order_id, step, reason), as_json)

    return run(work)


@app.command(epilog="Example: `starter.py audit --at-rest`")
def audit(
    *,
    at_rest: Annotated[
        bool,
        typer.Option("--at-rest", help="Nothing is running: count every unfinished order as a violation."),
    ] = False,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> int:
    """Check every invariant of the database. Without --at-rest, unfinished orders get an hour.

    Exits with 5 when a check finds something, with 4 when nothing is wrong but an order is stuck.
    """

    async def work(checkouts: Checkouts) -> int:
        report = await checkouts.audit(timedelta(seconds=timeout), is_at_rest=at_rest)
        if as_json:
            view.print_json(
                {
                    "violation_count": report.violation_count,
                    "violations": [vars(found) for found in report.violations],
                    "checks": report.checks,
                    "orders": report.orders,
                }
            )
        else:
            view.print_audit(report)
        if not report.is_clean:
            return view.VIOLATED
        return view.STUCK if report.orders.get("stuck") else view.COMPLETED

    return run(work)


@app.command(epilog="Example: `starter.py sweep`")
def sweep(
    *,
    stood_still: Annotated[
        float, typer.Option(min=0, help="Leave unfinished orders alone that moved within so many seconds.")
    ] = 60,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> int:
    """Start pending orders that have no saga, and repair orders whose workflow is gone."""

    async def work(checkouts: Checkouts) -> int:
        report = await checkouts.sweep(timedelta(seconds=stood_still), timedelta(seconds=timeout))
        if as_json:
            view.print_json(vars(report))
        else:
            view.print_sweep(report)
        return view.COMPLETED

    return run(work)


@app.command("load", epilog="Example: `starter.py load --orders 500 --mix mixed`; `starter.py load --from orders.csv`")
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


def _require_reason(reason: str | None) -> None:
    if reason is not None and (problem := reason_problem(reason)):
        raise typer.BadParameter(problem)


def _show(checkouts: Checkouts, order: CheckoutStatus, as_json: bool) -> int:
    link = checkouts.ui_link(order.order_id)
    if as_json:
        view.print_json(view.order_document(order, link))
    else:
        view.print_order(order, link)
    return view.exit_status(order.status)


def _mended(checkouts: Checkouts, order: CheckoutStatus, as_json: bool) -> int:
    """Show a stuck order after somebody worked on it: 0 when it is not stuck any more."""
    return view.STUCK if _show(checkouts, order, as_json) == view.STUCK else view.COMPLETED


def main() -> int:
    """Run one command and give its exit status."""
    try:
        message, code = "interrupted; what was started goes on", int(app(standalone_mode=False) or 0)
        if code != view.INTERRUPTED:  # what Typer makes of Ctrl-C
            return code
    except TyperException as error:
        error.show()  # type: ignore[attr-defined]  # every usage error has it; Typer does not export their class
        return error.exit_code
    except (InvalidInput, ConfigurationError, NoSuchOrder, OtherContent) as error:
        message, code = getattr(error, "message", None) or str(error), view.USAGE
    except Refused as error:
        message, code = f"refused: {error}", view.REFUSED
    except (Unreachable, NoWorker) as error:
        message, code = str(error), view.UNREACHABLE
    except BrokenPipeError:
        return view.UNREACHABLE  # whoever read our output is gone; nobody is left to be told
    view.errors.print(message, style="red", markup=False)
    return code


if __name__ == "__main__":
    leave(main())
