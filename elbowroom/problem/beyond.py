"""What is to be said of new rows that are beyond the fitted ones."""

from typing import Any

import pandas as pd

from elbowroom.data.tables import read_table
from elbowroom.problem.bound import Problem


def rows_beyond(problem: Problem, data: Any) -> tuple[Any, list[str]]:
    """New rows, and sentences on those that are beyond what a spline, or the like, was fitted to.

    Args:
        problem: The model and the fitted rows.
        data: The new rows, as the fit took them; None for the fitted ones.

    Returns:
        The rows, read if they had to be, and a sentence for each column.
    """
    effects = problem.prepared.effects
    if data is None or effects is None or not effects.splines:
        return data, []
    table = read_table(data, minimum_rows=1)
    said = [_beyond(problem.data[name], table[name]) for name in effects.splines if name in table]
    return table, [each for each in said if each]


def _beyond(fitted: pd.Series, new: pd.Series) -> str:
    """The sentence on a column; empty where there is nothing to be said.

    Example:
        >>> _beyond(pd.Series([0.0, 9.0], name="x"), pd.Series([3.0, 12.0]))
        "In 1 of 2 rows 'x' is beyond the fitted rows (0 to 9): the curve over it goes on there by \
its formula alone, which no data support."
    """
    low, high = float(fitted.min()), float(fitted.max())
    numbers = pd.to_numeric(new, errors="coerce")
    outside = int(((numbers < low) | (numbers > high)).sum())
    if not outside:
        return ""
    return (
        f"In {outside:,} of {len(new):,} rows '{fitted.name}' is beyond the fitted rows ({low:.5g} "
        f"to {high:.5g}): the curve over it goes on there by its formula alone, which no data "
        "support."
    )
