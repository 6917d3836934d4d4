"""The ELBO over a fixed set of draws: an ordinary function with a real optimum.

The draws of a standard Normal are drawn once, in antithetic pairs, so that the ELBO of a Gaussian
guide is a smooth function of its parameters that a quasi-Newton method brings to its optimum
(Giordano, Ingram and Broderick, 2024, "Black box variational inference with a deterministic
objective"). How far that optimum is from the one with all possible draws follows from the spread
of the gradient over the pairs, and how the means answer to a change of the log density gives the
covariance that a factorising guide lacks: linear response (Giordano, Broderick and Jordan, 2018,
"Covariances, robustness and variational Bayes").
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import minimize

from elbowroom.inference.curvature import Curvature
from elbowroom.inference.density import Density
from elbowroom.inference.modes import climb, positive_definite

LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Coordinates:
    """Affine coordinates a of the unconstrained vector: u = origin + factor · a.

    Attributes:
        origin: (D,).
        factor: (D, D) lower triangular, or its diagonal (D,).
    """

    origin: np.ndarray
    factor: np.ndarray

    @property
    def log_determinant(self) -> float:
        """Of the factor."""
        diagonal = self.factor if self.factor.ndim == 1 else np.diag(self.factor)
        return float(np.log(np.abs(diagonal)).sum())

    def to_u(self, a: np.ndarray) -> np.ndarray:
        """Points (n, D) in the unconstrained space."""
        return self.origin + (a * self.factor if self.factor.ndim == 1 else a @ self.factor.T)

    def gradient(self, gradients: np.ndarray) -> np.ndarray:
        """Gradients (n, D) with respect to u as those with respect to a."""
        return gradients * self.factor if self.factor.ndim == 1 else gradients @ self.factor

    def precision(self, precisions: np.ndarray) -> np.ndarray:
        """Minus Hessians (n, D, D) with respect to u as those with respect to a."""
        if self.factor.ndim == 1:
            return precisions * np.multiply.outer(self.factor, self.factor)
        return self.factor.T @ precisions @ self.factor

    def covariance(self, covariance: np.ndarray) -> np.ndarray:
        """A covariance of a as that of u."""
        if self.factor.ndim == 1:
            return covariance * np.multiply.outer(self.factor, self.factor)
        return self.factor @ covariance @ self.factor.T


def antithetic(count: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Standard Normal draws each followed by its negative: (count, size)."""
    half = random.standard_normal((count // 2, size))
    return np.stack([half, -half], axis=1).reshape(-1, size)


class MeanFieldObjective:
    """The ELBO of independent Normals in some coordinates, over fixed draws.

    Its parameters are the means, then the logarithms of the standard deviations, (2D,).
    """

    def __init__(
        self, density: Density, curvature: Curvature, coordinates: Coordinates, draws: np.ndarray
    ) -> None:
        self.density, self.curvature = density, curvature
        self.coordinates, self.draws = coordinates, draws

    def points(self, parameters: np.ndarray) -> np.ndarray:
        """The draws of the guide in the unconstrained space, (draws, D)."""
        mean, log_scale = np.split(parameters, 2)
        return self.coordinates.to_u(mean + self.draws * np.exp(log_scale))

    def by_draw(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each draw's part of the ELBO and of its gradient: (draws,) and (draws, 2D)."""
        _, log_scale = np.split(parameters, 2)
        values, gradients = self.density.value_and_gradient(self.points(parameters))
        gradients = self.coordinates.gradient(gradients)
        by_scale = gradients * self.draws * np.exp(log_scale) + 1.0
        entropy = log_scale.sum() + self.coordinates.log_determinant
        entropy += 0.5 * len(log_scale) * (1 + LOG_2PI)
        return values + entropy, np.concatenate([gradients, by_scale], axis=1)

    def value_and_gradient(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ELBO and its gradient at parameters (n, 2D): (n,) and (n, 2D)."""
        parts = [self.by_draw(each) for each in parameters]
        with np.errstate(invalid="ignore"):
            values = np.array([value.mean() for value, _ in parts])
            return values, np.stack([gradient.mean(0) for _, gradient in parts])

    def precision(self, parameters: np.ndarray) -> np.ndarray:
        """Minus the Hessian at parameters (n, 2D): (n, 2D, 2D)."""
        return np.stack([self._precision(each) for each in parameters])

    def _precision(self, parameters: np.ndarray) -> np.ndarray:
        _, log_scale = np.split(parameters, 2)
        size, scale = len(log_scale), np.exp(log_scale)
        points = self.points(parameters)
        _, gradients = self.density.value_and_gradient(points)
        gradients = self.coordinates.gradient(gradients)
        whole = np.zeros((2 * size, 2 * size))
        chunk = max(1, 4_000_000 // size**2)
        for begin in range(0, len(points), chunk):
            rows = slice(begin, begin + chunk)
            width = self.draws[rows] * scale  # (rows, D): of the draw from the mean
            precisions = self.coordinates.precision(self.curvature(points[rows]))
            whole[:size, :size] += precisions.sum(0)
            whole[:size, size:] += np.einsum("nij,nj->ij", precisions, width)
            whole[size:, size:] += np.einsum("ni,nij,nj->ij", width, precisions, width)
        whole[size:, :size] = whole[:size, size:].T
        whole /= len(points)
        diagonal = (gradients * self.draws * scale).mean(0)
        whole[size:, size:] -= np.diag(diagonal)
        return whole


@dataclass(frozen=True)
class Optimum:
    """The optimum of a Gaussian guide over fixed draws.

    Attributes:
        mean: In unconstrained coordinates, (D,).
        covariance: Of linear response, (D, D).
        elbo: Over the fixed draws, in nats.
        reached: Whether the gradient vanishes: the Newton decrement is below the tolerance.
        error: The largest standard error of a mean that comes from the draws being these, in
            standard deviations of the posterior.
        draws: How many there were.
    """

    mean: np.ndarray
    covariance: np.ndarray
    elbo: float
    reached: bool
    error: float
    draws: int


def _ascend(objective: MeanFieldObjective, start: np.ndarray) -> np.ndarray:
    """The parameters that L-BFGS reaches."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        values, gradients = objective.value_and_gradient(parameters[None])
        if not (np.isfinite(values[0]) and np.isfinite(gradients).all()):
            return 1e100, np.zeros_like(parameters)
        return -float(values[0]), -gradients[0]

    options = {"maxiter": 200, "maxfun": 300, "maxcor": 20, "gtol": 1e-4, "ftol": 1e-12}
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x


NEAR_ENOUGH = 1e-6
"""The Newton decrement of an optimum, in nats."""


def linear_response(
    density: Density,
    curvature: Curvature,
    coordinates: Coordinates,
    random: np.random.Generator,
    draws: int = 32,
    most_draws: int = 256,
    tolerance: float = 0.1,
) -> Optimum | None:
    """The optimum of a mean-field guide in some coordinates, with the covariance of linear response.

    The draws are doubled until the standard error of every mean that comes from them is below
    `tolerance` standard deviations of the posterior.

    Args:
        density: The log density.
        curvature: Of it.
        coordinates: Scaled, or whitened, by the curvature at a mode.
        random: Of the draws.
        draws: To begin with, even.
        most_draws: Where doubling ends.
        tolerance: See above.

    Returns:
        The optimum; None if the ELBO is not finite at the start, or has no curvature where the
        optimiser ended.
    """
    size = density.dimension
    fixed = antithetic(draws, size, random)
    parameters = np.zeros(2 * size)
    while True:
        objective = MeanFieldObjective(density, curvature, coordinates, fixed)
        values, _ = objective.value_and_gradient(parameters[None])
        while not np.isfinite(values[0]):  # narrower, until every draw has a density
            parameters = parameters - np.concatenate([np.zeros(size), np.ones(size)])
            if parameters[-1] < -10:
                return None
            values, _ = objective.value_and_gradient(parameters[None])
        parameters = _ascend(objective, parameters)
        ends = climb(
            objective.value_and_gradient, objective.precision, parameters[None], 30, NEAR_ENOUGH
        )
        if not ends or ends[0].precision is None:
            return None
        end, parameters = ends[0], ends[0].location
        inverse = np.linalg.inv(ends[0].precision)
        response = inverse[:size, :size]
        if not positive_definite(response):
            return None
        error = _error(objective, parameters, inverse)
        if error <= tolerance or len(fixed) >= most_draws:
            break
        fixed = np.concatenate([fixed, antithetic(len(fixed), size, random)])
    mean = coordinates.to_u(parameters[None, :size])[0]
    return Optimum(
        mean, coordinates.covariance(response), end.log_density, end.reached, error, len(fixed)
    )


def _error(objective: MeanFieldObjective, parameters: np.ndarray, inverse: np.ndarray) -> float:
    """The sandwich estimate of the largest standard error of a mean, in posterior deviations."""
    _, gradients = objective.by_draw(parameters)
    paired = gradients.reshape(-1, 2, gradients.shape[1]).mean(1)
    meat = np.cov(paired, rowvar=False) / len(paired)
    size = len(parameters) // 2
    sandwich = objective.coordinates.covariance((inverse @ meat @ inverse)[:size, :size])
    posterior = objective.coordinates.covariance(inverse[:size, :size])
    return float(np.sqrt(np.max(np.diag(sandwich) / np.diag(posterior))))
