"""The lines of saga.log, which is its own bookmark, and the lock that lets one process write it.

Each line ends with an event's place in the log's sequence: the transaction and the number of that event. The first line
with a place is the line of that very event, so it says which event the bookmark means: a restored database uses numbers
and transaction ids again, and not an order's sequence number at an instant.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

OTHER_DATABASE: Final = "# another database from here on\n"
"""Separates the events of one database from those of the next, which begin at the first."""
_GOES_ON: Final = "# goes on after "
"""Begins a file that continues another one; the bookmark's line follows."""

_MARK = " pos="
_MARKED = re.compile(rb" pos=(\d{1,19})\.(\d{1,18})\s*$")
_TAIL_BYTES = 65_536
_BEGINNING_OF_A_LINE = 320
"""Characters. An instant, the longest order id, every character of it escaped, and a number have 296."""

Place = tuple[str, int]
"""An event's transaction and number."""


@dataclass(frozen=True)
class Bookmark:
    """The event up to which everything has been written: its place, and the beginning of its line."""

    txid: str
    event_id: int
    line: str = field(compare=False)

    @classmethod
    def of(cls, place: Place, line: str) -> "Bookmark":
        """Return the bookmark of an event that was written in this line."""
        line = line.removeprefix(_GOES_ON)
        # After a power failure a file may have NULs, which Postgres accepts in no text.
        return cls(*place, line[:_BEGINNING_OF_A_LINE].replace("\x00", "?"))


BEGINNING: Final = Bookmark("0", 0, "")
_BEGINNING_PLACE: Final = (BEGINNING.txid, BEGINNING.event_id)


def opened(path: Path) -> FileIO:
    """Open a file. A new one is readable by its owner alone; an existing one keeps its mode."""
    return FileIO(path, "a+", opener=lambda name, flags: os.open(name, flags, 0o600))


def claim(file: FileIO) -> bool:
    """Lock the file; return false where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def append(file: FileIO, text: str) -> None:
    """Write whole lines.

    Raises:
        OSError: not all of them could be written.
    """
    data = text.encode()
    if file.write(data) != len(data):
        raise OSError("only a part of the lines could be written")


def continuation(bookmark: Bookmark) -> str:
    """Return the first line of a file that continues another one; empty where nothing was written."""
    if bookmark == BEGINNING:
        return ""
    line = bookmark.line.partition(_MARK)[0].rstrip("\n")
    return f"{_GOES_ON}{line}{_MARK}{bookmark.txid}.{bookmark.event_id}\n"


def marked(lines: Sequence[tuple[Place, str]], before: Bookmark) -> Iterator[str]:
    """Yield each event's line with the place up to which everything is written once the line is there."""
    mark = (before.txid, before.event_id)
    for (place, line), following in zip(lines, [*lines[1:], None], strict=True):
        # Written ahead of its own transaction: only the last line of such a group completes the place.
        is_last = following is None or following[0] != place
        mark = place if is_last else mark
        yield f"{line}{_MARK}{mark[0]}.{mark[1]}\n"


def last_bookmark(file: FileIO) -> Bookmark:
    """Find the bookmark in the last whole line; cut off a line or a group of lines that a crash left incomplete."""
    size = file.seek(0, os.SEEK_END)
    tail_bytes, found = _TAIL_BYTES, None
    while found is None:
        begins = max(0, size - tail_bytes)
        file.seek(begins)
        tail = file.readall()
        lines = tail[: tail.rfind(b"\n") + 1].splitlines(keepends=True)
        if begins and lines:  # most likely the rest of a line
            begins += len(lines.pop(0))
        found = _read_back(lines, is_whole=begins == 0)
        tail_bytes *= 2
    bookmark, kept = found
    file.truncate(begins + sum(map(len, lines[:kept])))
    file.seek(0, os.SEEK_END)
    return bookmark


def _read_back(lines: Sequence[bytes], *, is_whole: bool) -> tuple[Bookmark, int] | None:
    """Find the bookmark and how many lines to keep; None where that takes earlier lines."""
    run: list[int] = []
    place = _BEGINNING_PLACE
    is_complete = False
    for number in reversed(range(len(lines))):
        is_note = lines[number] == OTHER_DATABASE.encode()
        found = _BEGINNING_PLACE if is_note else _place_of(lines[number])
        if found is None:
            continue
        if run and found != place:
            is_complete = place != _BEGINNING_PLACE
            break
        run.append(number)
        place = found
        if is_note:
            is_complete = True
            break
    else:
        if not is_whole:
            return None
        is_complete = place != _BEGINNING_PLACE
    # The first line with a place completes it. Those after it begin a group whose last line is missing; at the
    # beginning of a database nothing is complete.
    torn = run[:-1] if is_complete else run
    line = lines[run[-1]].decode(errors="replace") if run else ""
    bookmark = Bookmark.of(place, line) if place != _BEGINNING_PLACE else BEGINNING
    return bookmark, torn[-1] if torn else len(lines)


def _place_of(line: bytes) -> Place | None:
    found = _MARKED.search(line)
    return (found[1].decode(), int(found[2])) if found else None
