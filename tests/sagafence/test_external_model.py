"""The rules of external steps, in every state that a small world can reach (tests/external_model)."""

import pytest

from sagafence.external_steps import backward
from tests.external_model.check import check
from tests.external_model.mistakes import MISTAKES, Mistake
from tests.external_model.scenes import LARGE, QUICK
from tests.external_model.world import Scene


@pytest.fixture(autouse=True)
def one_claim_before_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them are the same again, and many more states."""
    monkeypatch.setattr(backward, "CLAIMS_BEFORE_ASKING", 1)


@pytest.mark.parametrize("scene", QUICK, ids=lambda scene: scene.name)
def test_no_state_breaks_a_promise_and_none_is_without_a_way_out(scene: Scene) -> None:
    found = check(scene)

    assert found.broken is None, "\n".join([found.broken, *found.trace])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scene", LARGE, ids=lambda scene: scene.name)
def test_no_state_of_a_larger_world_breaks_a_promise(scene: Scene) -> None:
    found = check(scene)

    assert found.broken is None, "\n".join([found.broken, *found.trace])


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_the_model_finds_a_planted_mistake(mistake: Mistake) -> None:
    found = check(mistake.scene)

    assert (found.broken or "nothing").startswith(mistake.breaks), "\n".join(found.trace)


def test_every_counterexample_is_planted() -> None:
    assert {int(mistake.counterexample) for mistake in MISTAKES if mistake.counterexample} == set(range(1, 19))
