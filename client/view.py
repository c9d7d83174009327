"""What the starter shows: a few lines for people, one JSON document for programs."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text
from typer.exceptions import TyperException

from adapters.terminal import Terminal, styled
from client.bulk import BulkReport, Stop
from client.listing import TERMINATED
from client.load import LoadReport
from client.order_list import Listing
from client.outcomes import MALFORMED
from domain.audit import AuditReport
from domain.bulk import ORDER_ID_CONFLICT, UNKNOWN
from domain.model import CheckoutStatus, OrderStatus, format_money
from domain.sweep import SweepReport
from domain.text import json_text, on_one_line

console = Terminal()
errors = Terminal(stderr=True, soft_wrap=True)

COMPLETED, UNREACHABLE, USAGE, REFUSED, STUCK, VIOLATED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
"""Exit statuses."""

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


def exit_status(status: str) -> int:
    """Give the exit status that tells how an order stands."""
    if status in {"rejected", "cancelled"}:
        return REFUSED
    return STUCK if status in {"stuck", TERMINATED} else COMPLETED


def order_document(status: CheckoutStatus, workflow_id: str | None, ui_url: str | None) -> dict[str, Any]:
    """Put an order's state into the form that `--json` prints; without a history there are no id and no link of it."""
    return {
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


def print_json(document: Mapping[str, Any] | Iterable[Any]) -> None:
    """Print one JSON document, on one line when nobody reads it."""
    document = document if isinstance(document, Mapping) else list(document)
    print(json_text(document, indent=2 if console.is_terminal else None))  # noqa: T201 - no console, which would wrap it


def print_usage_error(error: TyperException) -> None:
    """Say what was wrong with the command line, which the message quotes."""
    error.message = on_one_line(error.message)
    told = io.StringIO()
    error.show(file=told)  # type: ignore[attr-defined]  # every usage error has it; Typer does not export their class
    errors.print(told.getvalue().rstrip())


def print_order(status: CheckoutStatus, workflow_id: str | None, ui_url: str | None, *, as_json: bool) -> int:
    """Show an order with its steps and where to look on, and give the exit status that tells how it stands."""
    if as_json:
        print_json(order_document(status, workflow_id, ui_url))
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
    """Show orders, and on stderr what is not among them; `link_to` gives the address of a workflow's history."""
    if listing.note:
        errors.print(on_one_line(listing.note), style="yellow")
    if as_json:
        print_json(
            {**vars(order), "workflow_id": place, "ui_url": link_to(place) if place else None}
            for order, place in listing.rows
        )
        return
    # An id is there to be copied: a long one takes more lines.
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
    """Show what the audit found, and what it had looked at."""
    counted = on_one_line(", ".join(f"{number} {status}" for status, number in report.orders.items()) or "no orders")
    if not report.violation_count:
        told = f": {len(report.checks)} checks, not one violation; {counted}"
        console.print(Text.assemble(("clean", "green"), told))
        if report.orders.get("stuck"):
            console.print(styled("[bold red]somebody is needed[/]: `starter.py list --status stuck` names the orders"))
        return
    table = Table("check", "what must hold", "subject", "found", box=None, pad_edge=False)
    for found in report.violations:
        must_hold = report.checks.get(found.check, "")
        table.add_row(*map(on_one_line, (found.check, must_hold, found.subject, found.detail)))
    console.print(table)
    console.print(Text.assemble((f"{report.violation_count} violations", "bold red"), f"; {counted}"))
    console.print("docs/operations.md says what to do about each.")


def print_sweep(report: SweepReport, *, as_json: bool) -> int:
    """Show what the sweep did, and give the exit status that tells the worst of what it left for a person."""
    if as_json:
        print_json(vars(report))
    else:
        _tell_sweep(report)
    if report.parked_count:
        return STUCK
    return USAGE if report.malformed_count else COMPLETED


def _tell_sweep(report: SweepReport) -> None:
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
        told = ": docs/operations.md, A restored database"
        console.print(Text.assemble((f"{report.parked_count} parked", "bold red"), told))
    if report.malformed_count:
        console.print(f"{report.malformed_count} cannot be started", style="yellow")


def print_load(report: LoadReport, *, as_json: bool) -> None:
    """Show what came of a load: throughput, latency percentiles and outcomes."""
    percentiles = {f"p{percent}_ms": round(report.percentile(percent), 1) for percent in (50, 95, 99)}
    if as_json:
        print_json(
            {
                "orders": report.orders,
                "concurrency": report.concurrency,
                "mix": report.mix,
                "seconds": round(report.seconds, 3),
                "per_second": round(report.per_second, 1),
                **percentiles,
                "outcomes": report.outcomes,
                "failures": report.failures,
            }
        )
        return
    told = f"{report.orders} orders ({report.mix}), {report.concurrency} at once: {report.seconds:.1f} s, "
    console.print(_rate(told, report.per_second))
    console.print(
        "latency  " + "  ".join(f"{name.removesuffix('_ms')} {ms:.0f} ms" for name, ms in percentiles.items())
    )
    console.print(f"outcome  {_counts(report.outcomes)}")
    for failure in report.failures[:10]:
        console.print(f"failed   {on_one_line(failure)}", style="red", soft_wrap=True)
    if report.failures:
        console.print(f"{len(report.failures)} orders could not be followed", style="bold red")


def print_bulk(report: BulkReport, into: Path, *, as_json: bool) -> int:
    """Show what came of a bulk load, and give the exit status that tells the worst of it."""
    if as_json:
        print_json(
            {
                "orders": report.outcomes.total(),
                "skipped": report.skipped,
                "seconds": round(report.seconds, 3),
                "per_second": round(report.per_second, 1),
                "outcomes": report.outcomes,
                "outcome_file": str(into),
                "stopped": report.stopped,
                "under_way": report.under_way,
            }
        )
    else:
        console.print(_rate(f"{report.outcomes.total()} orders: {report.seconds:.1f} s, ", report.per_second))
        console.print(f"outcome  {_counts(report.outcomes)}")
        if report.skipped:
            console.print(f"skipped  {report.skipped} that had an outcome already")
        console.print(f"each order's outcome is in {on_one_line(str(into))}")
    if report.stopped:
        errors.print(
            f"{report.stopped}, at line {report.line}: {report.outcomes.total() + report.skipped} orders have their "
            f"outcome in {on_one_line(str(into))}, {report.under_way} are under way and go on; the same command goes "
            "on from there"
        )
        return INTERRUPTED if report.stopped is Stop.INTERRUPTED else UNREACHABLE
    if report.outcomes[UNKNOWN]:
        return UNREACHABLE
    if report.outcomes[OrderStatus.STUCK]:
        return STUCK
    return USAGE if report.outcomes[MALFORMED] or report.outcomes[ORDER_ID_CONFLICT] else COMPLETED


def _styled(state: str) -> Text:
    return Text(on_one_line(state), style=_STYLES.get(state, ""))


def _rate(told: str, per_second: float) -> Text:
    return Text.assemble(told, (f"{per_second:.1f}", "bold"), " orders/s")


def _counts(outcomes: Counter[str]) -> str:
    return on_one_line(", ".join(f"{count} {name}" for name, count in outcomes.most_common()))


def progress(as_json: bool) -> Progress:
    """Give a bar for what takes long; none beside JSON."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=errors, disable=as_json, transient=True)
