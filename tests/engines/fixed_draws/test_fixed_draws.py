"""The ELBO over fixed draws: gradients, optima in closed form, and the errors it reports."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import digamma, polygamma
from scipy.stats import t as student_t
from torch import Tensor, tensor

import elbowroom as er
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.importance import standard_errors
from elbowroom.engines.fixed_draws import optima
from elbowroom.engines.fixed_draws.objectives import Fixed, GaussianObjective
from elbowroom.engines.fixed_draws.optima import (
    OPTIMISING,
    Coordinates,
    Draws,
    Errors,
    MeanFieldObjective,
    Optimum,
    best_of_family,
    linear_response,
)
from elbowroom.errors import GuideError, OutOfTimeError
from elbowroom.guides import Start, get_guide
from elbowroom.guides.auto import FullRank, LowRank, MeanField
from elbowroom.guides.families import Family, Flat
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated
from elbowroom.result import Fit

DIFFERENCES = 1e-7
"""Of central differences of step 1e-5 in numbers of order one, relative."""
EXACT = 1e-6
"""Of linear response on a Normal target: a Hessian by differences, and nothing else, is inexact."""
OPTIMUM = (2 * OPTIMISING.decrement) ** 0.5
"""Of an optimum's parameters, in their standard deviations: a Newton step promises 1e-6 nats."""

Model = Callable[..., Any]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def density_of(model: Model, **arguments: Any) -> Density:
    return Density(model, arguments, LatentSpace.of(model, arguments))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Targets.

NOISE, PRIOR = 0.5, 3.0
PREDICTORS = generator(1).normal(size=(12, 3)) @ np.array(
    [[1.0, 0.9, 0.0], [0.0, 0.5, 0.4], [0.0, 0.0, 0.6]]
)
RESPONSES = PREDICTORS @ [1.0, -2.0, 0.5] + NOISE * generator(2).normal(size=12)
PRECISION = PREDICTORS.T @ PREDICTORS / NOISE**2 + np.eye(3) / PRIOR**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ PREDICTORS.T @ RESPONSES / NOISE**2
REGRESSION = {"x": tensor(PREDICTORS), "y": tensor(RESPONSES)}


