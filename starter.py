"""The starter: begins checkouts, looks at them, cancels and mends them. Talks to Temporal alone.

Exit status: 0 completed, or the command did its job; 1 the server cannot be reached or nobody works;
2 wrong usage; 3 rejected, cancelled or refused; 4 stuck; 5 the audit found violations.
"""

import secrets
from datetime import timedelta
from typing import Annotated

import typer
from typer.exceptions import TyperException

from adapters.config import ConfigurationError, StarterSettings, load
from adapters.telemetry import leave
from client import view
from client.checkouts import Checkouts
from client.connection import Unreachable, run, starting
from client.deadline import deadline
from client.failures import NoSuchOrder, NoWorker, OtherContent, Refused
from client.listing import LISTABLE
from client.load_command import EXAMPLES as LOAD_EXAMPLES
from client.load_command import load_orders
from client.options import Json, OrderId, Timeout, Version, order_line
from domain.errors import InvalidInput
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
def start(  # noqa: PLR0913 - what an order is, and how it is waited for
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
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, help="Seconds to wait at most.", show_default="no limit")
    ] = None,
    as_json: Json = False,
) -> int:
    """Start the checkout of one order, and wait for how it ends."""
    lines = tuple(order_line(text) for text in line)
    lane = load(StarterSettings).lane
    order = CheckoutInput(f"order-{secrets.token_hex(6)}" if order_id is None else order_id, customer, lines, lane=lane)

    async def work(checkouts: Checkouts) -> int:
        if order_id is None and not as_json:  # before it is sent: whoever has to repeat this needs to know it
            view.errors.print(f"the order's id is {order.order_id}; a repeat needs --order-id {order.order_id}")
        with starting(order.order_id):
            is_new = await checkouts.start(order)
        if not as_json and wait and is_new:
            view.errors.print(f"started {order.order_id}; if this is interrupted: starter.py status {order.order_id}")
        if wait:
            async with deadline(timeout, order.order_id):
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


app.command("load", epilog=LOAD_EXAMPLES)(load_orders)


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
