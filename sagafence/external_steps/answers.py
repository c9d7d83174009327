"""What an author's functions call, and what their answers and failures mean."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic

from temporalio.exceptions import ApplicationError

from sagafence.errors import CallRejected, KeyReused, Refusal, StoredFailure
from sagafence.external_steps.sql import Evidence, as_jsonb
from sagafence.external_steps.state import Answer
from sagafence.provider import Key, Out, Seen, Stands


@dataclass(frozen=True)
class Calls(Generic[Out]):
    """An author's functions for one step. Each sends one request, under the key that it is given.

    Attributes:
        do: sends the request. Raises a `Refusal` for the provider's final no, `CallRejected`, `KeyReused` or
            `StoredFailure` for what they say, and anything else where the outcome is unknown.
        undo: reverses what is `Known`, or voids the key; `Stands` where there is no way back.
        look: gives the result of what is live under the key, or None.
        dump: makes JSON of a result.
        load: makes a result of that JSON.
    """

    do: Callable[[Key, Any], Awaitable[Out]]
    undo: Callable[[Key, Any, Seen[Out]], Awaitable[Stands[Out] | None]] | None
    look: Callable[[Key, Any], Awaitable[Out | None]] | None
    dump: Callable[[Out], Any]
    load: Callable[[Any], Out]


@dataclass(frozen=True)
class Heard:
    """What one call heard: what it means, the result as JSON, or the failure."""

    answer: Answer
    result: str | None = None
    error: Exception | None = None

    def __str__(self) -> str:
        said = "" if self.error is None else f": {_name_of(self.error)}: {_message_of(self.error)}"
        return f"{self.answer.value}{said}".replace("\0", "").encode("utf-8", "replace").decode()[:500]

    def evidence(self, n: int) -> Evidence:
        """Give it as the row of call `n` has it."""
        return Evidence(n, str(self), self.answer is Answer.STORED_FAILURE)

    def refusal(self) -> str | None:
        """Give the provider's final no as JSON, so that a repeat raises it again."""
        if self.answer is not Answer.REFUSED or not isinstance(self.error, ApplicationError):
            return None
        kept = {"type": _name_of(self.error), "message": _message_of(self.error)}
        try:
            return as_jsonb({**kept, "details": list(self.error.details)})
        except (TypeError, ValueError):
            return as_jsonb({**kept, "details": []})


def _name_of(error: Exception) -> str:
    return (error.type if isinstance(error, ApplicationError) else None) or type(error).__name__


def _message_of(error: Exception) -> str:
    return error.message if isinstance(error, ApplicationError) else str(error)  # whose text begins with its name


async def hear_do(calls: Calls[Out], key: Key, request: Any) -> Heard:
    """Send the request. What is cancelled raises, and its call stays live."""
    try:
        # A result that cannot be stored is none: the call stays unknown, and the author's error says why.
        return Heard(Answer.OK, as_jsonb(calls.dump(await calls.do(key, request))))
    except Exception as error:  # noqa: BLE001 - whatever it is, the outcome is unknown
        return Heard(_meaning(error), error=error)


async def hear_undo(calls: Calls[Out], key: Key, request: Any, seen: Seen[Out]) -> Heard:
    """Send the reversal or the void."""
    assert calls.undo is not None
    try:
        answer = await calls.undo(key, request, seen)
        if isinstance(answer, Stands):
            return Heard(Answer.STANDS, as_jsonb(calls.dump(answer.result)))
        return Heard(Answer.OK)
    except Exception as error:  # noqa: BLE001 - whatever it is, the outcome is unknown
        return Heard(_meaning(error), error=error)


def _meaning(error: Exception) -> Answer:
    for kind, answer in _MEANINGS.items():
        if isinstance(error, kind):
            return answer
    return Answer.UNKNOWN


_MEANINGS: dict[type[Exception], Answer] = {
    Refusal: Answer.REFUSED,
    CallRejected: Answer.REJECTED,
    KeyReused: Answer.KEY_REUSED,
    StoredFailure: Answer.STORED_FAILURE,
}


def refused_again(kept: dict[str, Any]) -> Refusal:
    """Raise a stored refusal anew, under the name that it had: the name crosses the wire."""
    named: type[Refusal] = type(str(kept["type"]), (Refusal,), {})
    return named(kept["message"], details=kept["details"])
