"""Who is there to take part, in the sequence of the tables."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from benchmarks.contenders import dbos, one_process, restate, sql, temporal
from benchmarks.contenders.contender import Contender
from devstack.stack import DevStack

Room = Callable[[DevStack], AbstractContextManager[Sequence[Contender]]]
"""Starts what its contenders need beside the stack, and stops it."""

ROOMS: tuple[Room, ...] = (temporal.running, one_process.running, dbos.running, restate.running, sql.running)
