"""The text of a formula: where its left side ends, what `.` stands for, and whether it is code."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from elbowroom.errors import OptionError

PLAIN: dict[str, Any] = {
    name: getattr(np, name) for name in ("log", "log1p", "log2", "log10", "exp", "sqrt")
}
"""Functions that a formula may call without `np.`."""
SPLINES = ("poly", "bs", "cr", "cc", "tp")
"""Functions that make several columns of one."""
HARMLESS = (
    *("C", "center", "scale", "offset", "p", "prop", "proportion", "censored"),
    *SPLINES,
    *("np.log", "np.log1p", "np.exp", "np.sqrt"),
    *PLAIN,
)
"""Functions that a formula from a run folder may call."""
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
    plain = re.fullmatch(r"[\w\s.,+*:/~()|-]*", rest) and not re.search(r"\w\s*\(", rest)
    return not plain


def tilde(formula: str) -> int:
    """Where the left side ends: a `~` that is in no quotes."""
    quoted = re.sub(r"""`[^`]*`|"[^"]*"|'[^']*'""", lambda found: "x" * len(found[0]), formula)
    return quoted.index("~")


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
        found |= set(re.findall(r"(?<![\w.])[^\W\d][\w.]*(?!\s*\(|[\w.])", text))
    return [str(name) for name in table.columns if str(name) in found]
