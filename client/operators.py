"""Who is at the keyboard: the name that an order's log keeps beside what an operator asked for."""

import getpass
import socket

from domain.model import MAX_NAME_LENGTH
from domain.text import tidy


def operator() -> str:
    """Name the user of this process and the machine, as `anna@desk`: printable and short, whatever they are called."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in many containers; Python 3.13 says OSError
        user = "unknown"
    return tidy(f"{user}@{socket.gethostname()}", MAX_NAME_LENGTH)
