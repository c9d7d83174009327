"""The error for a broken promise, and its message."""

from sagafence.testing.cases import Case


class BrokenPromise(AssertionError):
    """The saga did what a saga must not do. The message says which promise broke, and where to look."""


def broken(case: Case, workflow_id: str, promise: str, found: str, seen: str) -> BrokenPromise:
    """Put the message together."""
    return BrokenPromise(
        f"{promise}\n"
        f"  what happened  {case.story}\n"
        f"  found          {found}\n"
        f"  attempts       {seen or 'none'}\n"
        f"  workflow       {workflow_id}\n"
        f"  case           {case}"
    )
