"""Priors that the data disagree with, beside closed forms and quadrature."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import elbowroom as er
from elbowroom.assess.prior_conflict import Posterior, deviations, prior_conflicts
from elbowroom.density.landscape import explore
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.result import Fit


@dataclass(frozen=True)
class Case:
    """Numbers with a known noise."""

    rows: int = 20
    noise: float = 3.0
    centre: float = 1.0

    @property
    def y(self) -> np.ndarray:
        return self.centre + self.noise * np.random.default_rng(0).normal(size=self.rows)


CASE = Case()


def problem_of(model: Any, data: dict[str, Any]) -> Problem:
    return bind_model(model, data, {})[0]


def at_mode(problem: Problem) -> Posterior:
    found = Posterior.at(explore(problem, 4, 1))
    assert found is not None
    return found


def level(prior: Any) -> Any:
    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", prior)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, CASE.noise), obs=y)

    return model


@pytest.mark.parametrize("width", [0.003, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("away", [-4.0, 0.5])
def test_a_normal_mean_is_as_far_as_the_prior_predictive_says(width: float, away: float) -> None:
    """z is that of the sample's mean under its prior predictive distribution (Box, 1980)."""
    spread = np.hypot(width, CASE.noise / CASE.rows**0.5)
    expected = -away
    location = CASE.y.mean() + away * spread
    problem = problem_of(level(dist.Normal(torch.tensor(location), width)), {"y": CASE.y})
    found = deviations(problem, at_mode(problem))["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    if width in (1.0, 100.0):  # what draws can tell
        exact = 1 / (1 / width**2 + CASE.rows / CASE.noise**2)
        shift = (location / width**2 + CASE.rows * CASE.y.mean() / CASE.noise**2) * exact
        normal = np.random.default_rng(1).normal(shift, exact**0.5, (4000, 1))
        found = deviations(problem, Posterior.of(normal))["mean"]
        np.testing.assert_allclose(found, expected, atol=0.1)


def test_a_prior_that_is_not_normal_is_taken_in_normal_scores() -> None:
    """Beside quadrature over the exact posterior of a rate of counts."""
    y, prior, known = (
        np.full(30, 9.0),
        stats.gamma(8, scale=1 / 2),
        dist.Gamma(torch.tensor(8.0), 2.0),
    )

    def model(y: torch.Tensor) -> None:
        rate = pyro.sample("rate", known)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    exact = stats.gamma(8 + y.sum(), scale=1 / (2 + len(y)))
    at = exact.ppf((np.arange(20_000) + 0.5) / 20_000)
    u = -stats.norm.ppf(prior.sf(at))
    problem = problem_of(model, {"y": torch.as_tensor(y)})
    found = deviations(problem, at_mode(problem))["rate"]
    # The curvature at a mode stands for the posterior: of the order of 1 / counts.
    np.testing.assert_allclose(found, u.mean() / np.sqrt(1 - u.var()), rtol=0.02)


def conflict(fit: Fit) -> str:
    return " ".join(each for each in fit.verdict.reasons if "disagree" in each)


@pytest.mark.parametrize(
    ("priors", "named"),
    [
        ({"bmi": "normal(0, 0.01)"}, "coefficients[bmi], normal(0, 0.01), by"),
        ({"bmi": "student_t(3, 0, 0.1)", "bp": "normal(1, 1)"}, "[bmi], student_t(3, 0, 0.1), by"),
        (
            {"intercept": "normal(0, 1)", "sigma": "exponential(2)"},
            "of intercept, normal(0, 1), by",
        ),
        ({"sigma": "exponential(2)"}, "of sigma, exponential(2), by"),
    ],
)
def test_the_verdict_names_the_quantity_and_its_prior(priors: dict[str, str], named: str) -> None:
    fit = er.fit("bayesian_regression", formula="progression ~ bmi + bp", priors=priors, seed=1)
    assert named in conflict(fit)
    assert fit.verdict.trusted
    assert "[bp]" not in conflict(fit)


def test_priors_that_are_not_the_users_are_left_alone() -> None:
    """Petals separate the classes: the default priors are 5 sd from them."""
    formula, chosen = "species ~ petal_length", {"intercept": "normal(0, 100)"}
    fit = er.fit("bayesian_regression", "iris", formula=formula, priors=chosen, seed=1)
    assert not conflict(fit)
    assert np.abs(deviations(fit.problem, at_mode(fit.problem))["coefficients"]).max() > 4


def test_a_prior_that_does_not_pull_back_does_not_disagree() -> None:
    """An overdispersion that is next to nothing is where an exponential prior is highest."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.normal(size=1000)})
    table["y"] = random.poisson(np.exp(3 + 0.3 * table["x"]))
    for rate, says in ((0.2, ""), (1e7, "of overdispersion, exponential(1e+07), by")):
        fit = er.fit(
            "bayesian_regression", table, formula="y ~ x", family="negative_binomial",
            priors={"overdispersion": f"exponential({rate})"}, seed=1,
        )  # fmt: skip
        assert says in conflict(fit)
        assert bool(conflict(fit)) == bool(says)


def test_effects_that_come_from_a_population_have_no_prior_to_disagree_with() -> None:
    def model(group: torch.Tensor, y: torch.Tensor) -> None:
        with pyro.plate("groups", 5):
            effect = pyro.sample("effect", dist.Normal(torch.zeros(5), scale()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)

    def scale() -> torch.Tensor:
        return pyro.sample("scale", dist.LogNormal(torch.zeros(()), 0.1))

    group = torch.arange(5).repeat_interleave(20)
    y = torch.where(group == 0, 10.0, 0.0) + torch.linspace(-1, 1, 100)
    problem = problem_of(model, {"group": group, "y": y})
    (said,) = prior_conflicts(problem, at_mode(problem))
    assert "scale" in said
    assert "effect" not in said
