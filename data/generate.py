"""Write every bundled table as `NAME.csv` with its sidecar `NAME.json`.

    python -m elbowroom.data.generate [FOLDER]

The values are scikit-learn's copies, a published table (eight schools), or drawn here (heights,
inverse problem).
Running it again gives the same bytes.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import pandas
from sklearn import datasets

from elbowroom.data.bundled import Column, Dataset

Bundle = tuple[pandas.DataFrame, Dataset]

HEIGHTS_TRUTH: dict[str, Any] = {
    "groups": ["adult", "child"],
    "weights": [0.7, 0.3],
    "means": [168.0, 120.0],
    "standard_deviations": [9.0, 14.0],
}


def iris() -> Bundle:
    """Fisher's irises: three species, one of them well apart."""
    source = datasets.load_iris()
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    table = pandas.DataFrame(source.data, columns=names)
    table["species"] = source.target_names[source.target]
    columns = [
        Column(name, "cm", f"{name.replace('_', ' ').capitalize()}.", "feature") for name in names
    ]
    columns.append(Column("species", "", "The species: setosa, versicolor or virginica.", "label"))
    return table, Dataset(
        name="iris",
        title="Iris flowers",
        description="Four lengths of 150 iris flowers of three species. Setosa stands apart; the "
        "other two overlap. The values are those of Fisher's paper; UCI's copy has two wrong rows.",
        source="R. A. Fisher (1936), The use of multiple measurements in taxonomic problems; "
        "UCI Machine Learning Repository, https://doi.org/10.24432/C56C76; from scikit-learn.",
        licence="CC BY 4.0",
        rows=len(table),
        columns=tuple(columns),
    )


def diabetes() -> Bundle:
    """Ten baseline measurements and the progression of diabetes, in their own units."""
    source = datasets.load_diabetes(scaled=False)
    table = pandas.DataFrame(source.data, columns=source.feature_names)
    table["progression"] = source.target
    # The source has four decimals; some versions of scikit-learn are off in the last bit.
    table = table.round(4)
    # Age 59, not 59.0: a column of whole numbers is written as such.
    whole = [name for name in table if (table[name] % 1 == 0).all()]
    table = table.astype(dict.fromkeys(whole, "int64"))
    inferred = "The unit is inferred from the size of the values; the source names none."
    columns = (
        Column("age", "years", "Age.", "feature"),
        Column("sex", "", "Sex, coded 1 and 2; the source does not say which is which.", "feature"),
        Column("bmi", "kg/m^2", "Body mass index.", "feature"),
        Column("bp", "mmHg", f"Average blood pressure. {inferred}", "feature"),
        Column("s1", "mg/dL", f"Total serum cholesterol. {inferred}", "feature"),
        Column("s2", "mg/dL", f"Low-density lipoproteins. {inferred}", "feature"),
        Column("s3", "mg/dL", f"High-density lipoproteins. {inferred}", "feature"),
        Column("s4", "", "Total cholesterol over high-density lipoproteins.", "feature"),
        Column("s5", "", "Possibly the logarithm of serum triglycerides.", "feature"),
        Column("s6", "mg/dL", f"Blood sugar. {inferred}", "feature"),
        Column(
            "progression",
            "",
            "A measure of disease progression one year after the other measurements.",
            "response",
        ),
    )
    return table, Dataset(
        name="diabetes",
        title="Diabetes progression",
        description="Ten measurements of 442 patients with diabetes and the progression of the "
        "disease one year later. The columns are in their own units, not scaled, and s1 to s4 are "
        "strongly correlated.",
        source="B. Efron, T. Hastie, I. Johnstone and R. Tibshirani (2004), Least angle "
        "regression, Annals of Statistics 32, "
        "https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html; "
        "from scikit-learn.",
        licence="The authors state none; distributed with scikit-learn under BSD-3-Clause.",
        rows=len(table),
        columns=columns,
    )


