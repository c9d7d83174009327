"""The lines of a text file in whatever encoding, each with its number, and with the problem where it is no text."""

import codecs
import io
import os
import re
import stat
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Self

from sagafence import InvalidInput

LONGEST_LINE = 200_000
"""In characters: an order of 100 lines whose ids are written as JSON escapes has fewer."""
_CHUNK = 1 << 20
_SAVE_AS = "save it as CSV UTF-8"
_MARKS = {
    codecs.BOM_UTF32_LE: "",
    codecs.BOM_UTF32_BE: "",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_OTHER_KINDS = {b"PK\x03\x04": "a workbook or an archive", b"\xd0\xcf\x11\xe0": "a workbook", b"\x1f\x8b": "compressed"}
# A byte that cannot be decoded becomes a character that no text has, and that encodes the byte.
_NO_TEXT = 0xDC00
_MARKED = re.compile("[\udc00-\udcff]")
_ERRORS = "checkout_mark_bytes"


def _mark_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(_NO_TEXT + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _mark_bytes)


class Line(NamedTuple):
    """One line of a file, without its end."""

    number: int
    text: str
    problem: str = ""
    """Why it is no text; what can be read of it is in `text`."""


class TextFile:
    """A file that can be read several times. A change since the first time is detected before it is returned.

    Raises:
        InvalidInput: it cannot be read, or is no text file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: list[bytes] = []
        self._is_known = False
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would keep us waiting
                raise InvalidInput(f"{path} is no file that can be read twice; save what it gives to a file first")
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            self._encoding = self._detect_encoding()
        except InvalidInput:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def lines(self) -> Iterator[Line]:
        """Read the file from its beginning. A line ends with LF, CRLF or CR.

        Raises:
            InvalidInput: it cannot be read any more, or is not what it was the first time.
        """
        text = io.TextIOWrapper(
            io.BufferedReader(_Chunks(self), _CHUNK), encoding=self._encoding, errors=_ERRORS, newline=""
        )
        number = 0
        piece = text.readline(LONGEST_LINE)
        while piece:
            number += 1
            begin, is_cut = piece, False
            while not piece.endswith(("\n", "\r")) and len(piece) == LONGEST_LINE:
                is_cut = True
                piece = text.readline(LONGEST_LINE)
            last, piece = piece, text.readline(LONGEST_LINE)
            if piece == "\n" and last.endswith("\r") and len(last) == LONGEST_LINE:  # a CRLF that was cut in two
                piece = text.readline(LONGEST_LINE)
            if is_cut:
                yield Line(number, begin, f"it has more than {LONGEST_LINE} characters")
            else:
                yield self._line(number, begin.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else ""))

    def read_at(self, number: int) -> bytes:
        """Give a chunk's bytes, once it is sure that they are what they were.

        Raises:
            InvalidInput: they are not, or cannot be read.
        """
        chunk = b""
        try:
            while len(chunk) < _CHUNK and (
                more := os.pread(self._descriptor, _CHUNK - len(chunk), number * _CHUNK + len(chunk))
            ):
                chunk += more
        except OSError as error:
            raise _unreadable(self.path, error) from None
        digest = blake2b(chunk, digest_size=16).digest()
        if number == len(self._digests) and not self._is_known:
            self._digests.append(digest)
            self._is_known = len(chunk) < _CHUNK
        elif number >= len(self._digests) or self._digests[number] != digest:
            raise InvalidInput(f"{self.path} was changed while it was read; nothing of the change was sent")
        return chunk

    def _line(self, number: int, text: str) -> Line:
        if not text.isascii() and (found := _MARKED.search(text)):
            name = self._encoding.removesuffix("-sig").upper()
            byte = f"byte 0x{ord(found[0]) - _NO_TEXT:02x} at character {found.start() + 1}"
            return Line(number, text, f"it is not {name} ({byte}); {_SAVE_AS}")
        return Line(number, text, "it holds a NUL character" if "\0" in text else "")

    def _detect_encoding(self) -> str:
        try:
            head = os.pread(self._descriptor, 4096, 0)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        for mark, what in _OTHER_KINDS.items():
            if head.startswith(mark):
                raise InvalidInput(f"{self.path} is {what}; {_SAVE_AS}")
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                if not encoding:
                    raise InvalidInput(f"{self.path} is in UTF-32; {_SAVE_AS}")
                return encoding
        if head.count(0) * 4 > len(head):
            raise InvalidInput(f"{self.path} is in UTF-16 without a byte order mark, or is no text; {_SAVE_AS}")
        return "utf-8"


class _Chunks(io.RawIOBase):
    """A file's bytes, chunk by chunk."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._number = 0
        self._rest = memoryview(b"")
        self._is_last = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: "memoryview[int]") -> int:  # type: ignore[override]  # any buffer, says the base
        if not self._rest and not self._is_last:
            self._rest = memoryview(self._file.read_at(self._number))
            self._number += 1
            self._is_last = len(self._rest) < _CHUNK
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _unreadable(path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(f"{path} cannot be read: {error.strerror}")
