"""One file to a table: a reader for each format, and what each of them refuses.

Nothing that is read is executed: pickled arrays are refused.
"""

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy
import pandas
import pyarrow

from elbowroom.data.delimited import read_delimited
from elbowroom.data.images import is_idx, read_idx
from elbowroom.errors import DataError


def read_file(path: Path, member: str | None = None) -> pandas.DataFrame:
    r"""Read a file that exists; `member` picks one array of an `.npz`.

    Raises:
        DataError: The path is a folder, the suffix is not one of `READERS`, or the file is empty,
            damaged, ragged, or not to be read without running code.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.csv")
        ...     _ = path.write_text("dose,effect\n1,0.5\n2,0.7\n")
        ...     read_file(path).columns.tolist()
        ['dose', 'effect']
    """
    if path.is_dir():
        raise DataError(f"'{path}' is a folder: give one file in it.")
    suffix = path.suffix.lower()
    if suffix not in READERS and not is_idx(path):
        raise DataError(
            f"'{path}' has a suffix that is not read ('{suffix}'): save the table as one of "
            f"{', '.join(READERS)}, or read it in Python and pass the DataFrame. Images may come "
            "in IDX files, whose names end in 'idx3-ubyte' or 'idx3-ubyte.gz'."
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"'{path}' is empty (0 bytes): write a header line and rows into it.")
        if is_idx(path):
            return read_idx(path)
        return READERS[suffix](path) if member is None else _read_numpy(path, member)
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error.strerror or error}): check that the file is complete "
            "and that you may read it."
        ) from error


def array_to_table(array: numpy.ndarray, source: str) -> pandas.DataFrame:
    """Columns `x0`, `x1`, ... of an array with rows first; images are laid out flat.

    Raises:
        DataError: The array is a single number, or its cells are records.

    Example:
        >>> images = array_to_table(numpy.zeros((5, 2, 3)), "the array")
        >>> images.shape, images.attrs["image_shape"]
        ((5, 6), [2, 3])
    """
    if array.ndim == 0:
        raise DataError(f"{source} is a single value: give an array of rows and columns.")
    if array.dtype.kind == "V":
        raise DataError(
            f"{source} has records ({array.dtype}): save each field as a column of a CSV or "
            "Parquet file, or pass pandas.DataFrame(array)."
        )
    flat = array.reshape(len(array), math.prod(array.shape[1:]))  # (rows, columns)
    names = [f"x{position}" for position in range(flat.shape[1])]
    table = pandas.DataFrame(flat, columns=names, copy=False)
    if array.dtype.kind == "O":
        table = table.infer_objects()
    if array.ndim > 2:
        table.attrs["image_shape"] = list(array.shape[1:])
    return table


def _read_csv(path: Path) -> pandas.DataFrame:
    return read_delimited(path, ",")


def _read_tsv(path: Path) -> pandas.DataFrame:
    return read_delimited(path, "\t")


def _read_parquet(path: Path) -> pandas.DataFrame:
    try:
        return pandas.read_parquet(path, engine="pyarrow")
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(
            f"'{path}' cannot be read as Parquet ({error}): check that the file is complete and "
            "was written as Parquet."
        ) from error


def _read_numpy(path: Path, member: str | None = None) -> pandas.DataFrame:
    """An array, the only one of an archive, or the one that `FILE.npz:NAME` asks for."""
    label = f"'{path}'"
    try:
        # NumPy leaves a file open that it fails to read; this does not.
        with path.open("rb") as stream:
            loaded = numpy.load(stream, allow_pickle=False)
            if isinstance(loaded, numpy.ndarray):
                return array_to_table(loaded, label)
            member = _pick(loaded.files, member, path)
            label = f"'{path}:{member}'"
            return array_to_table(loaded[member], label)
    except DataError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own sentence tells how to unpickle, which can run code.
        pickled = "pickle" in str(error)
        cause = "it needs unpickling, which is refused" if pickled else str(error)
        raise DataError(
            f"{label} cannot be read as an array ({cause}): save an array of numbers with "
            "numpy.save or numpy.savez."
        ) from error


def _pick(names: list[str], member: str | None, path: Path) -> str:
    if not names:
        raise DataError(f"'{path}' contains no array: save one into it with numpy.savez.")
    if member is None and len(names) == 1:
        return names[0]
    if member is None or member not in names:
        asked = "" if member is None else f" and none named '{member}'"
        count = "1 array" if len(names) == 1 else f"{len(names)} arrays"
        raise DataError(
            f"'{path}' contains {count} ({', '.join(names)}){asked}: FILE.npz:NAME picks one, "
            f"such as '{path}:{names[0]}'."
        )
    return member


READERS: dict[str, Callable[[Path], pandas.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
}
