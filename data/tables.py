"""Any source to a table, and the columns of a table that a model is given.

`read_table` -> `select_columns` -> `numeric_columns`; new data go through `align_columns`.
Whatever cannot be used is a `DataError` that names the file or column, the cause and the fix.
"""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy
import pandas

from elbowroom.data.bundled import dataset_names, load_dataset
from elbowroom.data.columns import as_numbers, check_names
from elbowroom.data.files import READERS, array_to_table, read_file
from elbowroom.data.images import OPENML, fetch
from elbowroom.errors import DataError, OptionError, shown
from elbowroom.options import flag

_LISTED = 20  # column names in a message


def read_table(
    source: str | Path | pandas.DataFrame | numpy.ndarray, *, minimum_rows: int = 2
) -> pandas.DataFrame:
    """A table from a bundled dataset's name, a file, a DataFrame or an array.

    Files are `.csv`, `.tsv`, `.parquet`, `.npy` and `.npz` (`FILE.npz:NAME` picks one of several
    arrays), and IDX files of images. `mnist`, `fashion_mnist` and `omniglot` are fetched. An
    existing file goes before a bundled dataset of the same name. Arrays have columns `x0`, `x1`,
    ...; one with more than two dimensions (images) is laid out flat and its shape without the rows
    is `attrs["image_shape"]`. The cells of a DataFrame are shared, not copied.

    Args:
        source: What to read.
        minimum_rows: The fewest rows allowed; 1 suits new data to predict for.

    Raises:
        DataError: There is no such file, or it cannot be read as a table with named columns.

    Example:
        >>> read_table("eight_schools").columns.tolist()
        ['school', 'effect', 'standard_error']
        >>> read_table(numpy.ones((4, 2))).columns.tolist()
        ['x0', 'x1']
    """
    if isinstance(source, pandas.DataFrame):
        label, table = "the DataFrame", source.copy(deep=False)
    elif isinstance(source, numpy.ndarray):
        label, table = "the array", array_to_table(source, "the array")
    elif isinstance(source, str | Path):
        label, table = f"'{source}'", _read_path(source)
    else:
        raise DataError(
            f"data of type {type(source).__name__} cannot be read: give the name of a bundled "
            "dataset, a path, a pandas DataFrame or a NumPy array."
        )
    table.columns = pandas.Index([str(name) for name in table.columns])
    check_names(table.columns, label)
    if not len(table.columns):
        raise DataError(f"{label} has no columns: give it at least one.")
    if len(table) < minimum_rows:
        raise DataError(
            f"{label} has {len(table)} row{'s' * (len(table) != 1)} and needs at least "
            f"{minimum_rows} rows: add rows, or check that the whole table was given."
        )
    return table


