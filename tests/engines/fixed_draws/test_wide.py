"""Linear response by conjugate gradients, where the covariance is too large to be held whole."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, tensor

import elbowroom as er
from elbowroom.density import landscape
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.engines.fixed_draws import engine as deterministic
from elbowroom.engines.fixed_draws import wide
from elbowroom.engines.fixed_draws.objectives import Coordinates
from elbowroom.engines.fixed_draws.optima import Draws, linear_response
from elbowroom.engines.fixed_draws.wide import WIDE_RESPONSE, chosen_coordinates, respond
from elbowroom.errors import GuideError, OptionError
from elbowroom.guides.space import LatentSpace
from elbowroom.pipeline import fitting, ladder
from elbowroom.problem.isolation import isolated
from elbowroom.sizes import SIZES

GROUPS, SIGMA, SPREAD = 8, 0.5, 0.8
Y = np.array([1.0, -0.5, 2.0, 0.3, 4.0, 1.1, -0.2, 0.4])
DIFFERENCES = 1e-5
"""Of conjugate gradients to a residual of 1e-6, in numbers of order one."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every model of more than three dimensions for too large."""
    for module in (deterministic, fitting, ladder, landscape):
        monkeypatch.setattr(module, "SIZES", replace(SIZES, dense=3))
    monkeypatch.setattr(ladder, "RUNGS", replace(ladder.RUNGS, flow=3))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def normal(y: Tensor) -> None:
    """Normal groups of a known spread about a mean: the posterior is Normal."""
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 2.0))
    with pyro.plate("group", len(y)):
        value = pyro.sample("value", dist.Normal(mean, SPREAD))
        pyro.sample("y", dist.Normal(value, SIGMA), obs=y)


