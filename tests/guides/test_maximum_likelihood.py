"""The guide `mle`: closed forms, and every likelihood that has no maximum, or is none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.errors import ElbowroomError, OptionError
from elbowroom.problem.score import score

NATS = 0.01
"""By which the likelihood of a stochastic fit may be lower than its maximum."""


def test_a_regression_is_least_squares() -> None:
    formula = "progression ~ bmi + bp"
    fit = er.fit("bayesian_regression", formula=formula, guide="mle", seed=1, draws=100)
    table = er.load_dataset("diabetes")
    design = np.c_[np.ones(len(table)), table["bmi"], table["bp"]]
    coefficients, (squares,), *_ = np.linalg.lstsq(design, table["progression"], rcond=None)
    sigma = (squares / len(table)) ** 0.5
    best = -0.5 * len(table) * (np.log(2 * np.pi * sigma**2) + 1)
    assert best - NATS < fit.diagnostics["log_likelihood"] <= best + 1e-9 * abs(best)
    errors = sigma * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    found = fit.summary()["mean"].to_numpy()
    # So many standard errors cost a Normal likelihood `NATS`.
    assert (np.abs(found[:3] - coefficients) < (2 * NATS) ** 0.5 * errors).all()
    assert fit.verdict.reasons[0] == "The guide is one point, which has no spread."


def test_only_the_priors_are_left_out_and_they_come_back_with_the_run(tmp_path: Any) -> None:
    options: dict[str, Any] = {"formula": "progression ~ bmi", "steps": 50, "draws": 100}
    fit = er.fit("bayesian_regression", guide="mle", seed=1, **options)
    again = er.load(fit.save(tmp_path / "run"))
    for each in (fit, again):
        assert each.problem.posterior is not None
        with each.problem.session(0):
            sites = {name: value[0] for name, value in each.draw(2).sites.items()}
            both = [
                float(score(p.function, p.arguments, sites, p.space).log_joint)
                for p in (each.problem, each.problem.posterior)
            ]
            standard = [sites["standardised_intercept"], sites["standardised_coefficients"]]
            prior = sum(dist.Normal(0.0, 2.5).log_prob(value).sum() for value in standard)
            prior = prior + dist.Exponential(1.0).log_prob(sites["standardised_sigma"])
        assert both[1] - both[0] == pytest.approx(float(prior), abs=1e-9)
        assert "prior" not in each.posterior.children


X = np.linspace(-2, 2, 20)
MIXED = np.array([0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1.0])


def logistic(x: Tensor, y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 3.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=level + slope * x), obs=y)


def product(x: Tensor, y: Tensor) -> None:
    factor = pyro.sample("factor", dist.Normal(0.0, 3.0))
    other = pyro.sample("other", dist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(factor * other.exp() + 0 * x, noise), obs=y)


@pytest.mark.parametrize(
    ("model", "y", "site"),
    [
        pytest.param(logistic, MIXED, None, id="proper"),
        pytest.param(logistic, (X > 0.1) * 1.0, "slope", id="separated"),
        pytest.param(product, X + 3, "factor", id="sites-that-make-up-for-each-other"),
    ],
)
def test_a_likelihood_without_a_maximum_is_seen(
    model: Callable[..., None], y: np.ndarray, site: str | None
) -> None:
    fit = er.fit(model, {"x": X, "y": y}, guide="mle", seed=1, draws=100)
    assert fit.converged
    assert not fit.verdict.trusted
    first = fit.verdict.reasons[0]
    if site is None:
        assert first == "The guide is one point, which has no spread."
    else:
        assert first.startswith("The likelihood has no maximum")
        assert f"along '{site}'" in first
        assert "--guide map" in fit.verdict.advice


def test_a_component_that_closes_in_is_seen() -> None:
    near = np.random.default_rng(0).normal(size=(40, 2))
    data = pd.DataFrame(np.concatenate([near, np.full((3, 2), 20.0)]), columns=["a", "b"])
    options: dict[str, Any] = {"components": 2, "covariance_type": "diagonal", "restarts": 2}
    fit = er.fit("gaussian_mixture", data, "mle", seed=1, steps=400, draws=100, **options)
    assert not fit.converged
    assert fit.verdict.reasons[0].startswith("The likelihood has no maximum")
    assert "along 'standardised_scales'" in fit.verdict.reasons[0]


def grouped(group: Tensor, y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 3.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(level, spread))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def of_a_point(group: Tensor, y: Tensor) -> None:
    level = pyro.param("level", torch.tensor(0.0))
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(level, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def slab(group: Tensor, y: Tensor) -> None:
    wide = pyro.sample("wide", dist.Bernoulli(0.5))
    slope = pyro.sample("slope", dist.Normal(0.0, 0.1 + wide))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * group, 1.0), obs=y)


def of_rows(group: Tensor, y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(scale * z + group, 1.0), obs=y)


def of_points_alone(group: Tensor, y: Tensor) -> None:
    means = pyro.param("means", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.5)).long()
        pyro.sample("y", dist.Normal(means[kind] + group, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        pytest.param(of_points_alone, "no continuous latent to estimate", id="points-alone"),
        pytest.param(grouped, "site 'effect' depends on other latent sites", id="groups"),
        pytest.param(of_a_point, "site 'effect' depends on other", id="point-parameter"),
        pytest.param(slab, "site 'slope' depends on other latent sites", id="discrete"),
        pytest.param(of_rows, "site 'z' has a value for each observation", id="rows"),
    ],
)
def test_what_is_no_prior_is_not_left_out(model: Callable[..., None], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        er.fit(model, {"group": np.arange(20) % 4, "y": X}, guide="mle", seed=1)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("factor_analysis", "or of its bound. Guides to use: exact"),
        ("vae", "or of its bound. Guides to use: encoder"),
        ("hierarchical_normal", "'effects' in hierarchical_normal is not a prior"),
    ],
)
def test_models_without_a_prior_to_leave_out_have_no_such_guide(model: str, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        er.fit(model, guide="mle", seed=1)


@pytest.mark.parametrize("asked", [{"reference": True}, {"fallback": "nuts"}])
def test_there_is_no_reference_without_priors(asked: dict[str, Any]) -> None:
    with pytest.raises(ElbowroomError, match="leaves the priors out"):
        er.fit("bayesian_regression", formula="progression ~ bmi", guide="mle", **asked)
