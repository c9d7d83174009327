"""What a provider of effects elsewhere can do, and what is known of a call to it."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Generic, TypeAlias, TypeVar

Out = TypeVar("Out")


class Settles(Enum):
    """How an undo makes sure that no late call leaves an effect at a provider."""

    BY_REPEATING = "repeating"
    BY_VOIDING = "voiding"
    BY_LOOKING_UP = "looking up"
    BY_A_PERSON = "a person"


@dataclass(frozen=True)
class Provider:
    """A system elsewhere, and what it can do. Declared once."""

    name: str
    settles: Settles


class Key(str):
    """The idempotency key of a step: the same over retries, workers and resets."""

    __slots__ = ()

    @property
    def undo(self) -> str:
        """The key of its reversal."""
        return f"{self}/undo"


@dataclass(frozen=True)
class Known(Generic[Out]):
    """The step's result was heard."""

    result: Out


@dataclass(frozen=True)
class Unknown:
    """The call was made, perhaps; nobody heard how it ended."""


Seen: TypeAlias = Known[Out] | Unknown


@dataclass(frozen=True)
class Stands(Generic[Out]):
    """What the undo of a pivot returns that finds no way back: the step took effect, and stays."""

    result: Out


@dataclass(frozen=True)
class Happened(Generic[Out]):
    """A step is settled: it took effect."""

    result: Out


@dataclass(frozen=True)
class Never:
    """A step is settled: it never took effect, and never will."""


class Verdict(StrEnum):
    """What an operator says of a stuck step."""

    HAPPENED = "happened"
    NEVER = "never"
    UNDONE_BY_HAND = "undone_by_hand"
