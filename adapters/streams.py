"""The standard streams of a command, which show control characters as escapes.

Server errors, echoed arguments, tracebacks and warnings may have text of any origin; all of it passes here.
"""

import io
import os
import sys
from typing import TextIO

from domain.text import for_terminal


class CleanStream(io.TextIOBase):
    """A stream that writes control characters and the like as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self.raw_stream = stream

    def write(self, text: str, /) -> int:
        """Write text of any origin."""
        self.raw_stream.write(for_terminal(text))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self.raw_stream.flush()

    def isatty(self) -> bool:
        """Return false: the console that writes colours goes past this stream (adapters/terminal.py)."""
        return False

    def fileno(self) -> int:
        """Return the descriptor, to pass it to a child."""
        return self.raw_stream.fileno()

    def writable(self) -> bool:
        """Return true."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property in typeshed's TextIO, an attribute here
        """The encoding."""
        return self.raw_stream.encoding


def raw(stream: TextIO) -> TextIO:
    """Return the stream behind a clean one, for a caller that cleans its own output."""
    return stream.raw_stream if isinstance(stream, CleanStream) else stream


def clean_streams(*names: str) -> None:
    """Replace `stdout` and `stderr`, or one of them, with a clean stream. Safe to repeat.

    A standard stream that was closed before we began, and is None, leads nowhere from now on: the next connection would
    get its number, and what somebody prints.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - it is open as long as we run
    for name in names or ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, CleanStream):
            setattr(sys, name, CleanStream(stream))
