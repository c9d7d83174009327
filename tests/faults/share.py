"""Which part of a large product of cases `make test` runs. `make faults` runs all of them."""

from collections.abc import Iterable
from typing import Any

import pytest


def share(cases: Iterable[Any], *, every: int) -> list[Any]:
    """Make test parameters of all cases; only each `every`-th stays in `make test`.

    Choose `every` coprime to the length of the innermost axis, so that the share meets all values of every axis.
    """
    marks = pytest.mark.exhaustive
    return [pytest.param(case, id=str(case), marks=() if n % every == 0 else marks) for n, case in enumerate(cases)]