def regression(x: Tensor, y: Tensor) -> None:
    """Known noise: the posterior is Normal with precision X'X / noise² + 1 / prior²."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), PRIOR).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, NOISE), obs=y)


def log_evidence() -> float:
    covariance = PREDICTORS @ PREDICTORS.T * PRIOR**2 + NOISE**2 * np.eye(12)
    marginal = dist.MultivariateNormal(torch.zeros(12), tensor(covariance))
    return float(marginal.log_prob(tensor(RESPONSES)))


def skewed(y: Tensor) -> None:
    """Two log-gamma coordinates that share a term: neither Normal nor independent."""
    u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    pyro.factor("first", 3 * u[0] - u[0].exp())
    pyro.factor("second", 2 * (u[1] - u[0]) - (u[1] - u[0]).exp())
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def scaled(precision: np.ndarray, origin: np.ndarray) -> Coordinates:
    return Coordinates(origin, 1 / np.sqrt(np.diag(precision)))


def whitened(precision: np.ndarray, origin: np.ndarray) -> Coordinates:
    return Coordinates(origin, np.linalg.cholesky(np.linalg.inv(precision)))


FAMILIES: dict[str, Any] = {"mean_field": MeanField, "full_rank": FullRank, "low_rank": LowRank}


def family_of(name: str, density: Density, coordinates: Coordinates) -> Family:
    """A family that begins as the standard Normal of some coordinates, or as near as it comes."""
    factor = coordinates.factor
    root = np.diag(factor) if factor.ndim == 1 else factor
    start = Start(tensor(coordinates.origin), tensor(np.linalg.inv(root @ root.T)))
    made: Family = FAMILIES[name](density.space, start)
    return made


USUAL = Draws()


def best_of(
    name: str, density: Density, coordinates: Coordinates, seed: int = 0, choice: Draws = USUAL
) -> Optimum | None:
    family = family_of(name, density, coordinates)
    return best_of_family(density, family, name, generator(seed), choice)


def fitted(
    model: Model,
    coordinates: Coordinates,
    choice: Draws,
    response: bool,
    seed: int = 0,
    data: Mapping[str, Tensor] = MappingProxyType({"y": tensor(0.0)}),
) -> Optimum:
    density = density_of(model, **data)
    if response:
        found = linear_response(density, Curvature(density), coordinates, generator(seed), choice)
    else:
        found = best_of("mean_field", density, coordinates, seed, choice)
    assert found is not None
    return found


# Gradients.

SKEWED_PRECISION = np.array([[4.0, -1.5], [-1.5, 2.0]])
SKEWED_COORDINATES = [
    scaled(SKEWED_PRECISION, np.array([0.5, 1.0])),
    whitened(SKEWED_PRECISION, np.array([0.5, 1.0])),
]


def check_gradient(function: Callable[[np.ndarray], tuple[float, np.ndarray]], size: int) -> None:
    parameters = 0.5 * generator(4).normal(size=size)
    _, gradient = function(parameters)
    step, wanted = 1e-5, np.zeros(size)
    for i, move in enumerate(step * np.eye(size)):
        wanted[i] = (function(parameters + move)[0] - function(parameters - move)[0]) / (2 * step)
    np.testing.assert_allclose(gradient, wanted, rtol=DIFFERENCES, atol=DIFFERENCES)


@pytest.mark.parametrize("coordinates", SKEWED_COORDINATES, ids=["scaled", "whitened"])
def test_gradients_are_those_of_finite_differences(coordinates: Coordinates) -> None:
    density, random = density_of(skewed, y=tensor(0.0)), generator()
    factorised = MeanFieldObjective(
        density, Curvature(density), coordinates, Fixed.of(10, 2, random)
    )
    check_gradient(factorised.at, 4)
    for name in FAMILIES:
        flat = Flat(family_of(name, density, coordinates))
        noise = flat.normal(flat.start).noise
        objective = GaussianObjective(density, flat, Fixed.of(10, noise, random))
        check_gradient(objective.at, len(flat.start))
        parameters = flat.start.numpy() + 0.3
        # The blocks' draws are weighted alike: their mean is that over all draws.
        np.testing.assert_allclose(
            objective.by_block(parameters).mean(0), objective.at(parameters)[1], atol=1e-12
        )


@pytest.mark.parametrize("coordinates", SKEWED_COORDINATES, ids=["scaled", "whitened"])
def test_the_hessian_is_that_of_finite_differences(coordinates: Coordinates) -> None:
    density = density_of(skewed, y=tensor(0.0))
    objective = MeanFieldObjective(
        density, Curvature(density), coordinates, Fixed.of(10, 2, generator())
    )
    parameters = 0.5 * generator(4).normal(size=4)
    step = 1e-5
    wanted = np.stack(
        [
            (objective.at(parameters - move)[1] - objective.at(parameters + move)[1]) / (2 * step)
            for move in step * np.eye(4)
        ]
    )
    (found,) = objective.precision(parameters[None], np.zeros((1, 4)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_elbo_of_a_family_is_the_mean_of_log_p_and_its_entropy(name: str) -> None:
    """The draws, the covariance and the entropy are those of the Normal that Pyro samples."""
    density = density_of(skewed, y=tensor(0.0))
    flat = Flat(family_of(name, density, SKEWED_COORDINATES[0]))
    parameters = flat.start.numpy() + 0.3 * generator(1).normal(size=len(flat.start))
    normal = flat.normal(tensor(parameters))
    fixed = Fixed.of(64, normal.noise, generator())
    objective = GaussianObjective(density, flat, fixed)
    root = normal.root.diag() if normal.root.dim() == 1 else normal.root
    points = normal.location + tensor(fixed.draws) @ root.mT
    # The entropy is exact, not that of the draws.
    wanted = density.value(points.numpy()).mean() + float(normal.distribution.entropy())
    assert objective.at(parameters)[0] == pytest.approx(wanted, rel=1e-12)
    mean, covariance = objective.moments(parameters)
    np.testing.assert_allclose(points.mean(0).numpy(), mean, atol=1e-12)  # pairs
    drawn = np.cov(points.numpy(), rowvar=False, bias=True)  # they have the Normal's moments
    np.testing.assert_allclose(drawn, covariance, atol=1e-12)
    torch.testing.assert_close(
        normal.distribution.variance.diag(), tensor(covariance).diag().diag()
    )


def test_independent_normals_of_both_objectives_agree() -> None:
    density, coordinates = density_of(skewed, y=tensor(0.0)), SKEWED_COORDINATES[0]
    fixed, log_scale = Fixed.of(10, 2, generator()), np.array([-0.5, 0.4])
    flat = Flat(family_of("mean_field", density, coordinates))
    value, gradient = GaussianObjective(density, flat, fixed).at(np.append(np.zeros(2), log_scale))
    alone = MeanFieldObjective(density, Curvature(density), coordinates, fixed)
    other, by_both = alone.at(np.append(np.zeros(2), log_scale))
    assert value == pytest.approx(other, rel=1e-12)
    np.testing.assert_allclose(gradient[2:], by_both[2:], rtol=1e-10)


@pytest.mark.parametrize(("count", "size"), [(32, 3), (128, 3), (1024, 30), (512, 1)])
def test_draws_are_antithetic_pairs_with_the_moments_of_the_normal(count: int, size: int) -> None:
    fixed = Fixed.of(count, size, generator())
    draws = fixed.draws
    np.testing.assert_array_equal(draws[::2], -draws[1::2])
    assert draws.shape == (count, size)
    np.testing.assert_allclose(draws.T @ draws / count, np.eye(size), atol=1e-12)
    assert fixed.blocks == (8 if count >= 128 else count // 2)
    assert fixed.grouped().blocks == 8
    # Of a gradient that is linear in the draws, no block's moments count where there are blocks.
    linear = generator(1).normal(size=(2, size))
    apart = np.abs(fixed.products(draws @ linear.T) - linear).max()
    assert apart < 1e-9 if count >= 128 else apart > 0.1


def test_draws_too_few_for_the_dimension_have_its_variances() -> None:
    draws = Fixed.of(8, 3, generator()).draws
    np.testing.assert_allclose(np.square(draws).mean(0), 1.0)


# A Normal target, where everything is known.


@pytest.mark.parametrize("make", [scaled, whitened])
def test_linear_response_is_exact_on_a_normal(make: Callable[..., Coordinates]) -> None:
    coordinates = make(PRECISION, MEAN + np.array([0.3, -0.2, 0.1]))
    found = fitted(regression, coordinates, Draws(8, 8), True, data=REGRESSION)
    assert found.reached
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((found.mean - MEAN) / sd).max() < OPTIMUM
    np.testing.assert_allclose(found.covariance / np.outer(sd, sd),
                               COVARIANCE / np.outer(sd, sd), atol=EXACT)  # fmt: skip
    assert found.errors.mean < OPTIMUM  # antithetic draws leave no error in the mean of a Normal


@pytest.mark.parametrize("seed", range(3))
def test_mean_field_is_too_narrow_by_the_known_factor(seed: int) -> None:
    """Its variances are 1 / diag(precision), and its ELBO is that much below the evidence.

    The draws have the moments of the Normal, so that no choice of them moves either.
    """
    found = fitted(regression, scaled(PRECISION, MEAN), Draws(), False, seed, data=REGRESSION)
    assert found.reached
    assert np.count_nonzero(found.covariance - np.diag(np.diag(found.covariance))) == 0
    np.testing.assert_allclose(np.diag(found.covariance) * np.diag(PRECISION), 1.0, atol=1e-3)
    gap = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    assert gap > 1.0
    assert found.elbo == pytest.approx(log_evidence() - gap, abs=OPTIMISING.loose_decrement)
    assert max(found.errors.mean, found.errors.log_sd, found.errors.loss) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_a_dense_guide_holds_a_normal_whole(seed: int) -> None:
    density = density_of(regression, **REGRESSION)
    found = best_of("full_rank", density, whitened(PRECISION, MEAN + 0.1), seed)
    assert found is not None
    assert found.reached
    assert found.elbo == pytest.approx(log_evidence(), abs=OPTIMISING.loose_decrement)
    sd = np.sqrt(np.diag(COVARIANCE))
    # Half of the squared gradient is below `OPTIMISING.loose_decrement`.
    error = (2 * OPTIMISING.loose_decrement) ** 0.5
    scale = np.outer(sd, sd)
    np.testing.assert_allclose(found.covariance / scale, COVARIANCE / scale, atol=2 * error)
    assert np.abs((found.mean - MEAN) / sd).max() < error
    assert found.errors.loss < 1e-6


def factor_analysis() -> tuple[np.ndarray, np.ndarray]:
    """A Normal whose covariance is diagonal plus rank one: a guide of rank one holds it."""
    loadings = np.array([2.0, -1.5, 1.0, 0.5])
    return np.zeros(4), np.diag([0.5, 1.0, 0.8, 1.2]) + np.outer(loadings, loadings)


def given_normal(mean: Tensor, precision: Tensor) -> None:
    fn = dist.Normal(torch.zeros(len(mean)), 1.0).mask(False).to_event(1)
    u = pyro.sample("u", fn)
    pyro.factor("density", -0.5 * (u - mean) @ precision @ (u - mean))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=tensor(0.0))


def test_a_low_rank_guide_holds_a_normal_of_that_rank() -> None:
    mean, covariance = factor_analysis()
    precision = np.linalg.inv(covariance)
    density = density_of(given_normal, mean=tensor(mean), precision=tensor(precision))
    start = 0.5 * generator(3).normal(size=(4, 1))
    count = 8192
    family = LowRank(density.space, Start(tensor(mean), tensor(precision)))
    family.factor = tensor(start)
    found = best_of_family(density, family, "low_rank", generator(), Draws(count, count))
    assert found is not None
    assert found.reached
    exact = 0.5 * (4 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1]) - 0.5 * np.log(
        2 * np.pi
    )
    # Half the log determinant of the draws' second moments, as with a dense guide.
    assert found.elbo == pytest.approx(exact, abs=4 * 0.5 * (2 * 5 / (count / 2)) ** 0.5)
    sd = np.sqrt(np.diag(covariance))
    correlation = found.covariance / np.outer(sd, sd)
    # The largest eigenvalue of the moments of 5 coordinates over half the draws.
    error = 2 * (5 / (count / 2)) ** 0.5
    assert np.abs(correlation - covariance / np.outer(sd, sd)).max() < 2 * error


# Fifty dimensions, through the front door.

SIZE = 50
FIT_DRAWS = 4000


def wide_covariance() -> np.ndarray:
    random = generator(7)
    factor = random.normal(size=(SIZE, SIZE)) / SIZE**0.5 + 0.5 * np.eye(SIZE)
    scales = np.exp(random.uniform(-4, 4, SIZE))
    return (factor @ factor.T + 0.05 * np.eye(SIZE)) * np.outer(scales, scales)


WIDE = wide_covariance()


def wide_normal(mean: Tensor, covariance: Tensor) -> None:
    u = pyro.sample("u", dist.MultivariateNormal(mean, covariance))
    pyro.sample("y", dist.Normal(0.0 * u.sum(), 1.0), obs=tensor(0.0))


@pytest.fixture(scope="module")
def wide() -> Fit:
    mean = torch.linspace(-3.0, 3.0, SIZE, dtype=torch.float64)
    data = {"mean": mean, "covariance": tensor(WIDE)}
    return er.fit(wide_normal, data=data, guide="linear_response", seed=1, draws=FIT_DRAWS)


def test_every_sd_of_fifty_correlated_coordinates_is_within_one_percent(wide: Fit) -> None:
    precision = wide.start.precision
    assert precision is not None
    found = np.sqrt(np.diag(np.linalg.inv(precision.numpy())))
    np.testing.assert_allclose(found, np.sqrt(np.diag(WIDE)), rtol=0.01)
    correlation = np.linalg.inv(precision.numpy()) / np.outer(found, found)
    sd = np.sqrt(np.diag(WIDE))
    np.testing.assert_allclose(correlation, WIDE / np.outer(sd, sd), atol=0.01)
    log_mean = np.abs(wide.start.location.numpy() - np.linspace(-3, 3, SIZE)) / sd
    assert log_mean.max() < 0.01


def test_the_corrected_draws_of_fifty_coordinates_are_within_their_own_error(wide: Fit) -> None:
    assert wide.verdict.trusted
    flat = wide.posterior["posterior"]["u"].values[0]
    errors = standard_errors(np.full(FIT_DRAWS, 1 / FIT_DRAWS), flat)
    sd = np.sqrt(np.diag(WIDE))
    effective = wide.measures["corrected_effective_sample_size"]
    # The worst of fifty is at 3.3 standard errors once in twenty; resampling adds its own.
    loss = (1 + FIT_DRAWS / effective) ** 0.5
    centred = np.abs(flat.mean(0) - np.linspace(-3, 3, SIZE)) / sd
    assert (centred / errors[0]).max() < 4 * loss
    assert (np.abs(np.log(flat.std(0) / sd)) / errors[1]).max() < 4 * loss


def test_the_evidence_of_fifty_coordinates_is_within_its_error(wide: Fit) -> None:
    """That of a likelihood which does not depend on the sites."""
    assert wide.measures["log_evidence"] == pytest.approx(
        -0.5 * np.log(2 * np.pi), abs=4 * wide.measures["log_evidence_se"]
    )


# How many draws.


def test_full_rank_refuses_too_few_draws_and_names_the_number() -> None:
    density = density_of(regression, **REGRESSION)
    coordinates = whitened(PRECISION, MEAN)
    with pytest.raises(GuideError, match=r"full_rank .* 3 dimensions.* 6 fixed draws are too few"):
        best_of("full_rank", density, coordinates, choice=Draws(6, 6))
    with pytest.raises(GuideError, match=r"low_rank .* 2 dimensions.* 4 fixed draws are too few"):
        best_of("low_rank", density, coordinates, choice=Draws(4, 4))


def test_the_number_that_full_rank_asks_for_is_enough() -> None:
    with pytest.raises(GuideError) as refused:
        er.fit(regression, data=REGRESSION, guide="full_rank", seed=1, fixed_draws=6)
    words = str(refused.value).replace("--", "").split()
    needed = int(words[words.index("fixed-draws") + 1].rstrip(","))
    fit = er.fit(regression, data=REGRESSION, guide="full_rank", seed=1, fixed_draws=needed)
    assert fit.converged


SKEWED_MODE = np.array([np.log(3.0), np.log(3.0) + np.log(2.0)])
"""Where its gradient vanishes, the coordinates being log of gamma(3) and that plus log of gamma(2):
the first has no part in the second's factor beyond their difference."""
SKEWED_HESSIAN = np.array([[3.0 + 2.0, -2.0], [-2.0, 2.0]])


