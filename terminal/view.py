"""What the commands print: a few lines of text, or one JSON document."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text
from typer.exceptions import TyperException

from adapters.terminal import Terminal, styled
from client.failures import ExitStatus
from client.listing import TERMINATED
from client.order_list import Listing
from domain.audit import AuditReport
from domain.model import CheckoutStatus, format_money
from domain.sweep import SweepReport
from domain.text import json_text, on_one_line

console = Terminal()
errors = Terminal(stderr=True, soft_wrap=True)

_STYLES = {
    "completed": "green",
    "done": "green",
    "rejected": "yellow",
    "cancelled": "yellow",
    "undone": "yellow",
    "resolved": "yellow",
    "stuck": "bold red",
    TERMINATED: "bold red",
    "failed": "red",
    "running": "cyan",
    "unwinding": "cyan",
    "undoing": "cyan",
}


def exit_status(status: str) -> ExitStatus:
    """Return the exit status for an order's status."""
    if status in {"rejected", "cancelled"}:
        return ExitStatus.REFUSED
    return ExitStatus.STUCK if status in {"stuck", TERMINATED} else ExitStatus.COMPLETED


def print_json(document: Mapping[str, Any] | Iterable[Any]) -> None:
    """Print one JSON document, on one line unless to a terminal."""
    document = document if isinstance(document, Mapping) else list(document)
    print(json_text(document, indent=2 if console.is_terminal else None))  # noqa: T201 - no console, which would wrap it


def print_usage_error(error: TyperException) -> None:
    """Print what is wrong with the command line, which the message quotes."""
    error.message = on_one_line(error.message)
    message = io.StringIO()
    error.show(file=message)  # type: ignore[attr-defined]  # every usage error has it; Typer does not export their class
    errors.print(message.getvalue().rstrip())


def print_order(status: CheckoutStatus, workflow_id: str | None, ui_url: str | None, *, as_json: bool) -> int:
    """Print an order with its steps and the link to its history, and return the exit status for it."""
    if as_json:
        print_json(
            {
                "order_id": status.order_id,
                "workflow_id": workflow_id,
                "status": status.status,
                "reason": status.reason,
                "total_minor": status.total_minor,
                "currency": status.currency,
                "tracking_number": status.tracking_number,
                "steps": [asdict(step) for step in status.steps],
                "ui_url": ui_url,
            }
        )
        return exit_status(status.status)
    heading = Text.assemble(("order ", ""), (on_one_line(status.order_id), "bold"), "  ", _styled(status.status))
    if status.total_minor is not None and status.currency:
        heading.append(f"  {on_one_line(format_money(status.total_minor, status.currency))}")
    if status.tracking_number:
        heading.append(f"  parcel {on_one_line(status.tracking_number)}")
    console.print(heading, soft_wrap=True)
    if status.reason:
        console.print(Text(f"  {on_one_line(status.reason)}"), soft_wrap=True)
    for step in status.steps:
        line = Text.assemble("  ", (f"{on_one_line(step.step):<8}", ""), _styled(step.state))
        if step.detail:
            line.append(f"  {on_one_line(step.detail)}", style="dim")
        console.print(line, soft_wrap=True)
    console.print(Text(f"  {ui_url or 'Temporal has no history of it'}", style="dim"), soft_wrap=True)
    return exit_status(status.status)


def print_list(listing: Listing, link_to: Callable[[str], str], *, as_json: bool) -> None:
    """Print orders, and on stderr what is not among them; `link_to` returns the address of a workflow's history."""
    if listing.note:
        errors.print(on_one_line(listing.note), style="yellow")
    if as_json:
        print_json(
            {**vars(order), "workflow_id": place, "ui_url": link_to(place) if place else None}
            for order, place in listing.rows
        )
        return
    # An id is copied by hand: a long one is wrapped, not cut.
    table = Table(
        Column("order", overflow="fold"), "status", "failed step", "started", "took", box=None, pad_edge=False
    )
    for order, _ in listing.rows:
        took = f"{(order.closed_at - order.started_at).total_seconds():.1f} s" if order.closed_at else ""
        table.add_row(
            on_one_line(order.order_id),
            _styled(order.status),
            on_one_line(order.failed_step or ""),
            f"{order.started_at.astimezone():%Y-%m-%d %H:%M:%S}",
            took,
        )
    console.print(table if table.row_count else "no such orders")


def print_audit(report: AuditReport) -> None:
    """Print what the audit found, and what it checked."""
    counted = on_one_line(", ".join(f"{number} {status}" for status, number in report.orders.items()) or "no orders")
    if not report.violation_count:
        text = f": {len(report.checks)} checks, no violations; {counted}"
        console.print(Text.assemble(("clean", "green"), text))
        if report.orders.get("stuck"):
            console.print(
                styled("[bold red]an operator is needed[/]: `starter.py list --status stuck` names the orders")
            )
        return
    table = Table("check", "what must hold", "subject", "found", box=None, pad_edge=False)
    for found in report.violations:
        must_hold = report.checks.get(found.check, "")
        table.add_row(*map(on_one_line, (found.check, must_hold, found.subject, found.detail)))
    console.print(table)
    console.print(Text.assemble((f"{report.violation_count} violations", "bold red"), f"; {counted}"))
    if report.urgent:
        checks = on_one_line(", ".join(report.urgent))
        console.print(Text.assemble(("a person is needed at once", "bold red"), f": {checks}"), soft_wrap=True)
    else:
        console.print("it can wait until the morning")
    console.print("docs/operations.md says what to do about each.")


def print_sweep(report: SweepReport, *, as_json: bool) -> int:
    """Print what the sweep did, and return the exit status for the worst that it left to an operator."""
    if as_json:
        print_json(vars(report))
    else:
        _print_sweep(report)
    if report.parked_count:
        return ExitStatus.STUCK
    return ExitStatus.USAGE if report.malformed_count else ExitStatus.COMPLETED


def _print_sweep(report: SweepReport) -> None:
    for verb, orders in (
        ("started", report.started),
        ("repairing", report.repaired),
        ("parked: Temporal and the database disagree on", report.parked),
    ):
        for order_id in orders:
            console.print(f"{verb} {on_one_line(order_id)}", soft_wrap=True)
    for problem in report.malformed:
        console.print(f"cannot start {on_one_line(problem)}", style="yellow", soft_wrap=True)
    console.print(
        f"{report.started_count} started, {report.repaired_count} being repaired, {report.alive} already running"
    )
    if report.parked_count:
        text = ": docs/operations.md, A restored database"
        console.print(Text.assemble((f"{report.parked_count} parked", "bold red"), text))
    if report.malformed_count:
        console.print(f"{report.malformed_count} cannot be started", style="yellow")


def _styled(state: str) -> Text:
    return Text(on_one_line(state), style=_STYLES.get(state, ""))


def rate(text: str, per_second: float) -> Text:
    """Put a throughput after a text."""
    return Text.assemble(text, (f"{per_second:.1f}", "bold"), " orders/s")


def counts(outcomes: Counter[str]) -> str:
    """List how many orders ended how, the most frequent first."""
    return on_one_line(", ".join(f"{count} {name}" for name, count in outcomes.most_common()))


def progress(as_json: bool) -> Progress:
    """Build a progress bar; none beside JSON."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, disable=as_json, transient=True)
