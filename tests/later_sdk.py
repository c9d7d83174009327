"""What later SDKs do: the activation flag that SDK 1.35 knows and leaves off, switched on for the workers of a test.

With PROCESS_WORKFLOW_ACTIVATION_JOBS_AS_SINGLE_BATCH all that came with one workflow task is seen at once, and
`wait_condition` raises a cancel of the server's that came while it waited, in whatever task. A history says of each
of its tasks whether it was so: it replays in that way with either SDK, whatever the SDK would do by itself.
"""

from typing import Any

import pytest
from temporalio.client import WorkflowHandle
from temporalio.worker import _workflow as sdk
from temporalio.worker._workflow_instance import _WorkflowLogicFlag

SINGLE_BATCH = _WorkflowLogicFlag.PROCESS_WORKFLOW_ACTIVATION_JOBS_AS_SINGLE_BATCH
_DEFAULTS = "_DEFAULT_ENABLED_WORKFLOW_LOGIC_FLAGS"


@pytest.fixture(autouse=True)
def later_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the flag on for every workflow that begins in this test; import it where that is wanted."""
    switch_on(monkeypatch)


def switch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the flag on for the rest of a test."""
    usual: frozenset[Any] = getattr(sdk, _DEFAULTS)
    monkeypatch.setattr(sdk, _DEFAULTS, usual | {SINGLE_BATCH})


async def is_of_a_later_sdk(handle: WorkflowHandle[Any, Any]) -> bool:
    """Tell whether a history was made with the flag on."""
    history = await handle.fetch_history()
    return any(
        SINGLE_BATCH in event.workflow_task_completed_event_attributes.sdk_metadata.lang_used_flags
        for event in history.events
    )
