import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy
import pytest

from elbowroom.data.bundled import Dataset, dataset_names, describe, load_dataset
from elbowroom.data.generate import write_all
from elbowroom.errors import OptionError

ROLES = {"feature", "response", "label", "identifier", "known_scale"}
SHAPES = {
    "breast_cancer": (569, 31),
    "diabetes": (442, 11),
    "digits": (1797, 65),
    "eight_schools": (8, 3),
    "heights": (1000, 2),
    "inverse_problem": (600, 2),
    "iris": (150, 5),
    "linnerud": (20, 6),
}


def test_every_known_table_is_there() -> None:
    assert dataset_names() == sorted(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_sidecar_matches_its_table(name: str) -> None:
    about, table = describe(name), load_dataset(name)
    assert table.shape == SHAPES[name]
    assert (about.name, about.rows) == (name, len(table))
    assert [column.name for column in about.columns] == list(table.columns)
    assert {column.role for column in about.columns} <= ROLES
    assert table.attrs["dataset"] == name
    assert table.attrs["roles"] == {column.name: column.role for column in about.columns}
    assert not table.isna().any().any()
    for text in (about.title, about.description, about.source, about.licence):
        assert text.strip() == text != ""
    assert all(column.description for column in about.columns)


def test_the_committed_files_are_what_the_script_writes(tmp_path: Path) -> None:
    write_all(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {
        entry.name: entry.read_bytes()
        for entry in files("elbowroom.data").iterdir()
        if entry.name.endswith((".csv", ".json"))
    }
    assert written.keys() == kept.keys()
    assert [name for name in kept if written[name] != kept[name]] == []


def test_values_are_the_published_ones() -> None:
    schools = load_dataset("eight_schools")
    assert schools["effect"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert schools["standard_error"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    # The two rows that differ between UCI's copy and Fisher's paper.
    iris = load_dataset("iris")
    assert iris.iloc[34].tolist() == [4.9, 3.1, 1.5, 0.2, "setosa"]
    assert iris.iloc[37].tolist() == [4.9, 3.6, 1.4, 0.1, "setosa"]
    diabetes = load_dataset("diabetes")
    assert diabetes["age"].between(18, 80).all()
    assert diabetes["bmi"].between(17, 43).all()
    men = load_dataset("linnerud")
    assert men.iloc[0].to_dict() == {
        "weight": 191, "waist": 36, "pulse": 50, "chins": 5, "situps": 162, "jumps": 60,
    }  # fmt: skip
    assert men.iloc[19].tolist() == [138, 33, 68, 2, 110, 43]
    assert load_dataset("breast_cancer")["diagnosis"].value_counts().to_dict() == {
        "benign": 357,
        "malignant": 212,
    }


def test_digits_are_images() -> None:
    digits = load_dataset("digits")
    pixels = digits.drop(columns="digit")
    assert digits.attrs["image_shape"] == [8, 8]
    assert digits.attrs["value_range"] == [0, 16] == [pixels.min().min(), pixels.max().max()]
    assert pixels.columns[[0, 7, 8, 63]].tolist() == [
        "pixel_00",
        "pixel_07",
        "pixel_10",
        "pixel_77",
    ]
    image = pixels.iloc[0].to_numpy().reshape(8, 8)  # a zero: ink around an empty middle
    assert digits["digit"][0] == 0
    assert image[3:5, 3:5].sum() < image[1, 2:6].sum()


def test_heights_agree_with_their_truth() -> None:
    table, truth = load_dataset("heights"), describe("heights").extra["truth"]
    for group, weight, mean, deviation in zip(
        truth["groups"], truth["weights"], truth["means"], truth["standard_deviations"], strict=True
    ):
        heights = table.loc[table["group"] == group, "height"]
        rows = len(heights)
        # Four standard errors of a proportion, a mean, and a standard deviation of normal draws.
        assert abs(rows / 1000 - weight) < 4 * numpy.sqrt(weight * (1 - weight) / 1000)
        assert abs(heights.mean() - mean) < 4 * deviation / numpy.sqrt(rows)
        assert abs(heights.std() - deviation) < 4 * deviation / numpy.sqrt(2 * rows)


def test_only_some_tables_have_a_truth_or_an_image() -> None:
    extras = {name: set(describe(name).extra) for name in dataset_names()}
    assert {name: extra for name, extra in extras.items() if extra} == {
        "digits": {"image_shape", "value_range"},
        "heights": {"truth"},
    }
    assert "image_shape" not in load_dataset("iris").attrs


@pytest.mark.parametrize("ask", [describe, load_dataset])
@pytest.mark.parametrize("name", ["irsi", "../iris", "iris.csv", ""])
def test_an_unknown_name_is_refused(ask: Callable[[str], object], name: str) -> None:
    with pytest.raises(OptionError, match="there is no dataset"):
        ask(name)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(OptionError, match="did you mean 'diabetes'"):
        load_dataset("diabets")


def test_a_dataset_is_a_value() -> None:
    assert describe("iris") == describe("iris")
    assert isinstance(describe("iris"), Dataset)
    table = load_dataset("eight_schools")
    table["effect"] = 0
    assert load_dataset("eight_schools")["effect"].iloc[0] == 28


def test_listing_imports_neither_pandas_nor_torch(children: Any) -> None:
    code = (
        "import sys; from elbowroom.data.bundled import dataset_names, describe; "
        "[describe(name) for name in dataset_names()]; "
        "print(sorted({'pandas', 'numpy', 'pyarrow', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_reading_a_table_does_not_import_torch(children: Any) -> None:
    code = (
        "import sys; from elbowroom.data.tables import read_table; read_table('iris'); "
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
