"""The error for a broken promise, and its message."""

from sagafence.testing.cases import Case
from sagafence.testing.description import Counts


class BrokenPromise(AssertionError):
    """The saga did what a saga must not do. The message says which promise broke, and where to look."""


def broken(case: Case, workflow_id: str, promise: str, found: str, seen: str) -> BrokenPromise:
    """Put the message together."""
    return BrokenPromise(
        f"{promise}\n"
        f"  what happened  {case.story}\n"
        f"  found          {found}\n"
        f"  attempts       {seen or 'none'}\n"
        f"  how to look    temporal workflow show --workflow-id {workflow_id}\n"
        f"  case           {case}"
    )


def difference(before: Counts, after: Counts) -> Counts:
    """By how much two probes differ, without what is equal."""
    names = sorted({*before, *after})
    changes = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: change for name, change in changes.items() if change}


def in_words(change: Counts) -> str:
    """Format a difference: `rooms -1, seats +2`."""
    return ", ".join(f"{name} {count:+}" for name, count in change.items()) or "no change"
