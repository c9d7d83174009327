"""The starter: begins checkouts, looks at them, cancels and mends them. Talks to Temporal alone.

Exit status: 0 completed, or the command did its job; 1 the server cannot be reached or nobody works;
2 wrong usage; 3 rejected, cancelled or refused; 4 stuck; 5 the audit found violations.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from temporalio.service import RPCError
from typer.exceptions import TyperException

from adapters.config import ConfigurationError, StarterSettings, load
from adapters.telemetry import leave
from adapters.temporal import connect, connection_options
from client import view
from client.checkouts import LISTABLE, Checkouts
from client.failures import NoSuchOrder, NoWorker, OtherContent, Refused
from client.load import MIXES, run_load
from domain.errors import InvalidInput
from domain.model import CheckoutInput, CheckoutStatus, OrderLine, reason_problem

app = typer.Typer(
    help=__doc__,
    epilog="Examples: `starter.py start --customer alice --line tea-mug:2`, `starter.py list --status stuck`",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Work = Callable[[Checkouts], Awaitable[int]]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="The order's id.", show_default=False)]
Timeout = Annotated[float, typer.Option("--timeout", min=1, max=3600, help="Seconds to wait for the worker.")]


def _line(text: str) -> OrderLine:
    sku, separator, quantity = text.rpartition(":")
    if not separator or not quantity.lstrip("-").isascii() or not quantity.lstrip("-").isdigit():
        raise typer.BadParameter(f"{text!a} is not SKU:QUANTITY, as in tea-mug:2")
    # More digits than any quantity has; int() itself refuses thousands of them.
    return OrderLine(sku, int(quantity[:12]))


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
    lines = tuple(_line(text) for text in line)
    lane = load(StarterSettings).lane
    order = CheckoutInput(order_id or f"order-{secrets.token_hex(6)}", customer, lines, lane=lane)

    async def work(checkouts: Checkouts) -> int:
        is_new = await checkouts.start(order)
        if not as_json and wait and is_new:
            view.errors.print(f"started {order.order_id}; if this is interrupted: starter.py status {order.order_id}")
        if wait:
            return _show(checkouts, await checkouts.outcome(order.order_id), as_json)
        status = CheckoutStatus(order.order_id, "running") if is_new else await checkouts.status(order.order_id)
        return _show(checkouts, status, as_json)

    return _run(work)


@app.command(epilog="Example: `starter.py status order-1`")
def status(order_id: OrderId, *, as_json: Json = False) -> int:
    """Show where an order stands, step by step."""

    async def work(checkouts: Checkouts) -> int:
        return _show(checkouts, await checkouts.status(order_id), as_json)

    return _run(work)


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

    return _run(work)


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

    return _run(work)


@app.command(epilog="Example: `starter.py retry order-1`")
def retry(order_id: OrderId, *, as_json: Json = False) -> int:
    """Try the failed undos of a stuck order again, after the cause was mended."""

    async def work(checkouts: Checkouts) -> int:
        return _mended(checkouts, await checkouts.retry(order_id), as_json)

    return _run(work)


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

    return _run(work)


@app.command(epilog="Example: `starter.py audit --at-rest`")
def audit(
    *,
    at_rest: Annotated[
        bool,
        typer.Option("--at-rest", help="Nothing is running: count every unfinished order as a violation."),
    ] = False,
    timeout: Timeout = 60,
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

    return _run(work)


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

    return _run(work)


@app.command("load", epilog="Example: `starter.py load --orders 500 --concurrency 50 --mix mixed`")
def load_orders(
    orders: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many orders.", show_default=False)],
    concurrency: Annotated[int, typer.Option(min=1, max=1_000, help="How many at once.", show_default=False)],
    mix: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {told}" for name, (told, _) in MIXES.items()) + ".")
    ] = "happy",
    *,
    as_json: Json = False,
) -> int:
    """Start many orders and report throughput and latency."""
    if mix not in MIXES:
        raise typer.BadParameter(f"{mix!a} is no mix; known are {', '.join(MIXES)}")
    lane = load(StarterSettings).lane

    async def work(checkouts: Checkouts) -> int:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=view.errors, disable=as_json, transient=True) as progress:
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

    return _run(work)


def _require_reason(reason: str) -> None:
    if problem := reason_problem(reason):
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


def _run(work: Work) -> int:
    return asyncio.run(_with_checkouts(work))


async def _with_checkouts(work: Work) -> int:
    settings = load(StarterSettings)
    try:
        where = connection_options()["target_host"]
    except Exception as error:
        raise ConfigurationError(f"TEMPORAL_*: {error}") from error
    try:
        client = await connect()
    except (RuntimeError, RPCError) as error:
        raise Unreachable(where, error) from error
    try:
        return await work(Checkouts(client, settings.task_queue, settings.ui_url))
    except RPCError as error:
        raise Unreachable(where, error) from error


class Unreachable(Exception):
    """Temporal did not answer."""

    def __init__(self, where: str, error: Exception) -> None:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        super().__init__(
            f"Temporal at {where} does not answer: {reason}\n"
            "`make up` or `docker compose up` starts one; for another, set TEMPORAL_ADDRESS."
        )


def main() -> int:
    """Run one command and give its exit status."""
    try:
        return int(app(standalone_mode=False) or 0)
    except typer.Abort:
        return 130
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
    except KeyboardInterrupt:
        message, code = "interrupted; what was started goes on", 130
    view.errors.print(message, style="red", markup=False)
    return code


if __name__ == "__main__":
    leave(main())
