"""The test kit's matrix and its words. What it does with a saga is tested with sagas, in tests/faults."""

import re
from collections import Counter

import pytest

from devstack.stack import ROOT
from sagafence.testing import Ending, Kind, Step, matrix
from sagafence.testing.cases import STORIES
from sagafence.testing.check import _RUNS
from sagafence.testing.verdict import broken, difference, in_words

ROOM = Step("room", do="book_room", undo="cancel_room", effect={"rooms": -1})
SEAT = Step("seat", do="book_seat", undo="cancel_seat", effect={"seats": -1, "rooms": +1})
PLANE = Step("plane", do="take_off", undo="turn_back", effect={"planes": -1}, is_irrevocable=True)


def test_every_kind_of_case_is_generated_once_for_every_step() -> None:
    cases = matrix([ROOM, SEAT], can_be_retried=True)

    of_a_step = [kind for kind in Kind if kind not in {Kind.PLAIN, Kind.CANCEL_AT_THE_START}]
    of_all = [Kind.PLAIN, Kind.CANCEL_AT_THE_START]
    assert Counter(case.kind for case in cases) == Counter([*of_all, *of_a_step, *of_a_step])
    assert len({str(case) for case in cases}) == len(cases)


def test_every_kind_of_case_has_its_story_and_its_play() -> None:
    assert set(STORIES) == set(_RUNS) == set(Kind)


def test_every_kind_of_case_is_in_the_document() -> None:
    document = (ROOT / "docs" / "testing-your-saga.md").read_text(encoding="utf-8")

    named = set(re.findall(r"`([a-z-]+)`", document))
    named |= {f"{name.removesuffix('-before')}-after" for name in named if name.endswith("-before")}

    assert {kind.value for kind in Kind} - named == set()


def test_a_case_has_a_readable_name() -> None:
    names = [str(case) for case in matrix([ROOM])]

    assert names[:3] == ["plain", "cancel-at-the-start", "room-do-fails-then-works"]


def test_a_saga_that_cannot_be_retried_gets_no_stuck_case() -> None:
    assert Kind.UNDO_STUCK not in {case.kind for case in matrix([ROOM])}


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        (Kind.DO_REPORT_LOST_FOR_GOOD, Ending.COMPLETED),
        (Kind.CANCEL_AFTER_EFFECT, Ending.COMPLETED),
        (Kind.CANCEL_BEFORE_EFFECT, Ending.EITHER),
        (Kind.DO_REFUSED, Ending.UNDONE),
        (Kind.DO_LATE, Ending.UNDONE),
    ],
)
def test_an_irrevocable_step_sends_the_saga_forward_once_it_took_effect(kind: Kind, ending: Ending) -> None:
    [case] = [case for case in matrix([ROOM, PLANE]) if case.kind is kind and case.step is PLANE]

    assert case.ending is ending


def test_an_irrevocable_step_has_no_undo_that_could_fail() -> None:
    kinds = {case.kind for case in matrix([ROOM, PLANE], can_be_retried=True) if case.step is PLANE}

    assert [kind for kind in kinds if kind.value.startswith("undo-")] == []


@pytest.mark.parametrize("steps", [[], [PLANE, ROOM], [ROOM, ROOM]], ids=["none", "irrevocable first", "twins"])
def test_steps_that_make_no_sense_are_refused(steps: list[Step]) -> None:
    with pytest.raises(ValueError, match="step"):
        matrix(steps)


def test_effects_are_added_up_as_far_as_a_step() -> None:
    [first, second] = [case for case in matrix([ROOM, SEAT]) if case.kind is Kind.DO_REPORT_LOST]

    assert first.effect_so_far == {"rooms": -1}
    assert second.effect_so_far == second.whole_effect == {"seats": -1}


def test_a_difference_leaves_out_what_did_not_change() -> None:
    change = difference({"rooms": 3, "seats": 9, "gone": 1}, {"rooms": 3, "seats": 7, "new": 2})

    assert change == {"seats": -2, "gone": -1, "new": 2}
    assert in_words(change) == "gone -1, new +2, seats -2"
    assert in_words({}) == "no change"


def test_a_failure_says_promise_story_finding_and_where_to_look() -> None:
    [case] = [case for case in matrix([ROOM]) if case.kind is Kind.DO_REPORT_LOST]

    message = str(broken(case, "trip-7", "One effect.", "rooms -2", "book_room 2"))

    assert message.splitlines() == [
        "One effect.",
        "  what happened  book_room took effect, its report was lost, and it was tried again",
        "  found          rooms -2",
        "  attempts       book_room 2",
        "  how to look    temporal workflow show --workflow-id trip-7",
        "  case           room-do-report-lost",
    ]
