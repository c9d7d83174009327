"""A secret that is looked for wherever it must not be."""

import traceback

CANARY = "KANARIE"
"""In every secret of a test, in every part of it."""


def leaks(error: BaseException) -> list[str]:
    """Give what an error, or one of those that it came from, tells of the secret in whatever way it is shown."""
    found: list[str] = []
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        waiting += [each.__cause__, each.__context__]
        shown = [str(each), repr(each), f"{each}", str(vars(each)), *traceback.format_exception(each)]
        # What a decoder has read, and the name of a file, are attributes that no view of the error's dictionary has.
        shown += [repr(getattr(each, name, None)) for name in ("object", "filename", "doc", "orig_exc")]
        found += [text for text in shown if CANARY in text]
    return found
