"""The text of a formula: where its left side ends, what `.` stands for, and whether it is code."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from elbowroom.errors import OptionError

PLAIN: dict[str, Any] = {
    name: getattr(np, name) for name in ("log", "log1p", "log2", "log10", "exp", "sqrt")
}
"""Functions that a formula may call without `np.`."""
CURVES = ("bs", "cr", "cc", "tp")
"""Splines of formulae."""
SPLINES = ("poly", *CURVES)
"""Functions that make several columns of one."""
HARMLESS = (
    *("C", "center", "scale", "offset", "p", "prop", "proportion", "censored", "truncated"),
    *SPLINES,
    *("s", "hsgp"),
    *("np.log", "np.log1p", "np.exp", "np.sqrt"),
    *PLAIN,
)
"""Functions that a formula from a run folder may call."""
QUOTED = r"""`[^`]*`|"[^"]*"|'[^']*'"""
NAME = r"(`[^`]+`|[^\W\d]\w*)"
LIMITS = {"lower": 0, "lb": 0, "upper": 1, "ub": 1}
"""Names of the limits of `truncated`, and their places."""
LEVEL = r"""^\s*[\w.]+\[\s*("[^"\\]*"|'[^'\\]*'|\w+)\s*\]\s*~"""
"""A left side that names a level."""


def code_in(options: Any) -> str | None:
    """The formulas, if they call functions: formulae evaluates the Python in them."""
    formulas = [options.formula or "", getattr(options, "parameter", None) or ""]
    return "; ".join(each for each in formulas if each and _is_code(each)) or None


def _is_code(formula: str) -> bool:
    rest = re.sub(LEVEL, "y ~", formula)
    rest = re.sub(rf"(?<![\w.])({'|'.join(map(re.escape, HARMLESS))})\(", "(", rest)
    rest = re.sub(r"`[\w .%-]+`", "x", rest)
    rest = re.sub(rf"\b({'|'.join(LIMITS)})\s*=(?!=)", "", rest)
    rest = re.sub(r"\w+\s*=\s*[\d.]+\s*(?=[,)])", "x", rest)  # df=6
    plain = re.fullmatch(r"[\w\s.,+*:/~()|-]*", rest) and not re.search(r"\w\s*\(", rest)
    return not plain


def tilde(formula: str) -> int:
    """Where the left side ends: a `~` that is in no quotes."""
    return masked(formula).index("~")


def masked(text: str) -> str:
    """A text with what is in quotes blanked out."""
    return re.sub(QUOTED, lambda found: "x" * len(found[0]), text)


def added_parts(text: str, formula: str) -> Iterator[tuple[str, str]]:
    """The parts of a text between + and - in no parentheses, each with its sign."""
    depth, begin, sign = 0, 0, "+"
    for at, letter in enumerate(masked(text)):
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            break
        if letter in "+-" and depth == 0:
            if text[begin:at].strip():
                yield sign, text[begin:at].strip()
            begin, sign = at + 1, letter
    if depth:
        raise OptionError(
            f"--formula '{formula}': a parenthesis is "
            f"{'not closed' if depth > 0 else 'closed and was not opened'}."
        )
    if text[begin:].strip():
        yield sign, text[begin:].strip()


def in_parentheses(part: str) -> str | None:
    """What stands in the parentheses that a part consists of; None if it does not."""
    if not (part.startswith("(") and part.endswith(")")):
        return None
    depth = 0
    for at, letter in enumerate(masked(part)):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return part[1:-1] if at == len(part) - 1 else None
    return None


def spelled_out(formula: str, table: pd.DataFrame, leave_out: Sequence[str] = ()) -> str:
    """A formula with its `.` written out: every column that stands nowhere else in it.

    A table that knows its columns' roles gives its features.

    Example:
        >>> spelled_out("y ~ . - b", pd.DataFrame({"a": [1], "b": [2], "my c": [3], "y": [4]}))
        'y ~ (a + b + `my c`) - b'
    """
    cut = tilde(formula) if "~" in formula else 0
    left, right = formula[:cut], formula[cut:]
    dot = re.compile(r"(?<![\w.)\]`])\.(?![\w.])")
    if not cut or not dot.search(right):
        return formula
    used = {str(name) for name in re.findall(r"\w+", left)} | set(leave_out)
    used |= set(re.findall(r"`([^`]*)`", left))
    roles = table.attrs.get("roles", {})
    names = [
        str(name)
        for name in table.columns
        if str(name) not in used and roles.get(name, "feature") == "feature"
    ]
    if not names:
        raise OptionError(f"--formula '{formula[:100]}': no column is left for '.'; name them.")
    written = (name if name.isidentifier() else f"`{name}`" for name in names)
    return left + dot.sub(f"({' + '.join(written)})", right)


def columns_named(formulas: Sequence[str], table: pd.DataFrame) -> list[str]:
    """The columns of a table that formulas name, a `.` aside.

    Example:
        >>> table = pd.DataFrame({"a": [1], "log": [1], "my c": [1], "no": [1], "y": [1]})
        >>> columns_named(['y["no"] ~ log(a) + `my c`'], table)
        ['a', 'my c', 'y']
    """
    found: set[str] = set()
    for formula in formulas:
        text = re.sub(r"""\[\s*("[^"]*"|'[^']*'|\w+)\s*\]""", "", formula)  # a level
        found |= set(re.findall(r"`([^`]*)`", text))
        found |= set(re.findall(r"(?<![\w.])[^\W\d][\w.]*(?!\s*\(|[\w.]|\s*=(?!=))", text))
    return [str(name) for name in table.columns if str(name) in found]
