"""The ELBO over a fixed set of draws: an ordinary function with a real optimum.

The draws of a standard Normal are drawn once, in antithetic pairs, so that the ELBO of a Gaussian
guide is a smooth function of its parameters that a quasi-Newton method brings to its optimum
(Giordano, Ingram and Broderick, 2024, "Black box variational inference with a deterministic
objective"). How far that optimum is from the one with all possible draws follows from the spread
of the gradient over the pairs, and how the means answer to a change of the log density gives the
covariance that a factorising guide lacks: linear response (Giordano, Broderick and Jordan, 2018,
"Covariances, robustness and variational Bayes").
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from elbowroom.errors import GuideError
from elbowroom.inference.densities.curvature import Curvature
from elbowroom.inference.densities.density import Density
from elbowroom.inference.densities.modes import climb, guarded_loss, positive_definite
from elbowroom.inference.deterministic.objectives import (
    Coordinates,
    DenseObjective,
    LowRankObjective,
    MeanFieldObjective,
    antithetic,
)

NEAR_ENOUGH = 1e-6
"""The gain that a Newton step promises at an optimum, in nats."""
LOOSE = 1e-4
"""The same where the Hessian is not taken."""
ITERATIONS = 200
PER_DIMENSION = 64
"""Fixed draws for each dimension that a guide has correlations in.

