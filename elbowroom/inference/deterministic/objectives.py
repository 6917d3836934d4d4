"""The ELBO of Gaussian guides over fixed draws, with its gradient, as functions of numpy arrays."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from elbowroom.inference.densities.curvature import Curvature
from elbowroom.inference.densities.density import Density

LOG_2PI = float(np.log(2 * np.pi))
BLOCKS = 8
"""Independent parts of many fixed draws, whose spread tells what their choice decides."""
FEWEST_IN_BLOCKS = 128
"""Fixed draws from which there are blocks."""


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


@dataclass(frozen=True)
class Fixed:
    """Fixed draws of a standard Normal.

    Attributes:
        draws: (draws, size).
        blocks: How many equal parts they have, one after the other, that are independent.
    """

    draws: np.ndarray
    blocks: int

    @classmethod
    def of(cls, count: int, size: int, random: np.random.Generator) -> "Fixed":
        """Antithetic pairs; of many, blocks of low discrepancy with the moments of the Normal.

        A block is a scrambled Sobol sequence (Owen, 1997, "Scrambled net variance for integrals of
        smooth functions") made Normal, each point with its negative, and given the second moments
        of the Normal: over it, a Normal log density has the ELBO and the gradient that it has over
        all draws. Where the points are few for the dimension, only the variances are given.

        Args:
            count: How many, even.
            size: Of each.
            random: Of them.
        """
        if count < FEWEST_IN_BLOCKS or count % (2 * BLOCKS):
            return cls(antithetic(count, size, random), count // 2)
        half = count // BLOCKS // 2
        parts = []
        for _ in range(BLOCKS):
            sobol = qmc.Sobol(size, rng=random).random_base2(int(np.ceil(np.log2(half))))[:half]
            normal = ndtri(np.clip(sobol, 1e-15, 1 - 1e-15))
            if half >= 2 * size:
                root = np.linalg.cholesky(normal.T @ normal / half)
                normal = np.linalg.solve(root, normal.T).T
            else:
                normal = normal / np.sqrt(np.square(normal).mean(0))
            parts.append(np.stack([normal, -normal], axis=1).reshape(-1, size))
        return cls(np.concatenate(parts), BLOCKS)

    def grouped(self) -> "Fixed":
        """The same draws in no more than `BLOCKS` blocks, where these can be put together."""
        together = self.blocks > BLOCKS and self.blocks % BLOCKS == 0
        return Fixed(self.draws, BLOCKS) if together else self

    def by_block(self, values: np.ndarray) -> np.ndarray:
        """The means over the blocks of values (draws, ...): (blocks, ...)."""
        return values.reshape(self.blocks, -1, *values.shape[1:]).mean(1)


class MeanFieldObjective:
    """The ELBO of independent Normals in some coordinates, over fixed draws.

    Its parameters are the means, then the logarithms of the standard deviations, (2D,).
    """

    def __init__(
        self, density: Density, curvature: Curvature, coordinates: Coordinates, fixed: Fixed
    ) -> None:
        self.density, self.curvature = density, curvature
        self.coordinates, self.fixed = coordinates, fixed
        factor = coordinates.factor
        self.scales = (
            factor if factor.ndim == 1 else 1 / np.linalg.norm(np.linalg.inv(factor), axis=0)
        )

    def points(self, parameters: np.ndarray) -> np.ndarray:
        """The draws of the guide in the unconstrained space, (draws, D)."""
        mean, log_scale = np.split(parameters, 2)
        return self.coordinates.to_u(mean + self.fixed.draws * np.exp(log_scale))

    def by_draw(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each draw's part of the ELBO and of its gradient: (draws,) and (draws, 2D)."""
        _, log_scale = np.split(parameters, 2)
        values, gradients = self.density.value_and_gradient(self.points(parameters))
        gradients = self.coordinates.gradient(gradients)
        by_scale = gradients * self.fixed.draws * np.exp(log_scale) + 1.0
        entropy = log_scale.sum() + self.coordinates.log_determinant
        entropy += 0.5 * len(log_scale) * (1 + LOG_2PI)
        return values + entropy, np.concatenate([gradients, by_scale], axis=1)

    def at(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient at parameters (2D,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            values, gradients = self.by_draw(parameters)
            return float(values.mean()), gradients.mean(0)

    def by_block(self, parameters: np.ndarray) -> np.ndarray:
        """The gradient over each block of the draws, (blocks, 2D)."""
        return self.fixed.by_block(self.by_draw(parameters)[1])

    def covariance(self, parameters: np.ndarray) -> np.ndarray:
        """Of the guide, in its coordinates, (D, D)."""
        return np.diag(np.exp(2 * np.split(parameters, 2)[1]))

    def guessed_step(self, parameters: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The Newton step at an optimum, were the log density one of independent Normals."""
        mean, log_scale = np.split(gradient, 2)
        return np.concatenate([np.exp(2 * np.split(parameters, 2)[1]) * mean, log_scale / 2])

    def value_and_gradient(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ELBO and its gradient at parameters (n, 2D): (n,) and (n, 2D)."""
        parts = [self.at(each) for each in parameters]
        return np.array([value for value, _ in parts]), np.stack([each for _, each in parts])

    def precision(self, parameters: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Minus the Hessian at parameters (n, 2D): (n, 2D, 2D); `scales` are not needed."""
        return np.stack([self.precision_over(self.fixed.draws, each) for each in parameters])

    def precision_over(self, draws: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Minus the Hessian over some draws at parameters (2D,): (2D, 2D)."""
        mean, log_scale = np.split(parameters, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            size, scale = len(log_scale), np.exp(log_scale)
            points = self.coordinates.to_u(mean + draws * scale)
        _, gradients = self.density.value_and_gradient(points)
        gradients = self.coordinates.gradient(gradients)
        whole = np.zeros((2 * size, 2 * size))
        chunk = max(1, 4_000_000 // size**2)
        for begin in range(0, len(points), chunk):
            rows = slice(begin, begin + chunk)
            width = draws[rows] * scale  # (rows, D): of the draw from the mean
            precisions = self.coordinates.precision(self.curvature(points[rows], self.scales))
            whole[:size, :size] += precisions.sum(0)
            whole[:size, size:] += np.einsum("nij,nj->ij", precisions, width)
            whole[size:, size:] += np.einsum("ni,nij,nj->ij", width, precisions, width)
        whole[size:, :size] = whole[:size, size:].T
        whole /= len(points)
        diagonal = (gradients * draws * scale).mean(0)
        whole[size:, size:] -= np.diag(diagonal)
        return whole


class DenseObjective:
    """The ELBO of a Normal with all correlations, over fixed draws.

    Its parameters are the mean (D,), the logarithms of the Cholesky factor's diagonal (D,) and
    what lies below it, row by row.
    """

    def __init__(self, density: Density, coordinates: Coordinates, fixed: Fixed) -> None:
        self.density, self.coordinates, self.fixed = density, coordinates, fixed
        self.below = np.tril_indices(density.dimension, -1)

    def start(self) -> np.ndarray:
        """The parameters of a standard Normal."""
        return np.zeros(2 * self.density.dimension + len(self.below[0]))

    def factor(self, parameters: np.ndarray) -> np.ndarray:
        """The Cholesky factor, (D, D)."""
        size = self.density.dimension
        factor = np.diag(np.exp(parameters[size : 2 * size]))
        factor[self.below] = parameters[2 * size :]
        return factor

    def covariance(self, parameters: np.ndarray) -> np.ndarray:
        """Of the guide, in its coordinates, (D, D)."""
        factor = self.factor(parameters)
        return factor @ factor.T

    def at(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient."""
        value, gradients = self._by_block(parameters)
        return value, gradients.mean(0)

    def by_block(self, parameters: np.ndarray) -> np.ndarray:
        """The gradient over each block of the draws, (blocks, parameters)."""
        return self._by_block(parameters)[1]

    def guessed_step(self, parameters: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The Newton step, were the log density standard Normal in the coordinates."""
        return gradient

    def _by_block(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        size, draws = self.density.dimension, self.fixed.draws
        factor, log_diagonal = self.factor(parameters), parameters[size : 2 * size]
        points = self.coordinates.to_u(parameters[:size] + draws @ factor.T)
        values, gradients = self.density.value_and_gradient(points)
        with np.errstate(invalid="ignore"):
            gradients = self.coordinates.gradient(gradients)
            by_mean = self.fixed.by_block(gradients)
            by_factor = _products(self.fixed, gradients, draws)  # (blocks, D, D)
        by_diagonal = np.diagonal(by_factor, axis1=1, axis2=2) * np.exp(log_diagonal) + 1.0
        below = by_factor[:, self.below[0], self.below[1]]
        entropy = log_diagonal.sum() + self.coordinates.log_determinant
        value = values.mean() + entropy + 0.5 * size * (1 + LOG_2PI)
        return float(value), np.concatenate([by_mean, by_diagonal, below], axis=1)


class LowRankObjective:
    """The ELBO of a Normal whose covariance is diagonal plus a part of low rank.

    Its parameters are the mean (D,), the logarithms of the diagonal part's standard deviations
    (D,) and the factor (D, R), row by row. The draws are those of both parts, (draws, D + R).
    """

    def __init__(self, density: Density, coordinates: Coordinates, fixed: Fixed) -> None:
        self.density, self.coordinates, self.fixed = density, coordinates, fixed
        self.rank = fixed.draws.shape[1] - density.dimension

    def parts(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, log standard deviations and factor."""
        size = self.density.dimension
        factor = parameters[2 * size :].reshape(size, self.rank)
        return parameters[:size], parameters[size : 2 * size], factor

    def covariance(self, parameters: np.ndarray) -> np.ndarray:
        """Of the guide, in its coordinates, (D, D)."""
        _, log_scale, factor = self.parts(parameters)
        return np.diag(np.exp(2 * log_scale)) + factor @ factor.T

    def at(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient."""
        value, gradients = self._by_block(parameters)
        return value, gradients.mean(0)

    def by_block(self, parameters: np.ndarray) -> np.ndarray:
        """The gradient over each block of the draws, (blocks, parameters)."""
        return self._by_block(parameters)[1]

    def guessed_step(self, parameters: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The Newton step of the mean at an optimum, and of each other parameter by itself.

        For those, the curvature is that of the divergence from the guide.
        """
        mean, log_scale, factor = self.parts(gradient)
        _, own, whole = self.parts(parameters)
        covariance = self.covariance(parameters)
        inverse = np.linalg.inv(covariance)
        across = inverse @ whole
        by_scale = 2 * np.square(np.exp(2 * own) * np.diag(inverse)) + FLAT
        by_factor = np.outer(np.diag(inverse), (whole * across).sum(0)) + np.square(across) + FLAT
        steps = [covariance @ mean, log_scale / by_scale, (factor / by_factor).ravel()]
        return np.concatenate(steps)

    def _by_block(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        mean, log_scale, factor = self.parts(parameters)
        apart, shared = np.split(self.fixed.draws, [len(mean)], axis=1)
        scale = np.exp(log_scale)
        points = self.coordinates.to_u(mean + apart * scale + shared @ factor.T)
        values, gradients = self.density.value_and_gradient(points)
        with np.errstate(invalid="ignore"):
            gradients = self.coordinates.gradient(gradients)
            by_mean = self.fixed.by_block(gradients)
            by_scale = self.fixed.by_block(gradients * apart) * scale
            by_factor = _products(self.fixed, gradients, shared)  # (blocks, D, R)
        covariance = self.covariance(parameters)
        inverse = np.linalg.inv(covariance)
        by_scale = by_scale + np.diag(inverse) * scale**2
        by_factor = (by_factor + inverse @ factor).reshape(len(by_mean), -1)
        entropy = 0.5 * np.linalg.slogdet(covariance)[1] + self.coordinates.log_determinant
        value = values.mean() + entropy + 0.5 * len(mean) * (1 + LOG_2PI)
        return float(value), np.concatenate([by_mean, by_scale, by_factor], axis=1)


FLAT = 1e-2
"""The least curvature that a scale or a number of a factor is guessed to have."""

Objective = MeanFieldObjective | DenseObjective | LowRankObjective


def _products(fixed: Fixed, gradients: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The mean over each block of gradients (draws, D) times draws (draws, R): (blocks, D, R)."""
    left = gradients.reshape(fixed.blocks, -1, gradients.shape[1])
    right = draws.reshape(fixed.blocks, -1, draws.shape[1])
    return np.swapaxes(left, 1, 2) @ right / left.shape[1]
