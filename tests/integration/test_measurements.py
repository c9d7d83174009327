"""The measurements run to their end with few orders. Nothing is measured here."""

import subprocess
import sys

import pytest

from devstack.stack import ROOT

_FEW = ("--orders", "6", "--at-once", "2", "3", "--alone", "2", "--rounds", "1", "--counted", "3", "--mix", "hot")
_MEASUREMENTS = {
    "benchmarks": (
        (*_FEW, "--only", "activity", "--only", "bare"),
        "Throughput, round by round: activity against bare ",
    ),
    "benchmarks.bulk": (("--orders", "40", "--rounds", "1", "--refused"), "the audit is clean"),
    "benchmarks.recovery": (("--rounds", "1", "--at-once", "8"), "outcomes: {'completed': "),
}
"""Arguments, and what is printed at the end."""


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", _MEASUREMENTS)
def test_a_measurement_runs_to_its_end_and_prints_its_figures(module: str) -> None:
    options, end = _MEASUREMENTS[module]

    ran = subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert end in ran.stdout, ran.stderr
