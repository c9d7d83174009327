"""What people read of a checkout: the current details in the UI, and the failure that it ends with."""

from domain.identifiers import typed
from domain.model import CheckoutStatus
from domain.text import code, for_markdown
from workflows.compensation import Unwound


def details(status: CheckoutStatus, stuck_steps: list[str]) -> str:
    """Tell an order's state step by step, in Markdown; where it is stuck, with what to do next."""
    lines = [f"**{status.status}**" + (f": {for_markdown(status.reason)}" if status.reason else ""), ""]
    lines += [
        f"* {step.step}: {step.state}" + (f" ({for_markdown(step.detail)})" if step.detail else "")
        for step in status.steps
    ]
    if stuck_steps:
        order, rest = typed(status.order_id), f"--step {stuck_steps[0]} --reason ..."
        told = f"{rest} {order}" if order.startswith("-- ") else f"{order} {rest}"
        retry, resolve = f"starter.py retry {order}", f"starter.py resolve {told}"
        hint = f"Mend the cause, then {code(retry)}; or settle it by hand, then {code(resolve)}"
        lines += ["", hint]
    return "\n".join(lines)


def failure(status: CheckoutStatus, unwound: Unwound) -> str:
    """Name the failed step, the cause, and what became of each undo."""
    undone = "; ".join(f"{entry.step} {entry.state}" for entry in reversed(unwound.compensations))
    where = f" at {unwound.failed_step}" if unwound.failed_step else ""
    return f"order {status.order_id} {status.status}{where}: {status.reason}. Undone: {undone or 'nothing'}"