The guide's p parameters fit the M draws' own noise, which costs about p/M nats of the ELBO.
"""


@dataclass(frozen=True)
class Draws:
    """How many fixed draws to take.

    Attributes:
        first: To begin with, even.
        most: Where doubling ends.
        tolerance: The standard error of every mean that comes from the draws being these, in
            standard deviations of the posterior, below which they are enough.
    """

    first: int = 32
    most: int = 256
    tolerance: float = 0.1


@dataclass(frozen=True)
class Optimum:
    """The optimum of a Gaussian guide over fixed draws.

    Attributes:
        parameters: Of the objective, in its coordinates.
        coordinates: In which the guide is described.
        mean: In unconstrained coordinates, (D,).
        covariance: (D, D); of linear response where that was asked for, else the guide's own.
        elbo: Over the fixed draws, in nats.
        reached: Whether the gradient vanishes: a Newton step promises less than `NEAR_ENOUGH`.
        error: The largest standard error of a mean that comes from the draws being these, in
            standard deviations of the posterior; or of a mean-field guide's sd, relative to it.
        draws: How many there were.
        history: The ELBO at each evaluation.
    """

    parameters: np.ndarray
    coordinates: Coordinates
    mean: np.ndarray
    covariance: np.ndarray
    elbo: float
    reached: bool
    error: float
    draws: int
    history: list[float]


def ascend(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    iterations: int,
) -> tuple[np.ndarray, list[float]]:
    """The parameters that L-BFGS reaches, and the objective at each evaluation."""
    history: list[float] = []

    def kept(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(parameters)
        if np.isfinite(value) and np.isfinite(gradient).all():
            history.append(value)
        return value, gradient

    options: dict[str, float] = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 20}
    options |= {"gtol": 1e-4, "ftol": 1e-13}
    loss = guarded_loss(kept)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x, history


def mean_field(
    density: Density,
    curvature: Curvature,
    coordinates: Coordinates,
    random: np.random.Generator,
    choice: Draws = Draws(),
    response: bool = False,
) -> Optimum | None:
    """The optimum of independent Normals in some coordinates.

    Args:
        density: The log density.
        curvature: Of it.
        coordinates: Scaled, or whitened, by the curvature at a mode.
        random: Of the draws.
        choice: Of how many draws.
        response: Whether to give the covariance of linear response, the inverse Hessian of the
            ELBO, instead of the guide's own.

    Returns:
        The optimum; None if the ELBO is not finite at the start, or has no curvature where the
        optimiser ended.
    """
    size = density.dimension
    fixed = antithetic(choice.first, size, random)
    parameters, history = np.zeros(2 * size), []
    while True:
        objective = MeanFieldObjective(density, curvature, coordinates, fixed)
        begin = narrowed(objective, parameters)
        if begin is None:
            return None
        parameters, more = ascend(objective.at, begin, ITERATIONS)
        history += more
        ends = climb(
            objective.value_and_gradient, objective.precision, parameters[None], 30, NEAR_ENOUGH
        )
        precision = ends[0].precision if ends else None
        if precision is None:
            return None
        end, parameters = ends[0], ends[0].location
        history.append(end.log_density)
        inverse = np.linalg.inv(precision)
        covariance = inverse[:size, :size]
        if not positive_definite(covariance):
            return None
        _, gradients = objective.by_draw(parameters)
        meat = _meat(gradients)
        sandwich = inverse @ meat @ inverse
        error = _largest_error(coordinates, sandwich[:size, :size], covariance)
        if not response:  # the guide's own sds follow the draws as well
            error = max(error, float(np.sqrt(np.diag(sandwich)[size:].max())))
        if error <= choice.tolerance or len(fixed) >= choice.most:
            break
        fixed = np.concatenate([fixed, antithetic(len(fixed), size, random)])
    if not response:
        covariance = np.diag(np.exp(2 * parameters[size:]))
    return Optimum(
        parameters,
        coordinates,
        coordinates.to_u(parameters[None, :size])[0],
        coordinates.covariance(covariance),
        end.log_density,
        end.reached,
        error,
        len(fixed),
        history,
    )


def narrowed(objective: MeanFieldObjective, parameters: np.ndarray) -> np.ndarray | None:
    """Parameters of a guide narrow enough for every draw to have a density."""
    narrower = np.repeat([0.0, 1.0], len(parameters) // 2)
    for _ in range(10):
        if np.isfinite(objective.at(parameters)[0]):
            return parameters
        parameters = parameters - narrower
    return None


def full_rank(
    density: Density,
    coordinates: Coordinates,
    random: np.random.Generator,
    choice: Draws = Draws(),
) -> Optimum | None:
    """The optimum of a Normal with all correlations.

    With fewer pairs of draws than dimensions there is none: the guide can widen without end where
    no draw looks.

    Raises:
        GuideError: If the draws are too few for the dimension, with the number needed.
    """
    size = density.dimension
    if choice.most < 2 * (size + 1):
        raise GuideError(
            f"full_rank with {choice.most} fixed draws has no optimum in {size} dimensions: give "
            f"--fixed-draws {PER_DIMENSION * size} or fit with --guide mean_field."
        )
    first = max(choice.first, PER_DIMENSION * size if choice.most > choice.first else 0)
    objective = DenseObjective(density, coordinates, antithetic(first, size, random))
    return _correlated(objective, objective.start(), choice, random)


def low_rank(
    density: Density,
    coordinates: Coordinates,
    random: np.random.Generator,
    factor: np.ndarray,
    choice: Draws = Draws(),
) -> Optimum | None:
    """The optimum of a Normal with a covariance that is diagonal plus `factor` times its transpose.

    Args:
        density: The log density.
        coordinates: Scaled by the curvature at a mode.
        random: Of the draws.
        factor: Where to begin, (D, R).
        choice: Of how many draws.

    Raises:
        GuideError: If the draws are too few for the rank, with the number needed.
    """
    size, rank = factor.shape
    if choice.most < 2 * (rank + 1):
        raise GuideError(
            f"low_rank with {choice.most} fixed draws has no optimum at rank {rank}: give "
            f"--fixed-draws {PER_DIMENSION * rank} or fit with --guide mean_field."
        )
    first = max(choice.first, PER_DIMENSION * rank if choice.most > choice.first else 0)
    objective = LowRankObjective(density, coordinates, antithetic(first, size + rank, random))
    start = np.concatenate([np.zeros(2 * size), factor.ravel()])
    return _correlated(objective, start, choice, random)


def _correlated(
    objective: DenseObjective | LowRankObjective,
    start: np.ndarray,
    choice: Draws,
    random: np.random.Generator,
) -> Optimum | None:
    """The optimum of an objective whose Hessian is not taken.

    In whitened coordinates the Hessian of the ELBO is near the identity, so that half the squared
    gradient stands for the Newton decrement, and the covariance for the mean's inverse Hessian.
    """
    parameters, history = start, []
    coordinates, size = objective.coordinates, objective.density.dimension
    while True:
        parameters, more = ascend(objective.value_and_gradient, parameters, 10 * ITERATIONS)
        if not more:
            return None
        history += more
        value, gradient = objective.value_and_gradient(parameters)
        reached = 0.5 * float(np.square(gradient).sum()) < LOOSE
        covariance = objective.covariance(parameters)
        _, gradients = objective.by_draw(parameters)
        meat = _meat(gradients)
        error = _largest_error(coordinates, covariance @ meat @ covariance, covariance)
        fixed = objective.draws
        if error <= choice.tolerance or 2 * len(fixed) > choice.most:
            break
        objective.draws = np.concatenate([fixed, antithetic(len(fixed), fixed.shape[1], random)])
    return Optimum(
        parameters,
        coordinates,
        coordinates.to_u(parameters[None, :size])[0],
        coordinates.covariance(covariance),
        value,
        reached,
        error,
        len(objective.draws),
        history,
    )


def _meat(gradients: np.ndarray) -> np.ndarray:
    """The covariance of the mean gradient over the pairs of draws."""
    paired = gradients.reshape(-1, 2, gradients.shape[1]).mean(1)
    return np.cov(paired, rowvar=False).reshape(gradients.shape[1], -1) / len(paired)


def _largest_error(coordinates: Coordinates, sandwich: np.ndarray, posterior: np.ndarray) -> float:
    """The largest standard error of a mean in posterior standard deviations."""
    errors = np.diag(coordinates.covariance(sandwich))
    largest = np.max(errors / np.diag(coordinates.covariance(posterior)))
    return float(np.sqrt(largest)) if largest >= 0 else float("inf")
