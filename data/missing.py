"""Rows with missing cells: left out with a count, or refused."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import pandas

from elbowroom.errors import DataError

MOST_NAMED = 4
"""Columns in a message."""
ROW = re.compile(r"\brow (\d+)")


@dataclass(frozen=True)
class CompleteRows:
    """The rows of a table that have all cells that are needed.

    Attributes:
        table: The rows.
        places: Where they were, counted from 0, (rows,); None if all were complete.
        said: What is to be said of the others.
    """

    table: pandas.DataFrame
    places: numpy.ndarray | None = None
    said: tuple[str, ...] = ()

    @contextmanager
    def numbered(self) -> Iterator[None]:
        """Has errors that name rows of the table count them as they were given."""
        try:
            yield
        except DataError as error:
            if self.places is None:
                raise
            places = self.places
            raise DataError(
                ROW.sub(lambda found: f"row {places[int(found[1]) - 1] + 1}", str(error))
            ) from error


def complete_rows(table: pandas.DataFrame, names: Sequence[str], drop: bool = True) -> CompleteRows:
    """The rows of a table that have all cells of some columns.

    Args:
        table: The rows.
        names: Columns whose cells are needed; those that the table lacks are left to others.
        drop: Whether rows may be left out.

    Raises:
        DataError: If cells are missing and rows may not be left out, or if fewer than two would be
            left.

    Example:
        >>> table = pandas.DataFrame({"dose": [1.0, None, 3.0], "effect": [4.0, 5.0, 6.0]})
        >>> complete_rows(table, ["dose", "effect"]).said
        ("1 of 3 rows was left out: cells are missing in 'dose' (1).",)
    """
    missing = table[[name for name in names if name in table]].isna()
    gone = missing.any(axis=1).to_numpy()
    if not gone.any():
        return CompleteRows(table)
    counts = missing.sum().sort_values(ascending=False, kind="stable")
    counts = counts[counts > 0]
    named = ", ".join(f"'{name}' ({count:,})" for name, count in counts.iloc[:MOST_NAMED].items())
    named += ", ..." * (len(counts) > MOST_NAMED)
    count, total = int(gone.sum()), len(table)
    if not drop:
        raise DataError(
            f"{count:,} of {total:,} rows {'has' if count == 1 else 'have'} missing cells, in "
            f"{named}: fill them in, leave these columns out, or give --missing drop."
        )
    if total - count < 2:
        raise DataError(
            f"{count:,} of {total:,} rows have missing cells, in {named}, and too few are left: "
            "fill cells in, or leave columns out."
        )
    was = "was" if count == 1 else "were"
    said = f"{count:,} of {total:,} rows {was} left out: cells are missing in {named}."
    return CompleteRows(table[~gone], numpy.flatnonzero(~gone), (said,))
