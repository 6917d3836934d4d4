"""Choosing columns, turning them into numbers, and lining up new data."""

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import numpy
import pandas
import pytest
from pandas import DataFrame

from elbowroom.data.tables import align_columns, numeric_columns, read_table, select_columns
from elbowroom.errors import DataError, OptionError


def refusal(function: Callable[..., DataFrame], *given: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        function(*given, **options)
    return str(caught.value)


def test_features_are_chosen_by_role() -> None:
    chosen = select_columns(read_table("diabetes"))
    assert chosen.columns.tolist()[:3] == ["age", "sex", "bmi"]
    assert "progression" not in chosen
    assert chosen.attrs["roles"]["progression"] == "response"


def test_a_column_added_to_a_bundled_table_is_used() -> None:
    iris = read_table("iris")
    iris["ratio"] = iris["petal_length"] / iris["petal_width"]
    assert "ratio" in select_columns(iris)
    assert "species" not in select_columns(iris)


def test_without_roles_every_column_is_chosen() -> None:
    table = DataFrame({"a": [1, 2], "b": [3, 4], "c": [5, 6]})
    assert select_columns(table).columns.tolist() == ["a", "b", "c"]
    assert select_columns(table, exclude=["b"]).columns.tolist() == ["a", "c"]
    assert select_columns(table, ["c", "a"]).columns.tolist() == ["c", "a"]
    assert select_columns(table, ["c", "a"], exclude=["b"]).columns.tolist() == ["c", "a"]
    assert select_columns(table, "c").columns.tolist() == ["c"]
    table.attrs["roles"] = "something of the user's"
    assert select_columns(table).columns.tolist() == ["a", "b", "c"]


def test_a_label_can_be_asked_for() -> None:
    assert select_columns(read_table("iris"), ["species"]).columns.tolist() == ["species"]


@pytest.mark.parametrize("option", ["columns", "exclude"])
def test_names_are_checked(option: str) -> None:
    iris = read_table("iris")
    message = refusal(select_columns, iris, **{option: ["Sepal_Length"]})
    assert f"--{option} Sepal_Length: the table has no column 'Sepal_Length'" in message
    assert "did you mean 'sepal_length'?" in message
    assert "petal_width, species" in refusal(select_columns, iris, **{option: ["zzz"]})
    with pytest.raises(OptionError, match=f"--{option} names 'species' twice"):
        select_columns(iris, **{option: ["species", "species"]})


def test_a_long_list_of_columns_is_cut_short() -> None:
    message = refusal(select_columns, read_table(numpy.ones((2, 500))), ["age"])
    assert message.endswith("x18, x19 and 480 more.")


def test_a_column_both_named_and_left_out() -> None:
    with pytest.raises(OptionError, match="'sepal_width' is in both --columns and --exclude"):
        select_columns(read_table("iris"), ["sepal_width"], exclude=["sepal_width"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("iris", {"columns": []}), ("heights", {"exclude": ["height"]}), ("eight_schools", {})],
)
def test_no_column_left(name: str, options: dict) -> None:
    assert "no column is left to use" in refusal(select_columns, read_table(name), **options)


def test_an_image_is_whole_or_no_image() -> None:
    digits = read_table("digits")
    pixels = select_columns(digits)
    assert pixels.attrs["image_shape"] == [8, 8]
    assert pixels.attrs["value_range"] == [0, 16]
    assert numeric_columns(pixels, allow_constant=True).attrs == pixels.attrs
    cut = select_columns(digits, exclude=["pixel_00"])
    assert "image_shape" not in cut.attrs
    assert cut.attrs["value_range"] == [0, 16]
    assert digits.attrs["image_shape"] == [8, 8]


def test_numbers_of_every_kind_become_float64() -> None:
    table = DataFrame(
        {
            "integer": [1, 2],
            "small": numpy.array([1, 2], dtype="u1"),
            "half": numpy.array([0.5, 1], dtype="float16"),
            "foreign": numpy.array([1, 2], dtype=">f4"),
            "truth": [True, False],
            "nullable": pandas.array([1, 2], dtype="Int64"),
            "nullable_truth": pandas.array([True, False], dtype="boolean"),
            "arrow": pandas.array([1.5, 2], dtype="double[pyarrow]"),
            "object": numpy.array([1, 2.5], dtype=object),
            "decimal": [decimal.Decimal("1.5"), decimal.Decimal(2)],
            "text": ["1.5", " 2e3 "],
            "category": pandas.Categorical(["1", "2"]),
        },
        index=[5, 9],
    )
    table.attrs["note"] = "kept"
    numbers = numeric_columns(table)
    assert set(numbers.dtypes) == {numpy.dtype("float64")}
    assert numbers.columns.tolist() == table.columns.tolist()
    assert numbers.index.tolist() == [5, 9]
    assert numbers.attrs == {"note": "kept"}
    assert numbers.to_numpy()[0].tolist() == [1, 1, 0.5, 1, 1, 1, 1, 1.5, 1, 1.5, 1.5, 1]
    assert numbers["text"].tolist() == [1.5, 2000]


def test_float64_is_not_copied() -> None:
    table = DataFrame(numpy.random.default_rng(1).normal(size=(4, 3)), columns=["a", "b", "c"])
    assert numpy.shares_memory(numeric_columns(table).to_numpy(), table.to_numpy())
    assert numpy.shares_memory(select_columns(table).to_numpy(), table.to_numpy())


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["setosa", "virginica"], ["is not numeric: row 1 is 'setosa'", "encode it as numbers"]),
        (pandas.Categorical(["u", "v"]), ["is not numeric: row 1 is 'u'"]),
        ([None, "v", "w"], ["is not numeric: row 2 is 'v'"]),
        (["1,5", "2,5"], ["row 1 is '1,5'", "a decimal point for the comma"]),
        (
            ["1", "2", "1,5", "4", "n/x"],
            ["numbers except in 2 cells", "row 3 is '1,5', row 5 is 'n/x'"],
        ),
        (["1"] * 9 + ["?"] * 7, ["except in 7 cells", "row 14 is '?', ...)"]),
        ([1.0, None, 3.0], ["1 missing cell (row 2)", "drop this row, fill the cells"]),
        ([1.0, None, float("inf")], ["1 missing cell and 1 infinite cell (rows 2, 3)"]),
        ([0.0] + [float("-inf")] * 9, ["9 infinite cells (rows 2, 3, 4, 5, 6 and 4 more)"]),
        (["1", None, "3"], ["1 missing cell (row 2)"]),
        ([True, None, False], ["1 missing cell (row 2)"]),
        (pandas.array([1, None, 3], dtype="Int64"), ["1 missing cell (row 2)"]),
        (pandas.array([1, None, 3], dtype="int64[pyarrow]"), ["1 missing cell (row 2)"]),
        ([None, None], ["no values at all"]),
        ([3, 3, 3], ["is 3 in every row"]),
        ([1.0, -1e101], ["has -1e+101 in row 2", "beyond 1e+100 overflow: give it in other units"]),
        ([10**101, 10**101], ["has 1e+101 in row 1"]),
        ([False, False], ["is 0 in every row"]),
        (
            pandas.to_datetime(["NaT", "2020-03-01"]),
            ["dates", "'2020-03-01", "days since the first"],
        ),
        (pandas.date_range("2020", periods=2, tz="UTC"), ["dates", "'2020-01-01"]),
        (pandas.period_range("2020", periods=2, freq="M"), ["dates", "'2020-01'"]),
        ([datetime.date(2020, 1, 1)] * 2, ["dates", "'2020-01-01'"]),
        ([datetime.time(12), datetime.time(13)], ["times", "'12:00:00'", "seconds"]),
        (pandas.to_timedelta([1, 2], unit="s"), ["times", "seconds"]),
        ([[1], [2]], ["is not numeric: row 1 is '[1]'"]),
        ([1j, 2], ["is not numeric: row 1 is '1j'"]),
        (numpy.array([1j, 2], dtype=object), ["is not numeric: row 1 is '1j'"]),
        (pandas.Series([10**400, 1], dtype=object), ["is not numeric: row 1"]),
    ],
)
def test_a_column_that_is_no_numbers(cells: Any, said: list[str]) -> None:
    table = DataFrame({"blood sugar": cells}).set_index(pandas.Index(range(90, 90 + len(cells))))
    message = refusal(numeric_columns, table)
    for part in ["1 column", "rows are counted from 1", "column 'blood sugar'", *said]:
        assert part in message
    assert "--exclude 'blood sugar'" in message


