"""The R2D2 prior of many coefficients: beside quadrature, beside NUTS, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import elbowroom as er
from elbowroom.errors import OptionError
from elbowroom.pipeline.centring import has_own_scales
from elbowroom.pipeline.fitting import bind_model
from elbowroom.pipeline.reference import add_reference
from elbowroom.result import Fit


def moments(fit: Fit) -> dict[str, tuple[float, float]]:
    table = fit.summary()
    return {str(name): (row["mean"], row["sd"]) for name, row in table.iterrows()}


def by_quadrature(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """The posterior of two coefficients: exact given noise, R2 and shares, which are on a grid."""
    z = stats.zscore(table[["a", "b"]].to_numpy(), ddof=1)
    unit = table["y"].std(ddof=1)
    y = (table["y"] - table["y"].mean()).to_numpy() / unit
    design = np.column_stack([np.ones(len(y)), z])
    noise = np.exp(np.linspace(np.log(0.2), np.log(3.0), 70))
    even = (np.arange(60) + 0.5) / 60
    sigma, fit, share = np.meshgrid(noise, even, stats.beta(0.5, 0.5).ppf(even), indexing="ij")
    variance = sigma**2 * fit / (1 - fit)
    prior = np.stack([np.full_like(fit, 2.5**2), variance * share, variance * (1 - share)], -1)
    precision = design.T @ design / sigma[..., None, None] ** 2 + np.eye(3) / prior[..., None, :]
    covariance = np.linalg.inv(precision)
    slope = design.T @ y / sigma[..., None] ** 2
    mean = (covariance @ slope[..., None])[..., 0]
    weight = -len(y) * np.log(sigma) - y @ y / (2 * sigma**2) - np.log(prior).sum(-1) / 2
    weight += (slope * mean).sum(-1) / 2 + np.linalg.slogdet(covariance)[1] / 2
    weight += stats.expon.logpdf(sigma) + np.log(sigma)  # on a grid of logarithms
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()

    def told(values: np.ndarray, within: Any = 0.0, scale: float = 1.0) -> tuple[float, float]:
        centre = (weight * values).sum()
        square = (weight * (within + np.square(values - centre))).sum()
        return scale * centre, scale * square**0.5

    spread = table[["a", "b"]].std(ddof=1).to_numpy()
    found = {"R2": told(fit), "sigma": told(sigma, scale=unit)}
    for k, name in enumerate(("a", "b"), start=1):
        found[f"coefficients[{name}]"] = told(
            mean[..., k], covariance[..., k, k], unit / spread[k - 1]
        )
    return found


def small(slope: float) -> pd.DataFrame:
    random = np.random.default_rng(3)
    table = pd.DataFrame({"a": 10 * random.normal(size=25), "b": random.normal(size=25)})
    return table.assign(y=5 + slope * table["a"] + 4 * random.normal(size=25))


@pytest.mark.parametrize("slope", [0.4, 0.05])
def test_it_is_right_beside_quadrature(slope: float) -> None:
    """Where the data tell much of one coefficient, and where they tell little of either."""
    table = small(slope)
    fit = er.fit("bayesian_regression", table, formula="y ~ a + b", priors="r2d2", seed=1)
    found = moments(fit)
    assert fit.verdict.trusted
    for name, (mean, sd) in by_quadrature(table).items():
        assert abs(found[name][0] - mean) < 0.1 * sd, name
        assert found[name][1] == pytest.approx(sd, rel=0.1), name


@pytest.mark.parametrize(("priors", "own"), [("r2d2", True), ("conjugate", False)])
def test_each_coefficient_has_a_scale_of_its_own(priors: str, own: bool) -> None:
    """So that Markov chains draw them; under conjugate priors they have that of the noise."""
    asked = {"formula": "y ~ a + b", "priors": priors}
    assert has_own_scales(bind_model("bayesian_regression", small(0.4), asked)[0]) is own


@pytest.mark.slow
def test_more_columns_than_rows_are_as_by_nuts() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 80))
    table = pd.DataFrame(x, columns=[f"x{k}" for k in range(80)])
    table["y"] = 2 * x[:, 0] - 2 * x[:, 1] + random.normal(size=40)
    fit = er.fit("bayesian_regression", table, response="y", priors="r2d2", seed=1)
    assert fit.verdict.trusted
    rows = pd.DataFrame(add_reference(fit, draws=2000).diagnostics["reference"])
    assert (rows["mean_shift"].abs() < 0.1 + 3 * rows["mean_shift_error"]).all()
    assert (np.log(rows["sd_ratio"]).abs() < 0.1 + 3 * rows["log_ratio_error"]).all()


def test_its_words_are_in_the_units_of_the_table() -> None:
    table = small(0.4)
    view = er.priors(
        "bayesian_regression", table, formula="y ~ a + b", priors="r2d2(0.2, 5, 1)", seed=1
    )
    words = view.table["prior"]
    assert words["R2"] == "beta(1, 4)"
    scale = 1 / table["a"].std(ddof=1)
    assert words["coefficients[a]"] == (
        f"normal(0, {scale:.6g} * sigma * sqrt(share * R2 / (1 - R2)))"
    )
    # Of 500 or more draws of Beta(1, 4), whose sd is 0.16.
    assert view.table["mean"]["R2"] == pytest.approx(0.2, abs=3 * 0.16 / 500**0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"priors": "r2d2(2, 2, 0.5)"}, "the mean is between 0 and 1"),
        ({"priors": "r2d2(0.5, 2)"}, "three numbers; write r2d2"),
        ({"priors": "r2d2(0.5, nan, 1)"}, "above 0 and at most"),
        ({"priors": "r2d3"}, "give weak, conjugate, r2d2 or a FILE.toml"),
        ({"prior": "a ~ normal(0, 1)"}, "is of all coefficients"),
        ({"formula": "y ~ 1"}, "the formula has no predictor"),
        ({"formula": "g ~ a", "family": "categorical"}, "give --priors weak"),
        ({"guide": "mle"}, "standardised_coefficients' depends on other latent sites"),
    ],
)
def test_what_it_is_not_for_is_refused(options: dict[str, Any], says: str) -> None:
    table = small(0.4).assign(g=list("vwxyz") * 5)
    given = {"formula": "y ~ a + b", "priors": "r2d2", **options}
    with pytest.raises(OptionError, match=says.replace("(", r"\(")):
        er.fit("bayesian_regression", table, seed=1, **given)
