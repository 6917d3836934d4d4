"""Supports that end at a latent: the posterior by quadrature, and moments of known densities."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform

import elbowroom as er
from elbowroom.density.ensemble import moments
from elbowroom.problem.in_support import within_supports

RANDOM = np.random.default_rng(0)
FLAT = 3 * RANDOM.random(20)
LATE = 2 + RANDOM.exponential(size=25) / 1.5


def below(y: Tensor) -> None:
    limit = pyro.sample("limit", dist.Gamma(torch.tensor(2.0), 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Uniform(0.0, limit), obs=y)


def shifted(y: Tensor) -> None:
    start = pyro.sample("start", dist.Normal(torch.tensor(0.0), 5.0))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
    with pyro.plate("rows", len(y)):
        later = dist.TransformedDistribution(dist.Exponential(rate), AffineTransform(start, 1.0))
        pyro.sample("y", later, obs=y)


def beyond(y: Tensor) -> None:
    start = pyro.sample("start", dist.Gamma(torch.tensor(2.0), 1.0))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Pareto(start, rate), obs=y)


def gamma(x: np.ndarray, shape: float, rate: float) -> np.ndarray:
    return (shape - 1) * np.log(x) - rate * x


def of_below(limit: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(limit > y.max(), gamma(limit, 2, 0.5) - len(y) * np.log(limit), -np.inf)


def of_shifted(start: np.ndarray, rate: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = len(y) * np.log(rate) - rate * (y.sum() - len(y) * start)
    return np.where(start < y.min(), total - start**2 / 50 + gamma(rate, 2, 1), -np.inf)


def of_beyond(start: np.ndarray, rate: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = len(y) * (np.log(rate) + rate * np.log(start)) - rate * np.log(y).sum()
    return np.where(start < y.min(), total + gamma(start, 2, 1) + gamma(rate, 2, 1), -np.inf)


CASES: dict[str, tuple[Any, np.ndarray, Callable[..., np.ndarray], dict[str, tuple[float, float]]]]
CASES = {
    "uniform": (below, FLAT, of_below, {"limit": (2.5, 8.0)}),
    "shifted exponential": (shifted, LATE, of_shifted, {"start": (1.0, 2.1), "rate": (0.1, 5.0)}),
    "pareto": (beyond, LATE, of_beyond, {"start": (1.0, 2.1), "rate": (0.1, 12.0)}),
}


@pytest.mark.parametrize(
    "name", ["uniform", "shifted exponential", pytest.param("pareto", marks=pytest.mark.slow)]
)
def test_a_posterior_that_ends_at_an_edge_is_that_of_quadrature(name: str) -> None:
    model, y, log_density, ranges = CASES[name]
    fit = er.fit(model, {"y": y}, seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    axes = np.meshgrid(*(np.linspace(*each, 1501)[1:] for each in ranges.values()), indexing="ij")
    weights = log_density(*axes, y)
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    for site, values in zip(ranges, axes, strict=True):
        drawn = fit.posterior["posterior"][site].values[0]
        mean = (weights * values).sum()
        sd = (weights * (values - mean) ** 2).sum() ** 0.5
        assert drawn.mean() == pytest.approx(mean, abs=4 * sd / 1500**0.5)
        assert drawn.std() == pytest.approx(sd, rel=0.1)


class Known:
    """A density with an edge: independent exponentials above one, with scales 1 and 0.01."""

    def value(self, points: np.ndarray) -> np.ndarray:
        inside = (points > 1).all(1)
        return np.where(inside, -(points @ np.array([1.0, 100.0])), -np.inf)


def test_the_moments_are_those_of_the_density() -> None:
    found = moments(Known(), np.array([1.5, 1.01]), np.random.default_rng(0))  # type: ignore[arg-type]
    assert found is not None
    mean, covariance = found
    assert mean == pytest.approx([2.0, 1.01], rel=0.1)
    assert np.sqrt(np.diag(covariance)) == pytest.approx([1.0, 0.01], rel=0.15)
    assert moments(Known(), np.zeros(2), np.random.default_rng(0)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fn",
    [
        dist.Exponential(2.0),
        dist.Pareto(1.0, 2.0),
        dist.Weibull(1.0, 2.0),
        dist.Exponential(torch.ones(3)).to_event(1),
        dist.Exponential(1.0, validate_args=False).expand([2]),
        dist.TransformedDistribution(dist.Exponential(2.0), AffineTransform(-1.0, 1.0)),
    ],
)
def test_a_density_is_zero_outside_of_its_support_and_the_same_inside(fn: Any) -> None:
    inside = fn.sample()
    outside = -2 - inside.abs()

    def log_prob(model: Callable[..., Any], value: Tensor) -> float:
        with pyro.validation_enabled(False):
            conditioned = pyro.condition(model, data={"x": value})
            return float(pyro.poutine.trace(conditioned).get_trace().log_prob_sum())

    def model() -> None:
        pyro.sample("x", fn)

    found = within_supports(model)
    assert log_prob(found, inside) == pytest.approx(log_prob(model, inside))
    assert not np.isfinite(log_prob(found, outside))
    assert "log_prob" not in vars(fn)
