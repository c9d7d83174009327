"""The outcome file of a bulk load: how each order of the file has ended, a line for each; the load goes on from it."""

import csv
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from domain.bulk import OTHER_CONTENT, Outcome
from domain.errors import InvalidInput
from domain.model import ENDINGS, CheckoutInput
from domain.text import tidy

_FIRST_COLUMNS = ("line", "order_id", "status", "reason", "total_minor", "currency", "tracking_number")
"""All that files of earlier versions have."""
COLUMNS = (*_FIRST_COLUMNS, "content")
MALFORMED = "malformed"
_HEADER = f"{','.join(COLUMNS)}\n".encode()
_CONTENT_LENGTH = 16
_BLOCK = 1 << 16
_SETTLED = ENDINGS | {OTHER_CONTENT}

# Also as full-width and small forms, which a spreadsheet may read as the same; and behind what it passes over.
_RUNS = r"""['" ]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\t\r\n]"""
_BEGIN = r"(?:^|(?<=[,;|\t]))"
_TO_MARK = re.compile(f"{_BEGIN}(?={_RUNS})")
_MARKED = re.compile(f"{_BEGIN}'(?={_RUNS})")


class OutcomeFile:
    """A file that outcomes are added to, by one load at a time.

    Every line that a caller was told of is on its way to the disk. Orders of a file of an earlier version, which does
    not tell what was asked for, are asked for again.

    Raises:
        InvalidInput: the file is there and is none of ours, cannot be written, or another load has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = _locked(path)
            try:
                has_content = _healed(path, descriptor)
                if has_content is False:
                    descriptor = _with_contents(path, descriptor)
                self._settled = Settled.read(path)
                self._file: TextIO = os.fdopen(descriptor, "a", encoding="utf-8", newline="")
            except BaseException:
                os.close(descriptor)
                raise
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or "it is no outcome file"
            raise InvalidInput(f"{path} cannot be used for outcomes: {why}") from None
        self._writer = csv.writer(self._file, lineterminator="\n")
        if has_content is None:
            self._writer.writerow(COLUMNS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise

    def add(self, line: int, outcome: Outcome, order: CheckoutInput | None = None) -> None:
        """Write how an order has ended; without the order where there is none."""
        order_id, status, reason, total_minor, currency, tracking_number = astuple(outcome)
        texts = (tidy(text or "") for text in (status, reason, currency, tracking_number))
        status, reason, currency, tracking_number = map(to_cell, texts)
        self._writer.writerow(
            (
                line,
                to_cell(order.order_id if order else tidy(order_id)),
                status,
                reason,
                total_minor,
                currency,
                tracking_number,
                _content(order) if order else "",
            )
        )

    def is_settled(self, order: CheckoutInput) -> bool:
        """Tell whether an order need not be asked for again: what was asked for under its id had the same content."""
        return order in self._settled

    def flush(self) -> None:
        """Hand what was written to the system: it outlives this process."""
        self._file.flush()


class Settled:
    """The orders that need not be asked for again: ids with contents, in few bytes each."""

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._names = set(names)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read them from an outcome file.

        Raises:
            InvalidInput: it is none.
        """
        rows = _rows(path, COLUMNS)
        return cls(_name(from_cell(row[1]), row[-1]) for row in rows if row[2] in _SETTLED and row[-1])

    @classmethod
    def peek(cls, path: Path) -> Self:
        """Read them from a file that may be of another load, or torn, or not there.

        Raises:
            InvalidInput: it is there, and none of ours.
        """
        try:
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
                reader = csv.reader(line.replace("\0", "") for line in lines)
                if tuple(next(reader, COLUMNS)) not in {COLUMNS, _FIRST_COLUMNS}:
                    raise InvalidInput(f"{path} is no outcome file; name another one")
                whole = (row for row in reader if len(row) == len(COLUMNS))
                return cls(_name(from_cell(row[1]), row[-1]) for row in whole if row[2] in _SETTLED and row[-1])
        except FileNotFoundError:
            return cls()
        except (OSError, csv.Error) as error:
            raise InvalidInput(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None

    def __contains__(self, order: CheckoutInput) -> bool:
        return _name(order.order_id, _content(order)) in self._names


def _lock(descriptor: int, path: Path) -> None:
    """Take the lock on an open file.

    Raises:
        InvalidInput: another process has it, or there are no locks where the file is.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidInput(
            f"{path} is in use: {_holder(descriptor)} is loading into it; wait until that has ended, or name another "
            "file with --outcomes"
        ) from None
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}:
            raise
        raise InvalidInput(
            f"{path} cannot be locked where it is ({error.strerror}), and two loads at once would mix their lines; "
            "name a file on a local disk with --outcomes"
        ) from None


def _holder(descriptor: int) -> str:
    """Name who has the lock, where the system tells."""
    inode = f":{os.fstat(descriptor).st_ino}"
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        locks = []
    for held in map(str.split, locks):
        if len(held) > 5 and held[1] == "FLOCK" and held[5].endswith(inode) and held[4] != "0":
            return f"process {held[4]}"
    return "another process"


def _locked(path: Path) -> int:
    """Open a file, which is made where there is none, and take its lock."""
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} cannot be used for outcomes: it is no regular file")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _healed(path: Path, descriptor: int) -> bool | None:
    """Cut off what a load that was killed had begun to write. No field of ours holds a line break.

    Tells whether the file has the column of contents; None where it has nothing.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, len(_HEADER) + 16, 0).removeprefix(b"\xef\xbb\xbf")
    first = head.splitlines()[0] if head.splitlines() else b""
    if size <= len(_HEADER) and _HEADER[:-1].startswith(head.rstrip(b"\0")):
        os.ftruncate(descriptor, 0)
        return None
    columns = tuple(first.decode("utf-8", "replace").split(","))
    if columns not in {COLUMNS, _FIRST_COLUMNS}:
        raise InvalidInput(f"{path} is no outcome file; name another one")
    end = size
    while end:
        begin = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            if begin + found + 1 < size:
                os.ftruncate(descriptor, begin + found + 1)
            break
        end = begin
    return columns == COLUMNS


def _with_contents(path: Path, descriptor: int) -> int:
    """Give a file of an earlier version the column that it lacks, and the lock on what it is then."""
    into = path.with_name(f"{path.name}.new")
    renewed = os.open(into, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _lock(renewed, path)
        with open(renewed, "w", encoding="utf-8", newline="", closefd=False) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows((*row, "") for row in _rows(path, _FIRST_COLUMNS))
        os.fchmod(renewed, stat.S_IMODE(os.fstat(descriptor).st_mode))
        os.fsync(renewed)
        into.replace(path)
    except BaseException:
        os.close(renewed)
        into.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    return renewed


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines)
        next(reader, None)
        for row in reader:
            if len(row) != len(columns):
                raise InvalidInput(f"{path}, line {reader.line_num}: not a line of an outcome file")
            yield row


def _name(order_id: str, content: str) -> bytes:
    """Name an id with a content, short enough to keep a million of them."""
    return blake2b(f"{content} {order_id}".encode(), digest_size=12).digest()


def _content(order: CheckoutInput) -> str:
    return order.fingerprint[:_CONTENT_LENGTH]


# Cells that a spreadsheet opens ---------------------------------------------------------------------------


def to_cell(text: str) -> str:
    """Put an apostrophe before whatever would run, as a person does who types it."""
    return _TO_MARK.sub("'", text)


def from_cell(cell: str) -> str:
    """Undo `to_cell`, exactly."""
    return _MARKED.sub("", cell)