def select_columns(
    table: pandas.DataFrame, columns: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> pandas.DataFrame:
    """The columns to use: those named, or those that a model takes, but for those left out.

    Where nothing is named and the table knows its columns' roles (the bundled ones do), these are
    the features and whatever column was added without a role; otherwise all. `attrs` are kept,
    but for `image_shape` where the columns left are no longer a whole image.

    Raises:
        DataError: A name is not a column of the table, or no column is left.
        OptionError: A name is given twice, or is both named and left out.

    Example:
        >>> select_columns(read_table("iris"), exclude=["petal_width"]).columns.tolist()
        ['sepal_length', 'sepal_width', 'petal_length']
    """
    left_out = named_columns(table, "exclude", exclude)
    if columns is not None:
        names = named_columns(table, "columns", columns)
        if both := [name for name in names if name in left_out]:
            raise OptionError(
                f"column '{both[0]}' is in both --columns and --exclude: name it in only one of "
                "them."
            )
    else:
        roles = table.attrs.get("roles")
        roles = roles if isinstance(roles, dict) else {}  # `attrs` is the user's as well
        features = [name for name in table.columns if roles.get(name, "feature") == "feature"]
        names = [name for name in features if name not in set(left_out)]
    if not names:
        raise DataError(
            f"no column is left to use: name some with --columns, or fewer with --exclude. The "
            f"table has {_listed(table)}."
        )
    return _take(table, names)


def varying_columns(table: pandas.DataFrame) -> tuple[pandas.DataFrame, list[str]]:
    """A table without the columns that are the same in every row, and the names of these.

    A table of such columns alone stays as it is.

    Example:
        >>> varying_columns(pandas.DataFrame({"rim": [0, 0], "pixel": [3, 5]}))
        (   pixel
        0      3
        1      5, ['rim'])
    """
    kinds = set(table.dtypes)
    if len(kinds) == 1 and getattr(next(iter(kinds)), "kind", "") in "biuf" and len(table):
        cells = table.to_numpy()  # (rows, columns); at once, where there are thousands of columns
        constant = [str(name) for name in table.columns[(cells == cells[0]).all(axis=0)]]
    else:
        constant = [
            str(name)
            for name, column in table.items()
            if _kinds_of_cells(column) == 1 and column.notna().all()
        ]
    if len(constant) == len(table.columns) or len(table) < 2:
        return table, []
    return _take(table, [name for name in table.columns if str(name) not in constant]), constant


def _kinds_of_cells(column: pandas.Series) -> int:
    """How many different cells there are, a missing one counted too."""
    try:
        return int(column.nunique(dropna=False))
    except TypeError:  # lists and records, as Parquet has them, cannot be looked up
        return int(column.map(repr).nunique())


def numeric_columns(table: pandas.DataFrame, *, allow_constant: bool = False) -> pandas.DataFrame:
    """The same table in float64, with its index and `attrs`, without a copy where it is so already.

    Integers, true and false, and text that is a number in every cell become float64.

    Args:
        table: The columns that a model is given.
        allow_constant: Let columns pass that are the same in every row, such as the rim of images.

    Raises:
        DataError: One line for each column with text, dates, missing or infinite cells, or the
            same value in every row; rows are counted from 1.

    Example:
        >>> numeric_columns(pandas.DataFrame({"dose": [1, 2], "treated": [True, False]}))
           dose  treated
        0   1.0      1.0
        1   2.0      0.0
    """
    check_names(table.columns, "the table")
    if not len(table.columns):
        raise DataError("the table has no columns: give it at least one.")
    arrays: dict[Any, numpy.ndarray] = {}
    faults = []
    for name, column in table.items():
        try:
            arrays[name] = as_numbers(column, allow_constant=allow_constant)
        except DataError as fault:
            faults.append(f"\n  {fault}")
    if faults:
        counted = "1 column" if len(faults) == 1 else f"{len(faults)} columns"
        raise DataError(
            f"{counted} of the table cannot be used (rows are counted from 1, below the header):"
            + "".join(faults)
        )
    if all(kind == numpy.float64 for kind in table.dtypes):
        return table
    numbers = pandas.DataFrame(arrays, index=table.index, copy=False)
    numbers.attrs = table.attrs
    return numbers


def align_columns(table: pandas.DataFrame, names: Sequence[str]) -> pandas.DataFrame:
    """The named columns of new data, in this order.

    Raises:
        DataError: It names every column that is missing, each with the nearest that is there.

    Example:
        >>> new = pandas.DataFrame({"age": [50], "bmi": [31.0], "clinic": ["north"]})
        >>> align_columns(new, ["bmi", "age"]).columns.tolist()
        ['bmi', 'age']
    """
    present = set(table.columns)
    missing = [name for name in names if name not in present]
    if missing:
        one = len(missing) == 1
        counted, verb = ("1 column", "is") if one else (f"{len(missing)} columns", "are")
        lines = "".join(f"\n  '{name}'{_nearest(name, table)}" for name in missing[:_LISTED])
        if len(missing) > _LISTED:
            lines += f"\n  and {len(missing) - _LISTED} more."
        raise DataError(
            f"{counted} that the model was fitted to {verb} missing in the new data; add "
            f"{'this column' if one else 'these columns'}, or rename existing ones:{lines}\n  The "
            f"new data have {_listed(table)}."
        )
    return _take(table, list(names))


def _read_path(source: str | Path) -> pandas.DataFrame:
    text = str(source)
    try:
        path, member = Path(expanduser(text)), None
        if path.is_file():
            return read_file(path)
        # A Path is always a file; a bare word may be a dataset.
        if isinstance(source, str) and text in dataset_names():
            return load_dataset(text)
        if isinstance(source, str) and text in OPENML:
            return fetch(text)
        stem, mark, name = text.rpartition(".npz:")
        if mark:
            path, member = Path(expanduser(stem + ".npz")), name
        if not text or not path.exists():
            raise _missing_file(path)
        return read_file(path, member)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # no path at all
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the path {shown(text)} cannot be used ({reason}): give that of a file."
        ) from error


def _missing_file(path: Path) -> DataError:
    """Name what is near: files of that folder, and bundled datasets."""
    hints = []
    if not path.parent.is_dir():
        hints.append(f"the folder '{path.parent}' does not exist")
    else:
        files = [file.name for file in path.parent.iterdir() if file.suffix.lower() in READERS]
        if near := get_close_matches(path.name, files, n=3, cutoff=0.7):
            listed = ", ".join(f"'{path.with_name(name)}'" for name in near)
            hints.append(f"nearest in its folder: {listed}")
    datasets = dataset_names()
    if close := get_close_matches(path.stem.lower(), datasets, n=1):
        hints.append(
            f"the bundled dataset nearest in name is '{close[0]}' (give it without suffix)"
        )
    else:
        hints.append(f"bundled datasets are {', '.join(datasets)}")
    return DataError(f"there is no file '{path}'; {'; '.join(hints)}.")


def named_columns(table: pandas.DataFrame, option: str, names: Sequence[str]) -> list[str]:
    """The names an option gave, each a column of the table and given once.

    Raises:
        DataError: A name is not a column of the table; the nearest one is named.
        OptionError: A name is given twice.

    Example:
        >>> named_columns(read_table("iris"), "response", "species")
        ['species']
    """
    given = [names] if isinstance(names, str) else list(names)
    present = set(table.columns)
    for place, name in enumerate(given):
        if name not in present:
            raise DataError(
                f"{flag(option)} {name}: the table has no column '{name}'{_nearest(name, table)} "
                f"It has {_listed(table)}."
            )
        if name in given[:place]:
            raise OptionError(f"{flag(option)} names '{name}' twice: name it once.")
    return given


def _nearest(name: str, table: pandas.DataFrame) -> str:
    # Lower case, because a name that differs by its capitals is the likeliest slip.
    lowered = {str(column).lower(): str(column) for column in table.columns}
    near = get_close_matches(str(name).lower(), lowered, n=1)
    return f"; did you mean '{lowered[near[0]]}'?" if near else "."


def _listed(table: pandas.DataFrame) -> str:
    names = [str(name) for name in table.columns]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"the columns {', '.join(names[:_LISTED])}{more}"


def _take(table: pandas.DataFrame, names: list[str]) -> pandas.DataFrame:
    """These columns; the cells are shared where they are all of them."""
    taken = table.copy(deep=False) if names == list(table.columns) else table[names]
    shape = taken.attrs.get("image_shape")
    if shape is not None and math.prod(shape) != len(names):
        taken.attrs = {key: value for key, value in taken.attrs.items() if key != "image_shape"}
    return taken
