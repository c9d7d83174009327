"""What a provider of effects elsewhere can do, declared once, and what a step and its undo hand to each other.

Imports nothing but Python: a module that declares steps is loaded by workflows too.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, StrEnum
from typing import Generic, Self, TypeAlias, TypeVar

Out = TypeVar("Out")


class Settles(Enum):
    """How a call whose answer was lost is settled before it is undone."""

    BY_REPEATING = "by repeating"
    """The same request under the same key: the answer says what happened, and no copy of it can act any more."""
    BY_VOIDING = "by voiding"
    """A void that names the key of the call. It also refuses a call that arrives later (see `void_blocks`)."""
    BY_LOOKING_UP = "by looking up"
    """A search for the key. What it does not find may still arrive: it counts only after `late_by_at_most`."""
    BY_A_PERSON = "by a person"
    """The provider cannot be asked. Whoever can see its books says what happened."""


class Keeps(Enum):
    """What the provider keeps under an idempotency key, and answers when the key comes again."""

    NOTHING = "nothing"
    """It knows no keys: every request acts. A request whose answer was lost is never sent again."""
    FIRST_ANSWERS = "first answers"
    """The first answer to each key, whatever it was: a refusal and an error as well as a success."""
    SUCCESSES = "successes"
    """Successes alone: after an error the key is free. Declare it only where a 5xx never hides an effect."""
    OBJECTS = "objects"
    """The object that was made under the key, whose present state it answers. Errors leave the key free."""


@dataclass(frozen=True)
class Provider:
    """What one provider can do. Each field is a promise of the provider's: the guarantees stand on it.

    Attributes:
        name: for messages and logs.
        settles: how an unknown outcome is settled.
        keeps: what it keeps under a key. Left out, it is `FIRST_ANSWERS` where it settles by repeating, and otherwise
            `NOTHING`, the safest.
        keeps_keys_for: how long a key is kept, counted from the request that made it; None means for ever.
        late_by_at_most: how long after the permission to send it a request may still act, a paused worker and a slow
            network included; None means that no bound is known.
        sight_lags_by: how old the state is that a lookup may show.
        void_blocks: whether a void also refuses a call that arrives after it.
        frees_keys: whether an undo frees the key, so that a call that arrives later would act again.
        reversal_is_idempotent: whether reversing the same object twice is harmless even without a key, as a delete by
            id is. Where it is not, a reversal is repeated only while its own key is kept.
        duplicates: whether something on the way may deliver one request twice. Then an answer proves nothing about
            other copies.
    """

    name: str
    settles: Settles
    keeps: Keeps | None = None
    keeps_keys_for: timedelta | None = None
    late_by_at_most: timedelta | None = None
    sight_lags_by: timedelta = timedelta(0)
    void_blocks: bool = True
    frees_keys: bool = False
    reversal_is_idempotent: bool = False
    duplicates: bool = False

    def __post_init__(self) -> None:
        if self.keeps is None:
            default = Keeps.FIRST_ANSWERS if self.settles is Settles.BY_REPEATING else Keeps.NOTHING
            object.__setattr__(self, "keeps", default)
        if problems := [fault for is_wrong, fault in self._faults() if is_wrong]:
            raise ValueError(f"provider {self.name!r}: " + "; ".join(problems))

    @property
    def has_keys(self) -> bool:
        """Whether a request may be sent again under its key."""
        return self.keeps is not Keeps.NOTHING

    def _faults(self) -> list[tuple[bool, str]]:
        kept, late, lag = self.keeps_keys_for, self.late_by_at_most, self.sight_lags_by
        zero = timedelta(0)
        return [
            (not self.name.strip(), "it needs a name"),
            (late is not None and late <= zero, "late_by_at_most must be above zero; None says that no bound is known"),
            (kept is not None and kept <= zero, "keeps_keys_for must be above zero; None says for ever"),
            (lag < zero, "sight_lags_by cannot be negative"),
            (
                self.settles is Settles.BY_REPEATING and not self.has_keys,
                "it settles by repeating, so it must keep something under a key: say which, keeps=...",
            ),
            (kept is not None and not self.has_keys, "keeps_keys_for says how long keys are kept, and it keeps none"),
            (
                kept is not None and late is None,
                (
                    "its keys expire (keeps_keys_for) and nothing bounds how late a request acts (late_by_at_most): no "
                    "time is left in which a repeat is safe; give the bound, or keeps=Keeps.NOTHING"
                ),
            ),
            (
                kept is not None and late is not None and late >= kept,
                "late_by_at_most must be shorter than keeps_keys_for: a request could act after its key is forgotten",
            ),
            (
                self.settles is not Settles.BY_VOIDING and not self.void_blocks,
                "void_blocks is about voids, and it does not settle by voiding",
            ),
            (
                self.settles is Settles.BY_VOIDING and not self._void_seals and late is None,
                (
                    "its voids do not refuse a call that arrives later (void_blocks, frees_keys): without "
                    "late_by_at_most no void would be the last one"
                ),
            ),
            (
                self.frees_keys and late is None,
                "its undo frees the key, so it must wait until no call is under way: give late_by_at_most",
            ),
            (
                self.duplicates and not self.has_keys,
                "something delivers requests twice and it keeps no keys: nothing can keep a copy from acting again",
            ),
            (
                self.keeps is Keeps.SUCCESSES and self.frees_keys,
                "keeps=SUCCESSES with frees_keys is not covered; settle by looking up, keeps=OBJECTS",
            ),
        ]

    @property
    def _void_seals(self) -> bool:
        return self.void_blocks and not self.frees_keys


class Key(str):
    """The key of one step of one saga: the same in every attempt, run and worker."""

    undo: str
    """The key of its reversal, as stable."""
    __slots__ = ("undo",)

    def __new__(cls, value: str, undo: str) -> Self:
        """Make it of the two."""
        made = super().__new__(cls, value)
        made.undo = undo
        return made


@dataclass(frozen=True)
class Known(Generic[Out]):
    """What an undo is given: the step had its effect, with this result."""

    result: Out


@dataclass(frozen=True)
class Unknown:
    """What an undo is given: nobody knows whether the step had its effect. Only a void acts on this."""


Seen: TypeAlias = Known[Out] | Unknown


@dataclass(frozen=True)
class Stands(Generic[Out]):
    """What an undo answers: the step had its effect, and there is no way back."""

    result: Out


@dataclass(frozen=True)
class Happened(Generic[Out]):
    """What settling a pivot found: it had its effect, and the saga goes forward."""

    result: Out


@dataclass(frozen=True)
class Never:
    """What settling a pivot found: it has no effect and never will have, and the saga unwinds."""


class Verdict(StrEnum):
    """What a person says of a step whose outcome is unknown."""

    HAPPENED = "happened"
    """It had its effect. With its result, so that the saga can go on or reverse it."""
    NEVER = "never"
    """It had no effect. Counts only once nothing can arrive late any more."""
    UNDONE_BY_HAND = "undone_by_hand"
    """It had its effect, and the person has reversed it."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        raise ValueError(f"{value!r} is no verdict: say one of {', '.join(cls)}")
