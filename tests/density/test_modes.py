"""Where climbs end, on densities whose modes, curvature and evidence are known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, tensor

from elbowroom.density import modes
from elbowroom.density.curvature import Curvature, structure_of
from elbowroom.density.density import Density
from elbowroom.density.landscape import SEARCH, Landscape, explore
from elbowroom.density.modes import Mode, climb, climb_long, find_modes
from elbowroom.guides.space import LatentSpace
from elbowroom.models._own import own_model
from elbowroom.problem.bound import bind
from elbowroom.problem.isolation import isolated
from elbowroom.sizes import SIZES

LOCATION = 2e-3
"""Of a mode: a Newton decrement below 1e-6 nats is √(2e-6) posterior standard deviations."""
EVIDENCE = 1e-5
"""Of Laplace's evidence, in nats: the decrement, and the error of the Hessian's determinant."""
HESSIAN = 1e-6
"""Of central differences of step 1e-4, relative to the conditional standard deviations."""

Model = Callable[..., Any]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def explored(
    model: Model, restarts: int = 8, seed: int = 0, sampled: bool = False, **arguments: Any
) -> Landscape:
    problem = bind(own_model(model), arguments, None, torch.float64, torch.device("cpu"))
    return explore(problem, restarts, seed, sampled=sampled)


def density_of(model: Model, **arguments: Any) -> Density:
    return Density(model, arguments, LatentSpace.of(model, arguments))


def from_starts(density: Density, *starts: list[float]) -> list[Mode]:
    return find_modes(density, Curvature(density), np.array(starts))


def exact_precision(density: Density, point: np.ndarray) -> np.ndarray:
    return -torch.autograd.functional.hessian(density, tensor(point)).numpy()


def curvature_error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error, in units of the conditional standard deviations."""
    scales = 1 / np.sqrt(np.abs(np.diag(exact)))
    return float(np.abs((found - exact) * np.outer(scales, scales)).max())


PRIOR_MEAN, PRIOR_SD, NOISE_SD = 1.0, 2.0, 0.5
DATA = torch.tensor([0.1, 2.0, 1.4, 0.7, -0.5], dtype=torch.float64)


def conjugate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(tensor(PRIOR_MEAN), PRIOR_SD))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, NOISE_SD), obs=y)


def branching(y: Tensor) -> None:
    """The same density, by a branch on a latent value that no recorder can follow."""
    mean = pyro.sample("mean", dist.Normal(tensor(PRIOR_MEAN), PRIOR_SD))
    shift = 0.0 if mean.item() > 0 else 1.0
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean + shift - shift, NOISE_SD), obs=y)


@pytest.mark.parametrize("model", [conjugate, branching])
def test_mode_precision_and_evidence_of_a_normal_are_exact(model: Model) -> None:
    (found,) = from_starts(density_of(model, y=DATA), [-3.0], [0.0], [50.0])
    precision = 1 / PRIOR_SD**2 + len(DATA) / NOISE_SD**2
    mode = (PRIOR_MEAN / PRIOR_SD**2 + float(DATA.sum()) / NOISE_SD**2) / precision
    covariance = NOISE_SD**2 * torch.eye(len(DATA)) + PRIOR_SD**2
    marginal = dist.MultivariateNormal(torch.full((len(DATA),), PRIOR_MEAN), covariance)
    assert found.reached
    assert found.starts == 3
    assert abs(found.location[0] - mode) * precision**0.5 < LOCATION
    assert found.precision is not None
    assert found.precision[0, 0] == pytest.approx(precision, rel=HESSIAN)
    assert found.log_evidence == pytest.approx(float(marginal.log_prob(DATA)), abs=EVIDENCE)


