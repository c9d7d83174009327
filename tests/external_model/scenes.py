"""Every kind of provider with the promises that its declaration must keep, small enough for each run of the tests."""

from typing import Any

from sagafence.provider import Keeps, Provider, Settles
from tests.external_model.world import Scene, ticks

REPEAT, VOID, LOOK, PERSON = Settles.BY_REPEATING, Settles.BY_VOIDING, Settles.BY_LOOKING_UP, Settles.BY_A_PERSON
FIRST, SUCCESSES, OBJECTS = Keeps.FIRST_ANSWERS, Keeps.SUCCESSES, Keeps.OBJECTS


def provider(
    settles: Settles,
    keeps: Keeps | None = None,
    kept: int | None = None,
    late: int | None = None,
    lag: int = 0,
    **more: Any,
) -> Provider:
    """Declare one, with instants in ticks. Reversals are by id, harmless when repeated, unless the scene says more."""
    more.setdefault("reversal_is_idempotent", True)
    span = ticks(lag)
    assert span is not None
    return Provider("p", settles, keeps, ticks(kept), ticks(late), span, **more)


def _both(name: str, declared: Provider, **more: Any) -> list[Scene]:
    """Make the scene of a step that is undone, and of a pivot."""
    return [Scene(name, declared, **more), Scene(f"pivot: {name}", declared, pivot=True, **more)]


def _after(name: str, declared: Provider, **more: Any) -> Scene:
    return Scene(f"after the pivot: {name}", declared, dos=3, undos=0, **more)


_ADDITIVE: dict[str, Any] = {"reversal_is_idempotent": False}
_EXPIRES: dict[str, Any] = {"kept": 3, "late": 1}

QUICK = (
    *_both("first answers", provider(REPEAT)),
    *_both("first answers, a worker pauses", provider(REPEAT), pauses=True, dos=1),
    *_both("first answers, copies", provider(REPEAT, duplicates=True), dos=1),
    *_both("first answers and a look", provider(REPEAT), look=True, dos=1),
    *_both("first answers, keys expire", provider(REPEAT, **_EXPIRES), dos=1),
    Scene("first answers, reversals add up", provider(REPEAT, **_ADDITIVE), dos=1, undos=2),
    *_both("objects", provider(REPEAT, OBJECTS)),
    *_both("successes", provider(REPEAT, SUCCESSES), five_acts=False),
    *_both("successes, late by one", provider(REPEAT, SUCCESSES, late=1), five_acts=False, dos=1),
    *_both("void blocks", provider(VOID), undos=2),
    *_both("void blocks, a worker pauses", provider(VOID), pauses=True),
    *_both("void blocks, first answers", provider(VOID, FIRST)),
    *_both("void blocks, first answers, copies", provider(VOID, FIRST, duplicates=True)),
    *_both("void does not block", provider(VOID, late=1, void_blocks=False)),
    *_both("void frees the key", provider(VOID, FIRST, late=1, void_blocks=False, frees_keys=True)),
    *_both("look", provider(LOOK, late=1), look=True),
    *_both("look, lags", provider(LOOK, late=1, lag=1), look=True, dos=1),
    *_both("look, no bound", provider(LOOK), look=True, undos=2),
    *_both("look, delete frees the key", provider(LOOK, OBJECTS, late=1, frees_keys=True), look=True),
    Scene("look, reversals add up", provider(LOOK, late=1, **_ADDITIVE), look=True, dos=1, undos=3),
    *_both("person", provider(PERSON), undos=2),
    *_both("person, late by one", provider(PERSON, late=1), undos=2),
    Scene("person, reversals add up", provider(PERSON, late=1, **_ADDITIVE), dos=1, undos=3),
    Scene("person, reversals add up, looks lag", provider(PERSON, late=1, lag=1, **_ADDITIVE), dos=1, undos=3),
    *_both("person, first answers", provider(PERSON, FIRST)),
    _after("person", provider(PERSON, late=1)),
    _after("look", provider(LOOK, late=1), look=True),
    _after("first answers", provider(REPEAT)),
)

LARGE = (
    *_both("first answers, two undos", provider(REPEAT), undos=2),
    *_both("first answers, keys expire", provider(REPEAT, **_EXPIRES)),
    *_both("first answers, keys expire, look", provider(REPEAT, **_EXPIRES), look=True),
    *_both("first answers, look lags", provider(REPEAT, late=1, lag=1), look=True),
    Scene("first answers, keys expire, reversals add up", provider(REPEAT, **_EXPIRES, **_ADDITIVE)),
    Scene("first answers, two undos, reversals add up", provider(REPEAT, **_ADDITIVE), undos=2),
    *_both("objects, keys expire", provider(REPEAT, OBJECTS, **_EXPIRES)),
    *_both("successes, late by one", provider(REPEAT, SUCCESSES, late=1), five_acts=False),
    Scene("undo frees the key", provider(REPEAT, late=1, frees_keys=True)),
    Scene("undo frees the key, objects", provider(REPEAT, OBJECTS, late=1, frees_keys=True)),
    *_both("void blocks, first answers, two undos, two faults", provider(VOID, FIRST), undos=2, faults=2),
    *_both("look, two undos", provider(LOOK, late=1), look=True, undos=2),
    *_both("look, lags", provider(LOOK, late=1, lag=1), look=True),
    _after("first answers, keys expire", provider(REPEAT, **_EXPIRES)),
)
