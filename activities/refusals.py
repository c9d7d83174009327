"""Why an order is refused, in the same words wherever its steps are run: alone or in a batch."""

from collections.abc import Sequence
from typing import Protocol

from domain.errors import (
    CheckoutError,
    CurrencyMismatch,
    InsufficientFunds,
    OutOfStock,
    UndeliverableAddress,
    UnknownCustomer,
    UnknownSku,
)
from domain.model import format_money


class AccountFacts(Protocol):
    """What is known of the account that an order names as its customer; None where there is none."""

    @property
    def account_kind(self) -> str | None:
        """Whose it is: a customer's or the house's."""

    @property
    def account_currency(self) -> str | None:
        """What it pays in."""


class LineFacts(Protocol):
    """What an order wants of one SKU, and what the catalogue and the stock say."""

    @property
    def sku(self) -> str:
        """The SKU."""

    @property
    def quantity(self) -> int:
        """How many are wanted."""

    @property
    def is_known(self) -> bool:
        """Whether the catalogue has it."""

    @property
    def currency(self) -> str | None:
        """What it is priced in."""

    @property
    def free(self) -> int:
        """How many could be reserved."""


def of_reserve(customer: str, account: AccountFacts, lines: Sequence[LineFacts]) -> CheckoutError | None:
    """Say why an order cannot be reserved; None when it can."""
    if account.account_kind != "customer":
        return UnknownCustomer(f"there is no customer {customer}")
    if unknown := [line.sku for line in lines if not line.is_known]:
        return UnknownSku(f"the catalogue has no {', '.join(unknown)}")
    if currencies := {str(line.currency) for line in lines} - {account.account_currency}:
        return CurrencyMismatch(
            f"{customer} pays in {account.account_currency}, the order is priced in {', '.join(sorted(currencies))}"
        )
    if short := [line for line in lines if line.free < line.quantity]:
        return OutOfStock("; ".join(f"{line.sku}: {line.quantity} wanted, {max(line.free, 0)} free" for line in short))
    return None


def of_pay(customer: str, balance_minor: int, total_minor: int, currency: str) -> CheckoutError | None:
    """Say why an order cannot be paid; None when it can."""
    if balance_minor >= total_minor:
        return None
    return InsufficientFunds(
        f"{customer} has {format_money(balance_minor, currency)}, the order costs {format_money(total_minor, currency)}"
    )


def of_ship(customer: str, delivery_zone: str | None, *, is_served: bool) -> CheckoutError | None:
    """Say why an order cannot be shipped; None when it can."""
    if is_served:
        return None
    return UndeliverableAddress(f"nobody delivers to {customer} in zone {delivery_zone or '(none)'}")
