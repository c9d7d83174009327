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

from sagafence.testing.cases import Case, Ending, Kind, matrix
from sagafence.testing.check import check
from sagafence.testing.description import SagaUnderTest, Step, Together
from sagafence.testing.provider import Call, ProviderStrikes, Strike, Struck
from sagafence.testing.proxy import ProviderProxy, provider_proxy
from sagafence.testing.verdict import BrokenPromise

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
