"""Which steps of a saga come one after the other, and which run side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sagafence.testing.description import Counts, Step, Together
from sagafence.testing.words import in_words


@dataclass(frozen=True)
class Bounds:
    """Between which changes the world may be. Both are the same, unless other steps are at work."""

    least: Counts
    most: Counts

    def __str__(self) -> str:
        if self.least == self.most:
            return in_words(self.least)
        return f"between {in_words(self.least)} and {in_words(self.most)}"

    def allow(self, change: Counts) -> bool:
        """Whether a change is possible. Of a step that is at work, any part may be seen."""
        names = {*self.least, *self.most, *change}
        return all(self.least.get(name, 0) <= change.get(name, 0) <= self.most.get(name, 0) for name in names)


class Plan:
    """All steps of a saga: a tuple of parts, each a tuple of branches, each a tuple of steps."""

    def __init__(self, parts: Sequence[Step | Together]) -> None:
        self._parts = [part.branches if isinstance(part, Together) else ((part,),) for part in parts]
        self.steps: Sequence[Step] = tuple(step for part in self._parts for branch in part for step in branch)
        pivots = [step for step in self.steps if step.is_irrevocable]
        self.pivot: Step | None = pivots[0] if pivots else None
        self._check(pivots)

    def is_forward(self, step: Step) -> bool:
        """Whether a step comes after the point of no return."""
        return self.pivot is not None and self.precedes(self.pivot, step)

    def can_be_undone(self, step: Step) -> bool:
        """Whether a step comes before the point of no return, or there is none."""
        return not (step.is_irrevocable or self.is_forward(step))

    def last_to_undo(self) -> Step:
        """Return the last step that can be undone."""
        return [step for step in self.steps if self.can_be_undone(step)][-1]

    def beside(self, step: Step) -> Sequence[Step]:
        """List the steps that may be at work at the same time."""
        part, branch, _ = self._place(step)
        return [other for n, one in enumerate(self._parts[part]) if n != branch for other in one]

    def precedes(self, first: Step, second: Step) -> bool:
        """Whether a step has ended before another one begins."""
        (part, branch, n), (its_part, its_branch, its_n) = self._place(first), self._place(second)
        return part < its_part or (part == its_part and branch == its_branch and n < its_n)

    def effect_after(self, step: Step) -> Bounds:
        """By how much the world may have changed when a step has just taken effect."""
        had = total([other for other in self.steps if other is step or self.precedes(other, step)])
        beside = self.beside(step)
        names = {*had, *(name for other in beside for name in other.effect)}

        def bound(choose: Callable[[int, int], int]) -> Counts:
            sums = {
                name: had.get(name, 0) + sum(choose(other.effect.get(name, 0), 0) for other in beside)
                for name in sorted(names)
            }
            return {name: count for name, count in sums.items() if count}

        return Bounds(bound(min), bound(max))

    def _place(self, step: Step) -> tuple[int, int, int]:
        return next(
            (p, b, n)
            for p, part in enumerate(self._parts)
            for b, branch in enumerate(part)
            for n, one in enumerate(branch)
            if one is step
        )

    def _check(self, pivots: Sequence[Step]) -> None:
        steps = self.steps
        if not steps or not all(branch for part in self._parts for branch in part):
            raise ValueError("a saga has at least one step, and so has each branch")
        if len({step.name for step in steps}) < len(steps):
            raise ValueError("two steps have the same name")
        if len({step.do for step in steps}) < len(steps):
            raise ValueError("two steps have the same activity: tell them apart by their activity ids")
        if len(pivots) > 1 or any(self.beside(step) for step in pivots):
            raise ValueError("a saga has one step at most that is irrevocable, and no step runs beside it")
        for step in steps:
            if self.can_be_undone(step) and not step.undo:
                raise ValueError(f"step {step.name} has no undo, and does not come after an irrevocable step")


def total(steps: Sequence[Step]) -> Counts:
    """Add up the effects of some steps, without sums of zero."""
    names = {name for step in steps for name in step.effect}
    sums = {name: sum(step.effect.get(name, 0) for step in steps) for name in sorted(names)}
    return {name: count for name, count in sums.items() if count}
