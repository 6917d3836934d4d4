"""What a formula may ask for: counted before it is expanded, which may take forever."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from elbowroom.errors import OptionError
from elbowroom.models._formula_text import SPLINES


@dataclass(frozen=True)
class FormulaLimits:
    """What a formula may ask for; beyond, a fit would not begin within minutes."""

    characters: int = 20_000
    """Of its text: a thousand columns by name."""
    terms: int = 1000
    """That it expands to: formulae takes seconds for them, and compares each with the others."""
    numbers: int = 2**26
    """In the table of its predictors: half a gigabyte."""
    power: int = 10
    """The largest exponent: Python's whole numbers have no end."""
    splines: int = 100
    """The largest degree of a polynomial and number of splines."""


FORMULA_LIMITS = FormulaLimits()


def check_size(formula: str, parsed: Any, table: pd.DataFrame) -> None:
    """Refuses a formula that expands to too much.

    Args:
        formula: Its text.
        parsed: What formulae's parser has read.
        table: The rows.

    Raises:
        OptionError: If it does, or has a number that would take forever.
    """
    count, columns = size_of(parsed, table)
    if count > FORMULA_LIMITS.terms or columns * len(table) > FORMULA_LIMITS.numbers:
        raise OptionError(
            f"--formula '{formula[:100]}' expands to more than {FORMULA_LIMITS.terms:,} terms or "
            f"{FORMULA_LIMITS.numbers:,} numbers; name the terms that matter."
        )


def size_of(node: Any, table: pd.DataFrame) -> tuple[int, int]:
    """How many terms and columns a part of a formula expands to, at most.

    Raises:
        OptionError: If it has a number that would take forever.
    """
    from formulae import expr

    if isinstance(node, expr.Grouping):
        return size_of(node.expression, table)
    if isinstance(node, expr.Unary):
        return size_of(node.right, table)
    if isinstance(node, expr.Call):
        return 1, _size_of_call(node, table)
    if isinstance(node, expr.Variable):
        return 1, _levels(node.name.lexeme, table)
    if not isinstance(node, expr.Binary):
        return 1, 1
    kind = node.operator.kind
    if kind == "STAR_STAR":
        return _size_of_power(node, table)
    left, right = size_of(node.left, table), size_of(node.right, table)
    both = left[0] * right[0], left[1] * right[1]
    if kind == "TILDE":
        return right
    if kind == "COLON":
        return both
    total = left[0] + right[0], left[1] + right[1]
    return (total[0] + both[0], total[1] + both[1]) if kind in ("STAR", "SLASH") else total


def _size_of_power(node: Any, table: pd.DataFrame) -> tuple[int, int]:
    """Of all interactions up to an order."""
    order = _exponent(node)
    terms, columns = size_of(node.left, table)
    return (
        sum(math.comb(terms, k) for k in range(1, order + 1)),
        sum(math.comb(columns, k) for k in range(1, order + 1)),
    )


def _exponent(node: Any) -> int:
    value = getattr(node.right, "value", None)  # of a literal
    if not isinstance(value, (int, float)) or value > FORMULA_LIMITS.power:
        raise OptionError(
            f"--formula: the exponent in a formula is a number up to {FORMULA_LIMITS.power}; "
            "write a smaller one."
        )
    return int(value)


def _size_of_call(node: Any, table: pd.DataFrame) -> int:
    """The columns that a function makes: as many as categories, degrees or splines, or one."""
    from formulae import expr

    name = getattr(getattr(node.callee, "name", None), "lexeme", "")
    given = [each.value if isinstance(each, expr.Assign) else each for each in node.args]
    for argument in given:
        _check_arithmetic(argument, powers=1)
    numbers = [each.value for each in given if type(getattr(each, "value", None)) is int]
    if name in SPLINES:
        if max(numbers, default=0) > FORMULA_LIMITS.splines:
            raise OptionError(
                f"--formula: {name}() takes a number up to {FORMULA_LIMITS.splines}; write a "
                "smaller one."
            )
        return max(numbers, default=1) + 1
    names = [getattr(getattr(each, "name", None), "lexeme", "") for each in given]
    return max([table[n].nunique() for n in names if n in table], default=1) if name == "C" else 1


def _check_arithmetic(node: Any, powers: int) -> None:
    """Sees that no power of a power stands in a function's arguments."""
    if type(node).__name__ == "Binary" and node.operator.kind == "STAR_STAR":
        _exponent(node)
        powers -= 1
        if powers < 0:
            raise OptionError("--formula: a power of a power in a formula; multiply the exponents.")
    for inner in ("expression", "left", "right", "value"):
        _check_arithmetic_of(getattr(node, inner, None), powers)
    for argument in getattr(node, "args", ()):
        _check_arithmetic(argument, powers)


def _check_arithmetic_of(inner: Any, powers: int) -> None:
    if type(inner).__module__ == "formulae.expr":
        _check_arithmetic(inner, powers)


def _levels(name: str, table: pd.DataFrame) -> int:
    """The columns that a column of a table makes: one, or one for each of its categories."""
    if name not in table or pd.api.types.is_numeric_dtype(table[name]):
        return 1
    return int(table[name].nunique())
