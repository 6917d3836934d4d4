"""Rows held out of a comparison: their scores beside closed forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.held_out import calibration_error, split_rows
from elbowroom.report import outcomes


@given(rows=st.integers(4, 60), size=st.floats(0.01, 59.0), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_a_split_has_every_row_once(rows: int, size: float, seed: int) -> None:
    table = pd.DataFrame({"y": np.arange(rows)})
    count = round(size * rows) if size < 1 else round(size)
    if not 2 <= count <= rows - 2:
        with pytest.raises(OptionError, match="--test-size"):
            split_rows(table, size, seed)
        return
    train, test = split_rows(table, size, seed)
    assert len(test) == count
    assert sorted([*train["y"], *test["y"]]) == list(range(rows))
    assert train["y"].is_monotonic_increasing


@pytest.fixture(scope="module")
def factors() -> er.Comparison:
    return er.compare(
        "factor_analysis", "iris", ["exact", "local", "map"], latent=1, seed=1, test_size=0.2,
        steps=1500, draws=200,
    )  # fmt: skip


def test_rows_with_latents_have_the_density_of_their_normal(factors: er.Comparison) -> None:
    """Of a guide that is the posterior, and of one that had to be fitted to the rows."""
    table: Any = factors.table.set_index("guide")
    _, test = split_rows(er.load_dataset("iris"), 0.2, 1)
    for name in ("exact", "local"):
        fit = factors.fits[name]
        arguments, points = fit.problem.arguments, fit.point_parameters
        spread = arguments["spread"].numpy()
        loadings = spread[:, None] * points["loadings"]
        covariance = loadings @ loadings.T + np.diag((spread * points["noise"]) ** 2)
        mean = arguments["centre"].numpy() + spread * points["mean"]
        normal = stats.multivariate_normal(mean, covariance)
        exact = normal.logpdf(test[list(fit.problem.prepared.coords["column"])])
        assert table.loc[name, "test_log_density"] == pytest.approx(exact.mean(), abs=0.01)
        assert table.loc[name, "test_log_density_se"] == pytest.approx(
            exact.std(ddof=1) / len(exact) ** 0.5, abs=0.01
        )
    assert np.isnan(table.loc["map", "test_log_density"])  # a point says nothing of a row's


def test_points_are_held_where_a_guide_is_fitted_to_other_rows(factors: er.Comparison) -> None:
    fit = factors.fits["local"]
    held = fit.model_parameters
    problem = fit.problem.with_rows(fit.problem.data.head(9), held)
    assert not problem.space.parameters.initial
    with problem.session(0):
        from elbowroom.guides.space import trace_model

        nodes: Any = trace_model(problem.function, problem.arguments).nodes
    assert torch.allclose(nodes["loadings"]["value"].double(), held["loadings"])


def test_a_point_foretells_too_small_a_spread() -> None:
    """With as many columns as a third of the rows, a posterior's predictions are far wider."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(70, 10)), columns=list("abcdefghij"))
    table["y"] = table.sum(axis=1) + random.normal(size=70)
    found: Any = er.compare(
        "bayesian_regression", table, ["full_rank", "map"], formula="y ~ a+b+c+d+e+f+g+h+i+j",
        seed=3, test_size=40,
    ).table.set_index("guide")  # fmt: skip
    assert found.loc["map", "test_spread"] < 0.85 * found.loc["full_rank", "test_spread"]
    assert found.loc["map", "test_coverage"] < found.loc["full_rank", "test_coverage"]
    assert found.loc["map", "test_log_density"] < found.loc["full_rank", "test_log_density"]
    error = 4 * (0.9 * 0.1 / 40) ** 0.5
    assert abs(found.loc["full_rank", "test_coverage"] - 0.9) < error


def test_the_score_of_a_closed_form_is_its_predictive_density() -> None:
    """Beta-binomial: of a coin after h heads of n, (1 + h) / (2 + n)."""
    coins = pd.DataFrame({"heads": np.random.default_rng(0).binomial(1, 0.3, size=60)})
    found = er.compare("conjugate", coins, ["exact"], likelihood="bernoulli", seed=1, test_size=20)
    train, test = split_rows(coins, 20, 1)
    options = found.fits["exact"].problem.options
    chance = (1 + train["heads"].sum()) / (2 + len(train))
    assert options.likelihood == "bernoulli"
    exact = np.log(np.where(test["heads"] == 1, chance, 1 - chance)).mean()
    row = found.table.iloc[0]
    assert row["test_log_density"] == pytest.approx(exact, abs=0.02)
    assert "test_coverage" not in found.table  # an interval of noughts and ones says nothing


