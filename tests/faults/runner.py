"""A workflow runner that runs workflows as the product's does, and lets a test see every activation."""

from collections.abc import Callable
from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import Worker, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner


class ObservedInstance(WorkflowInstance):
    def __init__(self, inner: WorkflowInstance) -> None:
        self._inner = inner

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        return self._inner.activate(act)

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> Any:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()


class ObservedRunner(WorkflowRunner):
    def __init__(self, inner: WorkflowRunner, observe: Callable[[WorkflowInstance, str], WorkflowInstance]) -> None:
        self._inner = inner
        self._observe = observe
        """Is given each instance and its workflow's id."""

    def prepare_workflow(self, defn: Any) -> None:
        self._inner.prepare_workflow(defn)

    def set_worker_level_failure_exception_types(self, types: Any) -> None:
        self._inner.set_worker_level_failure_exception_types(types)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return self._observe(self._inner.create_instance(det), det.info.workflow_id)


def let_tasks_take_long(worker: Worker) -> None:
    """Keep the SDK from taking a workflow thread that is held for a deadlock after 2 s; it has no setting for that."""
    assert worker._workflow_worker is not None
    worker._workflow_worker._deadlock_timeout_seconds = None
