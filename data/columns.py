"""The names of columns, and one column to numbers or the sentence that says why not."""

import re
import reprlib
import shlex
from collections.abc import Hashable, Iterable
from typing import Any

import numpy
import pandas
from pandas.api import types

from elbowroom.errors import DataError
from elbowroom.printable import printable

LARGEST = 1e100
"""The largest number that is computed with."""
_SHOWN = 5  # rows or cells named in a message


def check_names(names: Iterable[Hashable], source: str) -> None:
    """Refuse column names that are blank or used twice.

    Raises:
        DataError: It names the columns.

    Example:
        >>> check_names(["dose", "effect"], "the table")
    """
    texts = [str(name) for name in names]
    blank = [str(place) for place, name in enumerate(texts, start=1) if not name.strip()]
    if blank:
        raise DataError(
            f"{source} has columns without a name (counted from 1: {', '.join(blank)}): give each "
            "a name in the header. (If pandas wrote the table, the first column may be its index: "
            "write it with index=False.)"
        )
    lines = [text.replace("\r", "") for text in texts]  # which spreadsheets have in names
    if odd := next((line for line in lines if line != printable(line)), None):
        raise DataError(
            f"{source} has a column whose name has control characters ('{printable(odd)[:60]}'): "
            "rename it."
        )
    index = pandas.Index(texts)
    if repeated := list(index[index.duplicated()].unique()):
        listed = ", ".join(f"'{name}'" for name in repeated)
        raise DataError(
            f"{source} has more than one column named {listed}: rename them, so that each name is "
            "used once."
        )


def as_numbers(column: pandas.Series, *, allow_constant: bool = False) -> numpy.ndarray:
    """A column as float64, without a copy where it is float64 already.

    Raises:
        DataError: One line that names the column, the rows or cells (rows counted from 1) and the
            edit that fixes it.

    Example:
        >>> as_numbers(pandas.Series([True, False], name="treated"))
        array([1., 0.])
    """
    name = str(column.name)
    leave_out = f"leave the column out (--exclude {shlex.quote(name)})"
    if instead := _in_place_of_time(column):
        first = int(column.notna().to_numpy().argmax())
        raise DataError(
            f"column '{name}' has dates or times, such as {_show(column, first)}: turn it into "
            f"{instead}, or {leave_out}"
        )
    values = _parse(column, leave_out)  # (rows,)
    finite = numpy.isfinite(values)
    if not finite.all():
        raise DataError(_not_finite(name, values, finite, leave_out))
    if values.size and max(values.max(), -values.min()) > LARGEST:
        row = int(numpy.abs(values).argmax())
        raise DataError(
            f"column '{name}' has {values[row]:g} in row {row + 1}, and squares of numbers beyond "
            f"{LARGEST:g} overflow: give it in other units, or {leave_out}"
        )
    if not allow_constant and values.size and (values == values[0]).all():
        raise DataError(
            f"column '{name}' is {values[0]:g} in every row, so nothing can be learned from "
            f"it: {leave_out}"
        )
    return values


def category_levels(column: pandas.Series) -> list[Any] | None:
    """The levels of a column of categories, in order; None if it is none.

    Those are a pandas Categorical, and text that is a number nowhere, of which some cells are
    alike. Text with a decimal comma is a number that is written wrongly.

    Example:
        >>> category_levels(pandas.Series(["north", "south", "north"]))
        ['north', 'south']
        >>> category_levels(pandas.Series(["1", "2", "2"])) is None
        True
    """
    if isinstance(column.dtype, pandas.CategoricalDtype):
        return list(column.cat.categories)
    present = column[column.notna()]
    if not len(present) or not all(isinstance(cell, str) for cell in present):
        return None
    numbers = pandas.to_numeric(present.str.replace(",", ".", regex=False), errors="coerce")
    levels = sorted(present.unique())
    return levels if numbers.isna().all() and len(levels) < len(present) else None


def _in_place_of_time(column: pandas.Series) -> str | None:
    """The number to use where the column has dates or lengths of time."""
    kind = column.dtype
    if types.is_object_dtype(kind):
        inferred = types.infer_dtype(column, skipna=True)
    elif types.is_datetime64_any_dtype(kind) or isinstance(kind, pandas.PeriodDtype):
        inferred = "datetime"
    elif types.is_timedelta64_dtype(kind):
        inferred = "timedelta"
    else:
        return None
    if inferred in ("datetime", "datetime64", "date", "period"):
        return "a number, such as the days since the first"
    if inferred in ("timedelta", "timedelta64", "time"):
        return "a number, such as seconds"
    return None


def _parse(column: pandas.Series, leave_out: str) -> numpy.ndarray:
    """Every cell as a number; missing cells become NaN."""
    if types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype):
        return _float64(column)
    present = column.notna().to_numpy()
    try:
        numbers = _float64(pandas.to_numeric(column, errors="coerce"))
    except (TypeError, ValueError, OverflowError):  # lists, complex numbers, enormous integers
        numbers = numpy.full(len(column), numpy.nan)
    wrong = present & numpy.isnan(numbers)
    if not wrong.any():
        return numbers
    rows = numpy.flatnonzero(wrong)
    good = int(present.sum()) - len(rows)
    name = str(column.name)
    if good > len(rows):
        cells = ", ".join(f"row {row + 1} is {_show(column, row)}" for row in rows[:_SHOWN])
        raise DataError(
            f"column '{name}' has numbers except in {_count(len(rows), 'cell')} ({cells}"
            f"{', ...' if len(rows) > _SHOWN else ''}): write numbers there, drop these rows, or "
            f"{leave_out}"
        )
    cell = column.iloc[rows[0]]
    comma = isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell)
    edit = "write a decimal point for the comma" if comma else "encode it as numbers"
    raise DataError(
        f"column '{name}' is not numeric: row {rows[0] + 1} is {_show(column, rows[0])}; {edit}, "
        f"or {leave_out}"
    )


def _float64(column: pandas.Series) -> numpy.ndarray:
    if types.is_complex_dtype(column.dtype):
        raise TypeError("complex numbers")
    if isinstance(column.dtype, numpy.dtype):
        return column.to_numpy(dtype=numpy.float64)
    return column.to_numpy(dtype=numpy.float64, na_value=numpy.nan)


def _not_finite(name: str, values: numpy.ndarray, finite: numpy.ndarray, leave_out: str) -> str:
    rows = numpy.flatnonzero(~finite)
    missing = int(numpy.isnan(values).sum())
    if missing == len(values):
        return f"column '{name}' has no values at all: fill it, or {leave_out}"
    counts = [(missing, "missing cell"), (len(rows) - missing, "infinite cell")]
    found = " and ".join(_count(count, what) for count, what in counts if count)
    listed = ", ".join(str(row + 1) for row in rows[:_SHOWN])
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    where, these = ("row", "this row") if len(rows) == 1 else ("rows", "these rows")
    return (
        f"column '{name}' has {found} ({where} {listed}{more}): drop {these}, fill the "
        f"cells, or {leave_out}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _show(column: pandas.Series, row: Any) -> str:
    """A cell, cut short."""
    return reprlib.repr(str(column.iloc[row]))
