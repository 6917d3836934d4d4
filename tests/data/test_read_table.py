"""What is read, and that it is read as it was written."""

from pathlib import Path

import numpy
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pandas.testing import assert_frame_equal

from elbowroom.data.tables import read_table

# The folder of a test is shared by its examples; each writes its file anew.
round_trip = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.lists(
    st.text(
        st.characters(
            codec="utf-8", exclude_categories=["Cc", "Cs", "Z"], exclude_characters="\ufeff"
        ),
        min_size=1,
        max_size=6,
    ).map(lambda text: "c" + text),
    min_size=2,
    max_size=4,
    unique=True,
)


@st.composite
def float_tables(draw: st.DrawFn) -> pandas.DataFrame:
    columns = draw(names)
    shape = (draw(st.integers(2, 6)), len(columns))
    return pandas.DataFrame(draw(arrays("float64", shape, elements=finite)), columns=columns)


@round_trip
@given(table=float_tables())
@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_floats_come_back_from_text(
    tmp_path: Path, table: pandas.DataFrame, suffix: str, mark: str
) -> None:
    path = tmp_path / f"table{suffix}"
    table.to_csv(path, index=False, sep=mark)
    # Whole numbers may come back as integers; the values are equal to the last bit.
    assert_frame_equal(read_table(path).astype("float64"), table, check_exact=True)


@round_trip
@given(table=float_tables())
def test_floats_come_back_from_parquet(tmp_path: Path, table: pandas.DataFrame) -> None:
    table.to_parquet(tmp_path / "table.parquet")
    assert_frame_equal(read_table(tmp_path / "table.parquet"), table, check_exact=True)


@round_trip
@given(
    cells=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=8),
        min_size=2,
        max_size=5,
    )
)
def test_text_with_quotes_and_line_ends_comes_back(tmp_path: Path, cells: list[str]) -> None:
    wanted = [f"<{cell}>" for cell in cells]  # so that no cell is a number or stands for missing
    table = pandas.DataFrame({"text": wanted, "number": range(len(cells))})
    table.to_csv(tmp_path / "table.csv", index=False)
    assert read_table(tmp_path / "table.csv")["text"].tolist() == wanted


@round_trip
@given(array=arrays("float64", st.tuples(st.integers(2, 4), st.integers(1, 4)), elements=finite))
def test_arrays_come_back(tmp_path: Path, array: numpy.ndarray) -> None:
    numpy.save(tmp_path / "array.npy", array)
    numpy.savez(tmp_path / "array.npz", draws=array)
    for source in (array, tmp_path / "array.npy", str(tmp_path / "array.npz")):
        table = read_table(source)
        assert table.columns.tolist() == [f"x{place}" for place in range(array.shape[1])]
        assert numpy.array_equal(table.to_numpy(), array)


def test_images_are_laid_out_flat_row_by_row(tmp_path: Path) -> None:
    images = numpy.arange(5 * 2 * 3 * 4).reshape(5, 2, 3, 4)
    numpy.save(tmp_path / "images.npy", images)
    for source in (images, tmp_path / "images.npy"):
        table = read_table(source)
        assert table.shape == (5, 24)
        assert table.attrs["image_shape"] == [2, 3, 4]
        assert numpy.array_equal(table.to_numpy().reshape(images.shape), images)


def test_a_flat_array_is_one_column() -> None:
    table = read_table(numpy.array([1.0, 2.0, 3.0]))
    assert table.columns.tolist() == ["x0"]
    assert table.attrs == {}


def test_a_suffix_picks_one_of_several_arrays(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "two.npz", draws=numpy.ones((3, 2)), weights=numpy.arange(4))
    assert read_table(f"{tmp_path}/two.npz:weights")["x0"].tolist() == [0, 1, 2, 3]
    assert read_table(f"{tmp_path}/two.npz:draws").shape == (3, 2)


def test_a_bare_word_is_a_dataset_unless_a_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_table("iris").shape == (150, 5)
    Path("iris").mkdir()
    assert read_table("iris").attrs["roles"]["species"] == "label"
    Path("heights").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match=r"'heights' has a suffix that is not read"):
        read_table("heights")


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.CSV").write_text("a,b\n1,2\n3,4\n")
    assert read_table("~/a.CSV").shape == (2, 2)


def test_a_data_frame_is_shared_and_left_alone() -> None:
    given_table = pandas.DataFrame(numpy.ones((3, 2)), columns=[0, "b"], index=[7, 8, 9])
    given_table.attrs["note"] = "mine"
    table = read_table(given_table)
    table.attrs["note"] = "changed"
    assert table.columns.tolist() == ["0", "b"]
    assert table.index.tolist() == [7, 8, 9]
    assert given_table.columns.tolist() == [0, "b"]
    assert given_table.attrs["note"] == "mine"
    assert numpy.shares_memory(table["b"].to_numpy(), given_table["b"].to_numpy())


def test_an_array_is_shared() -> None:
    array = numpy.random.default_rng(1).normal(size=(4, 3))
    assert numpy.shares_memory(read_table(array).to_numpy(), array)


def test_an_object_array_gets_the_kinds_of_its_columns() -> None:
    table = read_table(numpy.array([[1, "a"], [2, "b"]], dtype=object))
    assert pandas.api.types.is_integer_dtype(table["x0"].dtype)
    assert table["x1"].tolist() == ["a", "b"]


def test_what_a_csv_may_look_like(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    # A byte order mark, spaces around names and numbers, Windows line ends, empty lines.
    path.write_bytes(b"\xef\xbb\xbf\r\n dose, effect\r\n 1 , 0.5\r\n\r\n2,\r\n\r\n")
    table = read_table(path)
    assert table.columns.tolist() == ["dose", "effect"]
    assert table["dose"].tolist() == [1, 2]
    assert table["effect"].isna().tolist() == [False, True]


def test_an_empty_line_of_a_single_column_is_a_missing_cell(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("a\n1\n\n3\n")
    assert read_table(path)["a"].isna().tolist() == [False, True, False]


def test_a_header_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('"dose\n(mg)",effect\n1,2\n3,4\n')
    assert read_table(path).columns.tolist() == ["dose\n(mg)", "effect"]
    assert len(read_table(path)) == 2


def test_kinds_are_taken_from_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("a,b\n" + "1,2\n" * 400_000 + "1.5,x\n")
    table = read_table(path)
    assert table["a"].iloc[-1] == 1.5
    assert table["b"].iloc[-1] == "x"


def test_a_very_long_row(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    line = ",".join(["0." + "1" * 20_000] * 100)  # longer than Arrow's usual block
    path.write_text(",".join(f"c{place}" for place in range(100)) + f"\n{line}\n{line}\n")
    assert read_table(path).shape == (2, 100)


def test_roles_go_through_parquet(tmp_path: Path) -> None:
    digits = read_table("digits")
    digits.to_parquet(tmp_path / "digits.parquet")
    assert read_table(tmp_path / "digits.parquet").attrs == digits.attrs


def test_new_data_may_be_one_row() -> None:
    assert len(read_table(pandas.DataFrame({"a": [1]}), minimum_rows=1)) == 1
