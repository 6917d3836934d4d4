"""Distributions of responses: moments of their draws, and digits far out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from elbowroom.models._distributions import (
    Hurdle,
    InverseGaussian,
    PoissonOfLog,
    SkewNormal,
    WeibullOfMean,
    Weighted,
    log_ndtr,
)
from elbowroom.models._families import FAMILIES, Predicted
from elbowroom.models._limits import Censored
from elbowroom.problem.isolation import isolated

DRAWS = 40_000


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0, dtype=torch.float64):
        yield


def number(value: float) -> torch.Tensor:
    return torch.tensor([value])


MADE: dict[str, Callable[[], Any]] = {
    "poisson": lambda: PoissonOfLog(number(0.7)),
    "weibull": lambda: WeibullOfMean(number(0.3), number(1.6)),
    "inverse_gaussian": lambda: InverseGaussian(number(0.3), number(2.5)),
    "skew_normal": lambda: SkewNormal(number(1.0), number(2.0), number(4.0)),
    "hurdle": lambda: Hurdle(PoissonOfLog(number(0.2)), number(0.4)),
    "hurdle of few": lambda: Hurdle(PoissonOfLog(number(-3.0)), number(0.4)),
    "weighted": lambda: Weighted(dist.Normal(number(1.0), 2.0), number(3.0)),
}


@pytest.mark.parametrize("name", MADE)
def test_draws_have_the_mean_and_the_variance_that_are_stated(name: str) -> None:
    made = MADE[name]()
    drawn = made.sample((DRAWS,))[:, 0]
    error = float(made.variance) ** 0.5 / DRAWS**0.5
    assert abs(float(drawn.mean()) - float(made.mean)) < 4 * error
    assert abs(float(drawn.var()) / float(made.variance) - 1) < 0.1
    assert made.expand((3,)).sample((2,)).shape == (2, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_loses_its_density_far_out(name: str) -> None:
    """At linear predictors of ±30, where probabilities are rounded to one, with a gradient."""
    family = FAMILIES[name]
    eta = torch.tensor([-30.0, 30.0], requires_grad=True)
    inside = {"zero_probability": 0.3}
    parameters = {p.name: torch.tensor(inside.get(p.name, 1.5)) for p in family.parameters}
    parameters["thresholds"] = torch.tensor([-0.5, 0.7])
    y = {"share": 0.3, "positive": 2.0}.get(family.takes, 1.0)
    for link in family.links:
        of = Predicted(eta, link, parameters, trials=torch.tensor([3.0, 3.0]))
        found = family.distribution(of).log_prob(torch.full((2,), y))
        assert found.isfinite().all(), link
        (slope,) = torch.autograd.grad(found.sum(), eta)
        assert slope.isfinite().all(), link


@pytest.mark.parametrize("link", FAMILIES["bernoulli"].links)
def test_no_exponential_overflows_in_a_probability(link: str) -> None:
    """At starts far off, where the exponential function has no number."""
    eta = torch.tensor([-800.0, 800.0, 1e-3], requires_grad=True)
    for y in (0.0, 1.0):
        made = FAMILIES["bernoulli"].distribution(Predicted(eta, link, {}))
        found = made.log_prob(torch.full((3,), y))
        (slope,) = torch.autograd.grad(found.sum(), eta)
        assert found.isfinite().all()
        assert slope.isfinite().all()
    if link == "cloglog":
        share = FAMILIES["bernoulli"].distribution(Predicted(eta, link, {})).probs
        assert float(share[2].detach()) == pytest.approx(-np.expm1(-np.exp(1e-3)))


@pytest.mark.parametrize("link", FAMILIES["ordinal"].links)
def test_a_level_far_off_keeps_its_digits_on_both_sides(link: str) -> None:
    """The same for a latent number far above and far below, between thresholds about zero."""
    thresholds = {"thresholds": torch.tensor([-0.5, 0.5])}
    eta = torch.tensor([-60.0, 60.0])
    made = FAMILIES["ordinal"].distribution(Predicted(eta, link, thresholds))
    below, above = made.log_prob(torch.ones(2)).tolist()
    of = stats.norm if link == "probit" else stats.logistic
    gap = of.logsf(60.5) - of.logsf(59.5)
    assert above == pytest.approx(of.logsf(59.5) + np.log1p(-np.exp(gap)))
    assert below == pytest.approx(above)


def test_the_logarithm_of_the_normal_distribution_function_is_scipys() -> None:
    z = np.array([-300.0, -30.0, -5.0, -0.5, 0.0, 0.5, 5.0, 9.0])
    values = torch.tensor(z, requires_grad=True)
    found = log_ndtr(values)
    np.testing.assert_allclose(found.detach(), stats.norm.logcdf(z), rtol=1e-10, atol=1e-300)
    (slope,) = torch.autograd.grad(found.sum(), values)
    expected = np.exp(stats.norm.logpdf(z) - stats.norm.logcdf(z))
    np.testing.assert_allclose(slope, expected, rtol=1e-8, atol=1e-300)


def test_an_interval_of_no_width_has_a_density_and_a_gradient() -> None:
    """A narrow one has the density times its width."""
    location = torch.zeros(2, requires_grad=True)
    tails = FAMILIES["normal"].tails
    assert tails is not None
    lower, upper = torch.tensor([0.5, 0.5]), torch.tensor([0.5 + 1e-6, 0.5])
    made = Censored(dist.Normal(location, 1.0), tails, torch.full((2,), 2.0), upper)
    found = made.log_prob(lower)
    assert float(found[0].detach()) == pytest.approx(
        stats.norm.logpdf(0.5) + np.log(1e-6), abs=1e-4
    )
    (slope,) = torch.autograd.grad(found[0], location)
    assert slope.isfinite().all()
