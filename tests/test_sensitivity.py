"""Sensitivity by power-scaling, beside posteriors of scaled priors in closed form."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import elbowroom as er
from elbowroom.errors import ModelError

DRAWS = 10_000
Y = 4.0 + 2.0 * np.random.default_rng(0).normal(size=10)


def distance(one: Any, other: Any) -> float:
    """The cumulative Jensen-Shannon distance of two distributions, by quadrature.

    As Kallioinen et al. (2024), equations 6 and 7, have it: the root of the symmetrised divergence
    of the distribution functions, relative to its bound, over the range of the draws.
    """
    beyond = 0.56 / DRAWS  # where the farthest of so many draws of a Normal are, on average
    low, high = one.ppf([beyond, 1 - beyond])
    x = np.linspace(float(low), float(high), 20_001)

    def way(p: np.ndarray, q: np.ndarray) -> float:
        def half(a: np.ndarray, b: np.ndarray) -> float:
            with np.errstate(all="ignore"):
                ratio = np.where(a > 0, a * np.log2(2 * a / (a + b)), 0.0)
            return float(np.trapezoid(ratio, x) + np.trapezoid(b - a, x) / (2 * np.log(2)))

        return float(np.sqrt((half(p, q) + half(q, p)) / np.trapezoid(p + q, x)))

    return max(way(one.cdf(x), other.cdf(x)), way(one.sf(x), other.sf(x)))


def slope(posterior: Any) -> float:
    """How fast the distance grows with the logarithm of the power, near one."""
    base = posterior(1.0)
    return float(np.mean([distance(base, posterior(a)) / abs(np.log2(a)) for a in (0.99, 1.01)]))


def level(y: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 2.0), obs=y)


def two_levels(y: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.5))
    with pyro.plate("rows", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, 1.2))
        pyro.sample("y", dist.Normal(effect, 1.6), obs=y)


def normal(prior: float = 1.0, likelihood: float = 1.0) -> Any:
    """The posterior where the prior's and the likelihood's densities have powers."""
    precisions = np.array([prior / 1.5**2, likelihood * len(Y) / 2.0**2])
    return stats.norm(precisions[1] * Y.mean() / precisions.sum(), precisions.sum() ** -0.5)


@pytest.mark.parametrize("model", [level, two_levels])
def test_it_is_that_of_the_posterior_with_a_scaled_prior(model: Any) -> None:
    """Of a population only the prior above it is scaled: both models have the same prior of it."""
    fit = er.fit(model, {"y": Y}, seed=1, draws=DRAWS)
    found = fit.sensitivity().loc["mean"]
    # The farthest of the draws vary by a tenth of the range, of which it is the root.
    assert found["prior"] == pytest.approx(slope(lambda a: normal(prior=a)), rel=0.08)
    if model is level:
        expected = slope(lambda a: normal(likelihood=a))
        assert found["likelihood"] == pytest.approx(expected, rel=0.08)
    assert found["diagnosis"] == "prior-data conflict"


@pytest.mark.parametrize("curve", ["bmi", "s(bmi)"])
def test_a_wide_prior_has_none(curve: str) -> None:
    """What the coefficients of a curve have, given their standard deviation, is no prior."""
    fit = er.fit("bayesian_regression", formula=f"progression ~ {curve} + bp", seed=1)
    table = fit.sensitivity()
    assert table.index.tolist() == fit.summary().index.tolist()
    assert (table["diagnosis"] == "").all()
    assert (table["prior"] < 0.01).all()
    assert (table["likelihood"] > 0.05).all()


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        ("bayesian_regression", {"guide": "mle", "formula": "progression ~ bmi"}, "guide 'mle'"),
        ("factor_analysis", {"engine": "em"}, "latents for each row"),
    ],
)
def test_what_has_no_prior_to_scale_is_refused(model: str, options: Any, why: str) -> None:
    fit = er.fit(model, seed=1, **options)
    with pytest.raises(ModelError, match=why):
        fit.sensitivity()
