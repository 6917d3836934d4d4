"""The conjugate models: their posterior and evidence are those of the textbooks."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

import elbowroom as er
from elbowroom.errors import DataError, OptionError

RANDOM = np.random.default_rng(3)
PREDICTORS = RANDOM.normal(size=(30, 2)) * [1.0, 40.0] + [0.0, 200.0]
Y = {
    "normal": RANDOM.normal(170, 9, size=25),
    "bernoulli": RANDOM.binomial(1, 0.3, size=40).astype(float),
    "poisson": RANDOM.poisson(3.0, size=20).astype(float),
    "regression": 5 + PREDICTORS @ [2.0, 0.05] + RANDOM.normal(size=30),
}
PRIORS = {
    "normal": (160.0, 20.0), "bernoulli": (2.0, 3.0), "poisson": (2.0, 0.5),
    "regression": (3.0, 4.0),
}  # fmt: skip
SIGMA, SCALE = 9.0, 2.5


def table(name: str) -> pd.DataFrame:
    found = pd.DataFrame({"y": Y[name]})
    return found.assign(a=PREDICTORS[:, 0], b=PREDICTORS[:, 1]) if name == "regression" else found


def design() -> np.ndarray:
    standardised = (PREDICTORS - PREDICTORS.mean(0)) / PREDICTORS.std(0, ddof=1)
    return np.column_stack([np.ones(len(PREDICTORS)), standardised])


def fitted(name: str, guide: str = "exact", **given: Any) -> er.Fit:
    options = {"likelihood": name, "prior": PRIORS[name], "sigma": SIGMA, "response": "y"}
    return er.fit("conjugate", table(name), guide, seed=1, **{**options, **given})


def evidence(name: str) -> float:
    """Log p(y), with everything integrated out on paper."""
    (a, b), y = PRIORS[name], Y[name]
    n = len(y)
    if name == "normal":
        covariance = SIGMA**2 * np.eye(n) + b**2
        return float(stats.multivariate_normal(np.full(n, a), covariance).logpdf(y))
    if name == "bernoulli":
        return float(special.betaln(a + y.sum(), b + n - y.sum()) - special.betaln(a, b))
    if name == "poisson":
        total = y.sum()
        return float(
            a * np.log(b) - special.gammaln(a) + special.gammaln(a + total)
            - (a + total) * np.log(b + n) - special.gammaln(y + 1).sum()
        )  # fmt: skip
    shape = b / a * (np.eye(n) + SCALE**2 * design() @ design().T)
    return float(stats.multivariate_t(np.full(n, y.mean()), shape, df=2 * a).logpdf(y))


@pytest.mark.parametrize("name", Y)
def test_every_weight_of_the_exact_guide_is_the_evidence(name: str) -> None:
    fit = fitted(name)
    weights = fit.posterior["sample_stats"]["log_p"] - fit.posterior["sample_stats"]["log_q"]
    np.testing.assert_allclose(weights, evidence(name), rtol=1e-9)
    assert fit.verdict.level == "trusted"
    assert fit.trained.status == "exact"


@pytest.mark.parametrize(
    ("name", "guide"),
    [*((name, "linear_response") for name in Y), ("regression", "mean_field")],
)
def test_other_guides_come_to_the_same_posterior(name: str, guide: str) -> None:
    """Within four standard errors of both samples' means, and a tenth of the sds."""
    exact, other = (fitted(name, each, draws=4000) for each in ("exact", guide))
    one, two = exact.summary(), other.summary()
    assert list(one.index) == list(two.index)
    error = 4 * one["sd"] * (2 / 1000) ** 0.5  # corrected draws are worth fewer
    assert ((one["mean"] - two["mean"]).abs() < error).all()
    assert ((two["sd"] / one["sd"] - 1).abs() < 0.1).all()
    assert other.verdict.trusted


def test_auto_takes_the_exact_posterior() -> None:
    assert fitted("normal", "auto").guide.name == "exact"


def test_a_regression_without_a_prior_is_near_least_squares() -> None:
    found = er.fit("conjugate", "diabetes", seed=1, likelihood="regression").summary()
    data = er.read_table("diabetes").drop(columns="progression")
    y = er.read_table("diabetes")["progression"]
    x = np.column_stack([np.ones(len(data)), data])
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    names = ["intercept", *(f"coefficients[{each}]" for each in data)]
    difference = (found.loc[names, "mean"] - slopes) / found.loc[names, "sd"]
    assert difference.abs().max() < 0.2


def test_a_prediction_is_the_posterior_predictive() -> None:
    """A count's is negative binomial."""
    fit = fitted("poisson", draws=20_000)
    (a, b), y = PRIORS["poisson"], Y["poisson"]
    shape, rate = a + y.sum(), b + len(y)
    expected = stats.nbinom(shape, rate / (1 + rate))
    new = pd.DataFrame({"y": [0.0, 3.0, 9.0]})
    found = fit.predict(new)
    np.testing.assert_allclose(found["log_density"], expected.logpmf(new["y"]), atol=0.02)
    np.testing.assert_allclose(found["mean"], expected.mean(), atol=5 * expected.std() / 141)
    assert "log_density" not in fit.predict(pd.DataFrame({"other": [1.0, 2.0]}))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("bernoulli", {"response": "c"}, "column 'c', row 2: 2 is not 0 or 1"),
        ("poisson", {"response": "d"}, "column 'd', row 1: -1 is not a count"),
        ("normal", {"response": None}, "give --response COLUMN"),
        ("normal", {"response": "e"}, "'e'"),
        (
            "normal",
            {"response": "c", "prior": (0.0, 0.0)},
            "the prior mean, and a prior sd above 0",
        ),
        (
            "regression",
            {"response": "d", "prior": (0.0, 1.0)},
            "inverse Gamma of the variance, both above 0",
        ),
        ("regression", {"response": "c", "columns": ("c",)}, "leave it out of --columns"),
    ],
)
def test_what_cannot_be_is_named(name: str, given: dict[str, Any], message: str) -> None:
    data = pd.DataFrame({"c": [1.0, 2.0, 0.0], "d": [-1.0, 0.5, 2.0]})
    with pytest.raises((DataError, OptionError), match=message):
        er.fit("conjugate", data, likelihood=name, **given)
