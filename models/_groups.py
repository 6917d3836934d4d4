"""Group effects of a formula, such as `(1 + x | school)`: read, and made of a table's columns."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError, OptionError, shown
from elbowroom.models._columns import cells, distinct
from elbowroom.models._formula_text import (
    NAME,
    QUOTED,
    added_parts,
    in_parentheses,
    masked,
    tilde,
)

LISTED = 5
"""Levels that a message names."""
MOST = 200_000
"""Group effects of a formula, at most."""


@dataclass(frozen=True)
class Term:
    """A group effect as it is written.

    Attributes:
        inside: What varies between groups, a formula without its response, such as "1 + x".
        factors: The columns whose values together name the group.
        correlated: Whether its parts are correlated between groups: | and not ||.
    """

    inside: str
    factors: tuple[str, ...]
    correlated: bool

    @property
    def factor(self) -> str:
        """The name of what groups, such as "school:class"."""
        return ":".join(self.factors)


@dataclass(frozen=True)
class Groups:
    """Which effects differ between the groups of a factor.

    Attributes:
        factor: Its name.
        effects: Their names, "1" for the intercept, such as ("1", "x").
        levels: The groups, by the labels of their rows.
        correlated: Whether the effects of a group are correlated.
        spread: The standard deviation of the column of each effect, 1 for the intercept.
        unseen: How many groups more the rows have, which were not fitted.
    """

    factor: str
    effects: tuple[str, ...]
    levels: tuple[str, ...]
    correlated: bool
    spread: tuple[float, ...]
    unseen: int = 0

    def names(self) -> list[str]:
        """The names of the effects as they are reported, such as "x|school"."""
        return [f"{effect}|{self.factor}" for effect in self.effects]

    @property
    def dim(self) -> str:
        """The name of the dim of its groups."""
        return f"{self.factor}__factor_dim"

    @property
    def pairs(self) -> list[str]:
        """The pairs of effects that are correlated, in the order of `correlations`."""
        if not self.correlated:
            return []
        places = zip(*np.tril_indices(len(self.effects), -1), strict=True)
        return [f"{self.effects[j]}, {self.effects[i]}" for i, j in places]


@dataclass(frozen=True)
class GroupRows:
    """The rows of group effects.

    Attributes:
        groups: The effects.
        codes: The group of each row, one column for each of `groups`, (rows, terms).
        values: What each effect of a row is multiplied by, (rows, effects).
        said: What is to be known of them, as sentences.
    """

    groups: tuple[Groups, ...]
    codes: Tensor
    values: Tensor
    said: tuple[str, ...]

    def units(self, unit: float) -> dict[str, float]:
        """What the sds of effects are in, by name, where the linear predictor has a unit."""
        return {
            f"{name}_sigma": unit / spread
            for each in self.groups
            for name, spread in zip(each.names(), each.spread, strict=True)
        }


def split_groups(formula: str) -> tuple[str, list[Term]]:
    """A formula without its group effects, and these.

    Raises:
        OptionError: If a group effect cannot be read.

    Example:
        >>> rest, terms = split_groups("y ~ x + (1 + x | school / class)")
        >>> rest
        'y ~ x'
        >>> [(term.inside, term.factor) for term in terms]
        [('1 + x', 'school'), ('1 + x', 'school:class')]
    """
    cut = tilde(formula) + 1 if "~" in masked(formula) else 0
    if "|" not in masked(formula)[cut:]:
        return formula, []
    rest, terms = [], []
    for sign, part in added_parts(formula[cut:], formula):
        inner = in_parentheses(part)
        if inner is None or "|" not in masked(inner):
            if "|" in masked(part):
                raise OptionError(
                    f"--formula '{formula}': '{part}' is no group effect that can be read; write "
                    "group effects in parentheses and add them: + (1 + x | group)."
                )
            rest.append(f"{sign} {part}")
        elif sign == "-":
            raise OptionError(
                f"--formula '{formula}': a group effect is taken away; leave out '- {part}'."
            )
        else:
            terms += _terms(inner, formula)
    common = " ".join(rest).removeprefix("+ ") or "1"
    return f"{formula[:cut]} {common}", terms


def _terms(inner: str, formula: str) -> list[Term]:
    """The group effects that stand in parentheses."""
    blanked = masked(inner)
    cut = blanked.index("|")
    double = blanked[cut:].startswith("||")
    left, right = inner[:cut].strip(), inner[cut + 1 + double :].strip()
    if not left or not re.fullmatch(rf"{NAME}(\s*[:/]\s*{NAME})*", right):
        raise OptionError(
            f"--formula '{formula}': '({inner})' is no group effect that can be read; write what "
            "varies before the |, and after it a column, or columns joined by : or /, such as "
            "(1 + x | school / class)."
        )
    names = [name.strip("`") for name in re.findall(NAME, right)]
    marks = re.findall(r"[:/]", re.sub(QUOTED, "x", right))
    ends = [k + 1 for k, mark in enumerate([*marks, "/"]) if mark == "/"]
    return [Term(left, tuple(names[:end]), not double) for end in ends]


Columns = tuple[pd.DataFrame, pd.DataFrame]
"""The columns of a formula without a response: of the fitted rows, and of those asked for."""


def read_groups(
    terms: Sequence[Term],
    table: pd.DataFrame,
    new: pd.DataFrame | None,
    columns_of: Callable[[str], Columns],
    draw: bool = False,
) -> GroupRows | None:
    """The group effects of a table's rows; None where there are none.

    Args:
        terms: As they are written.
        table: The fitted rows, which say what the groups are.
        new: New rows; None for those of the table.
        columns_of: Makes the columns of what varies between groups.
        draw: Whether new rows may have groups that the fitted ones lack.

    Raises:
        DataError: If a group's column is missing, has empty cells, a single level, or levels that
            the fitted rows lack and that may not be.
        OptionError: If an effect is written twice, or there are too many.
    """
    if not terms:
        return None
    groups: list[Groups] = []
    codes, values, said = [], [], []
    for term in terms:
        fitted, asked = columns_of(term.inside)
        levels, own = _grouped(table, term)
        if len(levels) < 2:
            raise DataError(
                f"column '{term.factor}' is {shown(levels[0])} in every row, and a group effect "
                f"needs two groups at least; leave out the term with '| {term.factor}'."
            )
        if len(levels) == len(table) and new is None:
            said.append(
                f"Each row is a group of its own of '{term.factor}', so that its effect can hardly "
                "be told from the noise of the rows."
            )
        numbers = cells(numeric_columns(fitted, allow_constant=True)).double()
        effects = tuple("1" if name == "Intercept" else str(name) for name in fitted.columns)
        spread = [1.0 if (x == x[0]).all() else float(x.std()) for x in numbers.T]
        correlated = term.correlated and len(effects) > 1
        asked_codes, unseen = (own, 0) if new is None else _known(new, term, levels, draw)
        groups.append(
            Groups(term.factor, effects, tuple(levels), correlated, tuple(spread), unseen)
        )
        codes.append(asked_codes)
        values.append(
            numbers if new is None else cells(numeric_columns(asked, allow_constant=True)).double()
        )
    names = [name for each in groups for name in each.names()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(
            f"--formula: the group effect {twice[0]} is written twice; leave one out."
        )
    count = sum(len(each.effects) * len(each.levels) for each in groups)
    if count > MOST:
        raise OptionError(
            f"--formula: there are {count:,} group effects, and {MOST:,} are allowed; leave out a "
            "term, or group by a column with fewer levels."
        )
    return GroupRows(
        tuple(groups), torch.from_numpy(np.stack(codes, 1)), torch.cat(values, 1), tuple(said)
    )


def _grouped(table: pd.DataFrame, term: Term) -> tuple[list[str], np.ndarray]:
    """The labels of the groups, in order, and the group of each row, (rows,)."""
    whole, sizes, names = np.zeros(len(table), dtype=np.int64), [], []
    for column in _columns(table, term):
        labels = list(dict.fromkeys(map(_label, _in_order(column))))
        place = {label: k for k, label in enumerate(labels)}
        whole = whole * len(labels) + np.array([place[_label(value)] for value in column])
        sizes.append(len(labels))
        names.append(labels)
    found, own = np.unique(whole, return_inverse=True)
    places = np.unravel_index(found, sizes)
    labels_of = zip(*([names[k][i] for i in at] for k, at in enumerate(places)), strict=True)
    return [":".join(each) for each in labels_of], own


def _in_order(column: pd.Series) -> list[Any]:
    """The different values of a column: as its categories are, by size, or by the alphabet."""
    values = distinct(column)
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [level for level in column.cat.categories if level in set(values)]
    return sorted(values, key=None if is_numeric_dtype(column) else str)


def _known(
    new: pd.DataFrame, term: Term, levels: Sequence[str], draw: bool
) -> tuple[np.ndarray, int]:
    """The group of each new row among those that were fitted, (rows,), and how many follow them."""
    own, codes = _grouped(new, term)
    place = {label: k for k, label in enumerate(levels)}
    unseen = [label for label in own if label not in place]
    if draw:
        place |= {label: len(levels) + k for k, label in enumerate(unseen)}
    elif unseen:
        listed = ", ".join(f"'{shown(label)}'" for label in unseen[:LISTED])
        raise DataError(
            f"column '{term.factor}' has groups that the fitted table lacks: {listed}"
            f"{' and others' * (len(unseen) > LISTED)}; leave out their rows, fit again with rows "
            "of them, or have their effects drawn from those of all groups by --new-groups draw."
        )
    return np.array([place[label] for label in own])[codes], len(unseen)


def _columns(table: pd.DataFrame, term: Term) -> Iterator[pd.Series]:
    """The columns that name the groups, whose cells all have a value."""
    for name, column in align_columns(table, list(term.factors)).items():
        empty = int(column.isna().sum())
        if empty:
            raise DataError(
                f"column '{name}' has {empty} empty cells, and groups have a name; fill them, or "
                "leave out their rows."
            )
        yield column


def _label(value: Any) -> str:
    """The same for 1 and 1.0: a column of whole numbers with gaps holds floats."""
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value) if whole else value)
