"""What is written out before it is shown, and what stays."""

import sys
import unicodedata

import pytest

from elbowroom.errors import OptionError, shown
from elbowroom.printable import printable

STEERING = ("Cc", "Cs", "Zl", "Zp")
"""Categories: controls, halves of characters, ends of lines and of paragraphs."""
DIRECTION = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Classes of the marks that turn the direction of writing."""


def test_every_sign_that_steers_is_written_out() -> None:
    for number in range(sys.maxunicode + 1):
        sign = chr(number)
        if sign in "\t\n":
            assert printable(sign) == sign
        elif unicodedata.category(sign) in STEERING or unicodedata.bidirectional(sign) in DIRECTION:
            found = printable(sign)
            assert found.isascii()
            assert found.isprintable()
            assert found == ascii(sign)[1:-1]


@pytest.mark.parametrize(
    "text", ["σ² ≥ 0.5", "数", "a\tb\nc", "👩\u200d🔬", "क्\u200dष", "co\xadop", "\\x1b[31m"]
)
def test_what_steers_nothing_stays(text: str) -> None:
    assert printable(text) == text


def test_what_is_written_out_is_text_that_stays() -> None:
    once = printable("a\x1b[31m\r\u2028\U000e0041")
    assert once == r"a\x1b[31m\r\u2028\U000e0041"
    assert printable(once) == once
    assert str(OptionError("a\x1b[31m\n", 3).args[0]) == "a\\x1b[31m\n"  # its lines stay


def test_what_a_user_gave_is_one_line() -> None:
    assert shown("a\nb\tc\x1b") == r"a\nb\tc\x1b"
    assert shown(["\n"]) == r"['\n']"
