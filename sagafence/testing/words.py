"""Differences between two probes, and how they read."""

from sagafence.testing.description import Counts


def difference(before: Counts, after: Counts) -> Counts:
    """By how much two probes differ, without what is equal."""
    names = sorted({*before, *after})
    changes = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: change for name, change in changes.items() if change}


def in_words(change: Counts) -> str:
    """Format a difference: `rooms -1, seats +2`."""
    return ", ".join(f"{name} {count:+}" for name, count in change.items()) or "no change"