def digits() -> Bundle:
    """Handwritten digits as images of 8 by 8."""
    source = datasets.load_digits()
    places = [(row, column) for row in range(8) for column in range(8)]
    names = [f"pixel_{row}{column}" for row, column in places]
    table = pandas.DataFrame(source.data.astype("int64"), columns=names)
    table["digit"] = source.target
    columns = [
        Column(
            f"pixel_{row}{column}", "", f"Ink in row {row}, column {column}: 0 to 16.", "feature"
        )
        for row, column in places
    ]
    columns.append(Column("digit", "", "The digit that was written: 0 to 9.", "label"))
    return table, Dataset(
        name="digits",
        title="Handwritten digits",
        description="1797 handwritten digits as images of 8 by 8 pixels; rows and columns are "
        "counted from 0 at the top left. Each pixel is the number of dark pixels in a "
        "block of 4 by 4.",
        source="E. Alpaydin and C. Kaynak (1998), Optical recognition of handwritten digits (the "
        "test part), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49; "
        "from scikit-learn.",
        licence="CC BY 4.0",
        rows=len(table),
        columns=tuple(columns),
        extra={"image_shape": [8, 8], "value_range": [0, 16]},
    )


def breast_cancer() -> Bundle:
    """Shapes of cell nuclei and the diagnosis."""
    source = datasets.load_breast_cancer()
    names = [name.replace(" ", "_") for name in source.feature_names]
    table = pandas.DataFrame(source.data, columns=names)
    table["diagnosis"] = source.target_names[source.target]
    columns = [Column(name, "", _nucleus_text(name), "feature") for name in names]
    columns.append(Column("diagnosis", "", "The diagnosis: malignant or benign.", "response"))
    return table, Dataset(
        name="breast_cancer",
        title="Breast cancer, Wisconsin (diagnostic)",
        description="Thirty measurements of the cell nuclei in 569 images of breast masses, and "
        "the diagnosis. Lengths are in the images' own units. Many columns are correlated.",
        source="W. Wolberg, O. Mangasarian, N. Street and W. Street (1993), UCI Machine Learning "
        "Repository, https://doi.org/10.24432/C5DW2B; from scikit-learn.",
        licence="CC BY 4.0",
        rows=len(table),
        columns=tuple(columns),
    )


def _nucleus_text(name: str) -> str:
    """`worst_concave_points` and its like, in words."""
    words = name.replace("_", " ")
    if words.startswith("mean "):
        return f"{words.capitalize()} over the nuclei of the image."
    if words.startswith("worst "):
        return f"Mean of the three largest values of {words.removeprefix('worst ')}."
    return f"Standard error of the mean {words.removesuffix(' error')}."


def eight_schools() -> Bundle:
    """Rubin's eight schools."""
    table = pandas.DataFrame(
        {
            "school": list("ABCDEFGH"),
            "effect": [28, 8, -3, 7, -1, 1, 18, 12],
            "standard_error": [15, 10, 16, 11, 9, 11, 10, 18],
        }
    )
    effect = "The estimated effect of coaching on the score."
    columns = (
        Column("school", "", "The school.", "identifier"),
        Column("effect", "points", effect, "response"),
        Column("standard_error", "points", "The standard error of the effect.", "known_scale"),
    )
    return table, Dataset(
        name="eight_schools",
        title="Eight schools",
        description="The effect of coaching on a test score, estimated in each of eight schools, "
        "with its standard error. The scale of the school effects is hard to fit: near zero the "
        "posterior narrows to a funnel.",
        source="D. B. Rubin (1981), Estimation in parallel randomized experiments, Journal of "
        "Educational Statistics 6.",
        licence="Facts from a published table; no licence is needed.",
        rows=len(table),
        columns=columns,
    )


