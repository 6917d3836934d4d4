"""Files that lie about their size, have no end, or are no files: one sentence each, at once."""

import gzip
import io
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from elbowroom import memory
from elbowroom.data.tables import read_table
from elbowroom.errors import DataError
from elbowroom.pipeline.fitting import bind_model
from elbowroom.run.folder import read_data, write_data

GIGABYTES = 4e9
"""What is free on the machine of these tests."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: GIGABYTES)


def refusal(source: object) -> str:
    with pytest.raises(DataError) as caught:
        read_table(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(message) < 700
    return message


def npy(shape: str, kind: str = "<f8", cells: bytes = b"\0" * 80) -> bytes:
    """An array's file with whatever its header says."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + cells


def archive(content: bytes, name: str = "a.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(name, content)
    return stream.getvalue()


def changed(content: bytes, place: int, there: int, value: int) -> bytes:
    """An archive in whose directory and whose first entry a field has another value."""
    made = bytearray(content)
    made[made.rfind(b"PK\x01\x02") + place] = value
    made[there] = value
    return bytes(made)


def idx(dims: tuple[int, ...], cells: bytes, kind: int = 8) -> bytes:
    head = b"\0\0" + bytes([kind, len(dims)])
    return head + b"".join(struct.pack(">I", size) for size in dims) + cells


IMAGES = idx((10, 4, 4), bytes(range(160)))
ZEROS = gzip.compress(b"\0" * (1 << 24), 9)
"""16 MiB, packed; such members one after another unpack to as much as one likes."""
FILES: dict[str, tuple[bytes, str]] = {
    "800 TB.npy": (npy("(10000000000000, 10)"), "80 bytes follow"),
    "8 GB.npy": (npy("(100000000, 10)"), "80 bytes follow"),
    "negative.npy": (npy("(-1, 10)"), "its header says (-1, 10) cells"),
    "both negative.npy": (npy("(-2, -2)"), "its header says"),
    "too large.npy": (npy(f"({2**62}, 10)"), "its header says"),
    "fraction.npy": (npy("(2.5, 10)"), "cannot be read as an array"),
    "no kind.npy": (npy("(2, 2)", "<q99"), "cannot be read as an array"),
    "no size.npy": (npy("(1000000000, 3)", "<U0"), "holds text"),
    "text.npy": (npy("(2, 1)", "<U5"), "holds text"),
    "deep.npy": (npy("(" * 4000 + ")" * 4000), "'"),
    "long header.npy": (b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**31) + b"{}", "as an array"),
    "version.npy": (b"\x93NUMPY\x09\x00" + npy("(2, 2)")[8:], "cannot be read as an array"),
    "lying.npz": (archive(npy("(100000000000, 10)")), "80 bytes follow"),
    "words.npz": (archive(b"hello", "a.txt"), "cannot be read as an array"),
    "words as npy.npz": (archive(b"hello"), "cannot be read as an array"),
    "strings.npz": (archive(npy("(2, 1)", "<U5", b"\0" * 40)), "holds text"),
    "nothing.npz": (archive(b"", "folder/"), "cannot be read as an array"),
    "locked.npz": (changed(archive(npy("(5, 2)")), 8, 6, 1), "cannot be read as an array"),
    "method.npz": (changed(archive(npy("(5, 2)")), 10, 8, 99), "cannot be read as an array"),
    "no-images-idx3-ubyte": (idx((0, 28, 28), b""), "0 x 28 x 28 cells, so no images"),
    "flat-images-idx3-ubyte": (idx((10, 0, 28), b""), "so no images"),
    "large-images-idx3-ubyte": (idx((2**32 - 1,) * 3, b"\0"), "GB of memory, and 4 GB are free"),
    "dims-images-idx3-ubyte": (idx((1,) * 255, b"\0"), "255 dimensions"),
    "cut-images-idx3-ubyte": (IMAGES[:-1], "should have 10 x 4 x 4 cells and has 159"),
    "more-images-idx3-ubyte": (IMAGES + b"\0", "10 x 4 x 4 cells and has more"),
    "floats-images-idx3-ubyte": (idx((10, 4, 4), b"\0" * 640, 13), "not an IDX file of bytes"),
    "words-images-idx3-ubyte": (b"hello, this is text", "not an IDX file of bytes"),
    "words-images-idx3-ubyte.gz": (b"hello, this is text", "cannot be unpacked"),
    "cut-images-idx3-ubyte.gz": (gzip.compress(IMAGES)[:-30], "cannot be unpacked"),
    "10 GB-images-idx3-ubyte.gz": (
        gzip.compress(idx((13_000_000, 28, 28), b"")) + ZEROS * 640, "GB of memory, and 4 GB are",
    ),
    "10 GB behind-images-idx3-ubyte.gz": (
        gzip.compress(idx((10, 28, 28), b"")) + ZEROS * 640, "10 x 28 x 28 cells and has more",
    ),
    "packed.csv.gz": (gzip.compress(b"a,b\n1,2\n"), "unpack it first"),
    "packed.csv": (gzip.compress(b"a,b\n1,2\n"), "is not UTF-8"),
    "sheet.csv": (b"PK\x03\x04\x14\x00\x06\x00\xff\xfe" * 9, "is not UTF-8"),
    "nothing.csv": (b"\0" * 500, "'"),
    "one line.csv": (b"a" * 300_000, "is not a table of text"),
    "escape.csv": (b"a,\x1b[31mb\n1,2\n3,4\n", r"control characters ('\x1b[31mb')"),
    "wide.csv": ("a,b\n1,2\n3,4\n".encode("utf-32"), "is not UTF-8"),
    "magic.parquet": (b"PAR1PAR1", "cannot be read as Parquet"),
    "footer.parquet": (b"PAR1" + b"\0" * 20 + struct.pack("<I", 2**31 - 1) + b"PAR1", "Parquet"),
}  # fmt: skip
"""What a file holds, and a part of what is said about it."""


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_it_says(name: str, tmp_path: Path) -> None:
    content, said = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert said in message
    assert "\x1b" not in message


