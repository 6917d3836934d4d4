"""Blocks of coordinates given the others, where their conditional distributions are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.special import gammaln
from scipy.stats import multivariate_normal
from torch import Tensor, tensor

import elbowroom as er
from elbowroom.density.conditional import Conditional, Split, split_of
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.refining import REFINEMENT, sampled
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

Model = Callable[..., Any]
ERRORS = 4.0
LOG_2PI = float(np.log(2 * np.pi))
GROUPS, SIGMA = 5, 0.5
Y = np.array([1.0, -0.5, 2.0, 0.3, 4.0])


def density_of(model: Model, **arguments: Any) -> Density:
    with isolated(0, dtype=torch.float64):
        return Density(model, arguments, LatentSpace.of(model, arguments))


def groups(y: Tensor) -> None:
    """Normal groups about a mean with a spread, (mean, log spread, groups)."""
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 2.0))
    spread = pyro.sample("spread", dist.LogNormal(tensor(0.0), 1.0))
    with pyro.plate("group", GROUPS):
        value = pyro.sample("value", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(value, SIGMA), obs=y)


def curve(y: Tensor) -> None:
    """A random walk with a scale: its values depend on each other."""
    scale = pyro.sample("scale", dist.LogNormal(tensor(0.0), 1.0))
    steps = pyro.sample("steps", dist.Normal(torch.zeros(GROUPS), scale).to_event(1))
    pyro.sample("y", dist.Normal(steps.cumsum(-1), SIGMA).to_event(1), obs=y)


def counts(y: Tensor) -> None:
    """Poisson counts with a rate for each group: conditionals that are not Normal."""
    spread = pyro.sample("spread", dist.LogNormal(tensor(0.0), 0.5))
    with pyro.plate("group", len(y)):
        value = pyro.sample("value", dist.Normal(tensor(0.0), spread))
        pyro.sample("y", dist.Poisson(value.exp()), obs=y)


def plain(y: Tensor) -> None:
    """Scalars alone: nothing parts."""
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 2.0))
    pyro.sample("spread", dist.LogNormal(tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([GROUPS]).to_event(1), obs=y)


def conditional_of(model: Model, y: np.ndarray, **changed: Any) -> Conditional:
    density = density_of(model, y=torch.tensor(y))
    split = split_of(Curvature(density))
    assert split is not None
    return Conditional(density, split, np.zeros(density.dimension), **changed)


@pytest.mark.parametrize(
    ("model", "shared", "blocks"),
    [(groups, [0, 1], [[2], [3], [4], [5], [6]]), (curve, [0], [[1, 2, 3, 4, 5]])],
)
def test_plates_part_into_elements_and_vectors_stay_whole(
    model: Model, shared: list[int], blocks: list[list[int]]
) -> None:
    split = conditional_of(model, Y).split
    assert split.shared.tolist() == shared
    assert split.blocks.tolist() == blocks


def test_scalars_do_not_part() -> None:
    assert split_of(Curvature(density_of(plain, y=torch.tensor(Y)))) is None


def truth(model: Model, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of the blocks given the shared coordinates; log p(shared, y)."""
    if model is groups:
        mean, log_spread = shared
        prior = np.exp(2 * log_spread) * np.eye(GROUPS)
        centre, design = np.full(GROUPS, mean), np.eye(GROUPS)
        log_prior = -0.5 * (mean / 2) ** 2 - np.log(2) - 0.5 * LOG_2PI
    else:
        (log_spread,) = shared
        prior = np.exp(2 * log_spread) * np.eye(GROUPS)
        centre, design = np.zeros(GROUPS), np.tril(np.ones((GROUPS, GROUPS)))
        log_prior = 0.0
    log_prior += -0.5 * log_spread**2 - 0.5 * LOG_2PI
    marginal = design @ prior @ design.T + SIGMA**2 * np.eye(GROUPS)
    gain = prior @ design.T @ np.linalg.inv(marginal)
    mean = centre + gain @ (Y - design @ centre)
    log_marginal = multivariate_normal(design @ centre, marginal).logpdf(Y)
    return mean, prior - gain @ design @ prior, log_prior + log_marginal


@pytest.mark.parametrize("model", [groups, curve])
@pytest.mark.parametrize("log_spread", [-3.0, 0.0, 2.0])
def test_conditional_modes_and_precisions_are_exact_where_they_are_normal(
    model: Model, log_spread: float
) -> None:
    conditional = conditional_of(model, Y)
    shared = np.array([0.7, log_spread] if model is groups else [log_spread])
    points, factors = conditional.settled(conditional.begin(shared[None]))
    mean, covariance, _ = truth(model, shared)
    sds = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(points[0, len(shared) :] - mean) / sds, 1e-5)
    count, size = conditional.split.blocks.shape
    found = np.zeros((count * size, count * size))
    for block, factor in enumerate(factors[0]):
        rows = slice(block * size, (block + 1) * size)
        found[rows, rows] = factor @ factor.T
    np.testing.assert_allclose(found @ covariance, np.eye(GROUPS), atol=1e-5)


