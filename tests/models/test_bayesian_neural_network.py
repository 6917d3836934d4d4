"""Networks with posterior weights: the columns they take, their predictions, what they refuse."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models._layers import sample_layers, through
from elbowroom.pipeline.fitting import bind_model

MODEL = "bayesian_neural_network"


@cache
def table() -> pd.DataFrame:
    random = np.random.default_rng(1)
    x = np.sort(np.concatenate([random.uniform(-2, -1, 40), random.uniform(1, 2, 40)]))
    return pd.DataFrame({"x": x, "y": np.sin(2 * x) + 0.05 * random.normal(size=80)})


@cache
def fitted() -> er.Fit:
    return er.fit(MODEL, table(), response="y", seed=1, steps=2500, prior_scale=2.0)


def test_intervals_widen_away_from_the_data() -> None:
    found = fitted().predict(pd.DataFrame({"x": [-6.0, -1.5, 1.5, 6.0]}))
    far, inside = found["sd"].iloc[[0, 3]], found["sd"].iloc[[1, 2]]
    assert far.min() > 3 * inside.max()
    covered = fitted().predict(table())
    within = table()["y"].between(covered["lower"], covered["upper"]).mean()
    assert 0.8 < within <= 1.0


def test_a_prediction_is_the_mean_over_the_posterior() -> None:
    """Of the network's output at each draw, worked out by hand, and the noise's variance."""
    draws = fitted().posterior["posterior"].to_dataset().isel(chain=0)
    first, second = draws["layer_0.weight"].values, draws["layer_1.weight"].values
    z = (1.5 - table()["x"].mean()) / table()["x"].std()
    hidden = np.maximum(first[:, :, 0] * z + draws["layer_0.bias"].values, 0)
    output = (second[:, 0] * hidden).sum(1) + draws["layer_1.bias"].values[:, 0]
    output = table()["y"].mean() + table()["y"].std() * output
    found = fitted().predict(pd.DataFrame({"x": [1.5]}))
    sd = np.sqrt(output.var() + np.square(draws["sigma"].values).mean())
    error = sd / len(output) ** 0.5
    assert abs(found["mean"][0] - output.mean()) < 4 * error
    assert abs(found["sd"][0] / sd - 1) < 4 / (2 * len(output)) ** 0.5


def test_the_log_density_of_new_rows_integrates_to_one() -> None:
    grid = np.linspace(-3, 3, 400)
    rows = pd.DataFrame({"x": np.full(400, 1.2), "y": grid})
    density = np.exp(fitted().log_density(rows))
    assert integrate.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)


@pytest.fixture(scope="module")
def classes() -> er.Fit:
    return er.fit(MODEL, "iris", response="species", hidden=[6], seed=1, steps=1500)


def test_classes_have_probabilities(classes: er.Fit) -> None:
    iris = er.load_dataset("iris")
    found = classes.predict(iris)
    names = [f"probability[{name}]" for name in ("setosa", "versicolor", "virginica")]
    np.testing.assert_allclose(found[names].sum(axis=1), 1)
    assert (found["response"] == iris["species"]).mean() > 0.85
    own = [found[f"probability[{name}]"][i] for i, name in enumerate(iris["species"])]
    np.testing.assert_allclose(found["log_density"], np.log(own), atol=1e-12)
    blind = classes.predict(iris.drop(columns="species"))
    assert list(blind.columns) == ["response", *names]


def test_a_label_that_was_not_there_is_named(classes: er.Fit) -> None:
    new = er.load_dataset("iris").head(2).copy()
    new.loc[1, "species"] = "reticulata"
    with pytest.raises(DataError, match=r"'species', row 2: the label 'reticulata' did not occur"):
        classes.log_density(new)


def test_text_has_indicators_and_whole_numbers_may_be_classes() -> None:
    rows = pd.DataFrame(
        {"place": ["a", "b", "c", "a"], "dose": [1.0, 2.0, 4.0, 3.0], "grade": [3, 1, 3, 2]}
    )
    options = {"response": "grade", "likelihood": "categorical"}
    problem, *_ = bind_model(MODEL, rows, options)
    assert list(problem.prepared.coords["predictor"]) == ["place=b", "place=c", "dose"]
    assert problem.arguments["predictors"][:, :2].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]
    assert problem.arguments["response"].tolist() == [2, 0, 2, 1]
    assert problem.prepared.coords["class"] == [1, 2, 3]
    new, observed = problem.new_arguments(rows[["dose", "place"]].tail(1))
    assert not observed
    assert new["predictors"].tolist() == [[0, 0, 3]]


def test_the_prior_of_the_output_does_not_grow_with_the_width() -> None:
    spreads = []
    for width in (10, 1000):
        problem, *_ = bind_model(MODEL, table(), {"response": "y", "hidden": (width,)})
        with problem.session(1), torch.no_grad():
            from elbowroom.draws.predictive import prior_sites

            drawn = prior_sites(problem.function, problem.arguments, problem.space, 400)
        spreads.append(float(drawn["response"].std()))
    assert spreads[1] / spreads[0] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("rows", "options", "kind", "message"),
    [
        ({"y": [1.0, 2.0]}, {"response": "y"}, DataError, "; add a predictor"),
        ({"x": [1.0, 2.0], "y": [1.0, 2.0]}, {}, OptionError, "give --response COLUMN"),
        (
            {"x": [1.0, 2.0], "y": ["a", "a"]},
            {"response": "y"},
            DataError,
            "'y' has the same class",
        ),
        ({"x": [1.0, None], "y": [1.0, 2.0]}, {"response": "y"}, DataError, "'x'"),
        (
            {"x": ["a", None], "y": [1.0, 2.0]},
            {"response": "y"},
            DataError,
            "'x' has the same label",
        ),
        ({"x": ["a", None, "b"], "y": [1.0, 2.0, 3.0]}, {"response": "y"}, DataError, "'x', row 2"),
        ({"x": [1.0, 2.0], "y": [None, "a"]}, {"response": "y"}, DataError, "'y' is not numeric"),
        (
            {"x": [1.0, 2.0], "y": ["a", "b"]},
            {"response": "y", "likelihood": "normal"},
            DataError,
            "'y'",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    rows: dict[str, Any], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        er.fit(MODEL, pd.DataFrame(rows), **options)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_variance_of_a_prior_network_is_that_of_its_layers(scaled: bool) -> None:
    """Half of what goes into rectified units comes out, times the units if nothing is scaled."""
    x, units, draws = torch.tensor([1.5, -2.0]), 30, 3000
    torch.manual_seed(2)
    outputs = torch.stack(
        [through(sample_layers(2, (units,), 1, 1.0, scaled), x, "relu")[0] for _ in range(draws)]
    )
    inside = 1 + float(x.square().sum()) / (2 if scaled else 1)  # of a unit
    wanted = 1 + (1 if scaled else units) * inside / 2
    # The variance of a sample variance is (kurtosis - 1) / draws, of at most 6 here.
    assert abs(float(outputs.var()) / wanted - 1) < 4 * (5 / draws) ** 0.5
