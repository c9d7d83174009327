"""`make demo`, as a newcomer runs it, without its set-up."""

import subprocess
import sys

import pytest

from devstack.scenarios import ONE_BY_ONE, TOGETHER
from devstack.stack import ROOT


@pytest.mark.exhaustive
@pytest.mark.timeout(180)
def test_the_demo_ends_every_scenario_as_it_should() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "devstack", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    scenarios = len(TOGETHER) + len(ONE_BY_ONE)
    assert f"{scenarios} of {scenarios} orders ended as they should" in done.stdout
    assert "0 violations" in done.stdout


def test_the_dev_command_reports_its_usage_when_it_is_called_wrongly() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "devstack", "sideways"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "-m devstack up" in done.stderr