@pytest.mark.parametrize("count", [32, 256])
@pytest.mark.parametrize("method", ["mean_field", "full_rank", "linear_response"])
def test_the_errors_of_all_numbers_are_their_spread_over_draws(method: str, count: int) -> None:
    """Over 16 seeds, with errors of their own of a fifth; the loss by the ELBO over all draws.

    What few draws that are matched are taken to leave, they do not leave.
    """
    density, choice = density_of(skewed, y=tensor(0.0)), Draws(count, count)
    coordinates = scaled(SKEWED_HESSIAN, SKEWED_MODE)

    def optimum(seed: int, choice: Draws) -> Optimum:
        if method == "linear_response":
            curvature = Curvature(density)
            found = linear_response(density, curvature, coordinates, generator(seed), choice)
        else:
            found = best_of(method, density, coordinates, seed, choice)
        assert found is not None
        if found.all_errors is not None:
            return replace(found, errors=found.all_errors())
        return found

    found = [optimum(seed, choice) for seed in range(16)]
    sds = np.stack([np.sqrt(np.diag(each.covariance)) for each in found])
    correlations = np.array([each.covariance[0, 1] for each in found]) / sds.prod(1)
    spread = {
        "mean": (np.stack([each.mean for each in found]).std(0, ddof=1) / sds.mean(0)).max(),
        "log_sd": np.log(sds).std(0, ddof=1).max(),
        "correlation": correlations.std(ddof=1),
    }
    for name, real in spread.items():
        stated = float(np.sqrt(np.mean([getattr(each.errors, name) ** 2 for each in found])))
        assert stated > real / 2 - 1e-9, name
        assert stated < 2 * real + 1e-9 or count == 32, name
    losses = np.array([each.errors.loss for each in found])
    if method == "linear_response":
        assert (losses == 0).all()  # it is no optimum of the ELBO
        return
    whole = Fixed.of(4096, 2, generator(99))
    flat = Flat(family_of(method, density, coordinates))
    over_all = GaussianObjective(density, flat, whole)
    best = optimum(98, Draws(4096, 4096)).parameters
    real = over_all.at(best)[0] - np.mean([over_all.at(each.parameters)[0] for each in found])
    assert losses.mean() > real / 2.5
    assert losses.mean() < 2.5 * real or count == 32