@pytest.mark.parametrize("model", [groups, curve])
def test_what_is_drawn_has_the_density_that_is_said(model: Model) -> None:
    """The mean of p(shared, blocks, y) / q(blocks) is p(shared, y), whatever q is."""
    conditional = conditional_of(model, Y)
    shared = np.array([0.7, 0.4] if model is groups else [0.4])
    points, log_q = conditional.complete(np.tile(shared, (4000, 1)), np.random.default_rng(1))
    np.testing.assert_array_equal(points[:, : len(shared)], np.tile(shared, (4000, 1)))
    weights = np.exp(conditional.density.value(points) - log_q - truth(model, shared)[2])
    assert abs(weights.mean() - 1) < ERRORS * weights.std() / len(weights) ** 0.5
    assert weights.std() < 0.5
    mean, covariance, _ = truth(model, shared)
    drawn = weights @ points[:, len(shared) :] / weights.sum()
    effective = weights.sum() ** 2 / np.square(weights).sum()
    assert (np.abs(drawn - mean) < ERRORS * np.sqrt(np.diag(covariance) / effective)).all()


def test_poisson_groups_given_their_spread_have_their_exact_evidence() -> None:
    y = np.array([0.0, 1.0, 7.0, 40.0])
    conditional = conditional_of(counts, y)
    spread = 0.8
    points, log_q = conditional.complete(
        np.full((4000, 1), np.log(spread)), np.random.default_rng(2)
    )

    def joint(value: float, count: float) -> float:
        log_p = -0.5 * (value / spread) ** 2 - np.log(spread) - 0.5 * LOG_2PI
        return float(np.exp(log_p + count * value - np.exp(value) - gammaln(count + 1)))

    evidence = sum(np.log(quad(joint, -6, 6, args=(count,))[0]) for count in y)
    prior = -0.5 * (np.log(spread) / 0.5) ** 2 - np.log(0.5) - 0.5 * LOG_2PI
    weights = np.exp(conditional.density.value(points) - log_q - evidence - prior)
    assert abs(weights.mean() - 1) < ERRORS * weights.std() / len(weights) ** 0.5
    assert weights.std() < 0.5


def test_a_search_that_begins_far_off_or_curved_the_wrong_way_still_gains() -> None:
    def two_hills(y: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(tensor(0.0), 0.1))
        with pyro.plate("element", 3):
            x = pyro.sample("x", dist.Normal(tensor(0.0), 10.0))
            pyro.factor("hills", -((x**2 - 4) ** 2))
        pyro.sample("y", dist.Normal(tensor(0.0), 1.0), obs=y)

    density = density_of(two_hills, y=tensor(0.0, dtype=torch.float64))
    split = Split(np.array([0]), np.array([[1], [2], [3]]))
    conditional = Conditional(density, split, np.array([0.0, 0.1, -0.3, 30.0]))
    points, factors = conditional.settled(conditional.begin(np.zeros((1, 1))), iterations=50)
    np.testing.assert_allclose(points[0, 1:], [2, -2, 2], atol=0.01)
    np.testing.assert_allclose(factors.ravel() ** 2, 32, rtol=0.05)


