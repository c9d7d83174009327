"""A short soak, every kind of fault in it; `make soak` runs the long ones."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from devstack.stack import ROOT
from tests.soak.model import NEVER_BEGUN
from tests.soak.plan import FAULTS

ORDERS, SEED = 300, 723
"""Few orders, and yet batches that are cancelled, terminated, loaded again, started twice, and overlapped."""
STUCK_ORDERS, STUCK_SEED = 6, 13
"""A batch of five, and one order that comes by itself, and not over HTTP."""


def soak(*arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.soak", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_every_promise_holds_while_every_kind_of_fault_strikes(tmp_path: Path) -> None:
    done = soak(
        *("--orders", ORDERS, "--seed", SEED, "--workers", 2, "--concurrency", 40),
        # Each kind of fault once.
        *("--faults-per-thousand", 1000 * len(FAULTS) // ORDERS, "--replay-every", 20),
        *("--dump", tmp_path / "dump", "--json"),
        timeout=850,
    )

    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    outcomes = Counter(report["outcomes"])
    assert outcomes.total() == ORDERS
    assert set(outcomes) <= {"completed", "rejected", "cancelled", NEVER_BEGUN}
    assert min(outcomes[ending] for ending in ("completed", "rejected", "cancelled")) > 0
    assert report["faults"].keys() == FAULTS.keys()
    assert report["faults_observed"] == report["faults_injected"] == len(FAULTS)
    assert report["snapshots"] >= 10
    assert report["faults_that_met_a_batch"] > 0
    ways = Counter(report["ways"])
    assert ways.total() == ORDERS
    assert ways.keys() >= {"a saga of its own", "batch", "batch, then a saga of its own", "HTTP, in a batch"}
    assert ways["batch"] < report["outcomes_in_reports_compared"]
    assert report["values_compared_with_the_model"] > ORDERS
    acts = Counter(report["acts"])
    again = Counter({name: count for name, count in acts.items() if name.startswith("second runs of completed orders")})
    assert again.total() > ORDERS / 15
    for step in ("reserve", "pay", "ship"):
        assert any(f"refused in {step}" in name for name in again), step
    for kind in ("reset", "after retention", "started beside its batch's"):
        assert any(kind in name for name in again), kind
    assert any(name.startswith("orders of loads grouped anew, refused in") for name in acts)
    assert acts["sweeps"] > report["seconds"] / 10
    assert report["histories_replayed"] >= ORDERS // 20
    assert set(report["checked_at_rest"].values()) == {"holds"}


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
def test_the_watchdog_reports_all_when_nothing_moves(tmp_path: Path) -> None:
    done = soak(
        *("--orders", STUCK_ORDERS, "--seed", STUCK_SEED, "--workers", 0, "--patience", 3, "--dump", tmp_path / "dump"),
        timeout=280,
    )

    assert done.returncode == 1, done.stderr + done.stdout
    assert f"seed {STUCK_SEED} FAILED" in done.stderr
    output = {file.name: file.read_text() for file in (tmp_path / "dump").iterdir()}
    why = json.loads(output["why.json"])
    assert "no order has ended" in why["why"]
    assert (why["seed"], why["open"], why["ended"]) == (STUCK_SEED, STUCK_ORDERS, 0)
    histories = [json.loads(text) for name, text in output.items() if name.startswith(("workflow-", "batch-"))]
    begun = [one for one in histories if "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED" in json.dumps(one)]
    assert len(begun) == len(["the batch", "the order by itself"])
    asked = ("sessions", "locks", "fence-rows", "incidents", "unfinished-orders")
    assert not any("cannot be told" in output[f"{name}.json"] for name in asked)
    assert json.loads(output["plan.json"])["orders"] == STUCK_ORDERS
