"""What a poll found last, and whether to log what it finds now."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """What a poll found, as text for the log."""

    text: str
    is_alarm: bool = False


class PolledState(Generic[T]):
    """Log a state where `update` returns true: when it has changed, and an alarm again every so many polls.

    Args:
        known: the state that needs no log entry at the first poll.
        repeat_every: after how many polls without a change an alarm is due again; None for never.
    """

    def __init__(self, known: T, *, repeat_every: int | None = None) -> None:
        self.known = known
        self._repeat_every = repeat_every
        self._polls = 0

    def update(self, found: T, *, is_alarm: bool = False) -> bool:
        """Take what a poll found; return whether to log it."""
        self._polls = self._polls + 1 if found == self.known else 0
        is_repeat = is_alarm and self._repeat_every is not None and self._polls % self._repeat_every == 0
        has_changed = found != self.known
        self.known = found
        return has_changed or is_repeat
