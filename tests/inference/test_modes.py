"""Where a fit begins, on models whose mode, curvature and evidence are known."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom.guides.space import LatentSpace
from elbowroom.inference import mode
from elbowroom.inference.isolation import isolated
from elbowroom.inference.mode import LogDensity, find_mode, find_start

PRIOR_MEAN, PRIOR_SD, NOISE_SD = 1.0, 2.0, 0.5
GRADIENT_ERROR = 1e-5
"""Of a mode found with a Newton decrement below 1e-6 nats, in posterior standard deviations; and
of a Hessian by central differences of step 1e-4, relative."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def conjugate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.tensor(PRIOR_MEAN), PRIOR_SD))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, NOISE_SD), obs=y)


def branching(y: Tensor) -> None:
    """The same density, by a branch on a latent value that no tracer can follow."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor(PRIOR_MEAN), PRIOR_SD))
    shift = 0.0 if mean.item() > 0 else 1.0
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean + shift - shift, NOISE_SD), obs=y)


DATA = torch.tensor([0.1, 2.0, 1.4, 0.7, -0.5], dtype=torch.float64)


def log_density(model: Callable[..., Any], arguments: dict[str, Any]) -> LogDensity:
    return LogDensity(model, arguments, LatentSpace.of(model, arguments))


@pytest.mark.parametrize("model", [conjugate, branching])
def test_mode_precision_and_evidence_of_a_normal_are_exact(model: Callable[..., Any]) -> None:
    found = find_mode(log_density(model, {"y": DATA}), np.array([-3.0]))
    precision = 1 / PRIOR_SD**2 + len(DATA) / NOISE_SD**2
    mode = (PRIOR_MEAN / PRIOR_SD**2 + float(DATA.sum()) / NOISE_SD**2) / precision
    marginal = dist.MultivariateNormal(
        torch.full((len(DATA),), PRIOR_MEAN),
        NOISE_SD**2 * torch.eye(len(DATA)) + PRIOR_SD**2,
    )
    assert abs(found.location[0] - mode) * precision**0.5 < GRADIENT_ERROR
    assert found.precision is not None
    assert found.precision[0, 0] == pytest.approx(precision, rel=GRADIENT_ERROR)
    assert found.log_evidence == pytest.approx(float(marginal.log_prob(DATA)), abs=1e-6)


def test_the_log_density_counts_the_jacobian() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(torch.tensor(2.0), 3.0))
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    u, y = torch.tensor([0.4]), torch.tensor(1.2)
    scale = u.exp()
    wanted = dist.Gamma(2.0, 3.0).log_prob(scale) + dist.Normal(0.0, scale).log_prob(y) + u
    torch.testing.assert_close(log_density(model, {"y": y})(u), wanted[0])


@pytest.mark.parametrize("model", [conjugate, branching])
def test_traced_gradients_are_autograds_away_from_where_they_were_traced(
    model: Callable[..., Any],
) -> None:
    density = log_density(model, {"y": DATA})
    density.value_and_gradient(np.zeros((3, 1)))
    points = np.array([[-2.0], [0.5], [4.0]])
    values, gradients = density.value_and_gradient(points)
    for point, value, gradient in zip(points, values, gradients, strict=True):
        u = torch.tensor(point, requires_grad=True)
        wanted = density(u)
        assert value == pytest.approx(wanted.item(), rel=1e-12)
        assert gradient == pytest.approx(torch.autograd.grad(wanted, u)[0].numpy(), rel=1e-10)


def test_badly_scaled_predictors_are_found() -> None:
    random = np.random.default_rng(0)
    x = torch.tensor(random.normal(size=(60, 3)) * [1e4, 1.0, 1e-3] + [5e4, 0.0, 0.0])
    coefficients = torch.tensor([2e-4, 1.0, 800.0])
    y = x @ coefficients + torch.tensor(random.normal(size=60))

    def model(x: Tensor, y: Tensor) -> None:
        flat = dist.Normal(torch.zeros(3), 1.0).mask(False)
        slopes = pyro.sample("slopes", flat.to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    found = find_mode(log_density(model, {"x": x, "y": y}), np.zeros(3))
    exact = torch.linalg.solve(x.mT @ x, x.mT @ y).numpy()
    sd = torch.linalg.inv(x.mT @ x).diagonal().sqrt().numpy()
    assert found.precision is not None
    assert (np.abs(found.location - exact) / sd).max() < 1e-3
    np.testing.assert_allclose(found.precision, (x.mT @ x).numpy(), rtol=1e-4, atol=1e-6)


def two_modes(y: Tensor) -> None:
    """A mode with 0.02 of the mass at -2, the other at 1.5."""
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
    parts = torch.stack(
        [
            dist.Normal(-2.0, 0.3).log_prob(x) + torch.tensor(0.02).log(),
            dist.Normal(1.5, 0.3).log_prob(x) + torch.tensor(0.98).log(),
        ]
    )
    pyro.factor("density", parts.logsumexp(0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_restarts_choose_the_better_of_two_modes() -> None:
    arguments = {"y": torch.tensor(0.0)}
    space = LatentSpace.of(two_modes, arguments)
    trap = [{"x": torch.tensor(-2.1)}]
    alone, reached = find_start(two_modes, arguments, space, trap, 1, 0)
    assert float(alone.location) == pytest.approx(-2.0, abs=1e-3)
    assert len(reached) == 1
    better, reached = find_start(two_modes, arguments, space, trap, 4, 0)
    assert float(better.location) == pytest.approx(1.5, abs=1e-3)
    # Laplace's evidence of each mode is its mass, since the modes are Normal and far apart.
    mass = np.log(0.98) - 0.5 * np.log(2 * np.pi)
    assert max(reached) == pytest.approx(mass, abs=1e-4)
    assert len(reached) == 4


def test_a_flat_direction_has_no_precision() -> None:
    def model(y: Tensor) -> None:
        flat = dist.Normal(torch.zeros(2), 1.0).mask(False)
        parts = pyro.sample("parts", flat.to_event(1))
        pyro.sample("y", dist.Normal(parts.sum(), 1.0), obs=y)

    arguments = {"y": torch.tensor(1.0)}
    found = find_mode(log_density(model, arguments), np.zeros(2))
    assert found.precision is None
    assert found.log_evidence == -np.inf
    start, _ = find_start(model, arguments, LatentSpace.of(model, arguments), [], 1, 0)
    assert start.precision is None
    assert torch.isfinite(start.location).all()


def test_a_density_that_is_nowhere_finite_begins_at_the_origin() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("broken", x * torch.tensor(float("nan")))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    arguments = {"y": torch.tensor(1.0)}
    start, reached = find_start(model, arguments, LatentSpace.of(model, arguments), [], 1, 0)
    assert start.location.tolist() == [0.0]
    assert start.precision is None
    assert reached == []


def test_a_climb_that_stops_early_is_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimiser that does not move: the curvature there is not that of a mode."""

    def stuck(loss: Callable[..., Any], start: np.ndarray, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(x=start, fun=loss(start)[0])

    density = log_density(conjugate, {"y": DATA})
    assert find_mode(density, np.array([-3.0])).precision is not None
    monkeypatch.setattr(mode, "minimize", stuck)
    found = find_mode(density, np.array([-3.0]))
    assert found.precision is None
    assert found.log_evidence == -np.inf
