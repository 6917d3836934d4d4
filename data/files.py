"""One file to a table: a reader for each format, and what each of them refuses.

Nothing that is read is executed: pickled arrays are refused. What a file says of its own size is
looked at before memory is taken for it: beside what the file holds, and beside what is free.
"""

import math
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy
import pandas
import pyarrow
from numpy.lib import format as npy
from pyarrow import parquet

from elbowroom.data.delimited import read_delimited
from elbowroom.data.images import is_idx, read_idx
from elbowroom.errors import DataError, shown
from elbowroom.memory import check_memory

EDIT = "give fewer rows or columns, or use a machine with more memory"
"""What to do with a table that does not fit into memory."""
KINDS = {
    stat.S_ISDIR: "folder",
    stat.S_ISFIFO: "pipe",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
    stat.S_ISSOCK: "socket",
}
"""What a path may lead to instead of a file."""


def read_file(path: Path, member: str | None = None) -> pandas.DataFrame:
    r"""Read a file that exists; `member` picks one array of an `.npz`.

    Raises:
        DataError: The path is no file, the suffix is not one of `READERS`, or the file is empty,
            damaged, ragged, larger than the memory that is free, or not to be read without running
            code.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.csv")
        ...     _ = path.write_text("dose,effect\n1,0.5\n2,0.7\n")
        ...     read_file(path).columns.tolist()
        ['dose', 'effect']
    """
    try:
        found = path.stat()
        for is_kind, kind in KINDS.items():
            if is_kind(found.st_mode):
                edit = "one file in it" if kind == "folder" else "the file itself"
                raise DataError(f"'{path}' is a {kind}: give {edit}.")
        suffix = path.suffix.lower()
        if suffix not in READERS and not is_idx(path):
            packed = " unpack it first," if suffix in PACKED else ""
            raise DataError(
                f"'{path}' has a suffix that is not read ('{suffix}'):{packed} save the table as "
                f"one of {', '.join(READERS)}, or read it in Python and pass the DataFrame. Images "
                "may come in IDX files, whose names end in 'idx3-ubyte' or 'idx3-ubyte.gz'."
            )
        if found.st_size == 0:
            raise DataError(f"'{path}' is empty (0 bytes): write a header line and rows into it.")
        if is_idx(path):
            return read_idx(path)
        return READERS[suffix](path) if member is None else _read_numpy(path, member)
    except MemoryError as error:
        raise DataError(f"'{path}' does not fit into memory: {EDIT}.") from error
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
    return _delimited(path, ",")


def _read_tsv(path: Path) -> pandas.DataFrame:
    return _delimited(path, "\t")


def _delimited(path: Path, delimiter: str) -> pandas.DataFrame:
    # Of cells of eight characters, Arrow's table and that of pandas are as large as the text each.
    check_memory(f"reading '{path}'", 2 * path.stat().st_size, EDIT, DataError)
    return read_delimited(path, delimiter)


def _read_parquet(path: Path) -> pandas.DataFrame:
    try:
        with parquet.ParquetFile(path) as opened:
            about = opened.metadata
            groups = [about.row_group(place) for place in range(about.num_row_groups)]
            plain = sum(group.total_byte_size for group in groups)
            cells = 8 * about.num_rows * about.num_columns  # that are alike take no place in it
        check_memory(f"reading '{path}'", 2 * max(plain, cells), EDIT, DataError)
        return pandas.read_parquet(path, engine="pyarrow")
    except DataError:
        raise
    # What pandas has noted in the file may be anything.
    except (pyarrow.ArrowException, ValueError, TypeError, LookupError, AttributeError) as error:
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
            begin = stream.read(len(npy.MAGIC_PREFIX))
            stream.seek(0)
            if begin == npy.MAGIC_PREFIX:
                _check_header(stream, path.stat().st_size, label)
                stream.seek(0)
            loaded = numpy.load(stream, allow_pickle=False)
            if isinstance(loaded, numpy.ndarray):
                return array_to_table(loaded, label)
            member = _pick(loaded.files, member, path)
            label = f"'{path}:{member}'"
            whole = loaded.zip.getinfo(
                member if member in loaded.zip.namelist() else f"{member}.npy"
            )
            with loaded.zip.open(whole) as opened:
                _check_header(opened, whole.file_size, label)
            return array_to_table(loaded[member], label)
    except DataError:
        raise
    # Of archives: those with a password (RuntimeError) and those packed in a way that is not known.
    except (
        ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, RecursionError,
        SyntaxError, TypeError, OverflowError, AttributeError,
    ) as error:  # fmt: skip
        # NumPy's own sentence tells how to unpickle, which can run code.
        pickled = "pickle" in str(error)
        cause = "it needs unpickling, which is refused" if pickled else str(error)[:200]
        raise DataError(
            f"{label} cannot be read as an array ({cause}): save an array of numbers with "
            "numpy.save or numpy.savez."
        ) from error


def _check_header(stream: IO[bytes], size: int, label: str) -> None:
    """Sees that an array is as large as its header says, and fits into memory.

    Args:
        stream: At the begin of the array's file.
        size: Bytes of it.
        label: What the array is called in messages.

    Raises:
        DataError: If not, or the cells are not numbers.
        ValueError: If it is no array at all.
    """
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read(stream)
    if kind.hasobject:
        return  # which is refused when it is read
    if kind.kind in "SU":
        raise DataError(f"{label} holds text: save the table as CSV, or encode it as numbers.")
    count = math.prod(shape)
    there = size - stream.tell()
    if min(shape, default=0) < 0 or count * kind.itemsize > there:
        raise DataError(
            f"{label} cannot be read as an array (its header says {shown(shape)} cells of "
            f"{kind.itemsize} bytes, and {there:,} bytes follow): write the file again with "
            "numpy.save or numpy.savez."
        )
    # The array, and the table of it in float64.
    check_memory(f"reading {label}", count * (kind.itemsize + 8), EDIT, DataError)


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


PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst")
"""Suffixes of files that are packed."""
READERS: dict[str, Callable[[Path], pandas.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
}
