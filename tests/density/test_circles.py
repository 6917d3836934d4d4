"""Angles: their posterior by quadrature, wherever the circle is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import ive
from torch import Tensor

import elbowroom as er
from elbowroom.density.circles import cut_opposite
from elbowroom.guides.transforms import Circle
from elbowroom.pipeline.fitting import bind_model

ANGLES = np.linspace(-np.pi, np.pi, 4001)[:-1]
RANDOM = np.random.default_rng(0)
BEHIND = np.angle(np.exp(1j * (np.pi + 0.5 * RANDOM.normal(size=8))))


def von_mises(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.VonMises(torch.tensor(0.0), 0.1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.VonMises(mean, 2.0), obs=y)


def vague(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.VonMises(torch.tensor(3.0), 1.0))
    pyro.sample("y", dist.VonMises(mean, 0.5), obs=y[0])


def interval(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Uniform(-torch.pi, torch.tensor(torch.pi)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(torch.cos(mean), 1.0), obs=torch.cos(y))
        pyro.sample("z", dist.Normal(torch.sin(mean), 1.0), obs=torch.sin(y))


def both(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.VonMises(torch.tensor(0.0), 0.1))
    sharpness = pyro.sample("sharpness", dist.Gamma(torch.tensor(2.0), 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.VonMises(mean, sharpness), obs=y)


def of_both(mean: np.ndarray) -> np.ndarray:
    sharpness = np.linspace(0, 25, 2001)[1:, None]
    resultant = np.cos(BEHIND[:, None] - mean).sum(0)
    log_norm = len(BEHIND) * (np.log(ive(0, sharpness)) + sharpness)
    found = np.log(sharpness) - 0.5 * sharpness + sharpness * resultant - log_norm
    return np.logaddexp.reduce(found, 0) + 0.1 * np.cos(mean)


MODELS: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "von Mises": (
        von_mises,
        lambda mean: 0.1 * np.cos(mean) + 2 * np.cos(BEHIND[:, None] - mean).sum(0),
    ),
    "vague": (vague, lambda mean: np.cos(mean - 3) + 0.5 * np.cos(BEHIND[0] - mean)),
    "interval": (interval, lambda mean: np.cos(BEHIND[:, None] - mean).sum(0)),
    "both": (both, of_both),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("von Mises", "both")]


@pytest.mark.parametrize("name", ["vague", "interval", *SLOW])
def test_the_posterior_of_an_angle_is_that_of_quadrature(name: str) -> None:
    model, log_density = MODELS[name]
    fit = er.fit(model, {"y": BEHIND}, seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    drawn = fit.posterior["posterior"]["mean"].values[0]
    assert (np.abs(drawn) <= np.pi + 1e-9).all()
    weights = np.exp(log_density(ANGLES) - log_density(ANGLES).max())
    weights /= weights.sum()
    for measure in (np.cos, np.sin, lambda x: np.cos(2 * x), lambda x: np.sin(2 * x)):
        values = measure(ANGLES)
        mean = (weights * values).sum()
        sd = (weights * (values - mean) ** 2).sum() ** 0.5
        assert measure(drawn).mean() == pytest.approx(mean, abs=4 * sd / 1500**0.5)


def centre(model: Callable[..., Any], y: Any) -> Any:
    problem = bind_model(model, {"y": y}, {})[0]
    transform = problem.space.sites[0].transform
    assert cut_opposite(problem).space.sites[0].transform == transform
    return transform.centre.numpy() if isinstance(transform, Circle) else None


@pytest.mark.parametrize("at", [-3.0, -1.0, 2.5])
@pytest.mark.parametrize("model", [von_mises, interval])
def test_a_circle_is_cut_opposite_its_posterior(model: Any, at: float) -> None:
    found = centre(model, at + 0.1 * RANDOM.normal(size=5))
    assert np.abs(np.angle(np.exp(1j * (found - at)))).max() < 0.3


def test_each_of_several_angles_has_its_own_cut() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            mean = pyro.sample("mean", dist.VonMises(torch.tensor(0.0), 0.1))
            pyro.sample("y", dist.VonMises(mean, 5.0), obs=y)

    at = np.array([-3.0, 0.0, 2.0])
    assert np.abs(np.angle(np.exp(1j * (centre(model, at) - at)))).max() < 0.1


def test_an_interval_that_is_no_circle_stays_one() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Uniform(-torch.pi, torch.tensor(torch.pi)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    assert centre(model, BEHIND) is None


def test_a_circle_maps_one_to_one_with_its_jacobian() -> None:
    circle = Circle(-torch.pi, torch.tensor([3.0, -1.0]).double())
    x = torch.linspace(-4, 4, 10).double()[:, None].expand(10, 2)
    y = circle(x)
    assert torch.allclose(circle.inv(y), x)
    slope = torch.autograd.functional.jacobian(lambda u: circle(u).sum(0), x)
    log_slope = slope.diagonal(dim1=0, dim2=2).abs().log()
    assert torch.allclose(circle.log_abs_det_jacobian(x, y), log_slope)


def test_a_fit_that_is_loaded_has_the_same_coordinates(tmp_path: Path) -> None:
    fit = er.fit(von_mises, {"y": BEHIND}, guide="mean_field", seed=1)
    fit.save(tmp_path / "run")
    loaded = er.load(tmp_path / "run", model=von_mises)
    assert loaded.problem.space.sites[0].transform == fit.problem.space.sites[0].transform