def test_points_without_a_density_stay_and_spoil_no_other() -> None:
    def edged(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.Normal(tensor(0.0), 1.0))
        with pyro.plate("element", 2):
            x = pyro.sample("x", dist.Normal(scale.sqrt(), 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with isolated(0, dtype=torch.float64, validate=False):
        arguments = {"y": torch.zeros(2, dtype=torch.float64)}
        density = Density(edged, arguments, LatentSpace.of(edged, arguments))
        split = Split(np.array([0]), np.array([[1], [2]]))
        conditional = Conditional(density, split, np.zeros(3))
        points, factors = conditional.settled(conditional.begin(np.array([[-1.0], [4.0]])))
    np.testing.assert_array_equal(points[0], [-1, 0, 0])
    np.testing.assert_array_equal(factors[0], np.ones((2, 1, 1)))
    np.testing.assert_allclose(points[1], [4, 1, 1], atol=1e-6)


def test_nested_draws_have_the_exact_evidence_and_moments() -> None:
    """The shared coordinates from a poor start, the groups given them."""
    conditional = conditional_of(groups, Y)
    split = conditional.split
    size = len(split.shared)
    first = Mixture.of(np.ones(1), np.zeros((1, size)), np.eye(size)[None])
    random = np.random.default_rng(3)
    importance = AdaptiveImportance(conditional.density, first, random, conditional=conditional)
    importance.run()
    assert importance.settled
    grid = np.linspace(-6, 4, 101)
    means = np.linspace(-8, 10, 101)
    log_p = np.array([[truth(groups, np.array([m, s]))[2] for s in grid] for m in means])
    cell = (grid[1] - grid[0]) * (means[1] - means[0])
    mass = np.exp(log_p - log_p.max())
    log_evidence = np.log(mass.sum() * cell) + log_p.max()
    weights = np.exp(importance.log_weights - log_evidence)
    assert abs(weights.mean() - 1) < ERRORS * weights.std() / len(weights) ** 0.5
    mass /= mass.sum()
    for column, at in ((0, means[:, None]), (1, grid[None, :])):
        mean = (mass * at).sum()
        sd = ((mass * (at - mean) ** 2).sum()) ** 0.5
        found = importance.weights @ importance.points[:, column]
        assert abs(found - mean) < ERRORS * sd / importance.effective_sample_size**0.5


def test_fresh_draws_are_the_same_after_a_reload(tmp_path: Path) -> None:
    fit = er.fit(groups, data={"y": torch.tensor(Y)}, guide="linear_response", seed=2)
    assert fit.proposal is not None
    assert fit.proposal.blocks is not None
    drawn = fit.sample(50, seed=3)
    for name in ("mean", "spread", "value"):
        assert np.isfinite(drawn[name].values).all()
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run", model=groups)
    for name in ("mean", "spread", "value"):
        np.testing.assert_array_equal(again.sample(50, seed=3)[name].values, drawn[name].values)


def test_several_components_follow_a_bent_density() -> None:
    """A banana, whose log evidence and moments are known: one Normal does not fit it."""

    def banana(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(tensor(0.0), 1.0))
        pyro.sample("z", dist.Normal(x**2, 0.3))
        pyro.sample("y", dist.Normal(tensor(0.0), 1.0), obs=y)

    density = density_of(banana, y=tensor(0.0, dtype=torch.float64))
    first = Mixture.of(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    found = sampled(density, Curvature(density), first, np.random.default_rng(1))
    assert found.k_hat < 0.5
    assert found.shares() == pytest.approx((1.0,))
    assert len(found.modes) >= REFINEMENT.parts
    weights = np.exp(found.log_weights + 0.5 * LOG_2PI)
    assert abs(weights.mean() - 1) < ERRORS * weights.std() / len(weights) ** 0.5
    effective = found.effective_sample_size
    mean = found.weights @ found.points
    assert (np.abs(mean - [0, 1]) < ERRORS * np.array([1, 2.09**0.5]) / effective**0.5).all()
    alone = AdaptiveImportance(density, first, np.random.default_rng(1))
    alone.run()
    efficiency = alone.effective_sample_size / len(alone.log_weights)
    assert effective / len(found.log_weights) > 1.5 * efficiency


def test_modes_within_the_blocks_are_not_lost() -> None:
    """The conditional distribution of z has two modes, and a search finds one of them."""

    def two_hills(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(tensor(0.0), 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 50.0).to_event(1))
        hills = [dist.Normal(at, 0.5 * scale).log_prob(z).sum(-1) for at in (20.0, -20.0)]
        shares = tensor([0.6, 0.4]).log()
        pyro.factor("hills", torch.logaddexp(shares[0] + hills[0], shares[1] + hills[1]))
        pyro.sample("y", dist.Normal(tensor(0.0), 1.0), obs=y)

    fit = er.fit(two_hills, data={"y": tensor(0.0)}, guide="linear_response", seed=1)
    assert fit.origin == "corrected"
    above = (fit.posterior["posterior"]["z"].values[0, :, 0] > 0).mean()
    worth = fit.measures["corrected_effective_sample_size"]
    assert abs(above - 0.6) < ERRORS * (0.24 / worth) ** 0.5


def test_a_density_that_is_nowhere_finite_ends_without_an_error() -> None:
    def nowhere(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("none", torch.where(x.sum(-1) > 1e9, 0.0, -torch.inf))
        pyro.sample("y", dist.Normal(tensor(0.0), 1.0), obs=y)

    density = density_of(nowhere, y=tensor(0.0, dtype=torch.float64))
    first = Mixture.of(np.ones(1), np.zeros((1, 3)), np.eye(3)[None])
    with np.errstate(all="ignore"):
        found = sampled(density, Curvature(density), first, np.random.default_rng(1))
    assert not found.settled


def test_few_effective_draws_are_no_error() -> None:
    """A target far narrower and elsewhere: a handful of draws have all the weight."""

    def far(y: Tensor) -> None:
        x = pyro.sample("x", dist.StudentT(1.0, torch.full((15,), 4.0), 0.05).to_event(1))
        pyro.sample("y", dist.Normal(0.0 * x.sum(), 1.0), obs=y)

    density = density_of(far, y=tensor(0.0, dtype=torch.float64))
    first = Mixture.of(np.ones(1), np.zeros((1, 15)), np.eye(15)[None])
    for seed in range(3):
        importance = AdaptiveImportance(density, first, np.random.default_rng(seed))
        importance.round(1000)
        proposal = importance.apart(REFINEMENT.parts)
        assert np.isfinite(proposal.factors).all()
        assert proposal.shares.sum() == pytest.approx(1.0)


LENGTH = 40


def bridged(y: Tensor) -> None:
    """A random walk with an unknown step, seen at every tenth place: more than are probed alone."""
    step = pyro.sample("step", dist.LogNormal(tensor(-1.0), 0.5))
    levels = dist.Normal(torch.zeros(LENGTH), 1.0).mask(False).to_event(1)
    level = pyro.sample("level", levels)
    begun = torch.nn.functional.pad(level, (1, 0))
    pyro.factor("moves", dist.Normal(0.0, step).log_prob(begun.diff()).sum(-1))
    pyro.sample("y", dist.Normal(level[..., ::10], 0.3).to_event(1), obs=y)


def test_a_long_walk_given_its_step_takes_few_probes_and_has_its_exact_evidence() -> None:
    """The levels summed out by a multivariate Normal, the step by quadrature."""
    y = np.cumsum(np.random.default_rng(0).normal(size=LENGTH) * 0.4)[::10]
    density = density_of(bridged, y=torch.as_tensor(y))
    split = split_of(Curvature(density))
    assert split is not None
    conditional = Conditional(density, split, np.zeros(1 + LENGTH))
    assert conditional.cost == 2 * (2 * 3 + 1)
    points, factors = conditional.settled(np.repeat([[-1.0], [0.2]], 1 + LENGTH, axis=1))
    walk = np.tri(LENGTH)  # levels of independent moves
    for point, (factor,) in zip(points, factors, strict=True):
        inverse = np.linalg.inv(walk * np.exp(point[0]))
        precision = inverse.T @ inverse
        precision[np.arange(0, LENGTH, 10), np.arange(0, LENGTH, 10)] += 0.3**-2
        assert np.allclose(factor @ factor.T, precision, rtol=1e-5, atol=1e-4)
    seen = walk[::10] @ walk[::10].T

    def joint(log_step: float) -> float:
        covariance = np.exp(2 * log_step) * seen + 0.3**2 * np.eye(len(y))
        prior = np.exp(-0.5 * (log_step + 1) ** 2 / 0.25) / (0.5 * (2 * np.pi) ** 0.5)
        return float(multivariate_normal.pdf(y, cov=covariance) * prior)

    evidence = quad(joint, -5, 3, epsabs=0, epsrel=1e-8, limit=200)[0]
    mean = quad(lambda x: x * joint(x), -5, 3, epsabs=0, epsrel=1e-8, limit=200)[0] / evidence
    first = Mixture.of(np.ones(1), np.array([[-0.8]]), np.array([[[0.3]]]))
    found = AdaptiveImportance(density, first, np.random.default_rng(1), conditional=conditional)
    with isolated(0):
        found.run()
    assert found.k_hat < 0.7
    noise = ERRORS / found.effective_sample_size**0.5
    assert np.exp(found.log_weights).mean() == pytest.approx(evidence, rel=noise)
    assert found.weights @ found.points[:, 0] == pytest.approx(mean, abs=0.5 * noise)


def test_coordinates_that_touch_the_same_one_are_probed_apart() -> None:
    """The Hessian of a ring with two chords, by fewer probes than coordinates, is whole."""
    size = 24
    bonds = [(i, (i + 1) % size) for i in range(size)] + [(0, 12), (5, 19)]
    one, two = (torch.tensor(each) for each in zip(*bonds, strict=True))

    def ring() -> None:
        scale = pyro.sample("scale", dist.LogNormal(tensor(0.0), 1.0))
        x = pyro.sample("x", dist.Normal(torch.zeros(size), scale).to_event(1))
        pyro.factor("bonds", -(x[..., one] - x[..., two]).cosh().sum(-1))

    density = density_of(ring)
    split = split_of(Curvature(density))
    assert split is not None
    conditional = Conditional(density, split, np.zeros(1 + size))
    assert conditional.cost < 2 * (2 * 10 + 1)
    point = np.random.default_rng(0).normal(size=1 + size)
    _, _, found = conditional.quadratic(point[None])
    exact = -torch.autograd.functional.hessian(density, torch.as_tensor(point))[1:, 1:]
    assert np.allclose(found[0, 0], exact, rtol=1e-5, atol=1e-5)
