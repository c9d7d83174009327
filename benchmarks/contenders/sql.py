"""Bare SQL: the three statements of an order behind one HTTP request, without an engine. What no engine can save."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contenders.contender import Contender, require_installed
from benchmarks.contenders.serving import OverHttp, worker
from devstack.stack import DevStack
from sagafence.devservers.ports import free_port


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Run the worker inside the block and yield the contender.

    Raises:
        Absent: aiohttp is not installed.
    """
    require_installed("bare SQL", "aiohttp")
    port = free_port()
    with worker("sql_app", stack, port, stack.database_url) as processes:
        yield [OverHttp("bare SQL", processes, port, "/checkout")]
