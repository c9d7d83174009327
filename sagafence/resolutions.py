"""What an operator may say of a stuck step."""

from datetime import datetime
from typing import Any

from temporalio import workflow

from sagafence.calls import EarlierStep, Resolution
from sagafence.compensation import describe
from sagafence.declare import External, Forward, Pivot, Step
from sagafence.provider import Verdict
from sagafence.signature import may_be_none


def is_external(step: Step[Any, Any] | EarlierStep) -> bool:
    """Whether the step's effect is with a provider."""
    return step.is_external if isinstance(step, EarlierStep) else isinstance(step, External)


def why_not(said: Resolution, step: Step[Any, Any] | EarlierStep) -> str | None:
    """Say why a resolution cannot be taken, or None."""
    if isinstance(step, EarlierStep):
        problem = _why_not_of_an_earlier_run(said, step)
    else:
        problem = _why_not_of_this_run(said, step)
    return problem or _why_not_of_its_time(said, step)


def _why_not_of_this_run(said: Resolution, step: Step[Any, Any]) -> str | None:
    if isinstance(step, (Pivot, Forward)) and said.verdict is Verdict.UNDONE_BY_HAND:
        return f"{said.step} is not being undone: say whether it {Verdict.HAPPENED} or {Verdict.NEVER} did"
    is_told = said.result is not None or not isinstance(step, External)
    if said.verdict is Verdict.HAPPENED and is_told and (problem := _unfit(said.result, step.result_type)):
        return f"{said.step} needs its result, as its do gives it: {problem}"
    if isinstance(step, External):
        return None
    if isinstance(step, Pivot):
        return f"{said.step} is in the database, which knows what became of it: retry once it answers"
    return _unless(said, Verdict.HAPPENED if isinstance(step, Forward) else Verdict.UNDONE_BY_HAND)


def _why_not_of_its_time(said: Resolution, step: Step[Any, Any] | EarlierStep) -> str | None:
    if not is_external(step) or instant(said.looked_at) is not None:
        return None
    wrong = f"{said.looked_at!r} is no time with its zone; " if said.looked_at else ""
    wanted = 'say when you looked, or undid it: "looked_at": "2026-11-30T09:00:00Z"'
    return f"{wrong}{wanted}; what has acted since makes it untrue"


def instant(written: str) -> datetime | None:
    """Read a time that has its zone, in ISO 8601; None where it is none."""
    try:
        read = datetime.fromisoformat(written.strip().upper())
    except ValueError:
        return None
    return read if read.tzinfo else None


def _why_not_of_an_earlier_run(said: Resolution, step: EarlierStep) -> str | None:
    if not step.undo_activity:
        return f"no worker has a step {said.step}: deploy one whose undo of it works, and retry"
    return None if step.is_external else _unless(said, Verdict.UNDONE_BY_HAND)


def _unless(said: Resolution, wanted: Verdict) -> str | None:
    return None if said.verdict is wanted else f"{said.step} can only be resolved as {wanted}"


def _unfit(value: Any, kind: Any) -> str | None:
    if value is None and kind is not Any and not may_be_none(kind):
        return "there is none"  # the converter lets it through
    converter = workflow.payload_converter()
    try:
        converter.from_payload(converter.to_payload(value), kind)
    except Exception as error:  # noqa: BLE001 - the converter raises whatever the type's constructor does
        return describe(error)
    return None
