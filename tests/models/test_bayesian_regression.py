"""What the regression makes of a table: formulas, plain columns, and new rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import elbowroom as er
from elbowroom.errors import DataError, ElbowroomError, OptionError
from elbowroom.models import Prepared, Training, bayesian_regression
from elbowroom.models._formula_text import code_in
from elbowroom.models.bayesian_regression import Options, prepare
from elbowroom.problem.isolation import isolated
from elbowroom.run.files import digest_of
from elbowroom.run.output import read_manifest, write_manifest


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def table(rows: int = 30) -> pd.DataFrame:
    random = np.random.default_rng(0)
    found = pd.DataFrame(
        {
            "dose": random.uniform(1, 5, size=rows),
            "age": random.normal(50, 10, size=rows),
            "clinic": np.resize(["north", "south", "west"], rows),
        }
    )
    found["effect"] = 2 * found["dose"] - 0.1 * found["age"] + random.normal(size=rows)
    return found


def prepared(formula: str, new: pd.DataFrame | None = None) -> Prepared:
    options = Options(formula=formula)
    first = prepare(table(), options)
    if new is None:
        return first
    return prepare(new, options, Training(table(), first.arguments))


def predictors(found: Prepared) -> np.ndarray:
    return found.arguments["predictors"].numpy()


def test_categories_and_interactions_become_columns() -> None:
    found = prepared("effect ~ dose * age + clinic")
    data = table()
    wanted = {
        "dose": data["dose"],
        "age": data["age"],
        "clinic[south]": data["clinic"] == "south",
        "clinic[west]": data["clinic"] == "west",
        "dose:age": data["dose"] * data["age"],
    }
    names = list(found.coords["predictor"])
    assert set(names) == set(wanted)
    np.testing.assert_allclose(
        predictors(found), np.column_stack([wanted[name] for name in names]).astype(float)
    )
    assert found.arguments["has_intercept"]
    np.testing.assert_allclose(found.arguments["response"], data["effect"])


def test_without_an_intercept_nothing_is_centred() -> None:
    found = prepared("effect ~ 0 + clinic")
    assert list(found.coords["predictor"]) == ["clinic[north]", "clinic[south]", "clinic[west]"]
    assert not found.arguments["has_intercept"]
    assert (found.arguments["centre"] == 0).all()
    assert found.arguments["response_centre"] == 0
    fit = er.fit(
        "bayesian_regression", table(), "laplace", formula="effect ~ 0 + clinic", seed=0, draws=200
    )
    assert "intercept" not in fit.posterior["posterior"]
    means = fit.posterior["posterior"]["coefficients"].mean(("chain", "draw")).values
    groups = table().groupby("clinic")["effect"]
    # Half a standard error for the prior's shrinkage, four of the mean of 200 draws.
    errors = (groups.std() / 10**0.5).to_numpy()
    assert (np.abs(means - groups.mean().to_numpy()) < (0.5 + 4 / 200**0.5) * errors).all()


def test_new_rows_keep_the_fits_categories_and_scaling() -> None:
    new = pd.DataFrame({"dose": [2.0, 3.0], "clinic": ["west", "north"]})
    found = prepared("effect ~ dose + clinic", new)
    np.testing.assert_allclose(predictors(found), [[2.0, 0.0, 1.0], [3.0, 0.0, 0.0]])
    assert found.arguments["response"] is None
    first = prepared("effect ~ dose + clinic").arguments
    for name in ("centre", "spread", "response_centre", "response_spread"):
        assert torch.equal(found.arguments[name], first[name])


def test_one_new_row_is_enough() -> None:
    found = prepared("effect ~ dose + clinic", table().iloc[[4]])
    assert predictors(found).shape == (1, 3)
    assert found.arguments["response"].shape == (1,)


@pytest.mark.parametrize(
    ("formula", "new"),
    [
        ("effect ~ dose + age", table()[["dose"]]),
        ("effect ~ dose * age", table()[["dose"]]),
        ("effect ~ dose:age", table()[["dose"]]),
        ("effect ~ dose + center(age)", table()[["dose"]]),
    ],
)
def test_new_rows_that_lack_a_column_are_refused_by_its_name(
    formula: str, new: pd.DataFrame
) -> None:
    with pytest.raises(DataError, match="age"):
        prepared(formula, new)


def test_a_category_that_the_fit_did_not_see_is_refused_by_name() -> None:
    new = pd.DataFrame({"dose": [2.0], "clinic": ["east"]})
    with pytest.raises(DataError, match="east"):
        prepared("effect ~ dose + clinic", new)


def test_missing_cells_are_refused_in_the_fit_and_in_new_rows() -> None:
    gap = table()
    gap.loc[3, "dose"] = np.nan
    with pytest.raises(DataError):
        prepare(gap, Options(formula="effect ~ dose"))
    with pytest.raises(DataError, match="dose"):
        prepared("effect ~ dose", gap)


@pytest.mark.parametrize(
    ("formula", "error", "message"),
    [
        ("effect ~ dos", DataError, "dos"),
        ("effect ~ dose +", DataError, "cannot be read"),
        ("dose + age", OptionError, "has no response"),
        ("effect ~ kind", DataError, "column 'kind' is a in every row"),
        ("effect ~ 0", OptionError, "at least one predictor"),
        ("effect ~ 0 + offset(age)", OptionError, "no predictor"),
        ("effect ~ 1|clinic", OptionError, "group effects"),
        ("effect ~ dos + age", DataError, "did you mean 'dose'"),
        ("effect ~ (dose + age", DataError, "cannot be read"),
        ("effect ~ dose**2", OptionError, r"I\(dose\*\*2\)"),
        ("effect ~ dose age", OptionError, "only be read up to 'age'"),
        ("effect ~ dose %in% clinic", OptionError, "only be read up to '%'"),
    ],
)
def test_a_formula_that_cannot_be_fitted_is_refused(
    formula: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(table().assign(kind="a"), Options(formula=formula))


@pytest.mark.parametrize(
    "formula",
    [
        "effect ~ np.square(dose)",
        "effect ~ center (dose)",
        "effect ~ I(dose)",
        "effect ~ {dose + 1}",
        "effect ~ dose\n+ scale\n(dose)",
        "effect ~ dose + np.log(dose.max())",
        "effect ~ np.log(open(dose))",
        "f(effect) ~ dose",
    ],
)
def test_a_formula_that_calls_functions_holds_code(formula: str) -> None:
    assert code_in(Options(formula=formula)) == formula


def test_a_formula_that_calls_nothing_holds_no_code() -> None:
    assert code_in(Options(formula="effect ~ (dose + age)**2 + clinic - 1")) is None
    assert code_in(Options(formula="effect ~ C(clinic) + np.log(dose)")) is None
    assert code_in(Options(response="effect")) is None


def test_loading_a_run_folder_calls_no_function_of_its_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a stranger, whose formula was changed after the fit and whose hashes fit it."""
    called = []

    def touched(values: Any) -> Any:
        called.append("run")
        return values

    monkeypatch.setattr(bayesian_regression, "touched", touched, raising=False)
    fit = er.fit(
        "bayesian_regression", table(), "laplace", formula="effect ~ dose", seed=0, draws=100
    )
    folder = fit.save(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["options"]["formula"] = "effect ~ touched(dose)"
    (folder / "config.json").write_text(json.dumps(config))
    digest = digest_of(folder / "config.json")
    write_manifest(folder, {**read_manifest(folder), "config.json": [digest]})
    with pytest.raises(ElbowroomError, match=r"touched\(dose\)"):
        er.load(folder)
    assert called == []


def test_plain_columns_are_the_same_model_as_their_formula() -> None:
    data = table().drop(columns="clinic")
    plain = prepare(data, Options(response="effect"))
    written = prepare(data, Options(formula="effect ~ dose + age"))
    assert plain.coords == written.coords
    for name, value in plain.arguments.items():
        other = written.arguments[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "--response COLUMN"),
        ({"response": "efect"}, DataError, "did you mean 'effect'"),
        ({"response": "effect", "columns": ("effect", "dose")}, OptionError, "is the response"),
        ({"response": "effect", "formula": "effect ~ dose"}, OptionError, "--formula names"),
        ({"response": "effect"}, DataError, "clinic"),
    ],
)
def test_columns_that_cannot_be_fitted_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(table(), Options(**options))


