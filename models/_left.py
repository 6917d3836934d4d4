"""The left side of a formula, where Elbowroom reads it and not formulae."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from elbowroom.errors import OptionError, unknown
from elbowroom.models._formula_text import LIMITS

TRIALS = ("p", "prop", "proportion")
"""Names of the function of successes and trials, which formulae knows."""
USAGE = {
    **{name: f"{name}(successes, trials)" for name in TRIALS},
    "censored": "censored(time, status) or censored(lower, upper, status)",
    "truncated": "truncated(y, lower=0, upper=10), with one limit at least",
}
"""How each function is written."""
Part = str | float | None


@dataclass(frozen=True)
class Left:
    """The left side of a formula, where Elbowroom reads it and not formulae.

    Attributes:
        form: As of `elbowroom.models._responses.Response`.
        text: As it was written.
        parts: Columns, or numbers as they were written: one, or those of the function; None for a
            limit that there is not.
        level: The level in brackets.
    """

    form: str
    text: str
    parts: tuple[Part, ...]
    level: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns among its parts."""
        return [part for part in self.parts if isinstance(part, str)]


def plain_number(column: pd.Series) -> bool:
    """Whether a column is of numbers, truth values aside."""
    numeric = pd.api.types.is_numeric_dtype(column)
    return bool(numeric and not pd.api.types.is_bool_dtype(column))


def has_levels(column: pd.Series) -> bool:
    """Whether a column is of truth values or labels, not of numbers with a few wrong cells."""
    if pd.api.types.is_bool_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return True
    return bool(pd.to_numeric(column.dropna(), errors="coerce").isna().all())


def form_of_levels(column: pd.Series, several: str | None) -> str:
    """Whether a column alone is one of three or more "levels" or "classes"; empty if of neither.

    Args:
        column: Of the fitted rows.
        several: What the family takes of these; None if there is no family yet.
    """
    if several is not None:
        return several
    if plain_number(column) or not has_levels(column) or column.astype(str).nunique() < 3:
        return ""
    return "levels" if getattr(column.dtype, "ordered", False) else "classes"


def read_left(node: Any, table: pd.DataFrame, several: str | None = "") -> Left | None:
    """A left side that formulae does not read as it is meant; None for all others.

    Args:
        node: Of formulae's parser.
        table: The fitted rows.
        several: What a column alone is one of, as of `form_of_levels`.

    Raises:
        OptionError: If a function has other arguments than it takes.
    """
    kind = type(node).__name__
    if kind in ("Variable", "QuotedName"):
        name = _column(node)
        level = getattr(getattr(node, "level", None), "value", None)
        if level is None and name in table and (form := form_of_levels(table[name], several)):
            return Left(form, name, (name,))
        if name not in table or (level is None and plain_number(table[name])):
            return None
        return Left("level", name, (name,), level)
    if kind != "Call":
        return None
    function = getattr(getattr(node.callee, "name", None), "lexeme", "")
    if function not in USAGE:
        return None
    parts = _parts(node.args, function)
    count = sum(part is not None for part in parts)
    most = 2 if function in TRIALS else 3
    lacks = None in parts and function != "truncated"
    if lacks or not 2 <= count <= len(parts) <= most or not isinstance(parts[0], str):
        raise OptionError(f"--formula: {function}() has other arguments; write {USAGE[function]}.")
    form = "trials" if function in TRIALS else function
    return Left(form, f"{function}({', '.join(map(shown_part, parts))})", tuple(parts))


def _parts(given: Sequence[Any], function: str) -> list[Part]:
    """The arguments of a function, those that have a name in their places."""
    parts: list[Part] = []
    for each in given:
        if type(each).__name__ != "Assign":
            parts.append(_part(each, function))
            continue
        name = _column(each.name)
        if function != "truncated" or name not in LIMITS:
            known = LIMITS if function == "truncated" else ()
            raise OptionError(f"--formula: {unknown(f'argument of {function}()', name, known)}")
        place = 1 + LIMITS[name]
        parts += [None] * (place + 1 - len(parts))
        parts[place] = _part(each.value, function)
    return parts


def _part(node: Any, function: str) -> Part:
    """A column by name, a number, or None."""
    kind, sign = type(node).__name__, 1.0
    if kind == "Unary" and node.operator.lexeme in "+-":
        sign, node = (-1.0 if node.operator.lexeme == "-" else 1.0), node.right
        kind = type(node).__name__
    number = getattr(node, "value", "")
    if kind == "Literal" and (number is None or isinstance(number, (int, float))):
        return None if number is None else sign * float(number)
    if kind in ("Variable", "QuotedName") and sign > 0:
        return _column(node)
    raise OptionError(
        f"--formula: {function}() takes columns by name; add a column of what you wrote."
    )


def _column(node: Any) -> str:
    if type(node).__name__ == "QuotedName":
        return str(node.expression.lexeme).strip("`")
    return str(node.name.lexeme)


def shown_part(part: Part) -> str:
    """A column's name, or a number, as it is written."""
    return part if isinstance(part, str) else "None" if part is None else f"{part:g}"