def test_what_is_behind_the_cells_is_not_unpacked(tmp_path: Path) -> None:
    """A billion more bytes may follow: one of them is read."""
    path = tmp_path / "good-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(IMAGES))
    assert read_table(path).shape == (10, 16)
    assert read_table(path).attrs["image_shape"] == [4, 4]


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder.csv": (Path.mkdir, "is a folder: give one file in it"),
    "pipe.csv": (os.mkfifo, "is a pipe"),
    "pipe.npy": (os.mkfifo, "is a pipe"),
    "endless.csv": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "endless.npy": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "endless.parquet": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "endless-images-idx3-ubyte": (lambda path: path.symlink_to("/dev/urandom"), "is a device"),
    "none.csv": (lambda path: path.symlink_to("/dev/null"), "is a device"),
    "round.csv": (lambda path: path.symlink_to(path), "there is no file"),
}


@pytest.mark.parametrize("name", NOT_FILES)
def test_what_is_no_file_is_not_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", lambda *given, **named: pytest.fail("it was opened"))
    make, said = NOT_FILES[name]
    make(tmp_path / name)
    assert said in refusal(tmp_path / name)


def test_a_socket_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.csv")
        assert "is a socket" in refusal("socket.csv")


@pytest.mark.parametrize(
    "path",
    ["x" * 5000 + ".csv", "/".join(["x" * 100] * 50) + ".csv"],
)
def test_a_path_that_no_file_has(path: str) -> None:
    assert "cannot be used" in refusal(path)
    assert "there is no file" in refusal("")
    for name in ("a\nb.csv", "a\0b.csv", "~nobody-here/a.csv"):
        assert "there is no file" in refusal(name)


