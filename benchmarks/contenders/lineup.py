"""Who is there to take part, in the sequence of the tables."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from benchmarks.contenders import dbos, restate, sql, temporal
from benchmarks.contenders.contender import Contender
from embedded.stack import DevStack

Room = Callable[[DevStack], AbstractContextManager[Sequence[Contender]]]
"""Starts what its contenders need beside the stack, and stops it."""

ROOMS: tuple[Room, ...] = (temporal.running, dbos.running, restate.running, sql.running)
