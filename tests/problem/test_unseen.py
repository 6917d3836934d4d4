"""Missing observations: by `obs_mask`, by masks, and by a likelihood that does without them."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import elbowroom as er
from elbowroom.errors import DataError, ElbowroomError

RANDOM = np.random.default_rng(0)
Y = RANDOM.normal(2.0, 1.5, 60)
THERE = RANDOM.random(60) < 0.6
X = RANDOM.normal(size=60)


def partly(y: Tensor, there: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y, obs_mask=there)


def complete(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture(scope="module")
def alone() -> Any:
    """The fit of the rows that are there."""
    return er.fit(complete, {"y": Y[THERE]}, seed=1)


def same_posterior(fit: Any, other: Any) -> None:
    assert fit.verdict.trusted
    evidence = fit.diagnostics["log_evidence"], other.diagnostics["log_evidence"]
    assert evidence[0] == pytest.approx(evidence[1], abs=0.02)
    for name in ("mean", "scale"):
        drawn, known = (each.posterior["posterior"][name].values[0] for each in (fit, other))
        assert drawn.mean() == pytest.approx(known.mean(), abs=5 * known.std() / 2000**0.5)
        assert drawn.std() == pytest.approx(known.std(), rel=0.1)


def test_missing_observations_are_those_of_a_fit_without_them(alone: Any) -> None:
    fit = er.fit(partly, {"y": np.where(THERE, Y, 0.0), "there": THERE}, seed=1)
    same_posterior(fit, alone)
    drawn = fit.posterior["posterior"]
    filled = drawn["y"].values[0]
    assert (filled[:, THERE] == Y[THERE]).all()
    # A missing value is distributed as a new one: mean and scale, with their own spread.
    new = filled[:, ~THERE]
    variance = (drawn["scale"].values ** 2).mean() + drawn["mean"].values.var()
    assert new.mean() == pytest.approx(drawn["mean"].values.mean(), abs=0.05)
    assert new.std() == pytest.approx(variance**0.5, rel=0.03)


def test_a_mask_of_the_likelihood_leaves_rows_out(alone: Any) -> None:
    def only_rows(y: Tensor, there: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(y)), poutine.mask(mask=there):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    data = {"y": np.where(THERE, Y, 0.0), "there": THERE}
    same_posterior(er.fit(only_rows, data, seed=1), alone)


def test_a_likelihood_that_does_without_nan_takes_it(alone: Any) -> None:
    def model(y: Tensor) -> None:
        there: Any = ~y.isnan()
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(y)), poutine.mask(mask=there):
            pyro.sample("y", dist.Normal(mean, scale), obs=y.nan_to_num())

    same_posterior(er.fit(model, {"y": np.where(THERE, Y, np.nan)}, seed=1), alone)
    with pytest.raises(DataError, match=r"data\['y'\] has .* NaN .* obs_mask="):
        er.fit(complete, {"y": np.where(THERE, Y, np.nan)}, seed=1)


def test_missing_covariates_are_imputed_from_what_depends_on_them() -> None:
    there = np.arange(60) > 2
    y = 1 + 2 * X + 0.3 * np.random.default_rng(1).normal(size=60)

    def model(x: Tensor, y: Tensor, there: Any) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(x)):
            whole = pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=there)
            pyro.sample("y", dist.Normal(1 + slope * whole, 0.3), obs=y)

    fit = er.fit(model, {"x": np.where(there, X, 0.0), "y": y, "there": there}, seed=1)
    drawn = fit.posterior["posterior"]
    slope = float(drawn["slope"].mean())
    precision = 1 + slope**2 / 0.3**2  # of x given y, by Bayes' rule
    expected = slope * (y[:3] - 1) / 0.3**2 / precision
    assert fit.verdict.trusted
    np.testing.assert_allclose(drawn["x"].values[0, :, :3].mean(0), expected, atol=0.02)
    np.testing.assert_allclose(drawn["x"].values[0, :, :3].std(0), precision**-0.5, rtol=0.1)


def test_a_guide_of_the_users_may_have_the_missing_values_too() -> None:
    def guide(y: Tensor, there: Any) -> None:
        mean = pyro.param("m", torch.tensor(0.0))
        pyro.sample("mean", dist.Normal(mean, 0.2))
        pyro.sample("scale", dist.LogNormal(0.4, 0.1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y_unobserved", dist.Normal(mean, 1.0))

    data = {"y": np.where(THERE, Y, 0.0), "there": THERE}
    fit = er.fit(partly, data, guide, seed=1, steps=20, draws=100)
    assert "mean" in fit.posterior["posterior"]


def test_a_flat_prior_by_a_mask_stays_flat() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(50.0, 1.0).mask(torch.tensor(False)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    drawn = er.fit(model, {"y": Y}, seed=1).posterior["posterior"]["mean"]
    assert float(drawn.mean()) == pytest.approx(Y.mean(), abs=0.02)


def test_a_delta_is_computed_from_the_others() -> None:
    """Each draw has its own value, which has no part in the density."""

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 2.0))
        twice = pyro.sample("twice", dist.Delta(2 * mean))
        sign = pyro.sample("sign", dist.Delta((mean > 0).float()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(twice + 0 * sign, 1.5), obs=y)

    fit = er.fit(model, {"y": Y}, seed=1)
    drawn = fit.posterior["posterior"]
    assert fit.verdict.trusted
    assert (drawn["twice"].values == 2 * drawn["mean"].values).all()
    assert set(np.unique(drawn["sign"].values)) <= {0.0, 1.0}
    precision = len(Y) / 1.5**2 + 1 / 4.0**2  # of twice the mean
    expected = Y.sum() / 1.5**2 / precision
    error = precision**-0.5 / len(drawn["mean"].values[0]) ** 0.5
    assert drawn["twice"].values.mean() == pytest.approx(expected, abs=4 * error)


def test_counts_on_which_nothing_depends_are_predicted() -> None:
    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
        pyro.sample("count", dist.Poisson(3 * rate))
        pyro.sample(
            "several", dist.Binomial(torch.tensor([3.0, 5.0]), torch.tensor(0.5)).to_event(1)
        )
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.tensor([1.0, 3.0, 2.0, 2.0])
    fit = er.fit(model, {"y": y}, seed=1)
    drawn = fit.posterior["posterior"]
    assert fit.verdict.trusted
    # Gamma(10, 5), and a negative binomial of three times its rate.
    size = len(drawn["count"].values[0])
    sd = (3 * 2 + 9 * 2 / 5) ** 0.5
    assert drawn["count"].values.mean() == pytest.approx(3 * 2, abs=4 * sd / size**0.5)
    assert drawn["count"].values.std() == pytest.approx(sd, rel=0.1)


def test_a_count_on_which_the_data_depend_is_no_prediction() -> None:
    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
        count = pyro.sample("count", dist.Poisson(rate))
        pyro.sample("y", dist.Normal(count, 1.0), obs=y)

    with pytest.raises(ElbowroomError, match="'count' is discrete and has infinitely"):
        er.fit(model, {"y": torch.tensor(1.0)}, seed=1)
