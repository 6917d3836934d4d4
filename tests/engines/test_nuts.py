"""NUTS on densities whose moments are known, and the ways in which a run can end."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from elbowroom.density.density import Density
from elbowroom.engines.nuts import sampler as nuts
from elbowroom.engines.nuts.gathered import Gathered
from elbowroom.engines.nuts.sampler import NutsDraws, mixing, sample_nuts
from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

STANDARD_ERRORS = 4
"""How many an estimate may be off, of the error that its effective sample size allows."""
MEAN = torch.tensor([1.0, -2.0, 30.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 25.0]], dtype=torch.float64)


class Formula:
    """A log density written down, in a `Density`'s place."""

    how = "recorded"

    def __init__(
        self,
        value_and_gradient: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        dimension: int = 1,
        width: int = 1,
    ) -> None:
        self.formula, self.dimension, self.width, self.calls = (
            value_and_gradient, dimension, width, 0,
        )  # fmt: skip

    def value_and_gradient(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        return self.formula(points)


def standard(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return -0.5 * np.square(points).sum(1), -points


def slow(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A Normal around 3 that takes its time."""
    time.sleep(0.0003)
    return standard(points - 3)


def corner(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A standard Normal where both numbers are positive; elsewhere something is not a number."""
    value, gradient = standard(points)
    value = np.where(points[:, 0] > 0, value, np.nan)
    return value, np.where(points[:, 1:] > 0, gradient, np.nan)


def two_modes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In each coordinate two standard Normals, at 20 and -20."""
    return -0.5 * np.square(np.abs(points) - 20).sum(1), 20 * np.sign(points) - points


def sampled(density: Any, starts: np.ndarray, **options: Any) -> NutsDraws:
    return sample_nuts(density, starts, threads=1, **options)


def starts(chains: int, dimension: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(chains, dimension))


@pytest.fixture(params=["nutpie", "pyro"])
def sampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pyro":
        monkeypatch.setitem(sys.modules, "nutpie", None)  # its import fails
    return request.param


@pytest.fixture(scope="module")
def correlated() -> Density:
    def model() -> None:
        pyro.sample("x", dist.MultivariateNormal(MEAN, COVARIANCE))
        pyro.factor("data", torch.tensor(0.0))

    with isolated(0, threads=1):
        return Density(model, {}, LatentSpace.of(model, {}))


def test_moments_are_exact(correlated: Density, sampler: str) -> None:
    exact, mean = COVARIANCE.numpy(), MEAN.numpy()
    sd = np.sqrt(np.diag(exact))
    found = sampled(correlated, mean + sd * starts(2, 3), draws=300, tune=200, seed=1)
    assert (found.sampler, found.status) == (sampler, "complete")
    assert found.points.shape == (2, 300, 3)
    assert found.divergences == 0
    standardised = (found.points - mean) / sd
    assert found.fewest_effective > 100
    means = standardised.mean((0, 1))
    assert (np.abs(means) < STANDARD_ERRORS / np.sqrt(found.effective)).all()
    flat = standardised.reshape(-1, 3)
    # Of products of coordinates, whose draws have variances 1 + correlation² at most 2.
    correlation = exact / np.outer(sd, sd)
    products = np.einsum("ni,nj->ijn", flat, flat).reshape(9, 2, 300)
    effective = mixing(products)[1].reshape(3, 3)
    error = np.sqrt((1 + correlation**2) / effective)
    assert (np.abs(flat.T @ flat / len(flat) - correlation) < STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("width", [1, 10**6])
def test_the_same_seed_gives_the_same_draws(correlated: Density, width: int) -> None:
    """Whether the chains' gradients are taken together, or each is too wide for that."""

    def rounded(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = correlated.value_and_gradient(points)
        return value, gradient * (1 + 1e-12 * len(points))  # as larger operations may

    def draws(seed: int) -> np.ndarray:
        density = Formula(rounded, 3, width)
        begin = MEAN.numpy() + starts(3, 3)
        return sampled(density, begin, draws=30, tune=30, seed=seed).points

    first = draws(5)
    assert np.array_equal(first, draws(5))
    assert not np.isclose(first, draws(6)).any()


def test_a_region_without_density_is_left_out_as_divergences(sampler: str) -> None:
    found = sampled(Formula(corner, 2), np.abs(starts(2, 2)), draws=200, tune=100, seed=1)
    assert found.points.min() > 0
    assert found.divergences > 20
    error = np.sqrt((1 - 2 / np.pi) / found.effective)
    shift = found.points.mean((0, 1)) - (2 / np.pi) ** 0.5
    assert (np.abs(shift) < STANDARD_ERRORS * error).all()


def test_chains_in_different_modes_have_not_converged() -> None:
    density = Formula(two_modes, 2)
    apart = sampled(density, np.array([[21.0, 19.0], [21.0, -19.0]]), draws=200, tune=200)
    assert apart.r_hat[1] > 1.5
    assert not apart.converged
    together = sampled(density, np.array([[21.0, 19.0], [19.0, 21.0]]), draws=1000, tune=200)
    assert together.converged


def test_an_interrupted_run_keeps_the_draws_that_it_made(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nuts, "MIXING", replace(nuts.MIXING, poll=0.02))
    calls = []

    def stop(made: int, total: int, divergences: int) -> None:
        calls.append((made, total, divergences))
        if made > 300:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"tune": 20, "seed": 3}
    found = sampled(Formula(slow), starts(5), draws=10_000, progress=stop, **options)
    draws = found.points.shape[1]
    assert found.status == "interrupted"
    assert 0 < draws < 10_000
    assert calls[-1][0] > 300
    assert {total for _, total, _ in calls} == {50_100}
    assert [made for made, *_ in calls] == sorted(made for made, *_ in calls)
    # What is kept is what the whole run has: nothing was drawn in haste.
    begun = 5 if sampler == "nutpie" else len(found.points)  # Pyro's come one after the other
    whole = sampled(Formula(slow), starts(5)[:begun], draws=draws, **options).points
    assert all(any(np.array_equal(kept, chain) for chain in whole) for kept in found.points)


def test_an_interruption_before_the_first_draw_leaves_none() -> None:
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    found = sampled(Formula(slow), starts(2), progress=stop)
    assert (found.status, found.points.size, found.divergences) == ("interrupted", 0, 0)
    assert np.isnan(found.worst_r_hat)
    assert not found.converged


def test_an_error_of_the_model_is_raised_as_it_is(
    sampler: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if density.calls > 3:
            raise LookupError("no such row")
        return standard(points)

    density = Formula(fails)
    with pytest.raises(LookupError, match="no such row"):
        sampled(density, starts(2))
    assert capfd.readouterr().err == ""


def test_starts_without_density_are_refused_and_a_mode_is_not() -> None:
    with pytest.raises(ModelError, match="start 2 of 2"):
        sampled(Formula(corner, 2), np.array([[1.0, 1.0], [1.0, -1.0]]))
    flat = Formula(lambda points: (np.zeros(len(points)), 0 * points))
    with pytest.raises(ModelError, match="is constant along one coordinate"):
        sampled(flat, starts(1))
    # The gradient is zero there, which nutpie would refuse.
    assert sampled(Formula(standard), np.zeros((2, 1)), draws=50, tune=100).points.std() > 0.5


class AskedError(Exception):
    """Holds what a stand-in of nutpie was asked for."""


def older(*_: Any, low_rank_modified_mass_matrix: bool = False, **rest: Any) -> None:
    raise AskedError(low_rank_modified_mass_matrix)


def newer(*_: Any, adaptation: str = "diag", **rest: Any) -> None:
    raise AskedError(adaptation == "low_rank" and "low_rank_modified_mass_matrix" not in rest)


@pytest.mark.parametrize("sample", [older, newer])
def test_nutpie_is_asked_for_correlations_by_the_name_that_it_has(
    sample: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nutpie.sample", sample)
    with pytest.raises(AskedError, match="True"):
        sampled(Formula(standard), starts(1), draws=50, tune=100)


def asked_by_chains(calls: list[int], says: bool) -> tuple[Gathered, list[bool]]:
    """Chains that ask so many times each; `says`: whether they tell of their last draw."""
    density: Any = Formula(standard, 2)
    gathered = Gathered(density, np.zeros((len(calls), 2)), max(calls))
    right = []

    def chain(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(calls[number]):
            point = random.normal(size=2)
            value, gradient = gathered(number, point)
            right.append(value == standard(point[None])[0] and np.array_equal(gradient, -point))
        if says:
            gathered.left[number] = 1
            gathered.drawn(number)

    threads = [threading.Thread(target=chain, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    return gathered, right


@pytest.mark.parametrize("says", [True, False])
def test_chains_that_end_early_keep_nobody_waiting(says: bool) -> None:
    calls = [0, 10, 100, 300]
    gathered, right = asked_by_chains(calls, says)
    assert len(right) == sum(calls)
    assert all(right)
    density: Any = gathered.density
    assert density.calls < sum(calls)  # some were taken together


def test_what_cannot_be_told_is_not_a_number() -> None:
    constant, short = np.ones((1, 4, 100)), np.zeros((1, 4, 3))
    for quantities in (constant, short, np.full((1, 4, 100), np.inf)):
        r_hat, effective = mixing(quantities)
        assert np.isnan(r_hat).all()
        assert np.isnan(effective).all()


def test_r_hat_of_two_values_and_of_chains_that_stand_still() -> None:
    random = np.random.default_rng(0)
    coin, stuck = (
        random.choice([-1.0, 1.0], (4, 500)),
        np.repeat(np.arange(4.0), 500).reshape(4, -1),
    )
    r_hat, effective = mixing(np.stack([coin, stuck]))
    assert r_hat[0] == pytest.approx(1.0, abs=0.01)
    assert r_hat[1] > 2
    assert effective[0] > 1000


@pytest.mark.parametrize(
    ("r_hat", "effective", "converged"),
    [
        ([1.0, 1.01], [400.0, 900.0], True),
        ([1.0, 1.011], [400.0, 900.0], False),
        ([1.0, 1.01], [399.0, 900.0], False),
        ([1.0, np.nan], [400.0, 900.0], False),
        ([1.0, 1.0], [400.0, np.nan], False),
    ],
)
def test_chains_have_converged_where_they_mixed_and_are_enough(
    r_hat: list[float], effective: list[float], converged: bool
) -> None:
    """In the coordinate that is worst, and in both respects."""
    mixed = np.array(r_hat), np.array(effective)
    found = NutsDraws(np.zeros((4, 10, 2)), 0, *mixed, 0.0, "nutpie", "complete")
    assert found.converged is converged


def test_numbers_of_a_loop_reach_the_sampler_side_by_side() -> None:
    """The gradient of a loop over latents is recorded column by column, which nutpie refuses."""

    def walk(y: torch.Tensor) -> None:
        state = torch.zeros(())
        for t in range(len(y)):
            state = pyro.sample(f"state_{t}", dist.Normal(0.5 * state, 1.0))
            pyro.sample(f"y_{t}", dist.Normal(state, 1.0), obs=y[t])

    arguments = {"y": torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)}
    with isolated(0):
        density = Density(walk, arguments, LatentSpace.of(walk, arguments))
    _, gradients = density.value_and_gradient(np.zeros((4, 12)))
    assert gradients.flags.c_contiguous
    found = sample_nuts(density, np.zeros((4, 12)), draws=200, tune=200, seed=1)
    states = np.arange(12)
    precision = 2 * np.eye(12) - 0.5 * (np.eye(12, k=1) + np.eye(12, k=-1))
    precision[states[:-1], states[:-1]] += 0.25  # of the next state
    expected = np.linalg.solve(precision, np.linspace(-1.0, 1.0, 12))
    error = 4 / found.fewest_effective**0.5
    sds = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert (np.abs(found.points.mean((0, 1)) - expected) < error * sds).all()
