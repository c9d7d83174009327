"""The outcome file of a bulk load: how each order of the file has ended, a line for each; the load goes on from it."""

import csv
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from domain.bulk import OTHER_CONTENT, Outcome
from domain.errors import InvalidInput
from domain.model import ENDINGS, CheckoutInput

_FIRST_COLUMNS = ("line", "order_id", "status", "reason", "total_minor", "currency", "tracking_number")
"""All that files of earlier versions have. Such a file is gone on with as it is."""
COLUMNS = (*_FIRST_COLUMNS, "content")
MALFORMED = "malformed"
_HEADER = ",".join(_FIRST_COLUMNS).encode()
_CONTENT_LENGTH = 16
_TAIL_BYTES = 100_000
_SETTLED = ENDINGS | {OTHER_CONTENT}


class OutcomeFile:
    """A file that outcomes are added to. Every line that a caller was told of is on its way to the disk.

    Raises:
        InvalidInput: the file is there and is none of ours, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: tuple[str, ...] = COLUMNS
        self._settled: dict[str, set[str]] = {}
        """The contents under each id that need not be asked for again; empty where an earlier version did not say."""
        try:
            self._read()
            self._file: TextIO = path.open("a", encoding="utf-8", newline="")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or "it is no outcome file"
            raise InvalidInput(f"{path} cannot be used for outcomes: {why}") from None
        self._writer = csv.writer(self._file, lineterminator="\n")
        if self._file.tell() == 0:
            self._writer.writerow(self._columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, line: int, outcome: Outcome, order: CheckoutInput | None = None) -> None:
        """Write how an order has ended; without the order where there is none."""
        row = (line, *astuple(outcome), _content(order) if order else "")
        self._writer.writerow(row[: len(self._columns)])

    def is_settled(self, order: CheckoutInput) -> bool:
        """Tell whether an order need not be asked for again: what was asked for under its id had the same content."""
        return not self._settled.get(order.order_id, set()).isdisjoint({"", _content(order)})

    def flush(self) -> None:
        """Hand what was written to the system: it outlives this process."""
        self._file.flush()

    def _read(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        self._drop_torn_line()
        with self.path.open(encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines)
            self._columns = tuple(next(reader, ()))
            if self._columns not in {COLUMNS, _FIRST_COLUMNS}:
                raise InvalidInput(f"{self.path} is no outcome file; name another one")
            for row in reader:
                if len(row) != len(self._columns):
                    raise InvalidInput(f"{self.path}, line {reader.line_num}: not a line of an outcome file")
                if row[2] in _SETTLED:
                    self._settled.setdefault(row[1], set()).add("".join(row[len(_FIRST_COLUMNS) :]))

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


def _content(order: CheckoutInput) -> str:
    return order.fingerprint[:_CONTENT_LENGTH]
