"""Look through every state that a scene can reach, for one that breaks a promise."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from sagafence.external_steps.state import Facts, Phase
from tests.external_model.world import Scene, Worker, World, beginning, moves


class Found(NamedTuple):
    states: int
    broken: str | None
    trace: list[str]


def broken(scene: Scene, world: World) -> str | None:
    """Name the promise that a state breaks."""
    there, step = sum(effect[0] for effect in world.effects), world.step
    if len(world.effects) > 1:
        return "E1: two effects"
    if world.told_undone and there:
        return "E4: the saga unwinds, the pivot has its effect" if scene.pivot else "E3: an effect after the undo"
    if step.phase in {Phase.NEVER, Phase.UNDONE, Phase.RESOLVED} and there:
        return f"E2: {step.phase}, and it is there"
    if step.phase is Phase.DONE and not step.stands and not there:
        return "E2: done, and it is not there"
    if world.reversals > len(world.effects):
        return "reversed more than was done"
    return None


def check(scene: Scene, limit: int = 2_000_000) -> Found:
    """Search breadth first, so that a trace is a shortest one."""
    facts, first = scene.believed(), beginning(scene)
    came: dict[World, tuple[World, str] | None] = {first: None}
    todo = deque([first])
    leads_on: dict[World, bool] = {}
    while todo:
        world = todo.popleft()
        for label, after in moves(scene, facts, world):
            if after in came:
                continue
            came[after] = (world, label)
            if wrong := broken(scene, after):
                return Found(len(came), wrong, trace(came, after))
            todo.append(after)
        if len(came) > limit:
            return Found(len(came), "too many states", [])
        if is_stranded(scene, facts, world, leads_on):
            return Found(len(came), "stranded: no end and no question", trace(came, world))
    return Found(len(came), None, [])


def is_stranded(scene: Scene, facts: Facts, world: World, known: dict[World, bool]) -> bool:
    """Whether everybody is gone, the step is open, and three more undos lead to no end and no question."""
    still_open = world.step.phase in {Phase.UNDOING, Phase.SETTLING} and world.step.question is None
    if not still_open or world.lost or any(worker.at != "end" for worker in world.workers):
        return False
    start = world._replace(workers=(Worker("undo"),) * 3, faults=0)
    if start not in known:
        known[start] = any(_is_over(each) for each in reachable(scene, facts, start))
    return not known[start]


def _is_over(world: World) -> bool:
    return world.step.question is not None or world.step.phase not in {Phase.UNDOING, Phase.SETTLING}


def reachable(scene: Scene, facts: Facts, start: World) -> Iterator[World]:
    seen, todo = {start}, [start]
    while todo:
        world = todo.pop()
        yield world
        for _, after in moves(scene, facts, world):
            if after not in seen:
                seen.add(after)
                todo.append(after)


def trace(came: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    steps: list[str] = []
    while (before := came[world]) is not None:
        world, label = before
        steps.append(label)
    return steps[::-1]
