"""The servers under a measurement: a throw-away stack whose Temporal keeps its histories as a real one does."""

from pathlib import Path

from domain.policies import SEARCH_ATTRIBUTES
from embedded.stack import DevStack
from embedded.temporal import TemporalServer


def ground(folder: Path, *, in_memory: bool = False) -> DevStack:
    """Make the stack, not started. Histories are on a file by default, so that they outlive a server that is killed."""
    stack = DevStack(folder)
    stack.temporal = TemporalServer(
        port=stack.ports.temporal,
        ui_port=None,
        log=stack.folder / "temporal.log",
        db_file=None if in_memory else stack.folder / "temporal.db",
        search_attributes=SEARCH_ATTRIBUTES,
    )
    return stack
