"""What makes two requests one: the fingerprint of their input."""

from dataclasses import dataclass, field

import pytest

from sagafence.fingerprint import fingerprint


@dataclass(frozen=True)
class _Asked:
    sku: str
    note: str = ""
    gifts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _AskedOfOld:
    sku: str


def test_a_field_that_is_added_with_a_default_changes_nothing() -> None:
    assert fingerprint(_Asked("lamp")) == fingerprint(_AskedOfOld("lamp"))


@pytest.mark.parametrize("other", [_Asked("mug"), _Asked("lamp", "soon"), _Asked("lamp", "", ["card"])])
def test_whatever_else_differs_is_another_request(other: _Asked) -> None:
    assert fingerprint(other) != fingerprint(_Asked("lamp"))


def test_the_sequence_of_keys_and_of_members_says_nothing_and_that_of_a_list_does() -> None:
    letters = [chr(97 + number) for number in range(20)]

    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(set(letters)) == fingerprint(sorted(letters))
    assert fingerprint([1, 2]) != fingerprint([2, 1])