def linnerud() -> Bundle:
    """Exercises of twenty men, which are counts, and three of their measurements."""
    source = datasets.load_linnerud()
    columns = (
        Column("weight", "pounds", "Weight.", "feature"),
        Column("waist", "inches", "Circumference of the waist.", "feature"),
        Column("pulse", "1/min", "Pulse.", "feature"),
        Column("chins", "", "Pull-ups.", "response"),
        Column("situps", "", "Sit-ups.", "label"),
        Column("jumps", "", "Jumps.", "label"),
    )
    names = [name.lower() for name in (*source.target_names, *source.feature_names)]
    values = numpy.hstack([source.target, source.data]).astype("int64")
    return pandas.DataFrame(values, columns=names), Dataset(
        name="linnerud",
        title="Exercises of twenty men",
        description="Pull-ups, sit-ups and jumps of twenty middle-aged men of a fitness club, with "
        "their weight, waist and pulse. The counts vary more than a Poisson distribution would.",
        source="M. Tenenhaus (1998), La regression PLS: theorie et pratique, Technip; from "
        "scikit-learn.",
        licence="Facts from a published table; no licence is needed.",
        rows=len(values),
        columns=columns,
    )


def heights() -> Bundle:
    """Heights drawn from a mixture of two normals that is known."""
    # RandomState, not default_rng: NumPy promises that this stream never changes.
    random = numpy.random.RandomState(20240501)
    group = random.choice(2, size=1000, p=HEIGHTS_TRUTH["weights"])
    mean = numpy.array(HEIGHTS_TRUTH["means"])[group]  # (rows,)
    deviation = numpy.array(HEIGHTS_TRUTH["standard_deviations"])[group]  # (rows,)
    height = numpy.round(mean + deviation * random.standard_normal(1000), 1)
    table = pandas.DataFrame(
        {"height": height, "group": numpy.array(HEIGHTS_TRUTH["groups"])[group]}
    )
    columns = (
        Column("height", "cm", "Standing height.", "feature"),
        Column("group", "", "What the row was drawn as: adult or child.", "label"),
    )
    return table, Dataset(
        name="heights",
        title="Heights of adults and children",
        description="1000 heights drawn from a mixture of two normal distributions whose weights, "
        "means and standard deviations are known: `truth` holds them.",
        source="Generated by elbowroom.data.generate.",
        licence="CC0 1.0",
        rows=len(table),
        columns=columns,
        extra={"truth": HEIGHTS_TRUTH},
    )


def inverse_problem() -> Bundle:
    """Bishop's inverse problem: up to three outputs for one input."""
    random = numpy.random.RandomState(19940202)
    output = random.uniform(size=600)
    noise = random.uniform(-0.1, 0.1, size=600)
    table = pandas.DataFrame(
        {
            "input": numpy.round(output + 0.3 * numpy.sin(2 * numpy.pi * output) + noise, 4),
            "output": numpy.round(output, 4),
        }
    )
    columns = (
        Column("input", "", "output + 0.3 sin(2 pi output) + noise.", "feature"),
        Column("output", "", "Uniform between 0 and 1.", "response"),
    )
    return table, Dataset(
        name="inverse_problem",
        title="An inverse problem with several answers",
        description="The input follows from the output, up to noise that is uniform between -0.1 "
        "and 0.1. The other way round it is ambiguous: in the middle of the inputs three outputs "
        "are likely, and their mean is not. After C. M. Bishop (1994), Mixture density networks.",
        source="Generated by elbowroom.data.generate.",
        licence="CC0 1.0",
        rows=len(table),
        columns=columns,
    )


BUNDLES: tuple[Callable[[], Bundle], ...] = (
    iris,
    diabetes,
    digits,
    breast_cancer,
    eight_schools,
    heights,
    inverse_problem,
    linnerud,
)


def write_all(folder: Path) -> None:
    """Write every table and its sidecar into a folder that exists.

    Raises:
        OSError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_all(Path(folder))
        ...     len(list(Path(folder).iterdir()))
        16
    """
    for bundle in BUNDLES:
        table, about = bundle()
        sidecar = asdict(about)
        sidecar |= sidecar.pop("extra")
        text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
        # Bytes, so that the line ends are the same on every system.
        folder.joinpath(f"{about.name}.json").write_bytes(text.encode())
        values = table.to_csv(index=False, lineterminator="\n")
        folder.joinpath(f"{about.name}.csv").write_bytes(values.encode())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
