"""Text from files, as it may reach a terminal or a picture."""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls of a terminal (C0, C1), but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029\ud800-\udfff]"  # other ends of lines, and halves of characters
)


def printable(text: str) -> str:
    r"""Text without characters that steer a terminal or change the order in which it is read.

    What a file holds stays as it is, since names must be found again; only what is shown is cleaned
    (Boucher and Anderson, "Trojan Source", 2023, on marks of direction).

    Example:
        >>> printable("a\x1b[31m\u202eb")
        'a[31mb'
    """
    return _HIDDEN.sub("", text)