def heavy(y: Tensor) -> None:
    """A Student t with three degrees of freedom, whose mean no choice of pairs of draws moves."""
    u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0).mask(False))
    pyro.factor("density", dist.StudentT(tensor(3.0), 0.0, 1.0).log_prob(u))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def log_gamma_of_two(y: Tensor) -> None:
    u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0).mask(False))
    pyro.factor("density", 2 * u - u.exp())
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def best_normal(log_density: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float, float]:
    """Mean, sd and ELBO of the best Normal of a density of one number, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()

    def loss(parameters: np.ndarray) -> float:
        mean, log_sd = parameters
        expected = weights @ log_density(mean + np.exp(log_sd) * nodes)
        return -float(expected + log_sd + 0.5 * np.log(2 * np.pi * np.e))

    found = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-7})
    return found.x[0], float(np.exp(found.x[1])), -found.fun - 0.5 * np.log(2 * np.pi)


ONE_NUMBER: dict[str, tuple[Model, Callable[[np.ndarray], np.ndarray]]] = {
    "heavy": (heavy, student_t(3).logpdf),
    "skewed": (log_gamma_of_two, lambda u: 2 * u - np.exp(u)),
}


@pytest.mark.parametrize("name", ONE_NUMBER)
@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank"])
def test_a_guide_by_name_is_the_best_of_its_family(name: str, guide: str) -> None:
    """In one dimension all three are the same Normal, which no seed decides."""
    model, log_density = ONE_NUMBER[name]
    mean, sd, elbo = best_normal(log_density)
    for seed in range(3):
        fit = er.fit(model, {"y": tensor(0.0)}, guide=guide, seed=seed, draws=4000)
        measures = fit.measures
        assert abs(measures["elbo"] - elbo) < 3.5 * measures["elbo_se"]
        own = fit.draw(4000, seed=7).sites["u"].numpy()
        # The draws' own errors, and the tolerance.
        assert abs(own.mean() - mean) / sd < 4 / 4000**0.5 + Draws.tolerance
        assert abs(np.log(own.std() / sd)) < 4 / 8000**0.5 + Draws.tolerance
        assert not any("the fixed draws are too few" in note for note in fit.notes)


def test_draws_are_doubled_for_scales_too() -> None:
    density = density_of(heavy, y=tensor(0.0))
    choice = Draws(16, 4096, 0.01)
    coordinates = Coordinates(np.zeros(1), np.ones(1))
    found = best_of("mean_field", density, coordinates, choice=choice)
    assert found is not None
    assert found.errors.mean < 1e-9  # of which the rule would have seen nothing
    assert found.draws > 16
    assert found.errors.log_sd <= 0.01
    assert found.errors.loss <= choice.loss


def test_what_is_not_known_well_is_said() -> None:
    """With so few draws as were asked for; and its ELBO is within the error that it has."""
    _, _, elbo = best_normal(ONE_NUMBER["heavy"][1])
    for seed in range(4):
        fit = er.fit(heavy, {"y": tensor(0.0)}, guide="mean_field", seed=seed, fixed_draws=16)
        assert abs(fit.measures["elbo"] - elbo) < 3.5 * fit.measures["elbo_se"]
        assert any(
            "the fixed draws are too few: the sds have an error of" in note for note in fit.notes
        )
        assert "posterior sd for a mean" in fit.trained.reason
        assert "% for an sd" in fit.trained.reason


def test_nested_families_come_out_in_their_order() -> None:
    """A Normal of rank two in two dimensions has all correlations, which raise the ELBO."""
    for seed in range(2):
        found = {
            guide: er.fit(skewed, {"y": tensor(0.0)}, guide=guide, seed=seed).measures
            for guide in ("mean_field", "low_rank", "full_rank")
        }
        elbo = {guide: measures["elbo"] for guide, measures in found.items()}
        error = {guide: measures["elbo_se"] for guide, measures in found.items()}
        apart = abs(elbo["full_rank"] - elbo["low_rank"])
        assert apart < 3.5 * np.hypot(error["full_rank"], error["low_rank"])
        gain = elbo["full_rank"] - elbo["mean_field"]
        assert gain > 3.5 * np.hypot(error["full_rank"], error["mean_field"])


def test_the_reported_error_is_the_spread_over_draws() -> None:
    """Over 40 seeds: the spread's own relative error is 1 / √(2 · 39); or somewhat more."""
    seeds, choice = 40, Draws(256, 256)
    coordinates = scaled(SKEWED_HESSIAN, SKEWED_MODE)
    found = [fitted(skewed, coordinates, choice, True, seed) for seed in range(seeds)]
    assert all(optimum.reached for optimum in found)
    means = np.stack([optimum.mean for optimum in found])
    sds = np.stack([np.sqrt(np.diag(optimum.covariance)) for optimum in found])
    spread = (means.std(0, ddof=1) / sds.mean(0)).max()
    reported = float(np.sqrt(np.mean([optimum.errors.mean**2 for optimum in found])))
    assert -3 / (2 * (seeds - 1)) ** 0.5 < np.log(reported / spread) < np.log(2)
    # And the optimum with all draws lies where they centre.
    whole = fitted(skewed, coordinates, Draws(16384, 16384), True, 99)
    error = spread * sds.mean(0) / seeds**0.5
    assert (np.abs(means.mean(0) - whole.mean) / error).max() < 4


