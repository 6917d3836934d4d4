"""CSV and TSV files: a header of names, then rows of as many cells; all else is an error.

Arrow reads the cells: its floats are exact, and it refuses rows that are too short, which pandas
fills with missing cells. The header is read here, because readers rename columns that are used
twice or have no name. Where something is wrong, the file is read once more to name the line.
"""

import csv
from pathlib import Path

import pandas
import pyarrow
import pyarrow.csv

from elbowroom.data.columns import check_names
from elbowroom.errors import DataError

# A row must fit into one block; a table of 100,000 columns does not fit into Arrow's own 1 MiB.
_BLOCK_BYTES = 1 << 26


def read_delimited(path: Path, delimiter: str) -> pandas.DataFrame:
    r"""Read a table of text; empty cells, `NA`, `nan` and their like are missing.

    Raises:
        DataError: It names the line that is not UTF-8, has too few or too many cells, or begins a
            quote that is never closed, or says what is wrong with the header.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.tsv")
        ...     _ = path.write_text("dose\teffect\n1\t0.5\n2\t\n")
        ...     read_delimited(path, "\t")
           dose  effect
        0     1     0.5
        1     2     NaN
    """
    header, header_lines = _read_header(path, delimiter)
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(
                column_names=header, skip_rows=header_lines, block_size=_BLOCK_BYTES
            ),
            pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                # In a single column an empty line is a missing cell; elsewhere it is nothing.
                ignore_empty_lines=len(header) > 1,
            ),
            pyarrow.csv.ConvertOptions(strings_can_be_null=True),
        )
    except MemoryError:
        raise  # which the caller says
    except pyarrow.ArrowException as error:
        raise _ragged(path, delimiter, len(header), error) from error
    # Where bytes are not UTF-8, Arrow makes the column binary and continues.
    if any(pyarrow.types.is_binary(kind) for kind in table.schema.types):
        raise _not_text(path)
    if _ends_with_many_lines(table):
        _check_quotes(path, delimiter)
    try:
        return table.to_pandas(date_as_object=False)
    except pyarrow.ArrowInvalid as error:  # such as a date that pandas cannot hold
        raise DataError(
            f"a column of '{path}' cannot be taken ({error}): write its cells as numbers."
        ) from error


def _read_header(path: Path, delimiter: str) -> tuple[list[str], int]:
    """The column names, and the number of lines down to the end of the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, delimiter=delimiter)
            header = [name.strip() for name in next(filter(None, lines), [])]
            header_lines = lines.line_num
            has_rows = any(lines)
    except UnicodeDecodeError as error:
        raise _not_text(path) from error
    except csv.Error as error:
        raise DataError(f"'{path}' is not a table of text ({error}): save it as CSV.") from error
    if not any(header):
        raise DataError(f"'{path}' has no text in its first line: write a header line and rows.")
    if all(_is_number(name) for name in header):
        example = delimiter.join(f"x{place}" for place in range(len(header))[:3])
        raise DataError(
            f"the first line of '{path}' is all numbers ({', '.join(header[:3])}"
            f"{', ...' if len(header) > 3 else ''}), so the columns have no names: add a header "
            f"line above it, such as '{example}{delimiter + '...' if len(header) > 3 else ''}'."
        )
    other = next((mark for mark in ";\t|," if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other:
        raise DataError(
            f"the columns of '{path}' seem to be separated by {other!r}, not by {delimiter!r}: "
            f"save it with {delimiter!r} or, in Python, pass pandas.read_csv(path, sep={other!r})."
        )
    check_names(header, f"'{path}'")
    if not has_rows:
        raise DataError(f"'{path}' has a header and no rows: write at least 2 rows below it.")
    return header, header_lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _not_text(path: Path) -> DataError:
    """Name the first line that is not UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = line[error.start : error.start + 1]
                return DataError(
                    f"line {number} of '{path}' is not UTF-8 text (byte {wrong!r}): save the file "
                    "as UTF-8 (in a spreadsheet: 'CSV UTF-8')."
                )
    return DataError(f"'{path}' is not UTF-8 text: save it as UTF-8.")


def _ragged(path: Path, delimiter: str, width: int, cause: Exception) -> DataError:
    """Name the first line with too few or too many cells."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        lines = csv.reader(stream, delimiter=delimiter)
        try:
            found = next((row for row in lines if row and len(row) != width), None)
        except csv.Error as error:
            return DataError(
                f"line {lines.line_num} of '{path}' cannot be read ({error}): check that "
                "the file is complete."
            )
        if found is None:
            return DataError(
                f"'{path}' cannot be read as CSV ({cause}): check that the file is complete."
            )
        cells = "1 cell" if len(found) == 1 else f"{len(found)} cells"
        return DataError(
            f"line {lines.line_num} of '{path}' has {cells} where the header has {width}: add or "
            f"remove cells (write a cell that contains {delimiter!r} in double quotes)."
        )


def _ends_with_many_lines(table: pyarrow.Table) -> bool:
    """Whether the last row contains a line end: an open quote swallows every row after it."""
    last = table.slice(max(table.num_rows - 1, 0)).to_pylist()
    return any(isinstance(cell, str) and "\n" in cell for row in last for cell in row.values())


def _check_quotes(path: Path, delimiter: str) -> None:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, delimiter=delimiter, strict=True)
        begin = 1
        try:
            for _ in lines:
                begin = lines.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"a quote in the row that begins in line {begin} of '{path}' is never closed "
                f"({error}): close or remove it."
            ) from error
