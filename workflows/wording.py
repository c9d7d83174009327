"""The texts of a checkout: its details in the UI, and the failure that it ends with. Tested without a workflow."""

from collections import Counter
from collections.abc import Sequence

from domain.bulk import Outcome
from domain.identifiers import typed
from domain.model import CheckoutStatus
from domain.text import code, for_markdown, for_summary
from sagafence import Unwound


def details(status: CheckoutStatus, stuck_steps: list[str]) -> str:
    """Describe an order's state step by step, in Markdown; where it is stuck, with the commands to use."""
    lines = [f"**{status.status}**" + (f": {for_markdown(status.reason)}" if status.reason else ""), ""]
    lines += [
        f"* {step.step}: {step.state}" + (f" ({for_markdown(step.detail)})" if step.detail else "")
        for step in status.steps
    ]
    if stuck_steps:
        order, rest = typed(status.order_id), f"--step {stuck_steps[0]} --reason ..."
        arguments = f"{rest} {order}" if order.startswith("-- ") else f"{order} {rest}"
        retry, resolve = code(f"starter.py retry {order}"), code(f"starter.py resolve {arguments}")
        lines += ["", f"Fix the cause, then {retry}; or undo the step by hand, then {resolve}"]
    return "\n".join(lines)


_LISTED = 100


def batch_details(states: Sequence[Outcome]) -> str:
    """Count the orders of a batch by their states, and list them, as far as a person would read."""
    counts = Counter(state.status for state in states)
    lines = [f"**{len(states)} orders**: " + ", ".join(f"{count} {state}" for state, count in counts.items()), ""]
    lines += [
        f"* {for_summary(state.order_id)}: {state.status}"
        + (f" ({for_markdown(state.reason)})" if state.reason else "")
        for state in states[:_LISTED]
    ]
    if len(states) > _LISTED:
        lines.append(f"* and {len(states) - _LISTED} more")
    return "\n".join(lines)


def failure(status: CheckoutStatus, unwound: Unwound) -> str:
    """Name the failed step, the cause, and what became of each undo."""
    undone = "; ".join(f"{entry.step} {entry.state}" for entry in reversed(unwound.compensations))
    where = f" at {unwound.failed_step}" if unwound.failed_step else ""
    return f"order {status.order_id} {status.status}{where}: {status.reason}. Undone: {undone or 'nothing'}"