def test_draws_are_doubled_until_the_tolerance_or_the_most() -> None:
    coordinates = scaled(SKEWED_HESSIAN, SKEWED_MODE)

    def optimum(tolerance: float, most: int = 4096) -> Optimum:
        return fitted(skewed, coordinates, Draws(8, most, tolerance), True)

    loose, tight = optimum(0.5), optimum(0.02)
    assert loose.draws == 8
    assert loose.errors.mean <= 0.5
    assert tight.errors.mean <= 0.02
    assert 8 < tight.draws <= 4096
    assert np.log2(tight.draws / 8) % 1 == 0
    before = optimum(0.02, tight.draws // 2)  # the last doubling was needed
    assert before.draws == tight.draws // 2
    assert before.errors.mean > 0.02
    assert len(tight.history) > len(before.history) >= len(loose.history)


def test_a_gaussian_guide_of_a_log_gamma_has_the_known_optimum() -> None:
    """E[log p] = a m - exp(m + s²/2) is stationary at s² = 1 / a, m = log a - 1 / (2a)."""

    def log_gamma(y: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0).mask(False))
        pyro.factor("density", 3 * u - u.exp())
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    coordinates = Coordinates(np.array([np.log(3.0)]), np.array([3**-0.5]))
    count = 8192
    found = fitted(log_gamma, coordinates, Draws(count, count), False)
    sd = 3**-0.5
    assert abs(found.mean[0] - (np.log(3) - 1 / 6)) < 4 * found.errors.mean * sd + OPTIMUM
    assert abs(np.log(np.sqrt(found.covariance[0, 0]) / sd)) < 4 * 0.5 / (count / 4) ** 0.5
    elbo = 3 * (np.log(3) - 1 / 6) - 3 + 0.5 * np.log(2 * np.pi * np.e / 3)
    assert found.elbo - -0.5 * np.log(2 * np.pi) == pytest.approx(elbo, abs=4 / count**0.5)
    # The truth is wider and lower, which the guide cannot know.
    assert polygamma(1, 3) > 1 / 3
    assert digamma(3) < np.log(3) - 1 / 6


