"""A test kit for sagas on Temporal: one matrix of faults for every step and every undo.

    STEPS = (
        Step("room", do="book_room", undo="cancel_room", effect={"rooms": -1}),
        Step("seat", do="book_seat", undo="cancel_seat", effect={"seats": -1}),
    )

    @pytest.mark.parametrize("case", matrix(STEPS), ids=str)
    async def test_a_trip_keeps_its_promises(case: Case, trips: SagaUnderTest) -> None:
        await check(case, trips)

Needs temporalio and nothing else: no test framework, no seam in the saga. See docs/testing-your-saga.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagafence.testing.cases import Case, Ending, Kind, matrix
    from sagafence.testing.description import SagaUnderTest, Step, Together
    from sagafence.testing.plays import check
    from sagafence.testing.provider import Call, ProviderStrikes, Strike, Struck
    from sagafence.testing.proxy import ProviderProxy, provider_proxy
    from sagafence.testing.verdict import BrokenPromise

# Loaded when they are asked for: every run of pytest loads the plugin, and with it this module.
_HOMES = {
    "cases": ("Case", "Ending", "Kind", "matrix"),
    "plays": ("check",),
    "description": ("SagaUnderTest", "Step", "Together"),
    "provider": ("Call", "ProviderStrikes", "Strike", "Struck"),
    "proxy": ("ProviderProxy", "provider_proxy"),
    "verdict": ("BrokenPromise",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BrokenPromise",
    "Call",
    "Case",
    "Ending",
    "Kind",
    "ProviderProxy",
    "ProviderStrikes",
    "SagaUnderTest",
    "Step",
    "Strike",
    "Struck",
    "Together",
    "check",
    "matrix",
    "provider_proxy",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
