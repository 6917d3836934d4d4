"""Every refusal names the file or column, the cause and the mend."""

from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

from elbowroom.data.files import READERS
from elbowroom.data.tables import read_table
from elbowroom.errors import DataError


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table(source, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["is empty (0 bytes)", "write a header line"]),
        (b"\n\n", ["no text in its first line"]),
        (b"a,b\n", ["a header and no rows", "at least 2 rows"]),
        (b"a,b\n\n\n", ["a header and no rows"]),
        (b"a,b\n1,2\n", ["has 1 row and needs at least 2 rows"]),
        (b"a,b\n1,2\n3\n", ["line 3", "has 1 cell where the header has 2"]),
        (b"a,b\n1,2\n\n3,4,5\n", ["line 4", "has 3 cells where the header has 2", "double quotes"]),
        (b"a,b\n1,2,9\n3,4,9\n", ["line 2", "has 3 cells where the header has 2"]),
        (b'a,b\n1,"x\ny"\n3\n', ["line 4", "has 1 cell"]),
        (b'a,b\n1,2\n2,"x\n3,y\n4,z\n', ["begins in line 3", "never closed", "close or remove it"]),
        (b"a,b\n1,x\n2,caf\xe9\n", ["line 3", "not UTF-8", r"b'\xe9'", "save the file as UTF-8"]),
        (b"a,caf\xe9\n1,x\n2,y\n", ["line 1", "not UTF-8"]),
        ("a,b\n1,2\n3,4\n".encode("utf-16"), ["line 1", "not UTF-8"]),
        (b"1,2.5,-3e4,4\n2,3,4,5\n", ["numbers (1, 2.5, -3e4, ...)", "header", "'x0,x1,x2,...'."]),
        (b"1\n2\n3\n", ["all numbers (1)", "such as 'x0'."]),
        (b",a,b\n0,1,2\n1,3,4\n", ["without a name (counted from 1: 1)", "index=False"]),
        (b"a, ,\n1,2,3\n4,5,6\n", ["without a name (counted from 1: 2, 3)"]),
        (b"a,b,a,b,c\n1,2,3,4,5\n1,2,3,4,6\n", ["more than one column named 'a', 'b'", "rename"]),
        (b"a, a\n1,2\n3,4\n", ["more than one column named 'a'"]),
        (
            b"a;b\n1,5;2\n3,5;4\n",
            ["separated by ';', not by ','", "pandas.read_csv(path, sep=';')"],
        ),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path: Path, content: bytes, said: list[str]) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    message = refusal(path)
    for part in [str(path), *said]:
        assert part in message


def test_an_undecodable_cell_far_down_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_bytes(b"a,b\n" + b"1,x\n" * 300_000 + b"1,\xff\n")
    assert f"line 300002 of '{path}' is not UTF-8" in refusal(path)


def test_a_tsv_with_commas(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert r"separated by ',', not by '\t'" in refusal(path)


def test_a_missing_file_names_what_is_near(tmp_path: Path) -> None:
    for name in ("patients.csv", "patients.parquet", "patients.txt", "other.csv"):
        (tmp_path / name).write_text("a\n1\n2\n")
    message = refusal(tmp_path / "patient.csv")
    assert f"there is no file '{tmp_path / 'patient.csv'}'" in message
    assert f"'{tmp_path / 'patients.csv'}'" in message
    assert "patients.txt" not in message
    assert "other.csv" not in message
    assert "bundled datasets are breast_cancer, diabetes" in message


@pytest.mark.parametrize("source", ["diabetes.csv", "diabets", "Diabetes", Path("diabetes")])
def test_a_missing_file_names_the_nearest_dataset(
    source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(source)
    assert f"there is no file '{source}'" in message
    assert "bundled dataset nearest in name is 'diabetes' (give it without suffix)" in message


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"the folder '{tmp_path / 'none'}' does not exist" in refusal(
        tmp_path / "none" / "a.csv"
    )


def test_a_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"'{tmp_path}' is a folder: give one file in it."


def test_a_suffix_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "table.xlsx"
    path.write_bytes(b"PK")
    message = refusal(path)
    assert "('.xlsx')" in message
    assert ".csv, .tsv, .parquet, .npy, .npz" in message


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> pandas.DataFrame:
        raise PermissionError(13, "Permission denied", path)

    path = tmp_path / "closed.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    monkeypatch.setitem(READERS, ".csv", closed)
    assert f"'{path}' cannot be read (Permission denied): check" in refusal(path)


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".npz"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"PK\x03\x04", b"PAR1", b"\x93NUMPY\x01\x00"]
)
def test_a_damaged_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_half_of_a_good_file(tmp_path: Path) -> None:
    array = numpy.random.default_rng(1).normal(size=(500, 2))
    numpy.save(tmp_path / "a.npy", array)
    numpy.savez_compressed(tmp_path / "a.npz", array=array)
    pandas.DataFrame(array, columns=["a", "b"]).to_parquet(tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert str(path) in refusal(path)


def test_a_flipped_byte_in_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    numpy.savez_compressed(path, array=numpy.random.default_rng(1).normal(size=(500, 2)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert f"'{path}:array' cannot be read as an array" in refusal(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    trap = numpy.array([Trap(), Trap()], dtype=object)
    numpy.save(tmp_path / "a.npy", trap)
    numpy.savez(tmp_path / "a.npz", trap=trap)
    trap.dump(tmp_path / "b.npy")
    for name in ("a.npy", "a.npz", "b.npy"):
        message = refusal(tmp_path / name)
        assert "it needs unpickling, which is refused" in message
        assert "allow_pickle" not in message
    assert not (tmp_path / "sprung").exists()


def test_several_arrays_and_none_picked(tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    numpy.savez(path, draws=numpy.ones((3, 2)), weights=numpy.ones(3))
    assert "contains 2 arrays (draws, weights)" in refusal(path)
    assert f"FILE.npz:NAME picks one, such as '{path}:draws'" in refusal(path)
    assert "none named 'weight'" in refusal(f"{path}:weight")
    assert "there is no file" in refusal(f"{tmp_path}/three.npz:draws")
    numpy.savez(path)
    assert "contains no array" in refusal(path)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (numpy.array(1.0), "single value"),
        (numpy.ones((0, 3)), "has 0 rows and needs at least 2 rows"),
        (numpy.ones((1, 3)), "has 1 row and needs at least 2 rows"),
        (numpy.ones((3, 0)), "has no columns"),
        (numpy.zeros(3, dtype=[("a", "int64")]), "has records"),
    ],
)
def test_an_array_that_cannot_be_used(array: numpy.ndarray, said: str, tmp_path: Path) -> None:
    assert said in refusal(array)
    numpy.save(tmp_path / "array.npy", array)
    assert said in refusal(tmp_path / "array.npy")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pandas.DataFrame({1: [1, 2], "1": [3, 4]}), "more than one column named '1'"),
        (pandas.DataFrame({"": [1, 2]}), "without a name (counted from 1: 1)"),
        (pandas.DataFrame(index=[0, 1]), "has no columns"),
        (pandas.DataFrame({"a": []}), "has 0 rows"),
        (pandas.DataFrame({"a": [1]}), "has 1 row and"),
    ],
)
def test_a_data_frame_that_cannot_be_used(table: pandas.DataFrame, said: str) -> None:
    message = refusal(table)
    assert message.startswith("the DataFrame")
    assert said in message


@pytest.mark.parametrize("source", [[1, 2], {"a": [1, 2]}, None, 3, pandas.Series([1, 2])])
def test_another_kind_of_data(source: object) -> None:
    assert f"data of type {type(source).__name__} cannot be read" in refusal(source)