def test_new_rows_with_a_blank_response_are_rows_without_one() -> None:
    table = er.load_dataset("diabetes")
    fit = er.fit("bayesian_regression", table, "laplace", seed=1, draws=200)
    blank = table.head(3).assign(progression=float("nan"))
    expected = fit.predict(table.head(3).drop(columns="progression"))
    np.testing.assert_array_equal(fit.predict(blank), expected)


@pytest.mark.parametrize("formula", ["I(effect - age) ~ dose", "effect ~ dose + offset(age)"])
def test_an_offset_has_a_coefficient_of_one(formula: str) -> None:
    """By least squares with the offset's coefficient fixed at one."""
    data = table(200)
    fit = er.fit("bayesian_regression", data, formula=formula, seed=1)
    design = np.column_stack([np.ones(200), data["dose"]])
    expected = np.linalg.lstsq(design, data["effect"] - data["age"], rcond=None)[0]
    means, sds = fit.summary()["mean"], fit.summary()["sd"]
    assert abs(means["intercept"] - expected[0]) < 0.1 * sds["intercept"]
    assert abs(means["coefficients[dose]"] - expected[1]) < 0.1 * sds["coefficients[dose]"]


@pytest.mark.parametrize("term", ["I(dose - np.mean(dose))", "np.sort(dose)"])
def test_a_term_that_depends_on_other_rows_is_refused_for_new_ones(term: str) -> None:
    with pytest.raises(DataError, match="depends on the other rows"):
        prepared(f"effect ~ {term}", table().head(3))


