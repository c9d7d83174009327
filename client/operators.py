"""Who is at the keyboard: the name that an order's log keeps beside what an operator asked for."""

import getpass
import socket

from domain.errors import InvalidInput
from domain.model import MAX_NAME_LENGTH
from domain.text import tidy


def actor(by: str | None) -> str:
    """Name who acts: whoever was named, or who is at the keyboard.

    Raises:
        InvalidInput: the name is none that can be kept.
    """
    if by is None:
        return operator()
    if not by.strip() or not by.isprintable() or len(by) > MAX_NAME_LENGTH:
        raise InvalidInput(f"--by: a name has 1 to {MAX_NAME_LENGTH} printable characters")
    return by.strip()


def operator() -> str:
    """Name the user of this process and the machine, as `anna@desk`: printable and short, whatever they are called."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in many containers; Python 3.13 says OSError
        user = "unknown"
    return tidy(f"{user}@{socket.gethostname()}", MAX_NAME_LENGTH)
