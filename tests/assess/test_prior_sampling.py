"""The evidence by draws of the prior is that in closed form, and so is what the draws waste."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from elbowroom.assess.prior_sampling import evidence_by_sampling
from elbowroom.guides.sites import read_guide
from elbowroom.pipeline.fitting import bind_model

Y = torch.tensor([0.4, 1.1, 1.9, 0.2, 1.5], dtype=torch.float64)
DRAWS = 20_000


def level(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def exact(y: Tensor) -> None:
    precision = 1 / 4 + len(y)
    pyro.sample("mean", dist.Normal(y.sum() / precision, torch.tensor(precision).rsqrt()))


def found(model: Any, guide: Any, data: Any, draws: int = DRAWS) -> dict[str, dict[str, float]]:
    problem, _, _ = bind_model(model, data, {})
    with problem.session(3):
        sites = read_guide(guide, problem.arguments, problem.space)
        lines = evidence_by_sampling(problem, guide, sites, draws)
    return {line.drawn_from: vars(line) for line in lines}


def test_both_give_the_evidence_and_the_exact_posterior_wastes_nothing() -> None:
    lines = found(level, exact, {"y": Y})
    covariance = np.eye(5) + 4 * np.ones((5, 5))
    truth = multivariate_normal(np.zeros(5), covariance).logpdf(Y.numpy())
    assert lines["guide"]["log_evidence"] == pytest.approx(truth, abs=1e-9)
    assert lines["guide"]["wasted"] == pytest.approx(0, abs=1e-9)
    prior = lines["prior"]
    assert abs(prior["log_evidence"] - truth) < 4 * prior["log_evidence_se"]
    assert 0.003 < prior["log_evidence_se"] < 0.03


def test_what_the_prior_wastes_is_told_by_the_second_moment_of_the_likelihood() -> None:
    """The effective share is E[w]² / E[w²], here by quadrature."""

    def moment(power: int) -> float:
        def at(mean: float) -> float:
            likelihood = norm(mean, 1).pdf(Y.numpy()).prod()
            return float(likelihood**power * norm(0, 2).pdf(mean))

        return quad(at, -10, 10, epsabs=0, limit=200)[0]

    share = moment(1) ** 2 / moment(2)
    prior = found(level, exact, {"y": Y})["prior"]
    assert 1 - prior["wasted"] == pytest.approx(share, rel=0.03)
    assert prior["effective_draws"] == pytest.approx(share * DRAWS, rel=0.03)


def test_discrete_sites_are_summed_over_under_the_prior() -> None:
    """A coin of one of two kinds: the likelihood of a draw has both kinds in it."""

    def model(y: Tensor) -> None:
        share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 3.0))
        with pyro.plate("rows", len(y)):
            kind = pyro.sample("kind", dist.Bernoulli(share), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(kind * 40.0, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("share", dist.Beta(torch.tensor(5.0), 4.0))  # the posterior: 3 of 4 are ones

    y = torch.tensor([40.0, 40.0, 40.0, 0.0])
    lines = found(model, guide, {"y": y}, 1000)
    truth = betaln(5, 4) - betaln(2, 3) + 4 * norm(0, 1).logpdf(0)
    assert lines["guide"]["log_evidence"] == pytest.approx(truth, abs=1e-4)
    prior = lines["prior"]
    assert abs(prior["log_evidence"] - truth) < 4 * prior["log_evidence_se"] < 0.2


def test_rows_with_latents_of_their_own_have_weights_of_their_own() -> None:
    """Twenty rows: together the draws of the prior would carry nothing."""

    def model(y: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=pyro.subsample(y, event_dim=0))

    def guide(y: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            mean = 0.8 * pyro.subsample(y, event_dim=0)
            pyro.sample("z", dist.Normal(mean, math.sqrt(0.2)))

    y = torch.linspace(-1.5, 1.5, 20)
    lines = found(model, guide, {"y": y})
    truth = float(norm(0, math.sqrt(1.25)).logpdf(y.numpy()).sum())
    assert lines["guide"]["log_evidence"] == pytest.approx(truth, abs=1e-4)
    prior = lines["prior"]
    assert abs(prior["log_evidence"] - truth) < 4 * prior["log_evidence_se"] < 0.4


def test_an_improper_prior_leaves_the_guide_alone() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    assert set(found(model, exact, {"y": Y})) == {"guide"}
