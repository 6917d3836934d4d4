"""Which column is the response, and which are the predictors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from elbowroom.data.tables import named_columns, select_columns, varying_columns
from elbowroom.errors import DataError, OptionError, shown


def column_of_role(table: pd.DataFrame, role: str) -> str | None:
    """The first column with a role, of a table that knows its columns' roles."""
    roles = table.attrs.get("roles", {})
    return next((str(name) for name, own in roles.items() if own == role), None)


def cells(table: pd.DataFrame) -> Tensor:
    """The cells of columns of numbers, (rows, columns), in any memory order.

    Example:
        >>> cells(pd.DataFrame({"dose": [1.0, 2.0]})[::-1]).tolist()
        [[2.0], [1.0]]
    """
    return torch.tensor(np.array(table, order="C"))


def varying(
    table: pd.DataFrame, columns: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The columns that a model of all columns together takes, and a sentence on those left out.

    Columns that are the same in every row tell nothing, and have no scale. They are left out unless
    they were asked for by name.

    Args:
        table: The table of the fit.
        columns: Those named by the user, if any.
        exclude: Those that the user left out.

    Raises:
        DataError, OptionError: If there is no such column.

    Example:
        >>> table = pd.DataFrame({"rim": [0, 0], "pixel": [3, 5]})
        >>> varying(table, None, ())[1]
        ("Column 'rim' is the same in every row and was left out.",)
    """
    used = select_columns(table, columns, exclude)
    if columns is not None:
        return used, ()
    used, constant = varying_columns(used)
    if not constant:
        return used, ()
    if len(constant) == 1:
        return used, (f"Column '{constant[0]}' is the same in every row and was left out.",)
    named = ", ".join(f"'{name}'" for name in constant[:LISTED])
    more = f" and {len(constant) - LISTED} more" if len(constant) > LISTED else ""
    return used, (f"Columns {named}{more} are the same in every row and were left out.",)


def response_column(table: pd.DataFrame, given: str | None, hint: str) -> str:
    """The column named, or the bundled table's own response.

    Args:
        table: The data.
        given: The name, if there is one.
        hint: What to say where there is none.

    Raises:
        DataError: If there is no such column.
        OptionError: If none is named and the table knows of none.

    Example:
        >>> response_column(pd.DataFrame({"dose": [1.0], "effect": [2.0]}), "effect", "")
        'effect'
    """
    response = given or column_of_role(table, "response")
    if response is None:
        raise OptionError(hint)
    return named_columns(table, "response", response)[0]


LISTED = 20
"""Labels in a message."""
MOST_CLASSES = 100
"""More different values than any column of classes has."""


def without_blanks(column: pd.Series) -> pd.Series:
    """A column in whose blank cells a value is missing.

    Example:
        >>> without_blanks(pd.Series(["a", " ", None])).isna().tolist()
        [False, True, True]
    """
    blank = np.array([isinstance(cell, str) and not cell.strip() for cell in column], dtype=bool)
    return column.mask(blank)


def distinct(column: pd.Series) -> list[Any]:
    """The different values of a column, but for missing ones, in the order of the rows.

    Raises:
        DataError: If its cells are lists or records, as Parquet has them.

    Example:
        >>> distinct(pd.Series(["b", "a", None, "b"]))
        ['b', 'a']
    """
    try:
        return list(column.dropna().unique())
    except TypeError as error:
        raise DataError(
            f"column '{column.name}' has cells such as {shown(column.dropna().iloc[0])}, which are "
            f"neither numbers nor text; leave it out (--exclude '{column.name}'), or make a column "
            "of each of their parts."
        ) from error


def levels_of(column: pd.Series) -> list[Any]:
    """The different values of a column, but for missing ones: numbers as floats, by their size.

    Those of a categorical column have its order, others that of the alphabet.

    Example:
        >>> levels_of(pd.Series([2, None, 1])), levels_of(pd.Series(["b", "a", None]))
        ([1.0, 2.0], ['a', 'b'])
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        there = set(column.dropna())
        return [level for level in column.cat.categories if level in there]
    values = distinct(column)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return sorted(float(each) for each in values)
    return sorted(values, key=str)


def indicators(column: pd.Series, levels: Sequence[object]) -> Tensor:
    """One for the label of a row, and zero for the others, (rows, labels).

    Raises:
        DataError: If a label is missing, or is none of `levels`; the row is named.

    Example:
        >>> indicators(pd.Series(["b", "a"], name="kind"), ["a", "b"])
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    return torch.eye(len(levels), dtype=torch.float64)[codes(column, levels)]


def codes(column: pd.Series, levels: Sequence[object]) -> Tensor:
    """The place of each row's label among some levels, (rows,).

    Raises:
        DataError: If a label is missing, or is none of `levels`; the row is named.

    Example:
        >>> codes(pd.Series(["b", "a"], name="kind"), ["a", "b"])
        tensor([1, 0])
    """
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise DataError(f"column '{column.name}', row {row + 1}: the label is missing; fill it in.")
    place = {level: k for k, level in enumerate(levels)}
    found = [place.get(value, -1) for value in column]
    if -1 in found:
        row = found.index(-1)
        listed = ", ".join(map(str, levels[:LISTED]))
        raise DataError(
            f"column '{column.name}', row {row + 1}: the label '{column.iloc[row]}' did not occur "
            f"in the fitted rows; their labels are {listed}. Leave this row out, or fit again with "
            "it."
        )
    return torch.tensor(found)


def predictor_columns(
    table: pd.DataFrame, response: str, columns: Sequence[str] | None, exclude: Sequence[str]
) -> list[str]:
    """The columns other than the response, or those of them that are named.

    Raises:
        DataError: If there are none.
        OptionError: If the response is named too.

    Example:
        >>> table = pd.DataFrame({"dose": [1.0], "age": [40], "effect": [2.0]})
        >>> predictor_columns(table, "effect", None, ["age"])
        ['dose']
    """
    if columns and response in columns:
        raise OptionError(f"'{response}' is the response; leave it out of --columns.")
    chosen = select_columns(table, columns, exclude)
    names = [str(column) for column in chosen.columns if column != response]
    if not names:
        raise DataError(
            f"the table has no column other than the response '{response}'; add a predictor."
        )
    return names