RESPONSES: list[tuple[str, Any, str]] = [
    ("answers", lambda r: r.integers(0, 2, 200), "linear probability model"),
    ("answers of 1 and 2", lambda r: r.integers(1, 3, 200), "linear probability model"),
    ("answers of bool", lambda r: r.random(200) > 0.5, ""),  # a logistic regression
    ("counts", lambda r: r.poisson(1.5, 200), "variance grows with the mean"),
    ("few counts", lambda r: r.poisson(2.0, 20), "variance grows with the mean"),
    ("spread counts", lambda r: r.negative_binomial(1, 0.1, 500), "variance grows with the mean"),
    ("progression", lambda r: er.load_dataset("diabetes")["progression"], ""),
    ("high counts", lambda r: r.poisson(100, 500), ""),
    ("marks of exams", lambda r: r.normal(65, 12, 500).round().clip(0, 100), ""),
    ("ages", lambda r: r.integers(18, 80, 500), ""),
    ("rounded", lambda r: r.normal(0, 3, 500).round(), ""),
    ("measured", lambda r: r.normal(1, 1, 500), ""),
    ("few measured", lambda r: r.normal(10, 5, 6).round(), ""),
]


@pytest.mark.parametrize(("name", "draw", "said"), RESPONSES, ids=[each[0] for each in RESPONSES])
def test_a_response_that_is_no_normal_number_is_said_to_be_none(
    name: str, draw: Any, said: str
) -> None:
    y = np.asarray(draw(np.random.default_rng(0)))
    data = pd.DataFrame({"x": np.random.default_rng(1).normal(size=len(y)), "y": y})
    doubts = prepare(data, Options(response="y")).doubts
    assert (said in " ".join(doubts)) if said else (doubts == ())


def test_the_verdict_and_the_check_say_what_the_response_is() -> None:
    data = table().assign(effect=lambda t: (t["dose"] > 3).astype(int))
    options: dict[str, Any] = {"formula": "effect ~ age", "seed": 1}
    fit = er.fit("bayesian_regression", data, "laplace", draws=200, **options)
    assert "'effect' has only two values, 0 and 1" in str(fit.verdict)
    found = er.check("bayesian_regression", data, "mean_field", **options)
    assert [each.check for each in found if each.level == "warning"] == ["validity"]
