"""That contenders do the same: what ends how, and that the shop is in order afterwards."""

import itertools

from activities.maintenance import Maintenance
from adapters.database import create_engine
from benchmarks.contenders.contender import Contender
from devstack.stack import DevStack
from domain.maintenance import AuditInput
from domain.model import CheckoutInput, OrderLine

_numbers = itertools.count(1)
# Orders that reserve, pay and ship refuse.
_REFUSED = (("alice", "no-such"), ("bob", "tea-mug"), ("nemo", "item-001"))


class WentWrong(Exception):
    """Something did not end as it should. The text says what."""


async def require_undo(contender: Contender) -> None:
    """Have an order refused at each step, so that each undo is used.

    Raises:
        WentWrong: an order did not end as rejected.
    """
    for customer, sku in _REFUSED:
        order = CheckoutInput(f"refused-{next(_numbers)}", customer, (OrderLine(sku, 1),))
        status = await contender.carry(order)
        if status != "rejected":
            raise WentWrong(f"{contender.name}: {customer}'s order of {sku} ended as {status}")


async def require_order(stack: DevStack) -> None:
    """Run the audit over everything that was sold and undone.

    Raises:
        WentWrong: the audit found a violation.
    """
    engine = create_engine(stack.database_url, is_patient=True)
    try:
        report = await Maintenance(engine).run_audit(AuditInput(0.0))
    finally:
        await engine.dispose()
    if report.violations:
        raise WentWrong(f"the audit found {report.violations[0]}")
