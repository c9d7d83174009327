"""A folder in memory, for servers whose data nobody wants after the session.

A database for each of a thousand tests is a thousand times three hundred files. On a disk, making and removing them
costs each test 60 to 400 ms of system time and up to seconds of waiting; in memory, 25 ms.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")
PREFIX = "checkout-tests-"
ROOM_BYTES = 2 * 1024**3
"""What a session's databases and their log take, with room to spare; they come and go, a few at a time."""


@contextmanager
def folder_in_memory(otherwise: Path, memory: Path = MEMORY) -> Iterator[Path]:
    """Give a new folder in memory, and remove it after the block; `otherwise` where there is no room for one.

    A session that was killed leaves its folder behind, which would take memory until the next boot: the next session
    removes it. An open lock tells the living from the dead.
    """
    if not _has_room(memory):
        yield otherwise
        return
    _remove_the_dead(memory)
    # Locked before it has the name that others look for.
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=memory))
    lock = os.open(new, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.chmod(0o755)  # Postgres may run as another user
        folder = new.rename(memory / new.name.removeprefix("."))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(lock)


def _has_room(memory: Path) -> bool:
    return memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOM_BYTES


def _remove_the_dead(memory: Path) -> None:
    for folder in memory.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # somebody else's, or somebody was faster
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
