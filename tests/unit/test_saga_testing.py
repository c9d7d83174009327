"""The test kit's matrix and its words. What it does with a saga is tested with sagas, in tests/faults."""

import dataclasses
import re
from collections.abc import AsyncIterator
from typing import cast

import pytest
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.api.history.v1 import HistoryEvent

from devstack.stack import ROOT
from sagafence.testing import Ending, Kind, Step, Together, matrix
from sagafence.testing.cases import STORIES
from sagafence.testing.description import Handle
from sagafence.testing.faults import Faults
from sagafence.testing.history import last_failure
from sagafence.testing.plan import Bounds, Plan
from sagafence.testing.plays import _RUNS
from sagafence.testing.verdict import broken
from sagafence.testing.words import difference, in_words

ROOM = Step("room", do="book_room", undo="cancel_room", effect={"rooms": -1})
SEAT = Step("seat", do="book_seat", undo="cancel_seat", effect={"seats": -1, "rooms": +1})
PLANE_BACK = Step("plane back", do="land", undo="take_off_again", effect={"planes": +1})
PLANE = Step("plane", do="take_off", undo="turn_back", effect={"planes": -1}, is_irrevocable=True)


TENANT = Step("tenant", "create", "delete", {"tenants": +1}, calls="POST /tenants", undo_calls="DELETE /tenants")
NOTE = Step("note", do="take_note", effect={"notes": +1})
OF_ALL = {Kind.PLAIN, Kind.CANCEL_AT_THE_START}
OF_A_PROVIDER = {kind for kind in Kind if "provider-" in kind}
BESIDE = {kind for kind in Kind if kind.startswith("beside-")}
COMMITS = {Kind.DO_COMMIT_LOST, Kind.UNDO_COMMIT_LOST}
UNDOS = {kind for kind in Kind if kind.startswith("undo-")}


def kinds(step: Step, *steps: Step | Together) -> set[Kind]:
    found = [case.kind for case in matrix(steps, can_be_retried=True) if case.step is step]
    assert len(found) == len(set(found))
    return set(found)


def test_every_kind_of_case_that_concerns_a_step_is_generated_once_for_it() -> None:
    everything = set(Kind) - OF_ALL - COMMITS - {Kind.DO_STUCK}

    assert kinds(ROOM, ROOM, SEAT) == kinds(SEAT, ROOM, SEAT) == everything - OF_A_PROVIDER - BESIDE
    assert kinds(ROOM, Together(ROOM, SEAT)) == everything - OF_A_PROVIDER
    assert kinds(TENANT, Together(ROOM, TENANT)) == everything
    cases = matrix([ROOM, Together(SEAT, TENANT)], can_be_retried=True)
    assert len({str(case) for case in cases}) == len(cases)


def test_only_a_step_that_is_a_transaction_loses_it() -> None:
    step, pivot, forward = (dataclasses.replace(one, is_transaction=True) for one in (ROOM, PLANE, NOTE))
    lost = {(str(case), case.ending) for case in matrix([SEAT, step, pivot, forward]) if case.kind in COMMITS}

    assert lost == {
        ("room-do-commit-lost", Ending.COMPLETED),
        ("room-undo-commit-lost", Ending.UNDONE),
        ("plane-do-commit-lost", Ending.COMPLETED),
        ("note-do-commit-lost", Ending.COMPLETED),
    }


def test_what_is_after_the_point_of_no_return_cannot_turn_the_saga_back() -> None:
    cases = [case for case in matrix([ROOM, PLANE, NOTE], can_be_retried=True) if case.step is NOTE]

    assert Kind.DO_STUCK in {case.kind for case in cases}
    assert {case.kind for case in cases} & {Kind.DO_REFUSED, Kind.DO_GIVES_UP, Kind.DO_LATE, *UNDOS, *BESIDE} == set()
    assert {case.ending for case in cases} == {Ending.COMPLETED}


def test_a_request_that_cannot_be_late_is_not_late() -> None:
    never_late = dataclasses.replace(TENANT, can_be_late=False)

    assert kinds(TENANT, TENANT) - kinds(never_late, never_late) == {Kind.PROVIDER_ACTS_LATE}


def test_a_point_of_no_return_that_nothing_settles_does_not_give_up() -> None:
    settled = dataclasses.replace(PLANE, calls="POST /planes")
    unsettled = dataclasses.replace(settled, undo="")

    assert kinds(settled, settled) - kinds(unsettled, unsettled) == {
        Kind.DO_GIVES_UP,
        Kind.DO_LATE,
        Kind.PROVIDER_ACTS_THEN_500_FOR_GOOD,
        Kind.PROVIDER_ANSWERS_LATE,
        Kind.PROVIDER_ACTS_LATE,
    }


def test_a_step_that_is_local_first_is_struck_there_and_past_it() -> None:
    local = dataclasses.replace(ROOM, is_local_first=True)
    cases = [case for case in matrix([local, SEAT]) if case.step is local]

    there = {case.kind for case in cases if case.is_local}
    past = {case.kind for case in cases if case.is_past_local}
    assert there - past == {*UNDOS & there, Kind.DO_FAILS_THEN_WORKS}  # which meets both
    assert past < there
    assert str(next(case for case in cases if case.is_past_local)) == "room-do-refused-past-local"
    assert not any(case.is_local for case in matrix([local, SEAT]) if case.step is SEAT)


