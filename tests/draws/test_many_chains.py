"""Many Markov chains: right where the answer is known, and seen to say no."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from elbowroom import budget
from elbowroom.density.density import Density
from elbowroom.draws import many_chains
from elbowroom.draws.chains import Chains, State
from elbowroom.draws.many_chains import (
    MANY_CHAINS,
    MixedChains,
    _check_time,
    _new,
    _Sampling,
    run_many_chains,
)
from elbowroom.draws.metric import METRICS, Metric, metric_of
from elbowroom.draws.mixing import mixing_of, of_several, rough
from elbowroom.errors import OutOfTimeError
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated


def flat(size: int) -> Tensor:
    return pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).mask(False).to_event(1))


def density_of(model: Any) -> Density:
    with isolated(0, dtype=torch.float64):
        return Density(model, {}, LatentSpace.of(model, {}))


def root(size: int, seed: int) -> np.ndarray:
    """A root of a covariance with scales from 0.01 to 100 and strong correlations."""
    random = np.random.default_rng(seed)
    scales = 10 ** random.uniform(-2, 2, size)
    return scales[:, None] * (np.eye(size) + random.normal(size=(size, 3)) @ np.ones((3, size)) / 9)


def test_the_metric_of_a_normal_is_exact_from_few_draws() -> None:
    """Fifty draws in eighty dimensions: their covariance has no inverse."""
    size, random = 80, np.random.default_rng(1)
    factor = root(size, 0)
    covariance = factor @ factor.T
    points = random.normal(size=(50, size)) @ factor.T
    gradients = -points @ np.linalg.inv(covariance)
    metric = metric_of(points, gradients)
    whitened = metric.times(np.eye(size), transposed=True)
    spread = np.linalg.eigvalsh(np.linalg.inv(whitened) @ covariance @ np.linalg.inv(whitened.T))
    independent = metric_of(points, gradients, correlated=False).scales
    rough = np.linalg.eigvalsh(covariance / np.outer(independent, independent))
    assert spread[-1] / spread[0] < 0.05 * rough[-1] / rough[0]


def test_a_metric_in_many_dimensions_finds_the_directions_that_matter() -> None:
    size, random = 600, np.random.default_rng(2)
    direction = random.normal(size=size)
    direction /= np.linalg.norm(direction)
    points = random.normal(size=(400, size))
    points += 30 * random.normal(size=(400, 1)) * direction
    gradients = -(points - (points @ direction)[:, None] * direction * (1 - 1 / 901))
    metric = metric_of(points, gradients)
    (longest,) = metric.times(metric.times(direction[None], transposed=True))
    # The identity that is added to either covariance keeps it below 901.
    assert 250 < longest @ direction < 1000
    other = random.normal(size=size)
    other -= (other @ direction) * direction
    (usual,) = metric.times(metric.times(other[None], transposed=True))
    assert 0.5 < usual @ other / (other @ other) < 2.0
    # Of 400 draws and slopes that are independent, more directions seem to be correlated.
    independent, slopes = random.normal(size=(2, 400, size))
    assert len(metric_of(independent, slopes).lengths) == METRICS.directions
    assert 1 <= len(metric.lengths) <= METRICS.directions


def test_the_transposed_root_is_the_transpose() -> None:
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(5, 2)))[0]
    metric = Metric(random.uniform(1, 2, 5), directions, np.array([3.0, 0.2]))
    plain, transposed = (metric.times(np.eye(5), side) for side in (False, True))
    assert np.allclose(plain, transposed.T)


@pytest.mark.parametrize("directions", [0, 2, 4])
def test_gradients_push_by_the_root_times_its_transpose(directions: int) -> None:
    random = np.random.default_rng(0)
    along = np.linalg.qr(random.normal(size=(6, 4)))[0][:, :directions]
    metric = Metric(random.uniform(1, 2, 6), along, random.uniform(0.2, 3, directions))
    twice = metric.times(metric.times(np.eye(6), transposed=True))
    velocities = torch.ones(6, 6, dtype=torch.float64)
    metric.accelerate(velocities, torch.eye(6, dtype=torch.float64), 0.3)
    assert np.allclose(velocities, 1 + 0.3 * twice, rtol=1e-12)


def test_mixing_by_means_and_spreads_is_that_of_the_formulas() -> None:
    """Margossian et al. (2024), equations 5 and 6, in loops."""
    points = np.random.default_rng(0).normal(size=(30, 12, 2)).cumsum(0)
    groups = points.reshape(30, 3, 4, 2)
    for j, (r_hat, effective) in enumerate(zip(*rough(points, 3), strict=True)):
        chains = [[groups[:, g, c, j] for c in range(4)] for g in range(3)]
        within = [
            np.var([x.mean() for x in group], ddof=1) + np.mean([x.var(ddof=1) for x in group])
            for group in chains
        ]
        between = np.var([np.mean(group) for group in chains], ddof=1)
        assert r_hat == pytest.approx(np.sqrt(1 + between / np.mean(within)), rel=1e-9)
        means = [x.mean() for group in chains for x in group]
        whole = np.var(points[:, :, j])
        assert effective == pytest.approx(12 * whole / np.var(means, ddof=1), rel=1e-9)


def test_a_metric_with_many_directions_is_the_same_root() -> None:
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(5, 3)))[0]
    scales, lengths = random.uniform(1, 2, 5), np.array([3.0, 0.2, 1.5])
    directed = np.eye(5) + directions @ np.diag(lengths - 1) @ directions.T
    expected, vectors = np.diag(scales) @ directed, random.normal(size=(4, 5))
    metric = Metric(scales, directions, lengths)
    assert np.allclose(metric.times(vectors), vectors @ expected.T)
    assert np.allclose(metric.times(vectors, transposed=True), vectors @ expected)


def chains_of(precision: np.ndarray) -> Chains:
    """Chains with a metric of ones at draws of a Normal."""
    target = torch.as_tensor(precision)

    def model() -> None:
        pyro.factor("target", -0.5 * target @ flat(len(target)) ** 2)

    random = np.random.default_rng(0)
    starts = random.normal(size=(64, len(precision))) / np.sqrt(precision)
    density = density_of(model)
    with isolated(0):
        chains = Chains(density, starts, Metric.of_scales(np.ones(len(precision))), random, 64)
        chains.step = 0.3
    return chains


def test_one_trajectory_of_several_lengths_is_one_so_long() -> None:
    """On a Normal, a trajectory of time t has the autocorrelation cos(t)."""
    chains = chains_of(np.ones(40))
    for farther in (1.0, 1.6):
        before = chains.state.points
        with isolated(0):
            after = chains.advance(farther=farther).points
        time = chains.length(farther) * 0.3
        moved = np.corrcoef(before.ravel(), after.ravel())[0, 1]
        # The step is drawn within a fifth of the usual.
        assert math.cos(1.2 * time) - 0.05 < moved < math.cos(0.8 * time) + 0.05
    assert chains.length(100.0) == 64


@pytest.mark.parametrize("two_stages", [False, True])
def test_trajectories_lose_the_energy_that_their_steps_should(two_stages: bool) -> None:
    """Of a Normal a step is a matrix of places and momenta."""
    chains, step, first = chains_of(np.ones(40)), 0.45, 0.21178
    chains.two_stages = two_stages
    kicks = [first, 1 - 2 * first, first] if two_stages else [0.5, 0.5]
    gradients = len(kicks) - 1
    matrix = np.eye(2)
    for i, kick in enumerate(kicks):
        matrix = np.array([[1, 0], [-gradients * step * kick, 1]]) @ matrix
        if i < gradients:
            matrix = np.array([[1, step], [0, 1]]) @ matrix
    momenta = np.random.default_rng(1).standard_normal(chains.state.points.shape)
    begun = np.stack([chains.state.points, momenta])
    ended = np.einsum("ij,jcd->icd", np.linalg.matrix_power(matrix, 4 // gradients), begun)
    expected = (np.square(ended) - np.square(begun)).sum((0, 2)) / 2
    with isolated(0):
        chains.random = np.random.default_rng(1)
        state, lost = chains._moved(step, 4)
    assert np.allclose(state.points, ended[0], rtol=1e-9)
    assert np.allclose(lost, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "farther"), [(20.0, True), (1.0, False)])
def test_trajectories_go_farther_where_one_coordinate_is_wide(width: float, farther: bool) -> None:
    precision = np.ones(30)
    precision[7] = width**-2
    sampling = _Sampling(chains_of(precision), 8)
    with isolated(0):
        for count in (50, 25, 25):
            sampling.advance(count)
            sampling.pace()
            assert sampling._farther == farther


@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
def test_how_new_draws_are_by_their_autocorrelation(r: float) -> None:
    random = np.random.default_rng(0)
    draws = random.normal(size=(500, 64))
    for i in range(1, 500):
        draws[i] = r * draws[i - 1] + (1 - r**2) ** 0.5 * draws[i]
    assert _new(draws) == pytest.approx((1 - r**2) / (1 + r**2), rel=0.05)
    assert _new(np.array([[1.0], [1.0], [-1.0], [-1.0]] * 2)) == np.inf


def test_trajectories_that_do_not_pay_stay_short() -> None:
    """A walk among steps of the density: no trajectory goes from one to another."""
    sampling = _Sampling(chains_of(np.ones(30)), 8)
    walk = sampling.chains.random

    def advance(shorter: float = 1.0, farther: float = 1.0) -> State:
        points = sampling.chains.state.points
        points = 0.95 * points + (1 - 0.95**2) ** 0.5 * walk.standard_normal(points.shape)
        sampling.chains.state = State(points, points[:, 0], points)
        return sampling.chains.state

    sampling.chains.advance = advance  # type: ignore[method-assign]
    sampling.advance(50)
    sampling.pace()
    assert sampling._farther
    sampling.advance(25)
    sampling.pace()
    assert not sampling._farther


def test_chains_give_the_moments_of_a_correlated_normal() -> None:
    factor = root(70, 3)
    mean = factor @ np.ones(70)
    target = dist.MultivariateNormal(torch.as_tensor(mean), scale_tril=_lower(factor))

    def model() -> None:
        pyro.factor("target", target.log_prob(flat(70)))

    density = density_of(model)
    random = np.random.default_rng(0)
    starts = mean + random.uniform(-2, 2, (8, 70)) @ factor.T
    with isolated(0):
        found = run_many_chains(density, starts, random)
    assert found.mixed
    assert (found.stuck, found.diverged, found.groups, found.chains) == (0, 0.0, 8, 64)
    points = found.points.reshape(-1, 70)
    sds = np.linalg.norm(factor, axis=1)
    noise = 4.5 / found.effective**0.5  # of the worst of 70
    assert np.abs((points.mean(0) - mean) / sds).max() < noise
    assert np.abs(np.log(points.std(0) / sds)).max() < noise
    assert np.allclose(density.value(points[:20]), found.values.ravel()[:20])
    some, values = found.first(500)
    assert (some.shape, values.shape) == ((500, 70), (500,))


def test_fewer_draws_are_enough_where_they_are_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        x = flat(20)
        pyro.factor("target", -0.5 * (x[:10] ** 2).sum() - 0.5e-3 * (x[10:] ** 2).sum())

    found = []
    for costly in (MANY_CHAINS.costly, 0.0):
        monkeypatch.setattr(
            many_chains, "MANY_CHAINS", replace(MANY_CHAINS, costly=costly, round=8)
        )
        random = np.random.default_rng(0)
        with isolated(0):
            found.append(run_many_chains(density_of(model), random.normal(size=(8, 20)), random))
    assert all(each.mixed for each in found)
    assert found[0].effective >= MANY_CHAINS.effective
    assert 400 <= found[1].effective < found[0].effective


def _lower(factor: np.ndarray) -> Tensor:
    return torch.linalg.cholesky(torch.as_tensor(factor @ factor.T))


def test_chains_that_stay_at_their_own_mode_have_not_mixed() -> None:
    """Each mode alone is sampled perfectly; the groups tell."""

    def model() -> None:
        x = flat(2)
        apart = torch.stack([(x - 8.0).square().sum(-1), (x + 8.0).square().sum(-1)])
        pyro.factor("modes", torch.logsumexp(-0.5 * apart, 0))

    starts = np.repeat([[8.0, 8.0], [-8.0, -8.0]], 4, axis=0)
    with isolated(0):
        found = run_many_chains(density_of(model), starts, np.random.default_rng(0))
    assert not found.mixed
    assert found.r_hat > MANY_CHAINS.hopeless


def test_chains_that_have_not_left_their_starts_have_not_mixed() -> None:
    random = np.random.default_rng(0)
    starts = np.repeat(random.normal(size=(8, 3)), 8, axis=0)
    still = starts + 0.3 * random.normal(size=(100, 64, 3))
    assert mixing_of(still, 8)[0] > 1.5
    forgotten = random.normal(size=(100, 64, 3))
    r_hat, effective = mixing_of(forgotten, 8)
    assert r_hat < MANY_CHAINS.r_hat
    assert effective == pytest.approx(6400, rel=0.3)
    wider = forgotten * np.repeat([1.0, 2.0], 32)[None, :, None]  # means agree, spreads do not
    assert mixing_of(wider, 8)[0] > MANY_CHAINS.r_hat
    assert mixing_of(np.zeros((100, 64, 1)), 8) == (np.inf, 0.0)


def test_the_largest_of_thousands_of_r_hats_is_large_by_chance() -> None:
    random, size, among = np.random.default_rng(0), 2000, np.full(2000, 2000)
    chance = [
        (mixing_of(draws, 8)[0], mixing_of(draws, 8, among)[0])
        for draws in (random.normal(size=(32, 32, size)) for _ in range(5))
    ]
    alone, corrected = np.array(chance).T
    assert (alone > MANY_CHAINS.r_hat).all()
    assert (corrected < MANY_CHAINS.r_hat).all()
    apart = random.normal(size=(32, 32, size))
    apart[..., 7] += np.repeat(random.normal(size=8), 4)  # one of them
    assert mixing_of(apart, 8, among)[0] > MANY_CHAINS.r_hat


def test_r_hats_of_several_exceed_a_limit_as_often_as_one_alone() -> None:
    random, count, groups = np.random.default_rng(0), 20_000, 8
    # The means of groups of 100 independent draws each.
    means = random.normal(size=(count, 50, groups)) / 10
    r_hats = np.sqrt(1 + means.var(-1, ddof=1))
    limit = np.quantile(r_hats[:, 0], 0.95)
    largest = of_several(r_hats, np.full_like(r_hats, 50), groups).max(1)
    assert np.mean(largest > limit) == pytest.approx(0.05, abs=0.008)  # five standard errors


def test_the_time_of_chains_is_told_by_the_code_that_they_will_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recording that is replayed may take a hundred times as long as once it is compiled."""

    class Slow:
        batch, compiles, taken, each = 100, True, 0.0, 1.0

        def expect(self, calls: int, points: int) -> None:
            self.each = 1e-3 if self.compiles else 1.0

        def value_and_gradient(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            self.taken += self.each
            return points[:, 0], points

    slow: Any = Slow()
    monkeypatch.setattr(many_chains.budget, "left", lambda: 10.0)
    monkeypatch.setattr(many_chains.time, "perf_counter", lambda: slow.taken)
    _check_time(slow, np.zeros((8, 2)), 100)
    slow.compiles = False
    with pytest.raises(OutOfTimeError, match="longer than the time that is left"):
        _check_time(slow, np.zeros((8, 2)), 100)


def test_what_is_forgotten_is_what_came_first() -> None:
    class Counting:
        """Chains whose draws are the numbers of their trajectories."""

        def __init__(self) -> None:
            self.count = 0
            self.accepted, self.lost = np.ones(4), np.zeros(4)

        @property
        def state(self) -> State:
            points = np.full((4, 2), float(self.count))
            return State(points, points[:, 0], points)

        def length(self, farther: float = 1.0) -> int:
            return 1

        def advance(self, shorter: float = 1.0, farther: float = 1.0) -> State:
            self.count += 1
            return self.state

    counting: Any = Counting()
    sampling = _Sampling(counting, 2)
    sampling.advance(10)
    sampling.forget()
    sampling.advance(2)
    assert sampling.judged().values[:, 0].tolist() == [6, 7, 8, 9, 10, 11, 12]
    assert sampling.made == 12


@pytest.mark.parametrize(("r_hat", "rounds"), [(1.005, 12), (1.1, 9)])
def test_chains_that_have_mixed_go_on_where_their_draws_are_few(
    monkeypatch: pytest.MonkeyPatch, r_hat: float, rounds: int
) -> None:
    judged = []

    def few(self: _Sampling) -> MixedChains:
        judged.append(self.made)
        nothing = np.zeros((self.made, 1, 1))
        return MixedChains(nothing, nothing[..., 0], r_hat, 500.0, 0.0, 0, 8)

    def advance(self: _Sampling, count: int) -> None:
        self.made += count

    monkeypatch.setattr(_Sampling, "judged", few)
    monkeypatch.setattr(_Sampling, "advance", advance)
    for name in ("pace", "forget"):
        monkeypatch.setattr(_Sampling, name, lambda self: None)
    random = np.random.default_rng(0)
    density = density_of(lambda: pyro.factor("target", -flat(2).square().sum()))
    with isolated(0):
        run_many_chains(density, random.uniform(-1, 1, (8, 2)), random, arrived=True)
    assert len(judged) == rounds
    assert judged[:3] == [64, 96, 144]


def test_one_coordinate_among_many_that_moves_slowly_is_found() -> None:
    random = np.random.default_rng(1)
    points = random.normal(size=(200, 64, 300))
    slow = random.normal(size=(200, 64))
    for i in range(1, 200):
        slow[i] = 0.95 * slow[i - 1] + (1 - 0.95**2) ** 0.5 * slow[i]
    points[:, :, 137] = slow
    _, effective = mixing_of(points, 8)
    assert effective == pytest.approx(12_800 * (1 - 0.95) / (1 + 0.95), rel=0.5)


def test_chains_for_which_there_is_no_time_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor was busy once, they do: the fastest of three evaluations counts."""
    density = density_of(lambda: flat(2))
    evaluate, pauses = density.value_and_gradient, [0.02] * 3

    def slow(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(pauses.pop(0) if pauses else 0.0)
        return evaluate(points)

    monkeypatch.setattr(density, "value_and_gradient", slow)
    random = np.random.default_rng(0)
    # 8 steps of 145 trajectories of 0.02 s each are 23 s.
    with isolated(0), budget.limited(15.0), pytest.raises(OutOfTimeError, match="64 Markov chains"):
        run_many_chains(density, random.normal(size=(8, 2)), random)
    pauses[:] = [0.02, 0.0]
    with isolated(0), budget.limited(15.0):
        assert run_many_chains(density, random.normal(size=(8, 2)), random).chains == 64


@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_the_quick_r_hat_is_arvizs_without_ranks(apart: float) -> None:
    random = np.random.default_rng(3)
    points = random.normal(size=(60, 64, 2)) + apart * np.repeat(random.normal(size=8), 8)[:, None]
    groups = np.repeat(np.arange(8), 8)
    found, _ = rough(points, 8)
    for own, draws in zip(found, np.moveaxis(points, -1, 0), strict=True):
        exact = array_stats.rhat_nested(draws.T, groups, method="identity")
        assert own == pytest.approx(exact, rel=1e-10)
    assert (found > 1.01).all() == (apart > 0)