def test_badly_scaled_predictors_are_found() -> None:
    random = np.random.default_rng(0)
    x = tensor(random.normal(size=(60, 3)) * [1e4, 1.0, 1e-3] + [5e4, 0.0, 0.0])
    y = x @ tensor([2e-4, 1.0, 800.0]) + tensor(random.normal(size=60))

    def model(x: Tensor, y: Tensor) -> None:
        flat = dist.Normal(torch.zeros(3), 1.0).mask(False)
        slopes = pyro.sample("slopes", flat.to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    (found,) = from_starts(density_of(model, x=x, y=y), [0.0, 0.0, 0.0], [1.0, -1.0, 2.0])
    exact = torch.linalg.solve(x.mT @ x, x.mT @ y).numpy()
    sd = torch.linalg.inv(x.mT @ x).diagonal().sqrt().numpy()
    assert (np.abs(found.location - exact) / sd).max() < LOCATION
    assert found.precision is not None
    assert curvature_error(found.precision, (x.mT @ x).numpy()) < 1e-4  # digits of 5e4 lost


YEARS = torch.arange(1950.0, 2011.0, dtype=torch.float64)
COUNTS = tensor(np.random.default_rng(2).poisson(np.exp(0.02 * np.arange(61.0) - 0.5))).double()


def unscaled_years(year: Tensor, count: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("year_of", len(year)):
        pyro.sample("count", dist.Poisson((intercept + slope * year).exp()), obs=count)


def fisher_scoring() -> np.ndarray:
    """The mode of the same regression, in years from their middle, by Newton's method."""
    centre = 1980.0
    design = np.stack([np.ones(61), YEARS.numpy() - centre], axis=1)
    # The prior of the intercept at the centre: (a - centre · slope) ~ Normal(0, 100).
    change = np.array([[1.0, -centre], [0.0, 1.0]])
    prior = change.T @ np.diag([1 / 100**2, 1 / 10**2]) @ change
    beta = np.array([np.log(float(COUNTS.mean())), 0.0])
    for _ in range(50):
        rate = np.exp(design @ beta)
        gradient = design.T @ (COUNTS.numpy() - rate) - prior @ beta
        beta = beta + np.linalg.solve(design.T * rate @ design + prior, gradient)
    return change @ beta


@pytest.mark.parametrize("seed", [0, 1, 8])
def test_a_poisson_regression_on_unscaled_years_reaches_its_mode_from_all_starts(seed: int) -> None:
    landscape = explored(unscaled_years, seed=seed, year=YEARS, count=COUNTS)
    (found,) = landscape.modes
    assert found.reached
    assert found.starts == landscape.tried >= 8
    assert found.precision is not None
    gap = found.location - fisher_scoring()
    assert np.sqrt(gap @ found.precision @ gap) < LOCATION


def test_where_a_climb_says_it_arrived_the_gradient_vanishes() -> None:
    """From where the rates are all but zero, and the curvature is that of the prior alone."""
    density = density_of(unscaled_years, year=YEARS, count=COUNTS)
    starts = [[0.0, slope] for slope in (-0.3, -0.25, -0.2, -0.1, -0.01, 0.0, 0.002)]
    for start in [*starts, [-3.58285913, -0.260786806]]:
        # Alone, so that no other's arrival ends the climb.
        (end,) = climb(density.value_and_gradient, Curvature(density), np.array([start]))
        _, gradient = density.value_and_gradient(end.location[None])
        exact = exact_precision(density, end.location)
        decrement = 0.5 * gradient[0] @ np.linalg.solve(exact, gradient[0])
        assert not end.reached or decrement < 2 * modes.CLIMBING.decrement


SHARES, CENTRES, WIDTH = (0.02, 0.98), (-2.0, 1.5), 0.3


def two_modes(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
    parts = [
        dist.Normal(centre, WIDTH).log_prob(x) + tensor(share).log()
        for share, centre in zip(SHARES, CENTRES, strict=True)
    ]
    pyro.factor("density", torch.stack(parts).logsumexp(0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_two_modes_are_found_with_their_masses_best_first() -> None:
    density = density_of(two_modes, y=tensor(0.0))
    found = from_starts(density, [-2.1], [1.0], [2.0], [-1.5])
    assert [mode.starts for mode in found] == [2, 2]
    assert [mode.reached for mode in found] == [True, True]
    # Laplace's evidence of each mode is its mass, since the modes are Normal and far apart.
    for mode, share, centre in zip(found, SHARES[::-1], CENTRES[::-1], strict=True):
        assert abs(mode.location[0] - centre) / WIDTH < LOCATION
        mass = np.log(share) - 0.5 * np.log(2 * np.pi)
        assert mode.log_evidence == pytest.approx(mass, abs=EVIDENCE)


def test_a_single_start_stays_in_its_mode_and_several_choose_the_better() -> None:
    density = density_of(two_modes, y=tensor(0.0))
    (alone,) = from_starts(density, [-2.1])
    assert abs(alone.location[0] - CENTRES[0]) / WIDTH < LOCATION
    landscape = explored(two_modes, y=tensor(0.0))
    assert landscape.best is not None
    assert abs(landscape.best.location[0] - CENTRES[1]) / WIDTH < LOCATION
    said = f"{landscape.best.starts} of {landscape.tried} climbs ended at the best mode."
    assert landscape.agreement == said


def lone_spike(y: Tensor) -> None:
    """A narrow peak with most of the mass, which few starts find beside a wide one."""
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
    wide = dist.Normal(0.0, 1.0).log_prob(x) + tensor(0.1).log()
    narrow = dist.Normal(1.9, 0.05).log_prob(x) + tensor(0.9).log()
    pyro.factor("density", torch.logaddexp(wide, narrow))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_a_narrow_peak_that_few_starts_find_is_looked_for() -> None:
    for seed in range(6):
        landscape = explored(lone_spike, restarts=4, seed=seed, y=tensor(0.0))
        assert landscape.best is not None
        assert abs(landscape.best.location[0] - 1.9) < 0.05
        assert len(landscape.modes) == 2
        assert not landscape.unfinished


def test_more_starts_are_tried_while_one_alone_reached_the_best_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("elbowroom.density.landscape.SEARCH", replace(SEARCH, searches=0))
    tried = []
    for seed in range(12):
        landscape = explored(lone_spike, restarts=4, seed=seed, y=tensor(0.0))
        assert landscape.best is not None
        assert landscape.best.starts > 1 or landscape.tried == 16
        assert sum(mode.starts for mode in landscape.modes) == landscape.tried
        tried.append(landscape.tried)
    assert min(tried) == 4
    assert max(tried) > 4


def flat_direction(y: Tensor) -> None:
    flat = dist.Normal(torch.zeros(2), 1.0).mask(False)
    parts = pyro.sample("parts", flat.to_event(1))
    pyro.sample("y", dist.Normal(parts.sum(), 1.0), obs=y)


def test_a_flat_direction_has_no_precision() -> None:
    for end in from_starts(density_of(flat_direction, y=tensor(1.0)), [0.0, 0.0], [2.0, 1.0]):
        assert end.precision is None
        assert end.log_evidence == -np.inf
    landscape = explored(flat_direction, y=tensor(1.0))
    assert landscape.best is None
    assert landscape.agreement is None
    start = landscape.start()
    assert start.precision is None
    assert start.location.tolist() == [0.0, 0.0]


def test_a_density_that_is_nowhere_finite_begins_at_the_origin() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("broken", 0 * x - torch.inf)
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    landscape = explored(model, y=tensor(1.0))
    assert landscape.modes == []
    start = landscape.start()
    assert start.location.tolist() == [0.0]
    assert start.precision is None


def test_starts_without_a_density_are_left_out() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal((x - 1).sqrt(), 1.0), obs=y)

    density = density_of(model, y=tensor(1.0))
    (found,) = from_starts(density, [0.0], [1.5], [-4.0])
    assert found.starts == 1
    assert found.reached
    # d/dx of -x²/2 - (1 - √(x-1))²/2 is zero where x = (1 - s) / (2 s) for s = √(x-1).
    s = np.sqrt(found.location[0] - 1)
    assert found.location[0] == pytest.approx((1 - s) / (2 * s), rel=LOCATION)


def quartic(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).mask(False).to_event(1))
    pyro.factor("bend", -(x[1] - x[0] ** 2).square() * 20 - (1 - x[0]).square() - x[2].cosh())
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_a_climb_along_a_bent_valley_turns_negative_curvature_round() -> None:
    """Rosenbrock's valley, from where the Hessian is not definite: the mode is (1, 1, 0)."""
    density = density_of(quartic, y=tensor(0.0))
    starts = [[-1.5, 2.0, 3.0], [0.0, 1.0, -2.0], [-1.0, -1.0, 0.5]]
    indefinite = np.linalg.eigvalsh(exact_precision(density, np.array(starts[1])))
    assert indefinite[0] < 0
    (found,) = from_starts(density, *starts)
    assert found.starts == 3
    assert found.precision is not None
    gap = found.location - [1.0, 1.0, 0.0]
    assert np.sqrt(gap @ found.precision @ gap) < LOCATION
    assert curvature_error(found.precision, exact_precision(density, found.location)) < HESSIAN


def test_a_climb_of_no_step_is_no_mode() -> None:
    density = density_of(conjugate, y=DATA)
    (end,) = climb(density.value_and_gradient, Curvature(density), np.array([[-3.0]]), iterations=1)
    assert not end.reached
    assert end.precision is not None
    assert end.log_evidence == -np.inf


def test_a_climb_that_is_stopped_early_is_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    density = density_of(quartic, y=tensor(0.0))
    start = np.array([[-1.5, 2.0, 3.0]])
    few = climb(density.value_and_gradient, Curvature(density), start, iterations=3)
    assert [end.reached for end in few] == [False]
    assert few[0].log_density > density.value(start)[0]
    monkeypatch.setattr(modes, "climb", lambda f, h, s, patience: climb(f, h, s, 3))
    landscape = explored(quartic, y=tensor(0.0), seed=3)
    stopped = [mode for mode in landscape.modes if not mode.reached]
    assert stopped
    assert all(mode.log_evidence == -np.inf for mode in stopped)


def test_an_optimiser_that_does_not_move_finds_no_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hessians cost too much, climbs begin with a quasi-Newton method."""

    def stuck(loss: Callable[..., Any], start: np.ndarray, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(x=start, fun=loss(start)[0])

    density = density_of(quartic, y=tensor(0.0))
    start = np.array([0.2, 0.1, 1.0])
    gap = climb_long(density, start) - [1.0, 1.0, 0.0]
    precision = exact_precision(density, np.array([1.0, 1.0, 0.0]))
    assert np.sqrt(gap @ precision @ gap) < 10 * LOCATION  # its gradient is below 1e-6, not ours
    monkeypatch.setattr(modes, "minimize", stuck)
    np.testing.assert_array_equal(climb_long(density, start), start)


def test_many_probes_are_climbed_by_gradients_first_and_end_at_the_same_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    density = density_of(quartic, y=tensor(0.0))
    starts = ([0.2, 0.1, 1.0], [-0.5, 0.0, -1.0])
    (direct,) = from_starts(density, *starts)
    monkeypatch.setattr(modes, "SIZES", replace(SIZES, products=0))
    (found,) = from_starts(density, *starts)
    assert found.reached
    assert found.starts == 2
    assert direct.precision is not None
    gap = found.location - direct.location
    assert np.sqrt(gap @ direct.precision @ gap) < 2 * LOCATION


# Curvature: the plates' zeros.


def hierarchical(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(tensor(1.0)))
    with pyro.plate("group", len(y)):
        level = pyro.sample("level", dist.Normal(mean, spread))
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        fn = dist.Normal(level[:, None] + slopes * level.exp()[:, None], 1.0)
        pyro.sample("y", fn.to_event(1), obs=y)


def two_plates(y: Tensor) -> None:
    """Rows × columns: elements of either plate depend on all of the other's."""
    spread = pyro.sample("spread", dist.HalfNormal(tensor(1.0)))
    rows, columns = pyro.plate("row", y.shape[0], dim=-2), pyro.plate("column", y.shape[1], dim=-1)
    with rows:
        row = pyro.sample("row_effect", dist.Normal(0.0, spread))  # (rows, 1)
    with columns:
        column = pyro.sample("column_effect", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Normal(row * column + column.exp(), 1.0), obs=y)


def walk(y: Tensor) -> None:
    """Innovations of a random walk in a plate: each later observation depends on all of them."""
    spread = pyro.sample("spread", dist.HalfNormal(tensor(1.0)))
    with pyro.plate("innovation", len(y)):
        innovation = pyro.sample("step", dist.Normal(0.0, spread))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(innovation.cumsum(-1), 1.0), obs=y)


def neighbours(y: Tensor) -> None:
    """One factor alone ties two neighbours of a plate together."""
    with pyro.plate("element", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    pyro.factor("tie", -0.5 * (x[2] - x[3]) ** 2)


@pytest.mark.parametrize(
    ("model", "shape", "probes", "dimension"),
    [
        (hierarchical, (10, 2), 2 + 3, 32),
        (two_plates, (7, 4), 1 + 4 + 1, 12),
        (walk, (8,), 9, 9),
        (neighbours, (6,), 6, 6),
    ],
)
def test_few_probes_give_the_dense_hessian_and_false_plates_are_seen(
    model: Model, shape: tuple[int, ...], probes: int, dimension: int
) -> None:
    y = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    density = density_of(model, y=y)
    curvature = Curvature(density)
    assert (curvature.structure.probes, density.dimension) == (probes, dimension)
    assert structure_of(density.space).probes < dimension  # the plates alone promise few
    points = 0.5 * np.random.default_rng(0).normal(size=(3, dimension))
    for found, point in zip(curvature(points), points, strict=True):
        np.testing.assert_array_equal(found, found.T)
        assert curvature_error(found, exact_precision(density, point)) < HESSIAN


def test_the_hessian_takes_as_many_gradients_as_it_says() -> None:
    density = density_of(hierarchical, y=torch.zeros(10, 2, dtype=torch.float64))
    curvature = Curvature(density)
    before = density.evaluations
    curvature(np.zeros((4, 32)))
    assert density.evaluations - before == 4 * 2 * curvature.structure.probes


def drift_and_walk(x: Tensor, y: Tensor) -> None:
    drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
    with pyro.plate("innovation", len(y)):
        innovation = pyro.sample("step", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(innovation.cumsum(-1) + drift * x, 1.0), obs=y)


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e6])
def test_a_false_plate_is_seen_beside_a_coordinate_in_other_units(unit: float) -> None:
    x = unit * torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    density = density_of(drift_and_walk, x=x, y=torch.zeros(8, dtype=torch.float64))
    curvature = Curvature(density)
    assert curvature.structure.probes == density.dimension
    point = np.zeros(density.dimension)
    exact = exact_precision(density, point)
    found = curvature(point[None], 1 / np.sqrt(np.diag(exact)))[0]
    assert curvature_error(found, exact) < HESSIAN


def far_tie(y: Tensor) -> None:
    """Two elements of a plate that know each other where both are beyond 2 alone."""
    with pyro.plate("element", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)
    pyro.factor("tie", -((x[0] - 2).relu() * (x[1] - 2).relu()).square())


def test_a_plate_that_is_false_at_the_mode_alone_is_seen() -> None:
    density = density_of(far_tie, y=torch.full((4,), 4.0, dtype=torch.float64))
    (found,) = from_starts(density, [0.0] * 4)
    exact = exact_precision(density, found.location)
    assert abs(exact[0, 1]) > 1.0
    assert found.precision is not None
    assert curvature_error(found.precision, exact) < HESSIAN


# Modes that are one.


def mixture(y: Tensor) -> None:
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("rows", len(y)):
        which = pyro.sample("which", dist.Bernoulli(tensor(0.5)))
        pyro.sample("y", dist.Normal(means[which.long()], 0.5), obs=y)


CLUSTERS = tensor(np.random.default_rng(0).normal([[-2.0], [2.0]], 0.5, (2, 20)).ravel())


def test_modes_that_differ_in_labels_are_one() -> None:
    density = density_of(mixture, y=CLUSTERS)
    (found,) = from_starts(density, [-1.0, 1.0], [1.0, -1.0], [1.5, -2.5])
    assert found.starts == 3
    assert found.relabelled
    single = from_starts(density, [-1.0, 1.0], [-1.5, 2.0])
    assert [(mode.starts, mode.relabelled) for mode in single] == [(2, False)]


def test_modes_of_the_same_height_that_are_no_permutation_are_two() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
        parts = torch.stack([dist.Normal(c, 0.3).log_prob(x) for c in (-2.0, 2.0)])
        pyro.factor("density", parts.logsumexp(0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    found = from_starts(density_of(model, y=tensor(0.0)), [-1.0], [1.0])
    assert [(mode.starts, mode.relabelled) for mode in found] == [(1, False), (1, False)]


def test_ends_of_different_widths_at_one_place_are_told_apart_by_their_divergence() -> None:
    space = LatentSpace.of(conjugate, {"y": DATA})

    def end(place: float, precision: float) -> Mode:
        return Mode(np.array([place]), 0.0, np.array([[precision]]), True)

    def count(*ends: Mode) -> int:
        return len(modes.distinct(list(ends), space))

    # Symmetrised divergence of two Normals: gap² · (p + q) / 2 + (p / q + q / p - 2) / 2.
    assert count(end(0.0, 1.0), end(0.9, 1.0)) == 1
    assert count(end(0.0, 1.0), end(1.1, 1.0)) == 2
    assert count(end(0.0, 1.0), end(0.0, 3.0)) == 1
    assert count(end(0.0, 1.0), end(0.0, 4.5)) == 2
    assert count(end(0.0, 1e6), end(0.9e-3, 1e6)) == 1


def test_minibatches_of_very_many_rows_begin_at_the_mode_of_some() -> None:
    """Its precision is that of all rows; it is off as the mean of the rows drawn is."""
    rows, some = 200_000, SEARCH.enough_rows

    def model(y: Tensor, batch_size: int | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))

    y = 3 + torch.randn(rows, dtype=torch.float64)
    found = explored(model, restarts=2, sampled=True, y=y)
    assert found.best is not None
    assert found.best.precision is not None
    assert found.best.precision[0, 0] == pytest.approx(rows + 1 / 100, rel=1e-3)
    off = abs(found.best.location[0] - float(y.mean()))
    assert 1e-6 < off < 4 / some**0.5
    assert found.agreement is not None
    assert found.agreement.endswith("climbs ended at the best mode of 20,000 rows drawn at random.")
    whole = explored(model, restarts=2, y=y)
    assert whole.best is not None
    assert whole.best.location[0] == pytest.approx(float(y.mean()), abs=1e-5)
