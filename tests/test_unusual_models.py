"""Models without data, without latents, or with discrete latents alone are fitted."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor
from torch.distributions import constraints

import elbowroom as er
from elbowroom.errors import DataError, ModelError, OptionError
from elbowroom.problem.enumeration import OneOf

Y = np.array([0.2, 1.5, 2.8])
SWITCH = 0.3
SHARES = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])


def switched(y: Tensor) -> None:
    """Rows of three classes, whose shares a switch tells."""
    switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(SWITCH)))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Categorical(torch.as_tensor(SHARES)[switch.long()]))
        pyro.sample("y", dist.Normal(kind + switch, 1.0), obs=y)


def posterior_by_hand() -> tuple[float, float, np.ndarray]:
    """Log evidence, the probability of the switch, and of each row's class, by enumeration."""
    logs = {}
    for switch, *kinds in itertools.product((0, 1), *[range(3)] * 3):
        prior = np.log(SWITCH if switch else 1 - SWITCH) + np.log(SHARES[switch, kinds]).sum()
        logs[(switch, *kinds)] = prior + norm.logpdf(Y, np.array(kinds) + switch).sum()
    total = logsumexp(list(logs.values()))
    states, weights = np.array(list(logs)), np.exp(np.array(list(logs.values())) - total)
    shares = np.array([weights @ (states[:, 1:] == k) for k in range(3)])  # (kinds, rows)
    return float(total), float(weights @ states[:, 0]), shares


def test_discrete_latents_alone_have_their_exact_posterior() -> None:
    evidence, switch, kinds = posterior_by_hand()
    fit = er.fit(switched, {"y": Y}, seed=1, draws=4000)
    drawn = fit.posterior["posterior"]
    assert fit.verdict.level == "trusted"
    np.testing.assert_allclose(fit.diagnostics["log_evidence"], evidence, rtol=1e-10)
    error = 4 * 0.5 / 4000**0.5
    assert float(drawn["switch"].mean()) == pytest.approx(switch, abs=error)
    for k in range(3):
        found = (drawn["kind"].values[0] == k).mean(0)
        np.testing.assert_allclose(found, kinds[k], atol=error)
    # The joint, which marginals alone do not tell: the mean of the predicted rows.
    means = [sum(kinds[k, i] * k for k in range(3)) + switch for i in range(3)]
    np.testing.assert_allclose(fit.predict()["mean"], means, atol=4 * 1.5 / 4000**0.5)


def test_discrete_latents_are_drawn_together() -> None:
    def model() -> None:
        first = pyro.sample("first", dist.Bernoulli(torch.tensor(0.5)))
        second = pyro.sample("second", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("alike", 10 * (first == second))

    drawn = er.fit(model, seed=1).posterior["posterior"]
    alike = (drawn["first"].values == drawn["second"].values).mean()
    assert alike > 0.999
    assert float(drawn["first"].mean()) == pytest.approx(0.5, abs=0.05)


def test_vectors_among_the_values_of_a_discrete_site() -> None:
    values, shares = torch.eye(3), torch.tensor([0.2, 0.3, 0.5])
    one = OneOf(values, shares)
    torch.testing.assert_close(one.log_prob(values).exp(), shares)
    assert one.sample((5,)).sum(-1).tolist() == [1.0] * 5


def test_maximum_likelihood_without_latents() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.param("mean", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    y = np.random.default_rng(0).normal(2, 3, 100)
    fit = er.fit(model, pd.DataFrame({"y": y}), seed=1)
    assert float(fit.point_parameters["mean"]) == pytest.approx(y.mean(), abs=1e-3)
    assert float(fit.point_parameters["scale"]) == pytest.approx(y.std(), abs=1e-3)
    assert "maximum of their likelihood" in str(fit.verdict)


def test_latents_without_data_have_their_prior() -> None:
    def funnel() -> None:
        scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, (scale / 2).exp()))

    fit = er.fit(funnel, seed=1)
    drawn = fit.posterior["posterior"]
    assert fit.verdict.trusted
    assert abs(fit.diagnostics["log_evidence"]) < 4 * fit.diagnostics["log_evidence_se"]
    assert float(drawn["log_scale"].std()) == pytest.approx(1.0, abs=0.05)
    assert float(drawn["x"].std()) == pytest.approx(np.exp(0.25), abs=0.1)
    with pytest.raises(ModelError, match="no observed site"):
        fit.predict()


def test_a_factor_is_the_whole_likelihood() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("near", -0.5 * (x - y).square().sum())

    fit = er.fit(model, {"y": [1.0, 2.0]}, seed=1)
    drawn = fit.posterior["posterior"]["x"]
    assert fit.verdict.trusted
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.05)  # 3 / (1 + 2)
    assert float(drawn.std()) == pytest.approx(3**-0.5, abs=0.03)


def test_a_model_with_nothing_to_infer_or_without_its_data_is_refused() -> None:
    def fixed(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"nothing to infer.*pyro\.param"):
        er.fit(fixed, {"y": 1.0})
    with pytest.raises(DataError, match="takes y: give it data="):
        er.fit(fixed)


def test_a_fit_by_enumeration_is_saved_and_loaded(tmp_path: Path) -> None:
    fit = er.fit(switched, {"y": Y}, seed=1, draws=200)
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run", model=switched)
    pd.testing.assert_frame_equal(again.predict(), fit.predict())
    assert again.sample(50, seed=3).equals(fit.sample(50, seed=3))


def test_enumeration_of_continuous_latents_is_refused() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(OptionError, match="'x' is continuous"):
        er.fit(model, guide="enumeration")


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_a_start_is_sought_where_the_observations_have_a_density(shift: float) -> None:
    """The posterior of theta is a Pareto of scale max(y) and shape 1 + 3."""

    def model(y: Tensor) -> None:
        bound = pyro.sample("bound", dist.Pareto(0.1, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Uniform(0.0, bound), obs=y)

    y = shift + np.array([1.0, 2.0, 7.0])
    drawn = er.fit(model, {"y": y}, seed=1).posterior["posterior"]["bound"].values
    assert drawn.min() > y.max()
    assert np.median(drawn) == pytest.approx(y.max() * 2**0.25, rel=0.02)
    assert np.quantile(drawn, 0.9) == pytest.approx(y.max() * 10**0.25, rel=0.04)
