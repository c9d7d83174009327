"""The cancel, stuck and kit suites once more, with the activation flag of later SDKs: see tests/later_sdk.py.

`make test` runs a share of the kit's cases here, and in tests/workflow/test_next_sdk.py what else the flag could make a
difference to.
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from types import ModuleType
from typing import Any

import pytest

from domain import policies
from sagafence.testing import Case, SagaUnderTest, check, matrix
from tests.conftest import Shop
from tests.faults import test_kit_checkout, test_kit_trip
from tests.faults.share import share
from tests.later_sdk import later_sdk
from tests.workflow import test_cancel, test_stuck
from tests.workflow.sagas import hasty, violations

__all__ = ["later_sdk"]

ship_gives_up_soon = test_stuck.ship_gives_up_soon
checkouts = test_kit_checkout.checkouts
agency, trips = test_kit_trip.agency, test_kit_trip.trips


@pytest.fixture
def hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    """What test_stuck has for all of its tests; the kit restarts workers, which takes longer than these undos."""
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


def _again(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Copy a test: a mark on the test itself would take it out of `make test` where it stands."""

    @wraps(test)
    async def again(**given: Any) -> None:
        await test(**given)

    pytest.mark.exhaustive(again)  # marks it in place
    pytest.mark.usefixtures("hasty_undos")(again)
    return again


def _tests_of(module: ModuleType) -> dict[str, Any]:
    return {name: _again(test) for name, test in vars(module).items() if name.startswith("test_")}


globals().update(_tests_of(test_cancel) | _tests_of(test_stuck))


@pytest.mark.parametrize("case", share(test_kit_checkout.LABEL_CASES, every=19))
async def test_a_checkout_with_a_label_keeps_its_promises(
    case: Case, checkouts: Callable[[str], SagaUnderTest], shop: Shop
) -> None:
    await check(case, checkouts("carol"))

    assert await violations(shop) == []


@pytest.mark.parametrize("case", share(test_kit_checkout.COURIER_CASES, every=11))
async def test_a_checkout_with_a_courier_keeps_its_promises(
    case: Case, checkouts: Callable[[str], SagaUnderTest], shop: Shop
) -> None:
    await check(case, checkouts("alice"))

    assert await violations(shop) == []


@pytest.mark.parametrize("case", share(matrix(test_kit_trip.STEPS, can_be_retried=True), every=13))
async def test_a_trip_keeps_its_promises_with_the_next_sdk(case: Case, trips: SagaUnderTest) -> None:
    await check(case, trips)
