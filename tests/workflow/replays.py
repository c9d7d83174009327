"""Replays histories with today's code, as the product's worker would read them."""

from temporalio.worker import Replayer, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from adapters.temporal import DATA_CONVERTER, RefuseWrongArguments
from workflows.checkout import CheckoutWorkflow


def replayer(*kinds: type, runner: WorkflowRunner | None = None) -> Replayer:
    """Make a replayer: of the checkout unless other kinds are given, in the strict sandbox unless another runner is."""
    return Replayer(
        workflows=list(kinds) or [CheckoutWorkflow],
        workflow_runner=runner or SandboxedWorkflowRunner(),
        data_converter=DATA_CONVERTER,
        interceptors=[RefuseWrongArguments()],
    )
