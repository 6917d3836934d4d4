"""Standard output and standard error that end no command.

What they cannot show is shown in plainer signs. Where they can take no more, since a pipe was
closed or a disk is full, the command goes on, and its results are saved.
"""

import errno
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

PLAIN = {
    "★": "*", "±": "+/-", "≥": ">=", "≤": "<=", "∞": "inf", "√": "sqrt", "·": "*", "ø": "o",
    "\N{MULTIPLICATION SIGN}": "x", "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "—": "-",
}  # fmt: skip
"""Signs that have no decomposition of Unicode's, in ASCII."""
SIZES = {"COLUMNS": (40, 1000), "LINES": (10, 1000)}
"""The least and the most that is laid out for: of fewer columns nothing can be read."""
GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors of a reader that has what it wanted, or of a terminal that was closed."""


def legible(text: str, encoding: str) -> str:
    """A text in the characters that an encoding has.

    Example:
        >>> legible("σ² ≥ 0.5 ± 0.1 … Übung ★ 数", "ascii")
        'sigma2 >= 0.5 +/- 0.1 ... Ubung * ?'
        >>> legible("0.5 ± 0.1 … Übung", "latin-1")
        '0.5 ± 0.1 ... Übung'
    """
    return text if _has(text, encoding) else "".join(_plain(each, encoding) for each in text)


def _has(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _plain(sign: str, encoding: str) -> str:
    if _has(sign, encoding):
        return sign
    if unicodedata.combining(sign):  # the accent of the letter before it
        return ""
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK") and " LETTER " in name:
        letter = name.partition(" LETTER ")[2].partition(" ")[0].lower()
        return letter.capitalize() if "CAPITAL" in name else letter
    parts = unicodedata.normalize("NFKD", sign)
    return "".join(part if part.isascii() else PLAIN.get(part, "") for part in parts) or "?"


class Guarded:
    """A standard stream that takes every text, and never raises for one.

    It has no `buffer`, past which bytes in another encoding could be written.

    Attributes:
        failure: Why it can take no more; what comes after that is dropped.

    Args:
        stream: Where texts go to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: Exception | None = None
        with suppress(OSError, ValueError, AttributeError):
            os.set_blocking(stream.fileno(), True)  # else a slow reader is an error

    def write(self, text: str) -> int:
        """Writes a text, as far as it can be."""
        if self.failure is None:
            try:
                self._stream.write(legible(text, self.encoding))
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes several."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Sends on what was written."""
        if self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    @property
    def encoding(self) -> str:
        """The stream's own."""
        return self._stream.encoding or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        with suppress(OSError, ValueError):  # what the stream still holds would fail at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def guarded() -> Iterator[None]:
    """Guards standard output and standard error while the block runs."""
    _fill_closed()
    sizes = {name: os.environ.get(name) for name in SIZES}
    _bound_sizes()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (each and Guarded(each) for each in before)
    try:
        yield
    finally:
        for each in (sys.stdout, sys.stderr):
            if each is not None:
                each.flush()
        sys.stdout, sys.stderr = before
        for name, size in sizes.items():
            os.environ.pop(name, None)
            if size is not None:
                os.environ[name] = size


def _bound_sizes() -> None:
    """Replaces sizes of a terminal that are none, or far from any."""
    found = shutil.get_terminal_size()
    for (name, (least, most)), size in zip(SIZES.items(), found, strict=True):
        if size < least or os.environ.get(name, "").isdigit():
            os.environ[name] = str(min(max(size, least), most))


def _fill_closed() -> None:
    """Opens standard streams that are closed: a file that took their number would be written to."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def shown() -> bool:
    """Whether all that was written to standard output has arrived."""
    if sys.stdout is None:
        return False
    sys.stdout.flush()
    return getattr(sys.stdout, "failure", None) is None


def failure() -> str | None:
    """Why standard output could not be written; None too if nobody wanted to read on."""
    found = getattr(sys.stdout, "failure", None)
    if found is None or getattr(found, "errno", None) in GONE:
        return None
    return getattr(found, "strerror", None) or str(found)


def say(text: str) -> None:
    """Prints a line to standard error, if there is one."""
    if sys.stderr is not None:
        print(text, file=sys.stderr)
