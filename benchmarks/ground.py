"""The servers under a measurement: a throw-away stack whose Temporal keeps its histories as a real one does."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.endings import WentWrong
from benchmarks.report import tell
from devstack.stack import DevStack
from devstack.temporal import TemporalServer
from domain.policies import SEARCH_ATTRIBUTES

Found = TypeVar("Found")


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


def on_ground(name: str, measure: Callable[[DevStack], Coroutine[Any, Any, Found]]) -> Found | None:
    """Measure on a stack of our own, and give what was found; None, and why, where something went wrong."""
    with tempfile.TemporaryDirectory(prefix=f"checkout-{name}-") as folder, ground(Path(folder)) as stack:
        try:
            return asyncio.run(measure(stack))
        except WentWrong as wrong:
            tell(str(wrong))
            return None