def test_a_table_that_is_packed_small_and_unpacks_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal cells take no room in Parquet."""
    same = pyarrow.array(numpy.zeros(1_000_000))
    path = tmp_path / "bomb.parquet"
    parquet.write_table(pyarrow.table({f"c{place}": same for place in range(20)}), path)
    assert path.stat().st_size < 1e6
    monkeypatch.setattr(memory, "free", lambda: 3e8)
    said = refusal(path)
    assert f"reading '{path}' would take about 0.32 GB of memory, and 0.3 GB are free" in said


def test_notes_of_pandas_in_a_file_may_be_anything(tmp_path: Path) -> None:
    plain = pyarrow.table({"a": [1, 2, 3], "y": [1.0, 2.0, 3.0]})
    for note in (
        b"{not json", b"[]", b"{}", b'{"index_columns":["zz"],"columns":[],"column_indexes":[]}',
        b'{"index_columns":[],"columns":[{"name":"a","field_name":"a","pandas_type":"x",'
        b'"numpy_type":"object","metadata":null}],"column_indexes":[{"name":null,'
        b'"field_name":null,"pandas_type":"empty","numpy_type":"M8[zz]","metadata":null}]}',
    ):  # fmt: skip
        path = tmp_path / "noted.parquet"
        parquet.write_table(plain.replace_schema_metadata({b"pandas": note}), path)
        try:
            said = f"'{path}' has {len(read_table(path))} rows"
        except DataError as error:
            said = str(error)
        assert str(path) in said


def test_a_table_of_text_larger_than_memory_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sparse.csv"
    with path.open("wb") as stream:
        stream.write(b"a,b\n1,2\n")
        stream.truncate(3_000_000_000)  # which takes no place on the disk
    assert "would take about 6 GB of memory, and 4 GB are free" in refusal(path)


NETWORKS = ("bayesian_neural_network", "mixture_density_network")


def bound(model: str, **columns: object) -> tuple[str, ...]:
    problem, *_ = bind_model(model, pandas.DataFrame(columns), {"response": "y", "hidden": (2,)})
    return problem.prepared.doubts


def test_a_network_says_what_it_makes_of_text() -> None:
    numbers, labels = [1.0, 2.0, 4.0, 3.0], ["u", "v", "w", "u"]
    assert bound("bayesian_neural_network", x=numbers, y=numbers) == ()
    assert bound("bayesian_neural_network", x=numbers, y=labels) == (
        "The response 'y' is not a number, so its 3 values are classes: u, v, w.",
    )
    for model in NETWORKS:
        assert bound(model, x=labels, y=numbers) == (
            "Column 'x' is text, and stands as an indicator for each of its values but the first: "
            "u, v, w.",
        )


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [1.0, 2.0, 3.0], "y": [None, None, None]}, "'y'"),
        ({"x": [None, None, None], "y": [1.0, 2.0, 3.0]}, "'x' has no values at all"),
        ({"x": [float("nan")] * 3, "y": [1.0, 2.0, 3.0]}, "'x' has no values at all"),
        ({"x": [1.0, 2.0, 3.0], "y": ["1", "2", "two"]}, "row 3 is 'two'"),
        ({"x": ["1", "2", "two"], "y": [1.0, 2.0, 3.0]}, "row 3 is 'two'"),
        ({"x": ["anna", "bert", "carl"], "y": [1.0, 2.0, 3.0]}, "3 different labels in 3 rows"),
        ({"x": [1.0, 2.0, 3.0], "y": ["anna", "bert", "carl"]}, "'y' is not numeric"),
        ({"x": [1.0, float("inf"), 3.0], "y": [1.0, 2.0, 3.0]}, "1 infinite cell (row 2)"),
    ],
)
def test_a_network_refuses_text_that_is_neither_numbers_nor_labels(
    model: str, columns: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        bound(model, **columns)
    assert said in str(caught.value)
    assert "--exclude" in str(caught.value) or "--response" in str(caught.value)


def test_a_density_network_takes_no_classes() -> None:
    with pytest.raises(DataError, match="'y' is not numeric: row 1 is 'u'"):
        bound("mixture_density_network", x=[1.0, 2.0, 4.0, 3.0], y=["u", "v", "w", "u"])


CELLS = {
    "records": [{"k": k} for k in range(20)],
    "lists": [[k] for k in range(20)],
}
"""Cells that Parquet may have, which are neither numbers nor text."""


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gaussian_mixture", {"components": 2}),
        ("bayesian_neural_network", {"response": "odd"}),
        ("mixture_density_network", {"response": "y"}),
        ("conditional_vae", {"condition": ("odd",)}),
        ("bayesian_regression", {"formula": "odd ~ y"}),
    ],
)
def test_cells_that_are_neither_numbers_nor_text_are_named(
    kind: str, model: str, options: dict[str, object]
) -> None:
    cells = pandas.Series(CELLS[kind], dtype=object)
    table = pandas.DataFrame({"x": numpy.arange(20.0), "y": numpy.arange(20.0) ** 2, "odd": cells})
    with pytest.raises(DataError, match="odd"):
        bind_model(model, table, options, None)


def test_cells_that_no_model_takes_are_kept_as_python_shows_them(tmp_path: Path) -> None:
    table = pandas.DataFrame({"x": [1.0, 2.0], "odd": pandas.Series([b"\xff", None], dtype=object)})
    write_data(table, tmp_path)
    found = read_data(tmp_path / "data.parquet", {}, None)["odd"]
    assert found[0] == r"b'\xff'"
    assert pandas.isna(found[1])
