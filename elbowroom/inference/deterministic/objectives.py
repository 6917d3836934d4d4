"""The ELBO of Gaussian guides over fixed draws, with its gradient, as functions of numpy arrays."""

from dataclasses import dataclass

import numpy as np

from elbowroom.inference.densities.curvature import Curvature
from elbowroom.inference.densities.density import Density

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
        factor = coordinates.factor
        self.scales = (
            factor if factor.ndim == 1 else 1 / np.linalg.norm(np.linalg.inv(factor), axis=0)
        )

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

    def at(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient at parameters (2D,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            values, gradients = self.by_draw(parameters)
            return float(values.mean()), gradients.mean(0)

    def value_and_gradient(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ELBO and its gradient at parameters (n, 2D): (n,) and (n, 2D)."""
        parts = [self.at(each) for each in parameters]
        return np.array([value for value, _ in parts]), np.stack([each for _, each in parts])

    def precision(self, parameters: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Minus the Hessian at parameters (n, 2D): (n, 2D, 2D); `scales` are not needed."""
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
            precisions = self.coordinates.precision(self.curvature(points[rows], self.scales))
            whole[:size, :size] += precisions.sum(0)
            whole[:size, size:] += np.einsum("nij,nj->ij", precisions, width)
            whole[size:, size:] += np.einsum("ni,nij,nj->ij", width, precisions, width)
        whole[size:, :size] = whole[:size, size:].T
        whole /= len(points)
        diagonal = (gradients * self.draws * scale).mean(0)
        whole[size:, size:] -= np.diag(diagonal)
        return whole


class DenseObjective:
    """The ELBO of a Normal with all correlations, over fixed draws.

    Its parameters are the mean (D,), the logarithms of the Cholesky factor's diagonal (D,) and
    what lies below it, row by row.
    """

    def __init__(self, density: Density, coordinates: Coordinates, draws: np.ndarray) -> None:
        self.density, self.coordinates, self.draws = density, coordinates, draws
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

    def by_draw(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log density of each draw, and its gradient in the coordinates."""
        mean = parameters[: self.density.dimension]
        points = self.coordinates.to_u(mean + self.draws @ self.factor(parameters).T)
        values, gradients = self.density.value_and_gradient(points)
        with np.errstate(invalid="ignore"):
            return values, self.coordinates.gradient(gradients)

    def value_and_gradient(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient."""
        size = self.density.dimension
        values, gradients = self.by_draw(parameters)
        log_diagonal = parameters[size : 2 * size]
        by_factor = gradients.T @ self.draws / len(self.draws)
        by_diagonal = np.diag(by_factor) * np.exp(log_diagonal) + 1.0
        entropy = log_diagonal.sum() + self.coordinates.log_determinant
        value = values.mean() + entropy + 0.5 * size * (1 + LOG_2PI)
        gradient = [gradients.mean(0), by_diagonal, by_factor[self.below]]
        return float(value), np.concatenate(gradient)


class LowRankObjective:
    """The ELBO of a Normal whose covariance is diagonal plus a part of low rank.

    Its parameters are the mean (D,), the logarithms of the diagonal part's standard deviations
    (D,) and the factor (D, R), row by row. The draws are those of both parts, (draws, D + R).
    """

    def __init__(self, density: Density, coordinates: Coordinates, draws: np.ndarray) -> None:
        self.density, self.coordinates, self.draws = density, coordinates, draws
        self.rank = draws.shape[1] - density.dimension

    def parts(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, log standard deviations and factor."""
        size = self.density.dimension
        factor = parameters[2 * size :].reshape(size, self.rank)
        return parameters[:size], parameters[size : 2 * size], factor

    def covariance(self, parameters: np.ndarray) -> np.ndarray:
        """Of the guide, in its coordinates, (D, D)."""
        _, log_scale, factor = self.parts(parameters)
        return np.diag(np.exp(2 * log_scale)) + factor @ factor.T

    def by_draw(self, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log density of each draw, and its gradient in the coordinates."""
        mean, log_scale, factor = self.parts(parameters)
        apart, shared = np.split(self.draws, [len(mean)], axis=1)
        points = self.coordinates.to_u(mean + apart * np.exp(log_scale) + shared @ factor.T)
        values, gradients = self.density.value_and_gradient(points)
        with np.errstate(invalid="ignore"):
            return values, self.coordinates.gradient(gradients)

    def value_and_gradient(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The ELBO and its gradient."""
        mean, log_scale, factor = self.parts(parameters)
        values, gradients = self.by_draw(parameters)
        apart, shared = np.split(self.draws, [len(mean)], axis=1)
        covariance = self.covariance(parameters)
        inverse = np.linalg.inv(covariance)
        scale = np.exp(log_scale)
        by_scale = (gradients * apart).mean(0) * scale + np.diag(inverse) * scale**2
        by_factor = gradients.T @ shared / len(self.draws) + inverse @ factor
        entropy = 0.5 * np.linalg.slogdet(covariance)[1] + self.coordinates.log_determinant
        value = values.mean() + entropy + 0.5 * len(mean) * (1 + LOG_2PI)
        return float(value), np.concatenate([gradients.mean(0), by_scale, by_factor.ravel()])
