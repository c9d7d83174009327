"""The starter: starts, shows, cancels, retries and resolves orders, through Temporal alone.

Exit status: 0 completed, still running, or the command did its job; 1 Temporal cannot be reached, no worker answered in
time, `--timeout` is over, or a load has unknown outcomes; 2 wrong usage: arguments, settings, an unknown order, an
order id with other content, malformed orders; 3 the order is rejected or cancelled, or the request was refused; 4 the
order is stuck or its workflow was terminated; 5 the audit found violations; 130 interrupted, and what was started goes
on.
"""

import os
import signal

if __name__ == "__main__":
    # Importing takes a second: a Ctrl-C meanwhile has started nothing, and needs no traceback.
    _interrupt = signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))

import secrets
import shlex
from datetime import timedelta
from typing import Annotated

import typer
from typer.exceptions import TyperException

from adapters.config import ConfigurationError
from adapters.log_setup import configure_logging
from adapters.process_exit import leave
from adapters.streams import clean_streams
from client import order_list
from client.checkouts import Checkouts
from client.failures import ClientError, ExitStatus, Refused
from client.orders import Found, Orders
from domain.identifiers import composed, typed
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from sagafence import InvalidInput
from terminal import view
from terminal.load.command import EXAMPLES as LOAD_EXAMPLES
from terminal.load.command import load_orders
from terminal.options import By, Json, OrderId, Timeout, Version, actor, order_line, require_reason
from terminal.session import run, starting
from terminal.waiting import advise_if_interrupted, advise_if_long, deadline

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
    """Take the options before the command's name."""


