"""Smooth terms of a formula, `s(x)` and `hsgp(x)`: read, and made of a table's columns."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError, OptionError, shown, unknown
from elbowroom.models._columns import cells
from elbowroom.models._formula_text import NAME, added_parts, in_parentheses, masked, tilde
from elbowroom.models._priors import SIGMA_PRIOR, Prior, parts_of
from elbowroom.models._smooth_bases import (
    boundary_of,
    frequencies,
    hilbert_space,
    penalised_spline,
    shortest_length,
)

CALL = r"(?<![\w.])(s|hsgp)\s*\("
"""Where a smooth term begins."""


@dataclass(frozen=True)
class Argument:
    """A number that a smooth term takes beside its column.

    Attributes:
        kind: int or float.
        least: The smallest.
        most: The largest.
        usual: The default, or an example of it.
    """

    kind: type[int] | type[float]
    least: float
    most: float
    usual: float


ARGUMENTS = {
    "s": {"k": Argument(int, 3, 200, 10)},
    "hsgp": {"m": Argument(int, 1, 200, 20), "c": Argument(float, 1.1, 10, 1.5)},
}
"""Those of each kind of term: knots; functions, and where they end in half ranges of the column."""


@dataclass(frozen=True)
class Sizes:
    """How large smooth terms become."""

    chosen: int = 100
    """The most functions that are chosen for a Gaussian process."""
    numbers: int = 2**26
    """Of all functions at the rows: half a gigabyte."""
    few: int = 3
    """Different numbers of a column that a Gaussian process needs."""


SIZES = Sizes()
LENGTH_PRIOR = Prior("lognormal", (-0.3, 0.6))
"""Of a length scale, in standard deviations of its column: 0.18 to 3 with probability 0.98."""
LEAST_LENGTH = 0.18
"""The 1% quantile of that, for which functions are chosen."""


@dataclass(frozen=True)
class SmoothTerm:
    """A smooth term as it is written.

    Attributes:
        kind: "s" or "hsgp".
        column: What it is a function of.
        numbers: That were given, by name.
    """

    kind: str
    column: str
    numbers: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """As it is reported, such as "s(x)"."""
        return f"{self.kind}({self.column})"


@dataclass(frozen=True)
class Smooth:
    """A sum of functions of a column with random coefficients.

    Attributes:
        name: As it is reported.
        functions: How many there are.
        boundary: Of a Gaussian process, where they end, in standard deviations of the column; None
            for a spline.
        spread: The column's standard deviation.
    """

    name: str
    functions: int
    boundary: float | None
    spread: float

    @property
    def sigma(self) -> str:
        """The name of its standard deviation."""
        return f"{self.name}_sigma"

    @property
    def length_scale(self) -> str:
        """The name of the length scale of a Gaussian process."""
        return f"{self.name}_length_scale"

    @property
    def frequencies(self) -> Tensor:
        """ω of each function of a Gaussian process, (functions,)."""
        assert self.boundary is not None
        return torch.tensor(frequencies(self.functions, self.boundary).tolist())

    def defaults(self) -> dict[str, Prior]:
        """The default priors of its parameters, divided by their units, by name."""
        found = {self.sigma: SIGMA_PRIOR}
        return found if self.boundary is None else {**found, self.length_scale: LENGTH_PRIOR}

    def units(self, unit: float) -> dict[str, float]:
        """What its parameters are measured in, by name, where the linear predictor has a unit."""
        units = {self.sigma: unit, self.length_scale: self.spread}
        return {name: units[name] for name in self.defaults()}


@dataclass(frozen=True)
class SmoothRows:
    """The rows of smooth terms.

    Attributes:
        smooths: The terms.
        values: Of their functions beside each other, (rows, functions of all).
        slopes: The columns of which splines have a slope, by the names of the terms, (rows,) each.
        columns: All columns that terms are of.
    """

    smooths: tuple[Smooth, ...]
    values: Tensor
    slopes: dict[str, Tensor]
    columns: tuple[str, ...]


def split_smooths(formula: str) -> tuple[str, list[SmoothTerm]]:
    """A formula without its smooth terms, and these.

    Raises:
        OptionError: If a smooth term cannot be read.

    Example:
        >>> split_smooths("y ~ z + s(x, k=8)")
        ('y ~ z', [SmoothTerm(kind='s', column='x', numbers=(('k', 8),))])
    """
    cut = tilde(formula) + 1 if "~" in masked(formula) else 0
    if not re.search(CALL, masked(formula)[cut:]):
        return formula, []
    rest, terms = [], []
    for sign, part in added_parts(formula[cut:], formula):
        begins = re.match(CALL, part)
        inner = in_parentheses(part[begins.end() - 1 :]) if begins else None
        if begins is None or inner is None:
            refuse_smooths(part, f"--formula '{formula}'", "add it by +, or write bs() there")
            rest.append(f"{sign} {part}")
        elif sign == "-":
            raise OptionError(f"--formula '{formula}': a smooth term is taken away; leave out "
                              f"'- {part}'.")  # fmt: skip
        else:
            terms.append(_read_term(begins[1], inner, part))
    names = [term.name for term in terms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"--formula: the smooth term {twice[0]} is written twice; leave one out.")
    common = " ".join(rest).removeprefix("+ ") or "1"
    return f"{formula[:cut]} {common}", terms


def refuse_smooths(text: str, where: str, edit: str) -> None:
    """Refuses a smooth term where none can stand.

    Raises:
        OptionError: If there is one.
    """
    if found := re.search(CALL, masked(text)):
        raise OptionError(
            f"{where}: '{text}' has the smooth term {found[1]}() within, which no other term may "
            f"have; {edit}."
        )


def _read_term(kind: str, inner: str, part: str) -> SmoothTerm:
    where, known = f"--formula: '{part}'", ARGUMENTS[kind]
    example = ", ".join(f"{name}={each.usual:g}" for name, each in known.items())
    usage = f"write {kind}(x), or {kind}(x, {example})"
    given = parts_of(inner, "--formula", f"{usage}.")
    columns = [each for each in given if "=" not in masked(each)]
    if len(columns) != 1 or not re.fullmatch(NAME, columns[0]):
        raise OptionError(
            f"{where}: a smooth term is of one column of the table, as it is; {usage}. For a "
            "function of columns, make a column of it."
        )
    numbers: dict[str, float] = {}
    for each in given:
        name, equals, text = (piece.strip() for piece in each.partition("="))
        if not equals:
            continue
        if name not in known:
            raise OptionError(f"{where}: {unknown(f'argument of {kind}()', name, known)}")
        of = known[name]
        try:
            numbers[name] = of.kind(text)
        except ValueError:
            numbers[name] = math.nan
        if not of.least <= numbers[name] <= of.most:
            raise OptionError(
                f"{where}: {name} is {shown(text)} and must be a {'whole ' * (of.kind is int)}"
                f"number from {of.least:g} to {of.most:g}; write {name}={of.usual:g}, for example."
            )
    return SmoothTerm(kind, columns[0].strip("`"), tuple(numbers.items()))


def read_smooths(
    terms: Sequence[SmoothTerm], table: pd.DataFrame, new: pd.DataFrame | None, centred: bool
) -> SmoothRows | None:
    """The smooth terms of a table's rows; None where there are none.

    Args:
        terms: As they are written.
        table: The fitted rows, which say what the functions are.
        new: New rows; None for those of the table.
        centred: Whether there is an intercept.

    Raises:
        DataError: If a column is missing, is not of numbers, or has too few different ones.
        OptionError: If there are too many functions.
    """
    if not terms:
        return None
    smooths, values, slopes = [], [], {}
    for term in terms:
        x = _numbers(table, term)
        asked = x if new is None else _cells(align_columns(new, [term.column]))
        given, boundary = dict(term.numbers), None
        usual = {name: each.usual for name, each in ARGUMENTS[term.kind].items()}
        if term.kind == "s":
            count = int(given.get("k", usual["k"]))
            _check_distinct(x, term, count)
            functions, count = penalised_spline(x, count), count - 2
            slopes[term.name] = torch.from_numpy(asked)
        else:
            _check_distinct(x, term, SIZES.few)
            boundary = boundary_of(x, given.get("c", usual["c"]))
            needed = math.ceil(shortest_length(LEAST_LENGTH, boundary))
            count = int(given.get("m", min(needed, SIZES.chosen)))
            functions = hilbert_space(x, count, boundary, centred)
        smooths.append(Smooth(term.name, count, boundary, float(x.std())))
        size = len(asked) * sum(each.functions for each in smooths)
        if size > SIZES.numbers:
            raise OptionError(
                f"--formula: the functions of the smooth terms are {size:,} numbers, and "
                f"{SIZES.numbers:,} are allowed; give a smaller {next(iter(usual))} "
                f"for {term.name}."
            )
        values.append(torch.from_numpy(functions(asked)))
    columns = tuple(dict.fromkeys(term.column for term in terms))
    return SmoothRows(tuple(smooths), torch.cat(values, 1), slopes, columns)


def _cells(column: pd.DataFrame) -> np.ndarray:
    return np.asarray(cells(numeric_columns(column, allow_constant=True)).double().numpy()[:, 0])


def _numbers(table: pd.DataFrame, term: SmoothTerm) -> np.ndarray:
    """The column of a term in the fitted rows, (rows,)."""
    if term.column not in table:
        names = [str(name) for name in table.columns]
        near = get_close_matches(term.column, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"The columns are {', '.join(names)}."
        raise DataError(
            f"--formula: there is no column '{shown(term.column)}' for {term.name}; {hint}"
        )
    column = table[term.column]
    if not is_numeric_dtype(column) or is_bool_dtype(column):
        raise DataError(
            f"column '{term.column}' is not of numbers, which {term.name} is a curve over; write "
            f"{term.column}, or (1 | {term.column}), in place of it."
        )
    return _cells(table[[term.column]])


def _check_distinct(x: np.ndarray, term: SmoothTerm, least: int) -> None:
    """Sees that a column has enough different numbers."""
    there = len(np.unique(x))
    if there >= least:
        return
    if there == 1:
        raise DataError(
            f"column '{term.column}' is {x[0]:g} in every row, so nothing can be learned from it; "
            f"leave out {term.name}."
        )
    fewer = f"s({term.column}, k={there}) or " if term.kind == "s" and there > 2 else ""
    raise DataError(
        f"column '{term.column}' has {there} different values, and {term.name} needs {least}; "
        f"write {fewer}{term.column}."
    )
