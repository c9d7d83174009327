"""The target of saga.log: a file, which other programs may rotate, or standard output."""

import asyncio
import os
import select
from io import FileIO
from pathlib import Path
from typing import Final

from adapters.log_file import Bookmark, append, claim, continuation, last_bookmark, opened

STDOUT: Final = Path("-")
"""The path that means standard output."""

_POLL_SECONDS = 0.05


def lock_of(path: Path) -> Path:
    """Return the path of a log's lock file."""
    return path.with_name(f"{path.name}.lock")


class LogFile:
    """A file that this process alone appends to.

    The lock is on a file beside it, which stays where it is when the log is moved: a worker that starts meanwhile finds
    no log, and the lock taken. The log itself is locked too, as workers of an earlier version do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = opened(lock_of(path))
        self._file: FileIO | None = None
        self._size = 0

    def claim(self) -> bool:
        """Become the process that writes; return false where another one is."""
        if not claim(self._lock):
            return False
        self._open()
        if claim(self._opened()):
            return True
        self.close_log()
        return False

    def close(self) -> None:
        """Close the log and release the lock."""
        self.close_log()
        self._lock.close()

    def close_log(self) -> None:
        """Close the log and keep the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def bookmark(self) -> Bookmark:
        """Find it in the last whole line, and cut off what follows."""
        found = last_bookmark(self._opened())
        self._size = self._opened().tell()
        return found

    async def append(self, text: str) -> None:
        """Write whole lines.

        Raises:
            OSError: they could not be written whole.
        """
        self._write(text)

    def _write(self, text: str) -> None:
        append(self._opened(), text)
        self._size = os.fstat(self._opened().fileno()).st_size

    def follow_rotation(self, bookmark: Bookmark) -> bool:
        """Go on in a new file where the old one was moved, removed or emptied; return whether it was.

        Raises:
            OSError: a new one cannot be opened.
        """
        if not self._is_elsewhere():
            return False
        self._open()
        claim(self._opened())  # a worker of an earlier version may have it
        if os.fstat(self._opened().fileno()).st_size == 0 and (begins := continuation(bookmark)):
            self._write(begins)
        return True

    def _is_elsewhere(self) -> bool:
        ours = os.fstat(self._opened().fileno())
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino) or ours.st_size < self._size

    def _open(self) -> None:
        # The new one first: where it cannot be opened, the old one is kept.
        new = opened(self._path)
        self.close_log()
        self._file, self._size = new, 0

    def _opened(self) -> FileIO:
        assert self._file is not None
        return self._file


class StandardOutput:
    """Standard output, which cannot be read back."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor

    def bookmark(self) -> None:
        """Return None: it cannot be read back."""

    async def append(self, text: str) -> None:
        """Write whole lines, without blocking the worker while the reader does not read.

        Raises:
            OSError: the reader has gone.
        """
        data = text.encode()
        while data:
            _, is_ready, _ = select.select([], [self._descriptor], [], 0)
            if is_ready:
                data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def follow_rotation(self, bookmark: Bookmark) -> bool:  # noqa: ARG002 - it has none
        """Return false: it is never moved."""
        return False


Target = LogFile | StandardOutput
