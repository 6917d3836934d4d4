"""A posterior that is not proper is seen, and a proper one with a flat top is not taken for one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import elbowroom as er
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.modes import Mode
from elbowroom.density.propriety import endless
from elbowroom.errors import GuideError
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

Y = 1.0 + torch.linspace(-1.0, 1.0, 20, dtype=torch.float64)
Model = Callable[..., Any]


def free(name: str, support: Any = constraints.real) -> Tensor:
    return pyro.sample(name, dist.ImproperUniform(support, (), ()))


def observe(mean: Tensor, y: Tensor) -> None:
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def sum_of_two(y: Tensor) -> None:
    observe(free("a") + free("b"), y)


def product_of_two(y: Tensor) -> None:
    observe(free("a") * free("b"), y)


def of_no_use(y: Tensor) -> None:
    observe(free("a"), y)
    free("c", constraints.positive)


def dummies_and_an_intercept(y: Tensor) -> None:
    group = (torch.arange(len(y)) % 2).to(y.dtype)
    observe(free("a") + free("b") * group + free("c") * (1 - group), y)


def scale_of_one_value(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(free("m"), free("s", constraints.positive)), obs=y[0])


IMPROPER = {
    sum_of_two: {"a", "b"},
    product_of_two: {"a curve that begins in the direction of"},
    of_no_use: {"c"},
    dummies_and_an_intercept: {"a", "b", "c"},
    scale_of_one_value: {"s"},
}


@pytest.mark.parametrize("model", IMPROPER, ids=lambda model: model.__name__)
def test_a_posterior_that_is_not_proper_is_refused_with_the_direction(model: Model) -> None:
    with pytest.raises(GuideError, match="not proper: the log density does not fall along") as seen:
        er.fit(model, {"y": Y}, seed=1)
    said = str(seen.value).split("along ")[1]
    assert all(part in said for part in IMPROPER[model])
    assert "proper prior" in said


def test_a_guide_that_is_asked_for_is_fitted_and_not_trusted() -> None:
    fit = er.fit(sum_of_two, {"y": Y}, guide="mean_field", engine="svi", seed=1, steps=50)
    assert not fit.verdict.trusted
    assert "does not fall along" in str(fit.verdict)


def plateau(y: Tensor) -> None:
    pyro.factor("edge", -torch.relu(free("a").abs() - 5.0).square())


def fourth_power(y: Tensor) -> None:
    pyro.factor("edge", -(free("a") ** 4))


def one_effect(y: Tensor) -> None:
    """Where the scale goes to zero the density has a plateau, whose mass shrinks."""
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
    effect = pyro.sample("effect", dist.Normal(torch.zeros(()), scale))
    observe(0.1 * effect, y)


def effects(y: Tensor) -> None:
    """The same, where it rises without end."""
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
    effect = pyro.sample("effect", dist.Normal(torch.zeros(3), scale).to_event(1))
    observe(0.1 * effect.sum(), y)


def bent(y: Tensor) -> None:
    """The product of two, with priors: the ridge ends."""
    a, b = (pyro.sample(name, dist.Normal(torch.zeros(()), 3.0)) for name in "ab")
    observe(a * b, y)


def schools(y: Tensor) -> None:
    """A centred hierarchy, whose only climbs end at a spike."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 12.0), obs=y[:8])


SDS = {
    # Of exp(-(|x| - 5)²₊): a uniform part of length 10, two half Normals of variance 1/2.
    plateau: ((250 / 3 + torch.pi**0.5 * (25 + 0.5) + 10.0) / (10 + torch.pi**0.5)) ** 0.5,
    # Of exp(-x⁴): Γ(3/4) / Γ(1/4).
    fourth_power: (1.2254167 / 3.6256099) ** 0.5,
}


@pytest.mark.parametrize("model", SDS, ids=lambda model: model.__name__)
def test_a_flat_top_is_not_taken_for_an_end(model: Model) -> None:
    fit = er.fit(model, {"y": Y}, seed=1)
    assert fit.verdict.trusted
    draws = fit.posterior["posterior"]["a"].values.ravel()
    assert abs(draws.std() / SDS[model] - 1) < 5 / len(draws) ** 0.5


@pytest.mark.parametrize("model", [bent, one_effect, effects], ids=lambda model: model.__name__)
def test_a_ridge_that_ends_is_not_taken_for_one_that_does_not(model: Model) -> None:
    fit = er.fit(model, {"y": Y}, seed=1, restarts=2)
    assert "proper" not in str(fit.verdict)


@pytest.mark.parametrize("height", [-1.0, 0.0, 1.5])
@pytest.mark.parametrize("depth", [-20.0, -33.5, -36.0])
@pytest.mark.parametrize("model", [one_effect, effects, schools], ids=lambda model: model.__name__)
def test_a_spike_at_the_scale_of_zero_has_an_end(model: Model, depth: float, height: float) -> None:
    """From the spike, where no mode is."""
    with isolated(0):
        density = Density(model, {"y": Y}, LatentSpace.of(model, {"y": Y}))
        place = 0 if model is not schools else 1
        spike = np.full(density.dimension, height if model is schools else 0.0)
        spike[place] = depth
        end = Mode(spike, float(density.value(spike[None])[0]), None, True)
        assert endless(density, Curvature(density), [end], spike) is None


@pytest.mark.parametrize("depth", [0.0, -3.0, -6.0, -9.0, -12.0])
def test_a_funnel_that_is_narrower_than_differences_has_an_end(depth: float) -> None:
    """Its density rises up to v = -540; its mass is that of a Normal v."""

    def funnel(y: Tensor) -> None:
        v = pyro.sample("v", dist.Normal(torch.zeros(()), 3.0))
        pyro.sample("x", dist.Cauchy(torch.zeros(30), torch.exp(2 * v)).to_event(1))

    with isolated(0):
        density = Density(funnel, {"y": Y}, LatentSpace.of(funnel, {"y": Y}))
        place = np.zeros(density.dimension)
        place[0] = depth
        end = Mode(place, float(density.value(place[None])[0]), None, True)
        assert endless(density, Curvature(density), [end], place) is None


@pytest.mark.parametrize(("power", "proper"), [(0.5, False), (1.0, True)])
def test_a_tail_has_an_integral_where_it_falls_faster_than_the_distance(
    power: float, proper: bool
) -> None:
    """(1 + a²)^-power: of the power 1 the integral is π, of 1/2 there is none."""

    def model(y: Tensor) -> None:
        pyro.factor("tail", -power * torch.log1p(free("a").square()))

    with isolated(0):
        density = Density(model, {"y": Y}, LatentSpace.of(model, {"y": Y}))
        top = Mode(np.zeros(1), 0.0, None, True)
        found = endless(density, Curvature(density), [top], np.zeros(1))
    assert (found is None) == proper
