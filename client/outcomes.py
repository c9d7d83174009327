"""The outcome file of a bulk load: how each order of the file has ended, a line for each; the load goes on from it."""

import csv
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from domain.bulk import OTHER_CONTENT, Outcome
from domain.errors import InvalidInput
from domain.model import ENDINGS

COLUMNS = ("line", "order_id", "status", "reason", "total_minor", "currency", "tracking_number")
MALFORMED = "malformed"
_HEADER = ",".join(COLUMNS).encode()
_TAIL_BYTES = 100_000
_SETTLED = ENDINGS | {OTHER_CONTENT}


class OutcomeFile:
    """A file that outcomes are added to. Every line that a caller was told of is on its way to the disk.

    Raises:
        InvalidInput: the file is there and is none of ours, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settled: set[str] = set()
        """The orders that need not be asked for again."""
        try:
            self._read()
            self._file: TextIO = path.open("a", encoding="utf-8", newline="")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or "it is no outcome file"
            raise InvalidInput(f"{path} cannot be used for outcomes: {why}") from None
        self._writer = csv.writer(self._file, lineterminator="\n")
        if self._file.tell() == 0:
            self._writer.writerow(COLUMNS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, line: int, outcome: Outcome) -> None:
        """Write how an order has ended."""
        self._writer.writerow((line, *astuple(outcome)))

    def flush(self) -> None:
        """Hand what was written to the system: it outlives this process."""
        self._file.flush()

    def _read(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        self._drop_torn_line()
        with self.path.open(encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines)
            if tuple(next(reader, ())) != COLUMNS:
                raise InvalidInput(f"{self.path} is no outcome file; name another one")
            for row in reader:
                if len(row) != len(COLUMNS):
                    raise InvalidInput(f"{self.path}, line {reader.line_num}: not a line of an outcome file")
                if row[2] in _SETTLED:
                    self.settled.add(row[1])

    def _drop_torn_line(self) -> None:
        """Cut off what a load that was killed had begun to write. No field of ours holds a line break."""
        size = self.path.stat().st_size
        with self.path.open("rb+") as file:
            if file.read(len(_HEADER)) != _HEADER:
                return
            begin = max(0, size - _TAIL_BYTES)
            file.seek(begin)
            tail = file.read()
            if not tail.endswith(b"\n"):
                file.truncate(begin + tail.rfind(b"\n") + 1)
