"""What a story is told that gives a verb the wrong step."""

from typing import Any

from sagafence.declare import Forward, Pivot, Step, Undoable

_VERBS: dict[type[Step[Any, Any]], tuple[str, str]] = {
    Undoable: ("do", "a step with an undo"),
    Pivot: ("pivot", "a pivot"),
    Forward: ("then", "a step after the pivot"),
}


def wrong_verb(step: object, verb: str) -> str | None:
    """Say which verb takes the step, where this one does not; None where it does."""
    if not isinstance(step, Step):
        return f"saga.{verb} takes a declared step by its name, as in saga.{verb}(Steps.take_room, ...), not {step!r}"
    right, kind = next((words for one, words in _VERBS.items() if isinstance(step, one)), ("do", "a step"))
    return None if right == verb else f'the step "{step.name}" is {kind}: use saga.{right}, not saga.{verb}'
