"""A lock on a file: one process at a time, for as long as it keeps the file open, however it ends."""

import errno
import fcntl
import os
from pathlib import Path

from domain.errors import InvalidInput


def lock(descriptor: int, path: Path) -> None:
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
