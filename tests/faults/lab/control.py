"""The control server, which the lab's workers ask before they go on, and their connection to it.

One question is one line of JSON on a connection of its own; the answer, one line, may be long in coming.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Self

from tests.faults.lab.cells import Boundary
from tests.workflow.gates import Gate

_HEARD_WITHIN_SECONDS = 60.0
_GO = b"go\n"


@dataclass(frozen=True)
class Report:
    subject: str
    """The order's id, or the workflow id of a batch."""
    operation: str
    attempt: int
    """0 for a workflow task, which has come to see the operation's result."""
    worker_pid: int
    boundary: str | None = None
    """None when the attempt has ended."""
    answer: str | None = None
    """How it ended: `returned`, or the name of its error."""
    run_id: str = ""
    """Of the workflow whose attempt it is."""


class ControlServer:
    """Lets every report go on at once unless a gate is put up for its place."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._gates: dict[tuple[str, str, str], Gate] = {}
        self._news = asyncio.Condition()
        self._visits: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def hold(self, subject: str, operation: str, boundary: Boundary) -> Gate:
        """Hold the next attempt that comes to this place. A retry of it passes."""
        gate = self._gates[subject, str(operation), boundary.value] = Gate()
        return gate

    async def heard(self, condition: Callable[[list[Report]], bool]) -> None:
        async with asyncio.timeout(_HEARD_WITHIN_SECONDS), self._news:
            await self._news.wait_for(lambda: condition(self.reports))

    def answer_of(self, attempt: Report) -> str | None:
        """Return how an attempt ended; None while it has not, or where its worker was lost."""
        ends = [
            report.answer
            for report in self.reports
            if report.boundary is None and replace(report, boundary=attempt.boundary, answer=attempt.answer) == attempt
        ]
        return ends[0] if ends else None

    def attempts_of(self, subject: str, operation: str) -> list[Report]:
        return [
            report
            for report in self.reports
            if (report.subject, report.operation, report.boundary) == (subject, operation, Boundary.B1)
        ]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._visit, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for visit in list(self._visits):
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)
        await self._server.wait_closed()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = asyncio.current_task()
        assert visit is not None
        self._visits.add(visit)
        try:
            report = Report(**json.loads(await reader.readline()))
            async with self._news:
                self.reports.append(report)
                self._news.notify_all()
            gate = self._gates.pop((report.subject, report.operation, report.boundary or ""), None)
            if gate is not None:
                await gate.hold()
            writer.write(_GO)
        finally:
            self._visits.discard(visit)
            writer.close()


class Line:
    def __init__(self, port: int) -> None:
        self._port = port

    async def report(self, report: Report) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_line(report))
            _require_leave(await reader.readline())
        finally:
            writer.close()

    def report_from_thread(self, report: Report) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(_line(report))
            _require_leave(connection.makefile("rb").readline())


def _line(report: Report) -> bytes:
    return json.dumps(asdict(report)).encode() + b"\n"


def _require_leave(answer: bytes) -> None:
    if answer != _GO:
        raise ConnectionError("the control server has closed: the test is over")
