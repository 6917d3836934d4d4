"""Rows held out of a comparison: their scores beside closed forms."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import elbowroom as er
from elbowroom import held_out
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.settings import Settings
from elbowroom.errors import DataError, GuideError, OptionError
from elbowroom.held_out import calibration_error, held_out_scores, split_rows
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
        (None, {"test_size": 0.001}, OptionError, "makes 0 of "),
        (None, {"test_size": 149}, OptionError, "and leave at least 2 to fit"),
        (None, {"test_size": -1.0}, OptionError, "--test-size -1"),
        (None, {"test_size": float("nan")}, OptionError, "--test-size nan"),
        (None, {"test_size": float("inf")}, OptionError, "--test-size inf"),
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
    """A label that lies among the held-out rows alone."""
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


# Scores of made fits.

ROWS = pd.DataFrame({"row": range(4)})
DENSITY = np.array([-1.0, -2.0, -4.0, -1.0])


def of_observed(values: Any, predicted: dict[str, Any] | None = None, **changed: Any) -> Any:
    """A fit that has seen some values, and predicts what is given, by its interval if it asks."""
    tensor = torch.tensor(values)

    def predict(table: pd.DataFrame, interval: float) -> pd.DataFrame:
        assert table is ROWS
        found = {} if predicted is None else predicted
        return pd.DataFrame({k: v(interval) if callable(v) else v for k, v in found.items()})

    problem = SimpleNamespace(
        model=SimpleNamespace(predicts="y", in_units=None),
        space=SimpleNamespace(discrete=()),
        prepared=SimpleNamespace(coords={}, arguments={"unit": 10.0}),
        observed="y",
        new_arguments=lambda table: ({"x": torch.zeros(4), "y": tensor}, {}),
    )
    usual = {
        "problem": problem, "row_latents": False, "log_density": lambda _: DENSITY, "seed": 5,
        "predict": predict, "amortised": False,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **changed})


DENSITIES = {
    "test_log_density": pytest.approx(-2.0),
    "test_log_density_se": pytest.approx((6 / 3) ** 0.5 / 2),
}
"""Of -1, -2, -4 and -1: their mean, and the root of their variance over four."""


def edge(sign: float) -> Any:
    """An end of a standard Normal's interval at each row."""
    return lambda interval: np.full(4, sign * stats.norm.ppf((1 + interval) / 2))


NORMAL = {"median": np.zeros(4), "upper": edge(1), "lower": edge(-1), "sd": np.ones(4)}


def test_rows_inside_their_intervals_of_ninety_percent_are_counted() -> None:
    """A Normal's reaches to 1.645; the sd of the rows is (5.38 / 3) ** 0.5."""
    found = held_out_scores(of_observed([1.6, -1.6, 0.4, -1.7], NORMAL), ROWS)
    values = np.array([1.6, -1.6, 0.4, -1.7])
    assert found == {
        **DENSITIES,
        "test_coverage": 0.75,
        "test_spread": pytest.approx(1 / values.std(ddof=1)),
    }


def test_what_lies_at_the_ends_of_its_interval_is_inside() -> None:
    ends = {"lower": [1.0] * 4, "upper": [3.0] * 4, "sd": [1.0, 2.0, 3.0, 6.0]}
    found = held_out_scores(of_observed([1.0, 3.0, 0.5, 3.5], ends), ROWS)
    assert found["test_coverage"] == 0.5
    assert found["test_spread"] == pytest.approx(3.0 / np.std([1.0, 3.0, 0.5, 3.5], ddof=1))


def test_each_column_of_a_row_has_its_own_spread() -> None:
    """The mean over columns of ratios, each of the mean sd of a column to that of its values."""
    values = np.array([[0.0, 10.0], [2.0, 30.0], [0.0, 10.0], [2.0, 30.0]])
    numbers = {"a": (-1, 1, 1), "b": (0, 20, 5)}
    predicted = {
        f"{column}.{part}": np.full(4, value)
        for column, each in numbers.items()
        for part, value in zip(("lower", "upper", "sd"), each, strict=True)
    }
    found = held_out_scores(of_observed(values, predicted), ROWS)
    assert found["test_coverage"] == 0.5
    deviations = np.array([1.0, 10.0]) * (4 / 3) ** 0.5
    assert found["test_spread"] == pytest.approx((1 / deviations[0] + 5 / deviations[1]) / 2)


def test_numbers_are_compared_in_the_user_s_units() -> None:
    fit = of_observed([0.16, -0.16, 0.04, -0.17], NORMAL)
    fit.problem.model.in_units = lambda values, arguments: values * arguments["unit"]
    assert held_out_scores(fit, ROWS)["test_coverage"] == 0.75