def posterior(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its mean and covariance."""
    size = len(y)
    design = np.hstack([np.ones((size, 1)), -np.eye(size)]) / SPREAD
    data = np.hstack([np.zeros((size, 1)), np.eye(size)]) / SIGMA
    precision = design.T @ design + data.T @ data
    precision[0, 0] += 1 / 4
    covariance = np.linalg.inv(precision)
    return covariance @ data.T @ y / SIGMA, covariance


def counts(y: Tensor) -> None:
    """Poisson counts with a rate for each group, about a mean with a spread."""
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 1.0))
    spread = pyro.sample("spread", dist.LogNormal(tensor(0.0), 0.3))
    with pyro.plate("group", len(y)):
        value = pyro.sample("value", dist.Normal(mean, spread))
        pyro.sample("y", dist.Poisson(6 * value.exp()), obs=y)


def two_modes(y: Tensor) -> None:
    """A square is observed: its root may be of either sign."""
    value = pyro.sample("value", dist.Normal(torch.zeros(4), 3.0).to_event(1))
    pyro.sample("y", dist.Normal(value.square(), 0.5).to_event(1), obs=y)


def density_of(model: object, y: np.ndarray) -> Density:
    arguments = {"y": torch.tensor(y)}
    return Density(model, arguments, LatentSpace.of(model, arguments))  # type: ignore[arg-type]


def test_a_hierarchy_of_normals_has_its_whole_covariance_through_what_the_groups_share() -> None:
    density = density_of(normal, Y)
    curvature = Curvature(density)
    chosen = chosen_coordinates(density.space, curvature, None)
    assert chosen.tolist() == [0]
    random = np.random.default_rng(0)
    found = respond(density, curvature, np.zeros((1, GROUPS + 1)), chosen, random, Draws(8, 8))
    mean, covariance = posterior(Y)
    assert found.reached
    assert found.normal.mean == pytest.approx(
        mean, abs=1e-4
    )  # half its squared gradient is 1e-4 nats
    whole = found.normal.covariance(np.arange(GROUPS + 1))
    assert whole == pytest.approx(covariance, rel=2 * WIDE_RESPONSE.remainder, abs=DIFFERENCES)


@pytest.mark.parametrize("chosen", [[0], [0, 1], [1, 4, 3]])
def test_the_columns_are_those_of_the_dense_linear_response(chosen: list[int]) -> None:
    density = density_of(counts, np.random.default_rng(1).poisson(9.0, 5).astype(float))
    curvature = Curvature(density)
    size, indices = density.dimension, np.array(chosen)
    start = np.zeros((1, size))
    draws = Draws(16, 16)
    random = np.random.default_rng(2)
    found = respond(density, curvature, start, indices, random, draws)
    scales = Coordinates(start[0], np.full(size, 0.5))
    dense = linear_response(density, curvature, scales, np.random.default_rng(2), draws)
    assert dense is not None
    assert found.normal.mean == pytest.approx(dense.mean, abs=2e-3)
    whole = found.normal.covariance(np.arange(size))
    assert whole[:, indices] == pytest.approx(dense.covariance[:, indices], rel=2e-3, abs=2e-4)
    if chosen == [0, 1]:  # what the groups share; else the error is one of guessed answers
        assert found.errors.mean == pytest.approx(dense.errors.mean, rel=0.2)
    assert found.errors.mean > 0.8 * dense.errors.mean


def test_starts_that_reach_another_optimum_are_counted() -> None:
    density = density_of(two_modes, np.full(4, 4.0))
    starts = np.array([[1.0, 1.0, 1.0, 1.0], [1.5, 2.0, 1.0, 3.0], [-1.0, 1.0, 1.0, 1.0]])
    none = np.zeros(0, dtype=int)
    random = np.random.default_rng(0)
    found = respond(density, Curvature(density), starts, none, random, Draws(16, 16))
    assert found.tried == 3
    assert found.agreeing in (1, 2)  # the two optima are as good
    np.testing.assert_allclose(np.abs(found.normal.mean), 2.0, atol=0.1)
    assert not found.normal.factor.any()


def test_no_finite_start_is_an_error() -> None:
    density = density_of(normal, Y)
    starts = np.full((2, GROUPS + 1), 1e200)
    none = np.zeros(0, dtype=int)
    with pytest.raises(GuideError, match="the ELBO is not finite at any start"):
        respond(density, Curvature(density), starts, none, np.random.default_rng(0), Draws(8, 8))


def test_conditional_scales_are_exact_with_few_probes_and_near_with_random_signs() -> None:
    density = density_of(counts, np.random.default_rng(1).poisson(9.0, 20).astype(float))
    curvature, point = Curvature(density), np.full(density.dimension, 0.3)
    (precision,) = curvature(point[None])
    exact = 1 / np.sqrt(np.abs(np.diag(precision)))
    np.testing.assert_allclose(curvature.conditional_scales(point[None]), exact, rtol=1e-5)
    off = precision - np.diag(np.diag(precision))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("elbowroom.density.curvature.SIZES", replace(SIZES, products=1))
        guessed = curvature.guessed_scales(point)
    # The variance of a diagonal element over 32 directions is the squared rest of its row over 32.
    error = np.sqrt(np.square(off).sum(1) / 32)
    assert (np.abs(guessed**-2 - np.abs(np.diag(precision))) < 5 * error + 1e-4).all()


@pytest.mark.usefixtures("narrow")
def test_a_wide_model_is_fitted_trusted_and_kept(tmp_path: Path) -> None:
    fit = er.fit(normal, {"y": torch.tensor(Y)}, seed=1)
    assert fit.guide.name == "linear_response"
    assert fit.verdict.trusted
    assert fit.evidence.modes.starts == (2, 2)
    mean, covariance = posterior(Y)
    error = 4 / fit.measures["corrected_effective_sample_size"] ** 0.5
    drawn = fit.posterior["posterior"]
    values = np.concatenate([drawn["mean"].values[0][:, None], drawn["value"].values[0]], axis=1)
    sds = np.sqrt(np.diag(covariance))
    assert np.abs((values.mean(0) - mean) / sds).max() < error
    assert np.abs(np.log(values.std(0) / sds)).max() < error
    # The guide itself is that Normal, since the posterior is one.
    own = fit.draw(4000, seed=2)
    assert float(own.log_weights.std()) < 0.1
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run", model=normal)
    assert again.start.scale is not None
    torch.testing.assert_close(again.start.scale, fit.start.scale)
    np.testing.assert_allclose(again.predict(seed=3)["mean"], fit.predict(seed=3)["mean"])


@pytest.mark.usefixtures("narrow")
def test_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"y": torch.tensor(Y)}
    with pytest.raises(OptionError, match="--correlated nothing: the model has no such latent"):
        er.fit(normal, data, guide="linear_response", correlated="mean,nothing", seed=0)
    with pytest.raises(OptionError, match="9 latent dimensions, more than 3"):
        er.fit(normal, data, guide="full_rank", engine="fixed_draws", seed=0)
    monkeypatch.setattr(wide, "WIDE_RESPONSE", replace(wide.WIDE_RESPONSE, most_products=1))
    with pytest.raises(GuideError, match="conjugate gradients did not converge"):
        er.fit(normal, data, guide="linear_response", seed=0)
    fit = er.fit(normal, data, seed=0)
    assert fit.guide.name == "markov"
    assert any("conjugate gradients did not converge" in note for note in fit.notes)


def test_correlated_has_no_use_where_all_covariances_are_held() -> None:
    with pytest.raises(OptionError, match="few enough for all covariances; leave it out"):
        er.fit(normal, {"y": torch.tensor(Y)}, correlated="mean", seed=0)