def test_probabilities_are_compared_with_frequencies() -> None:
    random = np.random.default_rng(0)
    chance = random.uniform(0.5, 1, size=20_000)
    shares = np.stack([chance, 1 - chance], axis=1)
    right = (random.random(20_000) > chance).astype(int)
    assert calibration_error(shares, right) < 0.02
    assert calibration_error(shares, np.zeros(20_000, int)) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("data", "options", "error", "said"),
    [
        ({"y": torch.zeros(9)}, {"test_size": 0.2}, OptionError, "the data are not a table"),
        (None, {"test_size": 0.001}, OptionError, "holds 0 out; at least 2 rows must be held out"),
        (None, {"test_size": 149}, OptionError, "and as many left"),
        (None, {"test_size": -1.0}, OptionError, "--test-size -1"),
        (None, {"test_size": float("nan")}, OptionError, "--test-size"),
        (None, {"test_size": float("inf")}, OptionError, "--test-size"),
    ],
)
def test_a_split_that_cannot_be_is_said(
    data: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    def own(y: torch.Tensor) -> None:
        raise AssertionError

    model = "gaussian_mixture" if data is None else own
    with pytest.raises(error, match=said):
        er.compare(model, data, ["map"], **options)


def test_rows_that_cannot_be_predicted_are_named_before_anything_is_fitted() -> None:
    """A label that lies among the rows held out alone."""
    rows = er.load_dataset("iris").copy()
    held = split_rows(rows, 0.2, 1)[1].index[0]
    rows.loc[held, "species"] = "reticulata"
    with pytest.raises(DataError, match="'reticulata' did not occur"):
        er.compare(
            "bayesian_neural_network", rows, ["map"], response="species", seed=1, test_size=0.2
        )


def drawn(monkeypatch: pytest.MonkeyPatch, found: er.Comparison, folder: Path) -> dict[str, Any]:
    """What the picture of predictions is made of."""
    seen: dict[str, Any] = {}
    names = ("reach", "panels", "rows", "path", "title")
    monkeypatch.setattr(
        outcomes,
        "picture_of_predictions",
        lambda *given: seen.update(zip(names, given, strict=True)),
    )
    outcomes.draw_predictions(found, folder)
    return seen


def test_a_picture_is_of_the_predictions_whatever_the_columns_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A predictor called mean, a coded label whose median is none, and an empty column."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"mean": random.normal(size=40), "arm": [1, 2] * 20, "note": [None] * 40})
    table["y"] = 2 * table["mean"] + 3 * table["arm"] + 0.1 * random.normal(size=40)
    found = er.compare(
        "bayesian_regression", table, ["laplace"], formula="y ~ mean + C(arm)", seed=1
    )
    seen = drawn(monkeypatch, found, tmp_path)
    slope = np.polyfit(seen["reach"], seen["panels"]["laplace"]["mean"], 1)[0]
    assert slope == pytest.approx(2, abs=0.1)


def test_every_model_of_numbers_is_pictured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"likelihood": "regression", "response": "progression"}
    found = er.compare("conjugate", "diabetes", ["exact"], seed=1, **given)
    assert list(drawn(monkeypatch, found, tmp_path)["panels"]) == ["exact"]
    assert len(found.fits["exact"].predict(er.load_dataset("diabetes").head(1))) == 1


def test_poor_importance_weights_are_told(factors: er.Comparison) -> None:
    """Of a guide that is the posterior none is; of one that was hardly fitted nearly all are."""
    table: Any = factors.table.set_index("guide")
    assert table.loc["exact", "test_unreliable"] == 0
    hasty: Any = er.compare(
        "factor_analysis", "iris", ["local"], latent=1, seed=1, test_size=0.2, steps=20, draws=200
    ).table
    assert hasty["test_unreliable"].iloc[0] > 0.2


def test_predictions_beyond_the_data_are_pictured(tmp_path: Path) -> None:
    found = er.compare(
        "bayesian_regression", "diabetes", ["laplace"], formula="progression ~ bmi + bp", seed=1
    )
    outcomes.draw_predictions(found, tmp_path)
    assert (tmp_path / "predictions.png").stat().st_size > 10_000
