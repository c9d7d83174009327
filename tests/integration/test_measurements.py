"""The commands of `make scale` run, with few orders. Nothing is measured here."""

import subprocess
import sys

import pytest

from devstack.stack import ROOT

_FEW = {
    "contention": ("--orders", "6", "--at-once", "3", "--steps", "40", "--alone", "2", "--rounds", "1"),
    "shape": (
        "--orders",
        "6",
        "--at-once",
        "1",
        "--at-once",
        "4",
        "--workers",
        "1",
        "--rounds",
        "1",
        "--backlog",
        "20",
    ),
    "million": ("--orders", "20000", "--unfinished", "2000", "--rounds", "1"),
}


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", _FEW)
def test_a_measurement_runs_to_its_end_and_tells_its_targets(command: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command}", *_FEW[command]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "\nTargets: " in ran.stdout
