"""Declarations of providers: what contradicts itself is refused where it is written."""

from datetime import timedelta
from typing import Any

import pytest

from sagafence.provider import Keeps, Key, Provider, Settles

HOUR = timedelta(hours=1)


@pytest.mark.parametrize("settles", Settles)
def test_a_name_and_how_it_settles_are_enough(settles: Settles) -> None:
    declared = Provider("p", settles)

    assert declared.has_keys is (settles is Settles.BY_REPEATING)


@pytest.mark.parametrize(
    ("settles", "fields", "says"),
    [
        (Settles.BY_REPEATING, {"keeps": Keeps.NOTHING}, "must keep something under a key"),
        (Settles.BY_REPEATING, {"keeps_keys_for": HOUR}, "no time is left in which a repeat is safe"),
        (Settles.BY_REPEATING, {"keeps_keys_for": HOUR, "late_by_at_most": HOUR}, "must be shorter"),
        (Settles.BY_REPEATING, {"keeps_keys_for": timedelta(0), "late_by_at_most": HOUR}, "keeps_keys_for must be"),
        (Settles.BY_REPEATING, {"late_by_at_most": timedelta(0)}, "late_by_at_most must be above zero"),
        (Settles.BY_REPEATING, {"sight_lags_by": -HOUR}, "cannot be negative"),
        (Settles.BY_REPEATING, {"void_blocks": False}, "void_blocks is about voids"),
        (Settles.BY_REPEATING, {"frees_keys": True}, "give late_by_at_most"),
        (Settles.BY_REPEATING, {"keeps": Keeps.SUCCESSES, "frees_keys": True, "late_by_at_most": HOUR}, "not covered"),
        (Settles.BY_VOIDING, {"void_blocks": False}, "no void would be the last one"),
        (Settles.BY_LOOKING_UP, {"keeps_keys_for": HOUR, "late_by_at_most": HOUR / 2}, "it keeps none"),
        (Settles.BY_A_PERSON, {"duplicates": True}, "nothing can keep a copy from acting again"),
    ],
)
def test_a_declaration_that_cannot_be_kept_is_refused_and_says_why(
    settles: Settles, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        Provider("billing", settles, **fields)

    assert str(refused.value).startswith("provider 'billing': ")


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"needs a name.*cannot be negative"):
        Provider(" ", Settles.BY_REPEATING, sight_lags_by=-HOUR)


def test_a_key_is_a_string_that_knows_the_key_of_its_reversal() -> None:
    key = Key("a", "b")

    assert (key, f"{key}", key.undo) == ("a", "a", "b")