@pytest.mark.parametrize(
    "changed", [{"values": [0.0, 1.0, 1.0, 0.0]}, {"values": [1.0] * 4}, {"discrete": ("y",)}]
)
def test_an_interval_of_noughts_and_ones_or_of_labels_says_nothing(changed: Any) -> None:
    fit = of_observed(changed.get("values", [0.0, 1.0, 2.0, 3.0]), NORMAL)
    fit.problem.space.discrete = changed.get("discrete", ("another",))
    assert held_out_scores(fit, ROWS) == DENSITIES


def test_the_probabilities_of_classes_are_taken_in_their_order() -> None:
    """The likeliest: a, a, c and b, of which the first three are right."""
    shares = np.array([[0.62, 0.3, 0.08], [0.68, 0.2, 0.12], [0.1, 0.3, 0.6], [0.1, 0.9, 0.0]])
    named = {f"probability[{name}]": shares[:, i] for i, name in enumerate("abc")}
    fit = of_observed([0, 0, 2, 0], {"c": ["a"] * 4, **dict(sorted(named.items(), reverse=True))})
    fit.problem.prepared.coords["class"] = list("abc")
    error = abs(0.62 + 0.68 + 0.6 - 3) + 0.9
    assert held_out_scores(fit, ROWS) == {
        **DENSITIES, "test_calibration_error": pytest.approx(error / 4)
    }  # fmt: skip


def test_probabilities_are_put_in_ten_bins_of_which_the_last_holds_one() -> None:
    """0.52 and 0.58 lie together, and 1 with 0.95; in a bin, what is too sure makes up for less."""
    sure = np.array([0.52, 0.58, 1.0, 0.95, 0.61, 0.85])
    right = np.array([True, False, True, False, False, True])
    found = calibration_error(np.stack([1 - sure, sure], 1), np.where(right, 1, 0))
    assert found == pytest.approx((abs(1.10 - 1) + abs(1.95 - 1) + 0.61 + 0.15) / 6)


def row_draws() -> WeightedDraws:
    """Four rows' draws: weights of one and three, but the last row's, which hang on one draw."""
    log_p = np.repeat(np.log(np.resize([1.0, 3.0], 1000))[:, None], 4, 1)
    log_p += 1e-3 * np.random.default_rng(0).normal(size=log_p.shape)
    log_p[0, 3] = 20.0
    return WeightedDraws({}, log_p, np.zeros_like(log_p))


def test_rows_with_latents_have_their_density_by_importance_sampling_alone() -> None:
    asked: list[Any] = []

    def weigh_rows(*given: Any) -> WeightedDraws:
        asked.extend(given)
        return row_draws()

    fit = of_observed([1.0] * 4, amortised=True, row_latents=True, weigh_rows=weigh_rows)
    found = held_out_scores(fit, ROWS)
    assert asked[0] is ROWS
    assert asked[2] == 5
    density = np.append(np.full(3, np.log(2.0)), 20 - np.log(1000))
    assert found == {
        "test_log_density": pytest.approx(density.mean(), abs=1e-3),
        "test_log_density_se": pytest.approx(density.std(ddof=1) / 2, abs=1e-3),
        "test_unreliable": 0.25,
    }


@pytest.mark.parametrize(("given", "taken"), [(None, None), (2, 2), (3, 3), (4, None), (5, None)])
def test_a_guide_of_the_fitted_rows_is_fitted_to_others_with_the_points_fixed(
    monkeypatch: pytest.MonkeyPatch, given: int | None, taken: int | None
) -> None:
    """In minibatches where there are more rows than these."""
    asked: list[Any] = []
    bound: list[Any] = []

    def fit_task(task: Any, guide: Any, engine: Any) -> Any:
        asked.extend((task, guide, engine))
        return SimpleNamespace(weigh_rows=lambda *_: row_draws())

    points = {"loading": torch.tensor(2.0)}
    monkeypatch.setattr(held_out, "fit_task", fit_task)
    fit = of_observed(
        [1.0] * 4, row_latents=True, settings=Settings(batch_size=given, steps=7), guide="local",
        engine="svi", model_parameters=points,
    )  # fmt: skip
    fit.problem.with_rows = lambda *rows: bound.extend(rows)
    found = held_out_scores(fit, ROWS)
    assert found["test_unreliable"] == 0.25
    assert bound[0] is ROWS
    assert bound[1] is points
    assert asked[1:] == ["local", "svi"]
    assert (asked[0].settings.batch_size, asked[0].settings.steps) == (taken, 7)
    assert asked[0].seed == 5


def test_where_a_row_has_no_density_the_other_scores_stand() -> None:
    def none(_: pd.DataFrame) -> Any:
        raise GuideError("a point.")

    found = held_out_scores(of_observed([1.0, 3.0, 0.0, 9.0], NORMAL, log_density=none), ROWS)
    assert np.isnan([found["test_log_density"], found["test_log_density_se"]]).all()
    assert found["test_coverage"] == 0.5
