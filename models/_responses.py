"""The left side of a formula: a column, a level, successes of trials, a number within limits."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError, OptionError, shown
from elbowroom.models._columns import LISTED, MOST_CLASSES, cells, codes, distinct, levels_of
from elbowroom.models._left import Left, Part, plain_number, shown_part

STATUS = {"none": 0.0, "right": 1.0, "left": -1.0, "interval": 2.0}
"""What a status column may say, and the numbers that it may say it by."""
SWAP = 'To swap them, write {name}["{other}"] on the formula\'s left side.'


@dataclass(frozen=True)
class Response:
    """What a regression predicts.

    Attributes:
        form: "number", "level", "levels" (that have an order), "classes", "trials", "censored" or
            "truncated".
        name: Of the column, or the formula's left side.
        values: Numbers, 1 for a level, or successes, (rows,); None where new rows have none.
        rows: What else the rows have: `trials`, or `status` and, of intervals, `upper`, or
            `truncated_lower` and `truncated_upper`, each (rows,).
        level: What 1 stands for, if it is a level.
        levels: What 0, 1, 2, ... stand for, if it is one of several levels or classes.
        said: What was made of the columns, as sentences for the verdict.
    """

    form: str
    name: str
    values: Tensor | None
    rows: dict[str, Tensor] = field(default_factory=dict)
    level: str | None = None
    levels: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def read_response(left: Left, table: pd.DataFrame, new: pd.DataFrame | None) -> Response:
    """The response of the fitted rows, or of new ones.

    Args:
        left: The left side.
        table: The fitted rows.
        new: New ones, if they are asked for.

    Raises:
        DataError: If a column cannot be used; it is named.
    """
    if left.form in ("levels", "classes"):
        return _of_several(table[left.columns[0]], new, left.form)
    if left.form == "level":
        return of_levels(table[left.columns[0]], left.level, new)
    read = {"trials": _of_trials, "censored": _censored, "truncated": _truncated}
    return read[left.form](left, table if new is None else new, new is not None)


def of_levels(
    column: pd.Series, level: str | None = None, new: pd.DataFrame | None = None
) -> Response:
    """A response of two levels, or one level against the others.

    Args:
        column: Of the fitted rows.
        level: What 1 stands for; by default the last one in the order of the alphabet, as in R.
        new: New rows, if they are asked for.

    Raises:
        DataError: If there is no such level, or more than two and none is named.

    Example:
        >>> found = of_levels(pd.Series(["no", "yes", "no"], name="answer"))
        >>> found.level, found.values.tolist()
        ('yes', [0.0, 1.0, 0.0])
    """
    name = str(column.name)
    present = column.dropna()
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = [each for each in column.cat.categories if each in set(present)]
    else:
        levels = sorted(distinct(present), key=str)
    names = [str(each) for each in levels]
    listed = ", ".join(names[:LISTED])
    if len(levels) < 2:
        raise DataError(
            f"the response '{name}' has the same level in every row ({listed or 'none'}); there "
            "is nothing to predict: give another response."
        )
    said: tuple[str, ...] = ()
    if level is None:
        if len(levels) > 2:
            if not pd.to_numeric(present, errors="coerce").isna().all():
                numeric_columns(column.to_frame())  # which names the cells that are no numbers
            raise DataError(
                f"the response '{name}' has {len(levels)} levels ({listed}), and a family of two "
                f'takes one of them against the others: write {name}["{names[0]}"] ~ ..., or give '
                "--family categorical, or ordinal if they have an order."
            )
        level = names[1]
        if not pd.api.types.is_bool_dtype(column):
            swap = SWAP.format(name=name, other=names[0])
            said = (
                f"The response '{name}' is text: '{level}' counts as 1, and '{names[0]}' as 0. "
                f"{swap}",
            )
    elif level not in names:
        raise DataError(
            f"the response '{name}' has no level '{shown(level)}'; its levels are {listed}."
        )
    rows = column if new is None else new.get(name)
    if rows is None or (new is not None and rows.isna().all()):
        return Response("level", name, None, level=level)
    if rows.isna().any():
        row = int(np.flatnonzero(rows.isna())[0])
        raise DataError(f"column '{name}', row {row + 1}: the level is missing; fill it in.")
    found = [str(each) for each in rows]
    for row, each in enumerate(found):
        if each not in names:
            raise DataError(
                f"column '{name}', row {row + 1}: the level '{shown(each)}' did not occur in the "
                f"fitted rows; their levels are {listed}. Leave this row out, or fit again with it."
            )
    values = torch.tensor([float(each == level) for each in found], dtype=torch.float64)
    return Response("level", name, values, level=level, said=said)


def _of_several(column: pd.Series, new: pd.DataFrame | None, form: str) -> Response:
    """A response of three or more levels in their order, or of classes.

    The order is that of a category, of numbers, or of the letters.

    Raises:
        DataError: If there are fewer or far more, or a row has none of them.
    """
    name, levels = str(column.name), levels_of(column)
    names = tuple(f"{each:g}" if isinstance(each, float) else str(each) for each in levels)
    what = "levels in an order" if form == "levels" else "classes"
    if len(levels) < 3:
        raise DataError(
            f"the response '{name}' has {len(levels)} level{'s' * (len(levels) != 1)} "
            f"({', '.join(names)}), and {what} are three or more; of two, give --family bernoulli."
        )
    if len(levels) > MOST_CLASSES:
        raise DataError(
            f"the response '{name}' has {len(levels)} different values, too many for {what}; "
            "give another response, or a --family of numbers."
        )
    said: tuple[str, ...] = ()
    if form == "classes":
        said = (
            f"Coefficients compare each class of '{name}' with '{names[0]}'. For another one, give "
            "in Python a category whose first level it is.",
        )
    elif not plain_number(column) and not isinstance(column.dtype, pd.CategoricalDtype):
        said = (
            f"The levels of '{name}' are in the order of the alphabet: {' < '.join(names)}. For "
            "another one, give numbers, or in Python an ordered category.",
        )
    rows = column if new is None else new.get(name)
    if rows is None or (new is not None and rows.isna().all()):
        return Response(form, name, None, levels=names)
    return Response(form, name, codes(rows, levels).double(), levels=names, said=said)


def _numbers(part: Part, table: pd.DataFrame) -> Tensor:
    """A column of numbers, or a number for each row, (rows,)."""
    if not isinstance(part, str):
        return torch.full((len(table),), float(part or 0), dtype=torch.float64)
    column = numeric_columns(align_columns(table, [part]), allow_constant=True)
    return cells(column)[:, 0]


def check_rows(wrong: Tensor, values: Tensor, name: str, rule: str) -> None:
    """Names the first row that breaks a rule.

    Raises:
        DataError: If there is one.

    Example:
        >>> check_rows(torch.tensor([False, False]), torch.ones(2), "dose", "must be 1.")
    """
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(f"column '{name}', row {row + 1}: {float(values[row]):g}; {rule}")


def _of_trials(left: Left, rows: pd.DataFrame, new: bool) -> Response:
    """Successes, and the trials that they are of."""
    successes, number = left.parts
    trials = _numbers(number, rows)
    name = shown_part(number)
    check_rows(
        (trials < 1) | (trials != trials.round()), trials, name, "trials are counts: 1, 2, ..."
    )
    if _blank(str(successes), rows, new):
        return Response("trials", left.text, None, {"trials": trials})
    values = _numbers(successes, rows)
    wrong = (values < 0) | (values != values.round())
    check_rows(wrong, values, str(successes), "successes are counts: 0, 1, 2, ...")
    above = values > trials
    if bool(above.any()):
        row = int(above.nonzero()[0])
        raise DataError(
            f"row {row + 1}: {values[row]:g} successes ('{successes}') of {trials[row]:g} trials "
            f"('{name}'); there cannot be more successes than trials: correct the row, or write "
            f"p({name}, {successes}) if the columns are exchanged."
        )
    return Response("trials", left.text, values, {"trials": trials})


def _blank(name: str, rows: pd.DataFrame, new: bool) -> bool:
    """Whether new rows lack a column, or its cells are all empty."""
    return new and (name not in rows or bool(rows[name].isna().all()))


def _truncated(left: Left, rows: pd.DataFrame, new: bool) -> Response:
    """Numbers, and the limits between which rows are recorded."""
    name = str(left.parts[0])
    named = (*left.parts[1:], None)[:2]
    ends = [
        torch.full((len(rows),), none, dtype=torch.float64) if end is None else _numbers(end, rows)
        for end, none in zip(named, (-torch.inf, torch.inf), strict=True)
    ]
    limits = dict(zip(("truncated_lower", "truncated_upper"), ends, strict=True))
    if _blank(name, rows, new):
        return Response("truncated", left.text, None, limits)
    values = _numbers(name, rows)
    if not new:
        for end, limit, sign in zip(named, ends, (1, -1), strict=True):
            check_rows(
                sign * values < sign * limit, values, name,
                f"{left.text} says that no row is {'below' if sign > 0 else 'above'} "
                f"{shown_part(end)}: leave this row out, or correct the limit.",
            )  # fmt: skip
    return Response("truncated", left.text, values, limits)


def _censored(left: Left, rows: pd.DataFrame, new: bool) -> Response:
    """Times, what is known of each, and the upper ends of intervals."""
    time, *others, status = left.parts
    if _blank(str(time), rows, new):
        zero = torch.zeros(len(rows), dtype=torch.float64)
        ends = {"upper": zero + 1} if others else {}
        return Response("censored", left.text, None, {"status": zero, **ends})
    values = _numbers(time, rows)
    known, said = _status(status, rows)
    ends = {}
    if others:
        ends["upper"] = upper = torch.where(known == 2, _numbers(others[0], rows), values)
        check_rows(
            (known == 2) & (upper <= values), upper, str(others[0]),
            f"the upper end of an interval must be above the lower one, '{time}'.",
        )  # fmt: skip
    elif bool((known == 2).any()):
        row = int((known == 2).nonzero()[0])
        raise DataError(
            f"column '{status}', row {row + 1}: an interval has two ends; write "
            f"censored({time}, upper, {status})."
        )
    return Response("censored", left.text, values, {"status": known, **ends}, said=said)


def _status(part: Part, table: pd.DataFrame) -> tuple[Tensor, tuple[str, ...]]:
    """The status of each row as a number, (rows,), and what was made of it."""
    if not isinstance(part, str):
        raise OptionError("--formula: the last argument of censored() is the column of the status.")
    column = align_columns(table, [part])[part]
    listed = ", ".join(f"{word} ({number:g})" for word, number in STATUS.items())
    if pd.api.types.is_numeric_dtype(column):
        numbers = _numbers(part, table)
    else:
        words = [STATUS.get(str(each).strip().lower(), np.nan) for each in column]
        numbers = torch.tensor(words, dtype=torch.float64)
        if bool(numbers.isnan().any()):
            row = int(numbers.isnan().nonzero()[0])
            raise DataError(
                f"column '{part}', row {row + 1}: the status '{shown(column.iloc[row])}' is none "
                f"of {listed}."
            )
    allowed = torch.tensor(list(STATUS.values()), dtype=torch.float64)
    check_rows(
        ~(numbers[:, None] == allowed).any(1), numbers, part, f"a status is one of {listed}."
    )
    right = int((numbers == 1).sum())
    if not pd.api.types.is_numeric_dtype(column) or not right:
        return numbers, ()
    return numbers, (
        f"In '{part}', 1 means that the time is censored (the event came later) and 0 that it was "
        f"observed: {right:,} of {len(numbers):,} rows are censored. If 1 is an event, give a "
        f"column of 1 - {part}.",
    )


def listed_names(names: Sequence[str]) -> str:
    """Families as an option of the command line, the first one first.

    Example:
        >>> listed_names(["gamma", "lognormal", "weibull"])
        '--family gamma (or lognormal, weibull)'
    """
    first, *others = names
    return f"--family {first}" + (f" (or {', '.join(others)})" if others else "")