@app.command(epilog="Example: `starter.py start --customer alice --line tea-mug:2 --line poster:1`")
def start(  # noqa: PLR0913 - what an order is, and how it is waited for
    customer: Annotated[str, typer.Option(help="The customer.", show_default=False)],
    line: Annotated[
        list[str],
        typer.Option(metavar="SKU:QTY", help="What and how many; repeatable. Lines of one SKU are merged."),
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
    """Start the checkout of one order, and wait for its outcome."""
    lines = tuple(order_line(composed(text)) for text in line)
    chosen = f"order-{secrets.token_hex(6)}" if order_id is None else composed(order_id)
    order = CheckoutInput(chosen, composed(customer), lines)

    async def work(checkouts: Checkouts) -> int:
        if order_id is None and not as_json:  # before it is sent: a repeat needs it
            view.errors.print(f"starting {order.order_id}")
        with (
            starting(order.order_id),
            advise_if_interrupted(f"a repeat needs --order-id {shlex.quote(order.order_id)}"),
        ):
            is_new = await checkouts.start(order)
        if wait:
            if not as_json and is_new and order_id is not None:
                view.errors.print(f"started {order.order_id}")
            later = f"starter.py status {typed(order.order_id)}"
            with advise_if_interrupted(f"the order's status: {later}"):
                outcome = checkouts.outcome(order.order_id)
                advice = f"{order.order_id} is under way; if this is interrupted: {later}"
                async with deadline(timeout, order.order_id):
                    return _show(checkouts, await advise_if_long(outcome, advice, is_quiet=as_json), as_json)
        status = CheckoutStatus(order.order_id, "running") if is_new else await checkouts.status(order.order_id)
        return _show(checkouts, status, as_json)

    return run(work)


@app.command(epilog="Example: `starter.py status order-1`")
def status(order_id: OrderId, *, as_json: Json = False) -> int:
    """Show the status of an order, step by step."""

    async def work(checkouts: Checkouts) -> int:
        return _show(checkouts, await Orders(checkouts).find(order_id), as_json)

    return run(work)


@app.command("list", epilog="Example: `starter.py list --status stuck`")
def list_orders(
    with_status: Annotated[
        str | None, typer.Option("--status", help=f"Only these: {', '.join(order_list.LISTABLE)}.", show_default="all")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100,
    *,
    as_json: Json = False,
) -> int:
    """List orders, the newest first. A change of the last second may not show yet."""
    if with_status is not None and with_status not in order_list.LISTABLE:
        raise typer.BadParameter(f"{with_status!a} is no status; known are {', '.join(order_list.LISTABLE)}")

    async def work(checkouts: Checkouts) -> int:
        found = await order_list.list_orders(checkouts, with_status, limit)
        view.print_list(found, checkouts.ui_link, as_json=as_json)
        return ExitStatus.COMPLETED

    return run(work)


@app.command(epilog='Example: `starter.py cancel order-1 --reason "found it cheaper"`')
def cancel(
    order_id: OrderId,
    reason: Annotated[str, typer.Option(help="Why; kept in the order's log.", show_default=False)],
    by: By = None,
    *,
    as_json: Json = False,
) -> int:
    """Cancel an order that is under way: everything done so far is undone. Refused once it has ended."""
    require_reason(reason)

    async def work(checkouts: Checkouts) -> int:
        found = await Orders(checkouts).cancel(order_id, reason, actor(by))
        code = _show(checkouts, found, as_json)
        if found.status.status == "cancelled":
            return ExitStatus.COMPLETED
        return ExitStatus.REFUSED if found.status.status == "completed" else code

    return run(work)


@app.command(epilog='Example: `starter.py retry order-1 --reason "the bank answers again"`')
def retry(
    order_id: OrderId,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the order's log.", show_default="none")] = None,
    by: By = None,
    *,
    as_json: Json = False,
) -> int:
    """Retry the failed undos of a stuck order once the cause is fixed; also of one that needs a review."""
    require_reason(reason)

    async def work(checkouts: Checkouts) -> int:
        return _fixed(checkouts, await Orders(checkouts).retry(order_id, reason or "", actor(by)), as_json)

    return run(work)


@app.command(epilog='Example: `starter.py resolve order-1 --step pay --reason "refunded at the bank, ref 4711"`')
def resolve(
    order_id: OrderId,
    step: Annotated[str, typer.Option(help="The stuck step: reserve, pay or ship.", show_default=False)],
    reason: Annotated[str, typer.Option(help="What was done instead; kept in the order's log.", show_default=False)],
    by: By = None,
    *,
    as_json: Json = False,
) -> int:
    """Declare a stuck step resolved. Neither it nor its undo will ever act for this order again."""
    require_reason(reason)

    async def work(checkouts: Checkouts) -> int:
        return _fixed(checkouts, await Orders(checkouts).resolve(order_id, step, reason, actor(by)), as_json)

    return run(work)


@app.command(epilog="Example: `starter.py audit --at-rest`")
def audit(
    *,
    at_rest: Annotated[
        bool,
        typer.Option("--at-rest", help="Nothing is running: every unfinished order is a violation."),
    ] = False,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> int:
    """Check every invariant of the database. Without --at-rest, an order may be unfinished for an hour.

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
            return ExitStatus.VIOLATED
        return ExitStatus.STUCK if report.orders.get("stuck") else ExitStatus.COMPLETED

    return run(work)


@app.command(epilog="Example: `starter.py sweep`")
def sweep(
    *,
    idle_for: Annotated[
        float,
        typer.Option(
            "--idle-for",
            "--stood-still",
            min=0,
            help="Take unfinished orders only if they were idle for this many seconds.",
        ),
    ] = 60,
    timeout: Timeout = 300,
    as_json: Json = False,
) -> int:
    """Start pending orders that have no saga, and repair orders whose workflow is gone.

    Exits with 4 when it parked an order, with 2 when it parked none but found one that cannot be started.
    """

    async def work(checkouts: Checkouts) -> int:
        report = await checkouts.sweep(timedelta(seconds=idle_for), timedelta(seconds=timeout))
        return view.print_sweep(report, as_json=as_json)

    return run(work)


app.command("load", epilog=LOAD_EXAMPLES)(load_orders)


def _show(checkouts: Checkouts, order: CheckoutStatus | Found, as_json: bool) -> int:
    found = order if isinstance(order, Found) else Found(order, checkout_workflow_id(order.order_id))
    link = checkouts.ui_link(found.workflow_id) if found.workflow_id else None
    return view.print_order(found.status, found.workflow_id, link, as_json=as_json)


def _fixed(checkouts: Checkouts, order: CheckoutStatus, as_json: bool) -> int:
    """Show an order after a retry or resolve: 0 when it is not stuck any more."""
    return ExitStatus.STUCK if _show(checkouts, order, as_json) == ExitStatus.STUCK else ExitStatus.COMPLETED


def main() -> int:
    """Run one command and return its exit status."""
    try:
        message, code = "interrupted; what was started goes on", int(app(standalone_mode=False) or 0)
        if code != ExitStatus.INTERRUPTED:  # what Typer makes of Ctrl-C
            return code
    except TyperException as error:
        view.print_usage_error(error)
        return error.exit_code
    except (InvalidInput, ConfigurationError) as error:
        message, code = getattr(error, "message", None) or str(error), ExitStatus.USAGE
    except ClientError as error:
        message, code = f"refused: {error}" if isinstance(error, Refused) else str(error), error.exit_status
    except BrokenPipeError:
        return ExitStatus.UNREACHABLE  # the reader of our output is gone
    view.errors.print(message, style="red")
    return code


if __name__ == "__main__":
    clean_streams("stderr")
    configure_logging("WARNING")
    signal.signal(signal.SIGINT, _interrupt)
    leave(main())