def test_a_guide_is_narrowed_until_every_draw_has_a_density() -> None:
    def model(y: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("edge", torch.where(u.abs() < 0.05, 0.0, -torch.inf))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    density = density_of(model, y=tensor(0.0))
    coordinates = Coordinates(np.zeros(1), np.ones(1))
    objective = MeanFieldObjective(
        density, Curvature(density), coordinates, Fixed.of(8, 1, generator())
    )
    assert objective.at(np.zeros(2))[0] == -np.inf
    found = fitted(model, coordinates, Draws(8, 8), False)
    assert not found.reached or np.sqrt(found.covariance[0, 0]) < 0.05


def test_an_elbo_without_a_curvature_has_no_optimum() -> None:
    def improper(y: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
        pyro.sample("y", dist.Normal(0.0 * u.sum(), 1.0), obs=y)

    density = density_of(improper, y=tensor(0.0))
    coordinates = Coordinates(np.zeros(2), np.ones(2))
    assert best_of("mean_field", density, coordinates) is None


@pytest.mark.parametrize(
    ("count", "mean", "further"),
    [(256, 0.019, None), (256, 0.021, 512), (256, 0.1, 1024), (2048, 0.1, 4096), (4096, 0.1, None)],
)
def test_draws_are_doubled_once_or_twice_as_the_errors_tell(
    count: int, mean: float, further: int | None
) -> None:
    """At 0.1, five times the tolerance, it takes 25 times the draws; at 0.021 hardly more."""
    assert Draws().after(count, Errors(mean, 0.0, 0.0)) == further


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", [PRECISION, None], ids=["curvature", "none"])
def test_pyro_has_the_normal_that_was_optimised(name: str, precision: np.ndarray | None) -> None:
    """Each parameter has its name, shape and constraint in the guide, where it begins alike."""
    space = LatentSpace.of(regression, REGRESSION)
    known = None if precision is None else tensor(precision)
    start = Start(tensor(MEAN), known)
    guide = get_guide(name, None).build(space, start)
    torch.manual_seed(0)
    guide(**REGRESSION)
    store = dict(pyro.get_param_store().items())
    torch.manual_seed(0)
    family = FAMILIES[name](space, start)
    assert set(store) == {f"guide.{parameter}" for parameter in family.parameters}
    flat = Flat(family)
    for parameter, value in flat.values(flat.start).items():
        assert value.shape == store[f"guide.{parameter}"].shape
        if precision is not None:
            torch.testing.assert_close(value, store[f"guide.{parameter}"])
    curvature = flat.curvature(flat.start)
    assert curvature.shape == flat.start.shape
    assert bool((curvature > 0).all())


def test_linear_response_that_is_out_of_time_ends_with_the_curvature_at_the_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a Normal posterior that is exact, and its draws are weighed as ever."""

    def late(*_: Any) -> Optimum | None:
        raise OutOfTimeError("over")

    monkeypatch.setattr(optima, "linear_response", late)

    def model(y: Tensor) -> None:
        place = pyro.sample("place", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(place, 1.0).to_event(1), obs=y)

    data = {"y": tensor([1.0, -3.0])}
    fit = er.fit(model, data, "linear_response", seed=1)
    assert not fit.converged
    assert "time was over before an ELBO had an optimum" in str(fit.verdict.reasons)
    draws = fit.posterior["posterior"]["place"].to_numpy().reshape(-1, 2)
    error = 4 * (0.8 / len(draws)) ** 0.5
    np.testing.assert_allclose(draws.mean(0), [0.8, -2.4], atol=error)
    np.testing.assert_allclose(draws.var(0), [0.8, 0.8], rtol=0.1)
    with pytest.raises(OutOfTimeError):  # another guide would not be what its name says
        er.fit(model, data, "full_rank", seed=1)