def test_every_fault_is_named_at_once_on_its_own_line() -> None:
    table = DataFrame({"a": ["x", "y"], "good": [1, 2], "b": [1, 1], "c": [numpy.nan, 1]})
    lines = refusal(numeric_columns, table).splitlines()
    assert lines[0].startswith("3 columns of the table cannot be used")
    assert [line.split("'")[1] for line in lines[1:]] == ["a", "b", "c"]


def test_constant_columns_pass_where_allowed() -> None:
    table = DataFrame({"a": [1, 1]})
    assert numeric_columns(table, allow_constant=True)["a"].tolist() == [1.0, 1.0]
    assert "pixel_00" in refusal(numeric_columns, select_columns(read_table("digits")))


def test_a_long_cell_is_cut_short() -> None:
    assert len(refusal(numeric_columns, DataFrame({"a": ["x" * 10_000, "y"]}))) < 300


def test_tables_that_read_table_would_refuse() -> None:
    assert "no columns" in refusal(numeric_columns, DataFrame(index=[0, 1]))
    twice = DataFrame([[1, 2], [3, 4]], columns=["a", "a"])
    assert "more than one column named 'a'" in refusal(numeric_columns, twice)


def test_new_data_are_put_in_order() -> None:
    table = DataFrame({"b": [1], "extra": ["x"], "a": [2]})
    table.attrs["note"] = "kept"
    aligned = align_columns(table, ["a", "b"])
    assert aligned.columns.tolist() == ["a", "b"]
    assert aligned.attrs == {"note": "kept"}


def test_every_missing_column_is_named() -> None:
    message = refusal(align_columns, read_table("iris"), ["sepal_length", "Petal_Lengths", "bmi"])
    assert "2 columns that the model was fitted to are missing" in message
    assert "'Petal_Lengths'; did you mean 'petal_length'?" in message
    assert "\n  'bmi'." in message
    assert "'sepal_length'" not in message
