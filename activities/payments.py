"""Step pay and its undo: capture an order's total from the customer, and refund it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from activities.steps import fence_key, refusal, undo_step
from domain.errors import InsufficientFunds, UnknownCustomer
from domain.model import CheckoutInput, Payment, Step, UndoInput, format_money
from sagafence import GATE, SagaError, UndoResult, do_once

# The amount is the one that reserve priced; nothing a client sends can change it. Where the order has left `reserved`
# since this statement began, the trigger on orders refuses the move, and the gate is rolled back with it. If `advanced`
# looked at the status again, the gate would be passed without an effect; if `bill` locked the order's row, before the
# gate, it would deadlock with the undo.
_CHARGE = text(f"""
WITH bill AS (
    SELECT o.order_id, o.customer, o.total_minor, o.currency, 'capture/' || o.order_id AS transfer_id
      FROM orders o JOIN accounts a ON a.account_id = o.customer
     WHERE o.order_id = :order_id AND o.status = 'reserved' AND o.fingerprint = :fingerprint
       AND a.balance_minor >= o.total_minor
), outcome AS (
    SELECT jsonb_build_object('transfer_id', transfer_id, 'amount_minor', total_minor, 'currency', currency) AS result
      FROM bill
), {GATE}, advanced AS (
    UPDATE orders o SET status = 'paid', changed_by = 'pay' FROM gate WHERE o.order_id = :order_id
    RETURNING o.order_id
), moved AS (
    INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency)
    SELECT bill.transfer_id, bill.order_id, 'capture', bill.customer, 'shop', bill.total_minor, bill.currency
      FROM bill JOIN advanced USING (order_id)
    RETURNING debit_account, amount_minor
), debited AS (
    UPDATE accounts a SET balance_minor = a.balance_minor - moved.amount_minor
      FROM moved WHERE a.account_id = moved.debit_account
)
SELECT result FROM gate
""")  # noqa: S608 - put together from our own constants

_FACTS = text("""
    SELECT o.status, o.fingerprint, o.total_minor, o.currency, a.balance_minor
      FROM orders o LEFT JOIN accounts a ON a.account_id = o.customer
     WHERE o.order_id = :order_id
""")

_REFUND = text("""
    WITH moved AS (
        INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency)
        SELECT 'refund/' || order_id, order_id, 'refund', credit_account, debit_account, amount_minor, currency
          FROM transfers WHERE order_id = :order_id AND kind = 'capture'
        RETURNING credit_account, amount_minor
    )
    UPDATE accounts a SET balance_minor = a.balance_minor + moved.amount_minor
      FROM moved WHERE a.account_id = moved.credit_account
""")


def why_not_paid(customer: str, balance_minor: int | None, total_minor: int, currency: str) -> SagaError | None:
    """Return why an order cannot be paid; None when it can. There is no such customer any more without a balance."""
    if balance_minor is None:
        return UnknownCustomer(f"there is no customer {customer}")
    if balance_minor >= total_minor:
        return None
    return InsufficientFunds(
        f"{customer} has {format_money(balance_minor, currency)}, the order costs {format_money(total_minor, currency)}"
    )


def _refuse(order: CheckoutInput, rows: Sequence[Row[Any]]) -> SagaError | None:
    [row] = rows
    return why_not_paid(order.customer, row.balance_minor, row.total_minor, row.currency)


class Payments:
    """The activities of step pay."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def charge_payment(self, order: CheckoutInput) -> Payment:
        """Capture the order's total from the customer's balance.

        One statement. A repeat returns the first payment.

        Raises:
            UnknownCustomer: the account was deleted since the order was reserved.
            InsufficientFunds: the balance is below the total.
            StepAlreadyCompensated: the refund came first, or the order is not waiting for payment.
            DatabaseContradictsHistory: the order's reservation is gone.
        """
        result = await do_once(
            self._engine,
            fence_key(order, Step.PAY),
            _CHARGE,
            {"order_id": order.order_id},
            explain=partial(refusal, order, Step.PAY, _FACTS, _refuse),
        )
        return Payment(**result)

    @activity.defn
    async def refund_payment(self, undo: UndoInput) -> UndoResult:
        """Give back what was captured for an order: the same amount, once.

        Raises:
            CompensationImpossible: the order's shipment is in effect.
        """
        return await undo_step(self._engine, undo, Step.PAY, _REFUND)
