"""Mistakes in declarations that would otherwise show in the middle of a saga: refused where they are written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from sagafence import PostgresFence, Provider, Saga, SagaMisuse, SagaSteps, Settles, external, local
from sagafence.declare import Forward
from sagafence.misuse import wrong_verb
from sagafence.signature import not_storable

T = TypeVar("T")


@dataclass(frozen=True)
class Box(Generic[T]):
    """A generic dataclass."""

    content: T


async def _act(_self: Any, tx: AsyncConnection, given: int) -> int:
    del tx
    return given


async def _by_keyword(_self: Any, tx: AsyncConnection, *, given: int) -> int:
    return await _act(None, tx, given)


async def _any_number(_self: Any, tx: AsyncConnection, *given: int) -> int:
    return await _act(None, tx, given[0])


def _undo_named_as_its_step() -> None:
    step = local("seat")(_act)

    async def _act_(_self: Any, tx: AsyncConnection, given: int, done: int) -> None: ...

    _act_.__name__ = "_act"
    step.undo(_act_)


def _overridden_by_a_plain_method() -> None:
    base = type("Base", (SagaSteps,), {"act": local.pivot("seat")(_act)})
    type("Derived", (base,), {"act": _act})


def _undo_in_another_kind_of_transaction() -> None:
    async def free(_self: Any, tx: AsyncSession, given: int, done: int) -> None: ...

    step = local("seat")(_act)
    step.undo(cast("Any", free))
    type("Steps", (SagaSteps,), {"act": step, "free": free})


def _undo_of_another_result() -> None:
    async def free(_self: Any, tx: AsyncConnection, given: int, done: Box[int]) -> None: ...

    free.__annotations__["done"] = Box
    step = local("seat")(_act)
    step.undo(cast("Any", free))
    type("Steps", (SagaSteps,), {"act": step, "free": free})


def _result_that_says_that_nothing_was_found() -> None:
    async def send(_self: Any, key: str, given: int) -> int | None: ...
    async def look(_self: Any, key: str, given: int) -> int | None: ...

    step = external.forward("mail", Provider("mail", Settles.BY_LOOKING_UP))(send)
    step.lookup(look)
    type("Steps", (SagaSteps,), {"send": step})


def _fence() -> PostgresFence:
    return PostgresFence(cast("AsyncEngine", None))


def _class_for_its_instance() -> None:
    _fence().activities_of(cast("SagaSteps", type("Steps", (SagaSteps,), {"act": local.pivot("seat")(_act)})))


def _activity_of_ours() -> None:
    steps = type("Steps", (SagaSteps,), {"act": local.pivot("seat", activity="sagafence.end")(_act)})
    _fence().activities_of(steps())


def _one_name_in_two_classes() -> None:
    first = type("First", (SagaSteps,), {"act": local.pivot("seat")(_act)})
    second = type("Second", (SagaSteps,), {"other": local.forward("seat", activity="other")(_act)})
    _fence().activities_of(first(), second())


@pytest.mark.parametrize(
    ("step", "verb", "says"),
    [
        (local.pivot("invoice")(_act), "do", 'the step "invoice" is a pivot: use saga.pivot, not saga.do'),
        (local.forward("mail")(_act), "do", 'the step "mail" is a step after the pivot: use saga.then, not saga.do'),
        (local("seat")(_act), "pivot", 'the step "seat" is a step with an undo: use saga.do, not saga.pivot'),
        (_act, "do", "saga.do takes a declared step by its name, as in saga.do"),
    ],
)
def test_a_verb_says_which_one_takes_the_step(step: object, verb: str, says: str) -> None:
    assert (wrong_verb(step, verb) or "").startswith(says)


def test_a_step_without_undo_before_the_pivot_says_what_to_use() -> None:
    saga = Saga.__new__(Saga)
    saga._is_past_pivot = False

    with pytest.raises(SagaMisuse, match=r'"mail" has no undo: before saga.pivot use a step with one, and saga.do'):
        saga._require(local.forward("mail")(_act), Forward, "then")


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (
            _undo_in_another_kind_of_transaction,
            "its undo takes tx as AsyncSession, and gets it as AsyncConnection",
        ),
        (_undo_of_another_result, "its undo takes done as Box, and gets it as int, as its step does"),
        (lambda: local(cast("str", _act)), r'as in @local\("seat"\)'),
        (lambda: local.pivot(cast("str", 3))(_act), "needs a name"),
        (lambda: local.pivot(" ")(_act), "needs a name"),
        (lambda: local.pivot("a\0b")(_act), "printable"),
        (lambda: local.pivot("a" * 101)(_act), "at most 100"),
        (
            lambda: local.pivot("seat", **cast("Any", {"polcy": 1}))(_act),
            "no option polcy; there are activity, undo_activity, policy",
        ),
        (lambda: local.pivot("seat", policy=cast("Any", 3))(_act), "policy is an ActivityPolicy"),
        (lambda: local.pivot("seat")(cast("Any", _by_keyword)), "takes"),
        (lambda: local.pivot("seat")(cast("Any", _any_number)), "takes"),
        (_undo_named_as_its_step, "would take its place"),
        (_overridden_by_a_plain_method, "Derived.act overrides a step"),
        (_result_that_says_that_nothing_was_found, "found nothing"),
        (_class_for_its_instance, "takes instances of SagaSteps"),
        (_activity_of_ours, "library's own"),
        (_one_name_in_two_classes, r'"seat", in First and Second: .* Give one of them another name'),
        (lambda: cast("Any", external)("room"), r'needs its provider: @external\("room", Provider\(...\)\)'),
        (lambda: cast("Any", external).pivot("room"), "needs its provider"),
        (
            lambda: cast("Any", local.pivot("seat")(_act)).undo,
            "no undo: there is no way back. To have one",
        ),
        (lambda: cast("Any", local.forward("seat")(_act)).undo, "has no undo: there is no way back"),
        (lambda: cast("Any", local("seat")(_act)).lookup, "has no lookup: its fence knows what it did"),
    ],
)
def test_it_is_refused_where_it_is_written(declare: Callable[[], object], says: str) -> None:
    with pytest.raises(SagaMisuse, match=says):
        declare()


@pytest.mark.parametrize("kind", [Box[int], list[Box[int]], dict[UUID, int], dict[tuple[int, int], int]])
def test_a_type_that_the_converter_cannot_read_back_is_refused(kind: Any) -> None:
    assert not_storable(kind) is not None


@pytest.mark.parametrize("kind", [dict[str, int], dict[int, list[str]], tuple[int, ...], int | None, list[set[int]]])
def test_a_type_that_it_can_is_taken(kind: Any) -> None:
    assert not_storable(kind) is None
