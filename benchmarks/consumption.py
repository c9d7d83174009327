"""Processor time by role: who worked how long for an order."""

import os
from collections.abc import Mapping

import psutil

Seconds = dict[str, float]
"""User and system time by role."""


class Meter:
    """Reads the processor time of a contender's processes, of Postgres, and of ours, who calls."""

    def __init__(self, processes: Mapping[str, int], postgres: int) -> None:
        self._processes = {"caller": os.getpid(), **processes, "Postgres": postgres}

    def read(self) -> Seconds:
        """Give what each has used since it started, the children that it had included."""
        return {role: _used(pid, is_us=role == "caller") for role, pid in self._processes.items()}

    def since(self, before: Seconds) -> Seconds:
        """Give what each has used since a reading."""
        return {role: now - before[role] for role, now in self.read().items()}


def _used(pid: int, *, is_us: bool) -> float:
    process = psutil.Process(pid)
    times = process.cpu_times()
    used = float(times.user + times.system)
    if is_us:
        return used  # our children are the contenders
    # The sessions of Postgres are its children; what those used that have ended is handed to it.
    used += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    for child in process.children():
        try:
            of_child = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += of_child.user + of_child.system
    return used
