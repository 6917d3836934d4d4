"""Text from users, files and other libraries, as it may reach a terminal or a picture."""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls of a terminal (C0, C1), but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u180e\u2060-\u2065\u206a-\u206f\ufff9-\ufffb\U000e0000-\U000e007f"  # what nobody sees
    "\u2028\u2029\ud800-\udfff]"  # other ends of lines, and halves of characters
)


def printable(text: str) -> str:
    r"""Text in which characters are written out that steer a terminal, turn lines, or are not seen.

    What a file holds stays as it is, since names must be found again; only what is shown is cleaned
    (Boucher and Anderson, "Trojan Source", 2023, on marks of direction). Tabs, ends of lines and
    the joiners of emoji and scripts stay.

    Example:
        >>> print(printable("a\x1b[31mb\u202ec"))
        a\x1b[31mb\u202ec
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)
