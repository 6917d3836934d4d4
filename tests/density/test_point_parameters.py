"""Point parameters at the maximum of their marginal likelihood, beside closed forms."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, nbinom
from torch import Tensor, tensor

import elbowroom as er
from elbowroom.density.density import Density
from elbowroom.density.point_parameters import MARGINAL, Sample, maximise
from elbowroom.engines.fixed_draws.engine import survey
from elbowroom.errors import GuideError
from elbowroom.guides.space import LatentSpace
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated

Y = np.array([1.0, 3.0, -2.0, 4.0, 0.0, 2.0, 5.0, -1.0])
DATA = {"y": torch.tensor(Y)}
COUNTS = np.array([0, 3, 1, 9, 2, 0, 5, 14, 1, 2, 7, 3.0])
STEP = (2 * MARGINAL.near_enough) ** 0.5
"""Standard errors that a gain below `MARGINAL.near_enough` leaves to go."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def spread(y: Tensor) -> None:
    """Normal groups about a mean with a prior, their spread a point parameter."""
    scale = pyro.param("scale", tensor(1.0), constraint=constraints.positive)
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 5.0))
    with pyro.plate("group", len(y)):
        value = pyro.sample("value", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(value, 1.0), obs=y)


def log_marginal(log_scale: float) -> float:
    covariance = 25.0 + np.diag(np.full(len(Y), np.exp(2 * log_scale) + 1.0))
    return float(multivariate_normal(np.zeros(len(Y)), covariance).logpdf(Y))


def rates(y: Tensor) -> None:
    """Poisson counts with Gamma rates: negative binomial together."""
    shape = pyro.param("shape", tensor(1.0), constraint=constraints.positive)
    rate = pyro.param("rate", tensor(1.0), constraint=constraints.positive)
    with pyro.plate("row", len(y)):
        mean = pyro.sample("mean", dist.Gamma(shape, rate))
        pyro.sample("y", dist.Poisson(mean), obs=y)


def test_a_spread_is_at_its_maximum_marginal_likelihood_with_its_standard_error() -> None:
    problem, settings, _ = bind_model(spread, DATA, {})
    landscape = survey(problem, settings.restarts, 0)
    found = landscape.likelihood
    assert found is not None
    assert found.converged
    best = minimize(lambda at: -log_marginal(float(at[0])), [0.0], tol=1e-9)
    h = 1e-3
    curvature = -sum(log_marginal(float(best.x[0]) + d) * w for d, w in ((h, 1), (0, -2), (-h, 1)))
    error = (curvature / h**2) ** -0.5
    assert abs(float(found.values["scale"].log()) - float(best.x[0])) < 2 * STEP * error
    assert float(found.standard_errors["scale"]) == pytest.approx(error, rel=0.15)
    assert found.log_evidence == pytest.approx(-best.fun, abs=0.05)
    assert landscape.best is not None  # of the latents, given that


def test_two_parameters_of_a_negative_binomial() -> None:
    fit = er.fit(rates, {"y": torch.tensor(COUNTS)}, seed=1)
    assert fit.engine == "fixed_draws"
    assert fit.verdict.trusted

    def loss(at: np.ndarray) -> float:
        shape, rate = np.exp(at)
        return -float(nbinom(shape, rate / (1 + rate)).logpmf(COUNTS).sum())

    best = minimize(loss, np.zeros(2), tol=1e-10)
    found = np.log([float(fit.model_parameters[name]) for name in ("shape", "rate")])
    move = found - best.x
    # A quadratic form of the exact curvature: the log likelihood that is left.
    assert loss(found) - best.fun < 4 * MARGINAL.near_enough, move
    assert fit.measures["log_evidence"] == pytest.approx(-best.fun, abs=0.05)
    # Given them, the rates have Gamma posteriors.
    shape, rate = np.exp(found)
    drawn = fit.posterior["posterior"]["mean"].values[0]
    error = 4 / fit.measures["corrected_effective_sample_size"] ** 0.5
    means, sds = (shape + COUNTS) / (rate + 1), (shape + COUNTS) ** 0.5 / (rate + 1)
    assert np.abs((drawn.mean(0) - means) / sds).max() < error
    assert np.abs(np.log(drawn.std(0) / sds)).max() < 2 * error  # skewed tails


def test_a_fit_with_point_parameters_is_kept_and_read_again(tmp_path: Path) -> None:
    fit = er.fit(spread, DATA, seed=1)
    assert any("at the maximum of their marginal likelihood" in note for note in fit.notes)
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run", model=spread)
    assert again.model_parameters["scale"] == fit.model_parameters["scale"]
    np.testing.assert_array_equal(again.predict(seed=3)["mean"], fit.predict(seed=3)["mean"])


def test_guides_of_both_engines_are_compared() -> None:
    result = er.compare(spread, DATA, ["linear_response", "mean_field"], seed=0)
    assert (result.table["error"] == "").all()
    assert {fit.engine for fit in result.fits.values()} == {"fixed_draws"}
    assert (
        result.fits["mean_field"].model_parameters
        == result.fits["linear_response"].model_parameters
    )
    result = er.compare(spread, DATA, ["linear_response", "map"], seed=0, steps=300)
    assert [fit.engine for fit in result.fits.values()] == ["fixed_draws", "svi"]


def test_what_has_no_such_maximum_goes_to_stochastic_gradients() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))

    def regression(x: Tensor, y: Tensor) -> None:
        pyro.module("network", network)
        noise = pyro.sample("noise", dist.LogNormal(tensor(0.0), 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(network(x[:, None])[:, 0], noise), obs=y)

    data = {"x": torch.arange(8.0).double(), "y": torch.tensor(Y)}
    assert er.fit(regression, data, seed=0, steps=20).engine == "svi"


def test_an_evidence_that_is_not_finite_is_said() -> None:
    arguments = {"y": torch.tensor(Y)}
    joint = Density(spread, arguments, LatentSpace.of(spread, arguments), with_parameters=True)

    def nowhere(values: dict[str, Tensor]) -> Sample:
        return Sample(np.full((100, joint.dimension - 1), 1e200), np.zeros(100))

    with pytest.raises(GuideError, match="marginal likelihood is not finite at the initial values"):
        maximise(joint, nowhere)