@pytest.mark.parametrize("kind", [Kind.CANCEL_BEFORE_EFFECT, Kind.CANCEL_AFTER_EFFECT])
def test_a_cancel_beside_a_local_attempt_may_come_too_late(kind: Kind) -> None:
    local = dataclasses.replace(ROOM, is_local_first=True)

    here, past = [case for case in matrix([local]) if case.kind is kind]

    assert (here.ending, past.ending) == (Ending.EITHER, Ending.UNDONE)


def test_what_steps_side_by_side_have_done_is_between_nothing_and_all_of_it() -> None:
    first, last = Step("first", "a", "b", {"rooms": +4}), Step("last", "y", "z", {"rooms": +8})
    plan = Plan([first, Together(ROOM, [SEAT, TENANT]), last])

    assert plan.effect_after(first) == Bounds({"rooms": 4}, {"rooms": 4})
    assert plan.effect_after(ROOM) == Bounds({"rooms": 3, "seats": -1}, {"rooms": 4, "tenants": 1})
    assert plan.effect_after(TENANT) == Bounds(
        {"rooms": 4, "seats": -1, "tenants": 1}, {"rooms": 5, "seats": -1, "tenants": 1}
    )
    assert plan.effect_after(last).least == plan.effect_after(last).most == {"rooms": 12, "seats": -1, "tenants": 1}


def test_bounds_allow_what_is_between_them_and_nothing_else() -> None:
    bounds = Bounds({"rooms": -1}, {"rooms": -1, "seats": 1})

    assert bounds.allow({"rooms": -1})
    assert bounds.allow({"rooms": -1, "seats": 1})
    assert not bounds.allow({"seats": 1})
    assert not bounds.allow({"rooms": -1, "seats": -1})
    assert not bounds.allow({"rooms": -1, "planes": 1})
    assert str(bounds) == "between rooms -1 and rooms -1, seats +1"


def test_a_step_precedes_those_of_its_branch_and_of_later_parts() -> None:
    plan = Plan([ROOM, Together(PLANE_BACK, [SEAT, TENANT])])

    assert plan.precedes(ROOM, TENANT)
    assert plan.precedes(SEAT, TENANT)
    assert not plan.precedes(TENANT, SEAT)
    assert not plan.precedes(PLANE_BACK, TENANT)
    assert plan.beside(SEAT) == [PLANE_BACK]
    assert plan.beside(ROOM) == []


def test_every_kind_of_case_has_its_story_and_its_play() -> None:
    assert set(STORIES) == set(_RUNS) == set(Kind)


def test_every_kind_of_case_is_in_the_document() -> None:
    document = (ROOT / "docs" / "testing-your-saga.md").read_text(encoding="utf-8")

    named = set(re.findall(r"`([a-z0-9-]+)`", document))
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


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([], "at least one step"),
        ([Together(ROOM, [])], "at least one step"),
        ([PLANE, ROOM, dataclasses.replace(PLANE, name="glider", do="glide")], "one step at most that is irrevocable"),
        ([Together(PLANE, ROOM)], "no step runs beside it"),
        ([ROOM, ROOM], "the same name"),
        ([ROOM, dataclasses.replace(ROOM, name="suite")], "the same activity"),
        ([NOTE, ROOM], "note has no undo"),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps: list[Step | Together], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        matrix(steps)


def test_effects_are_added_up_as_far_as_a_step() -> None:
    [first, second] = [case for case in matrix([ROOM, SEAT]) if case.kind is Kind.DO_REPORT_LOST]

    assert first.effect_so_far == Bounds({"rooms": -1}, {"rooms": -1})
    assert second.effect_so_far == Bounds(second.whole_effect, second.whole_effect)
    assert second.whole_effect == {"seats": -1}


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
        "  workflow       trip-7",
        "  case           room-do-report-lost",
    ]


class _Recorded:
    def __init__(self, *events: HistoryEvent) -> None:
        self._events = events

    async def fetch_history_events(self) -> AsyncIterator[HistoryEvent]:
        for event in self._events:
            yield event


def _failure(kind: str, message: str, cause: Failure | None = None) -> Failure:
    return Failure(message=message, application_failure_info=ApplicationFailureInfo(type=kind), cause=cause)


async def test_the_last_failure_is_that_of_the_storys_own_code_before_any_other() -> None:
    failed = HistoryEvent()
    failed.activity_task_failed_event_attributes.failure.CopyFrom(
        _failure("", "the activity failed", _failure("HotelFull", "HotelFull: no room"))
    )
    repeated = HistoryEvent()
    repeated.activity_task_started_event_attributes.last_failure.CopyFrom(_failure("OSError", "gone"))
    bug = HistoryEvent()
    bug.workflow_task_failed_event_attributes.failure.CopyFrom(_failure("SagaMisuse", "use saga.pivot"))

    async def said(*events: HistoryEvent) -> str:
        return await last_failure(cast("Handle", _Recorded(*events)))

    assert await said() == "none"
    assert await said(repeated, failed) == "HotelFull: no room"
    assert await said(failed, repeated) == "OSError: gone"
    assert await said(bug, failed) == "its own code: SagaMisuse: use saga.pivot"


def test_an_activity_is_named_by_its_id_where_a_step_does_and_by_its_type_elsewhere() -> None:
    faults = Faults("trip-7", ["book_room", "seat/back", "undo-seat/back"])

    assert faults.name_of("book_room", "room") == "book_room"
    assert faults.name_of("book_seat", "seat/back") == "seat/back"
    assert faults.name_of("cancel_seat", "undo-seat/back-12") == "undo-seat/back"
    assert faults.name_of("book_seat", "seat/there") == "book_seat"
    assert faults.name_of("book_seat", None) == "book_seat"
