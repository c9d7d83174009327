"""Step pay and its undo: capture an order's total from the customer, and refund it."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities import refusals
from activities.fence import GATE, do_once
from activities.orders import (
    fence_key,
    forgotten,
    require_same_content,
)
from activities.undo import undo_step
from domain.errors import CheckoutError, StepAlreadyCompensated
from domain.model import CheckoutInput, OrderStatus, Payment, Step, UndoInput
from domain.undo import UndoResult

# The amount is the one that reserve priced; nothing a client sends can change it. Where the order has left
# `reserved` meanwhile, the trigger on orders refuses the move and takes the gate back with it.
_CHARGE = text(f"""
WITH bill AS (
    SELECT o.order_id, o.customer, o.total_minor, o.currency
      FROM orders o JOIN accounts a ON a.account_id = o.customer
     WHERE o.order_id = :order_id AND o.status = 'reserved' AND o.fingerprint = :fingerprint
       AND a.balance_minor >= o.total_minor
), outcome AS (
    SELECT jsonb_build_object('transfer_id', 'capture/' || order_id, 'amount_minor', total_minor,
                              'currency', currency) AS result
      FROM bill
), {GATE}, advanced AS (
    UPDATE orders o SET status = 'paid', changed_by = 'pay' FROM gate WHERE o.order_id = :order_id
    RETURNING o.order_id
), moved AS (
    INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency)
    SELECT 'capture/' || bill.order_id, bill.order_id, 'capture', bill.customer, 'shop', bill.total_minor,
           bill.currency
      FROM bill JOIN advanced USING (order_id)
    RETURNING debit_account, amount_minor
), debited AS (
    UPDATE accounts a SET balance_minor = a.balance_minor - moved.amount_minor
      FROM moved WHERE a.account_id = moved.debit_account
)
SELECT result FROM gate
""")  # noqa: S608 - put together from our own constants

_WHY_NOT = text("""
    SELECT o.status, o.fingerprint, o.customer, o.total_minor, o.currency, a.balance_minor
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


class Payments:
    """The activities of step pay."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def charge_payment(self, order: CheckoutInput) -> Payment:
        """Capture the order's total from the customer's balance.

        One statement. A repeat returns the first payment.

        Raises:
            InsufficientFunds: the balance is below the total.
            StepAlreadyCompensated: the refund came first, or the order is not waiting for payment.
            DatabaseContradictsHistory: the order's reservation is gone.
        """

        async def explain(connection: AsyncConnection) -> CheckoutError | None:
            return await _refusal(connection, order)

        result = await do_once(
            self._engine,
            fence_key(order, Step.PAY),
            _CHARGE,
            {"order_id": order.order_id},
            explain=explain,
        )
        return Payment(**result)

    @activity.defn
    async def refund_payment(self, undo: UndoInput) -> UndoResult:
        """Give back what was captured for an order: the same amount, once.

        Raises:
            CompensationImpossible: the order's parcel still stands.
        """

        async def reverse(connection: AsyncConnection) -> None:
            await connection.execute(_REFUND, {"order_id": undo.order.order_id})

        return await undo_step(self._engine, undo, Step.PAY, reverse)


async def _refusal(connection: AsyncConnection, order: CheckoutInput) -> CheckoutError | None:
    row = (await connection.execute(_WHY_NOT, {"order_id": order.order_id})).one_or_none()
    if row is not None:
        await require_same_content(connection, order, row.fingerprint)
    if row is None or row.status == OrderStatus.PENDING:
        return forgotten(order, Step.RESERVE)
    if row.status != OrderStatus.RESERVED:
        return StepAlreadyCompensated(f"order {order.order_id} is {row.status}; it is not waiting for payment")
    return refusals.of_pay(row.customer, row.balance_minor, row.total_minor, row.currency)
