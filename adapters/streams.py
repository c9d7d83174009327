"""The standard streams of a command: whoever writes to them, nothing but text reaches the terminal.

Errors of providers and servers, arguments that are echoed, tracebacks and warnings hold what others have written. Here
is the one place where all of it passes.
"""

import io
import sys
from typing import TextIO

from domain.text import for_terminal


class CleanStream(io.TextIOBase):
    """A stream that shows control characters and the like as escapes, and passes on the rest."""

    def __init__(self, stream: TextIO) -> None:
        self.raw_stream = stream

    def write(self, text: str, /) -> int:
        """Write text, whatever is in it."""
        self.raw_stream.write(for_terminal(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what waits."""
        self.raw_stream.flush()

    def isatty(self) -> bool:
        """Deny it: whoever would colour for a terminal has its own way there (adapters/terminal.py)."""
        return False

    def fileno(self) -> int:
        """Give the descriptor, for who hands it to a child."""
        return self.raw_stream.fileno()

    def writable(self) -> bool:
        """Tell that it is one to write to."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property in typeshed's TextIO, an attribute here
        """Name the encoding."""
        return self.raw_stream.encoding


def raw(stream: TextIO) -> TextIO:
    """Give what is behind a clean stream, to one who cleans what it writes itself."""
    return stream.raw_stream if isinstance(stream, CleanStream) else stream


def clean_streams(*names: str) -> None:
    """Clean what this process writes to `stdout` and `stderr`, or to one of them, from now on. Safe to repeat."""
    for name in names or ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, CleanStream):
            setattr(sys, name, CleanStream(stream))
