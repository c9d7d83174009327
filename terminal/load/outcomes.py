"""The outcome file of a bulk load: a line for each order of the file; a repeated load continues from it."""

import csv
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Self, TextIO

from domain.bulk import ORDER_ID_CONFLICT, Outcome
from domain.model import ENDINGS, CheckoutInput
from domain.text import tidy
from sagafence import InvalidInput

_FIRST_COLUMNS = ("line", "order_id", "status", "reason", "total_minor", "currency", "tracking_number")
"""The columns of files of earlier versions."""
COLUMNS = (*_FIRST_COLUMNS, "content")
MALFORMED = "malformed"
_HEADER = f"{','.join(COLUMNS)}\n".encode()
_CONTENT_LENGTH = 16
_BLOCK = 1 << 16
_SETTLED = ENDINGS | {ORDER_ID_CONFLICT}

# A spreadsheet takes a cell for a formula by its first character, also in full-width and small forms, and after what it
# skips. Where its separator is another one, a cell begins after every `;` in a text too.
_RUNS = r"""['" ]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\t\r\n]"""
_BEGIN = r"(?:^|(?<=[,;|\t]))"
_TO_MARK = re.compile(f"{_BEGIN}(?={_RUNS})")
_MARKED = re.compile(f"{_BEGIN}'(?={_RUNS})")


class OutcomeFile:
    """A file that outcomes are appended to, by one load at a time.

    Orders of a file of an earlier version, which lacks the contents, are requested again.

    Raises:
        InvalidInput: it is no outcome file, cannot be written, or is locked by another load.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = _locked(path)
            try:
                has_content = _repaired(path, descriptor)
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise

    def add(self, line: int, outcome: Outcome, order: CheckoutInput | None = None) -> None:
        """Write the outcome of an order, or of an entry that is no order."""
        texts = (outcome.status, outcome.reason, outcome.currency, outcome.tracking_number)
        status, reason, currency, tracking_number = (to_cell(tidy(text or "")) for text in texts)
        order_id = to_cell(order.order_id if order else tidy(outcome.order_id))
        content = _content(order) if order else ""
        self._writer.writerow((line, order_id, status, reason, outcome.total_minor, currency, tracking_number, content))

    def is_settled(self, order: CheckoutInput) -> bool:
        """Return whether an order has its outcome: requested under its id, with the same content."""
        return order in self._settled

    def flush(self) -> None:
        """Pass what was written to the system: it outlives this process."""
        self._file.flush()


class Settled:
    """The orders that have an outcome and are not requested again: ids with contents, in few bytes each."""

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
        """Read them from a file that another load may be writing, and that may be torn or missing.

        Raises:
            InvalidInput: it is there, and no outcome file.
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
    """Lock an open file for this process, until it closes it or ends.

    Raises:
        InvalidInput: another process has the lock, or the file system has none.
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
    """Name the process that has the lock, where the system shows it."""
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
    """Open or create a file, and take its lock."""
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} cannot be used for outcomes: it is no regular file")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _repaired(path: Path, descriptor: int) -> bool | None:
    """Cut off a line that a killed load left unfinished. No field has a line break.

    Return whether the file has the column of contents; None where it is empty.
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
    """Add the missing column to a file of an earlier version, and take the lock on the new file."""
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
    """Digest an id with a content, short enough to keep a million of them."""
    return blake2b(f"{content} {order_id}".encode(), digest_size=12).digest()


def _content(order: CheckoutInput) -> str:
    return order.fingerprint[:_CONTENT_LENGTH]


# Cells that a spreadsheet opens ---------------------------------------------------------------------------


def to_cell(text: str) -> str:
    """Put an apostrophe before whatever a spreadsheet would run as a formula."""
    return _TO_MARK.sub("'", text)


def from_cell(cell: str) -> str:
    """Undo `to_cell`, exactly."""
    return _MARKED.sub("", cell)
