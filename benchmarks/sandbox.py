"""What the SDK's workflow sandbox and the event loop cost a worker: one history, replayed over and over.

    .venv/bin/python -m benchmarks.sandbox [--times 200] [--rounds 5]

A replay makes of a run what a worker makes of it, without server, activities and database: payloads decoded, the
workflow carried from await to await, its commands encoded. Told is processor time per run of a completed order of
the fast lane, in a sandbox that imports the workflow's modules anew for each run, in one that does not, and in none.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvloop
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from adapters.telemetry import leave
from adapters.temporal import DATA_CONVERTER
from devstack.stack import ROOT
from workflows.checkout import CheckoutWorkflow

HISTORY = ROOT / "tests" / "workflow" / "histories" / "fast-completed.json"
RUNNERS: dict[str, WorkflowRunner] = {
    "strict": SandboxedWorkflowRunner(),
    "passed through": SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules("workflows")
    ),
    "none": UnsandboxedWorkflowRunner(),
}
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def replayed(history: WorkflowHistory, runner: WorkflowRunner, loop: str, times: int) -> float:
    """Replay a history so many times and give the processor time of one, in milliseconds.

    Raises:
        RuntimeError: it does not replay.
    """

    async def histories() -> AsyncIterator[WorkflowHistory]:
        for _ in range(times):
            yield history

    async def replay() -> None:
        replayer = Replayer(workflows=[CheckoutWorkflow], data_converter=DATA_CONVERTER, workflow_runner=runner)
        async with replayer.workflow_replay_iterator(histories()) as results:
            async for result in results:
                if result.replay_failure is not None:
                    raise RuntimeError(f"{HISTORY.name} does not replay") from result.replay_failure

    begun = time.process_time()
    with asyncio.Runner(loop_factory=LOOPS[loop]) as running:
        running.run(replay())
    return 1000 * (time.process_time() - begun) / times


def main() -> int:
    """Replay by turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="replays of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    history = WorkflowHistory.from_json("checkout-replayed", Path(HISTORY).read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[float]] = {(runner, loop): [] for runner in RUNNERS for loop in LOOPS}
    for _ in range(chosen.rounds):
        for (runner, loop), milliseconds in found.items():
            milliseconds.append(replayed(history, RUNNERS[runner], loop, chosen.times))
    lowest = statistics.median(found["none", "uvloop"])
    print("| sandbox | loop | ms per run, median (least to greatest) | against the last |")
    print("|---|---|---|---|")
    for (runner, loop), each in found.items():
        median = statistics.median(each)
        print(f"| {runner} | {loop} | {median:.1f} ({min(each):.1f} to {max(each):.1f}) | {median / lowest:.2f} |")
    return 0


if __name__ == "__main__":
    leave(main())
