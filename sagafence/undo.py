"""What an undo returns. Knows no shop words: copy it together with the saga and the fence."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class UndoOutcome(StrEnum):
    """The four ways in which an undo can succeed."""

    REVERSED = "reversed"
    """The step had its effect, and the effect is gone now."""
    NOTHING_TO_UNDO = "nothing_to_undo"
    """The step never took effect, and from now on it never can."""
    ALREADY_UNDONE = "already_undone"
    """An earlier attempt, or an operator, was here before."""
    IRREVOCABLE = "irrevocable"
    """The step is past its point of no return: the saga must go forward."""


@dataclass(frozen=True)
class UndoResult:
    """An undo's outcome and the result that its step had stored, if it ever had one."""

    outcome: UndoOutcome
    stored: dict[str, Any] = field(default_factory=dict)
