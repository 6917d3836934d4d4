"""The metric of Markov chains: about the covariance of the posterior, from draws and gradients.

Of a Normal, draws and gradients together tell it exactly (Seyboldt, Carlson and Carpenter, 2026,
"Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence").
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """How a metric is made of draws and gradients."""

    draws: int = 4
    """Draws for each direction in which correlations are sought; where the dimension is too large
    for them, these are the directions in which draws spread most, and gradients."""
    wide: int = 500
    """The most draws that are taken then."""
    directions: int = 16
    """The most directions in which correlations are taken then: with few draws, most that seem to
    have some are those of chance, and each takes its time in all steps."""
    added: float = 1.0
    """Draws of independent coordinates that are added."""
    alike: float = 2.0
    """The factor up to which a variance is taken to be that of independent coordinates."""


METRICS = Metrics()


@dataclass(frozen=True)
class DenseMetric:
    """Any root of a covariance, (D, D): root root' is the covariance."""

    root: np.ndarray

    @cached_property
    def _covariance(self) -> Tensor:
        return torch.from_numpy(self.root @ self.root.T)

    def times(self, vectors: np.ndarray, transposed: bool = False) -> np.ndarray:
        """The root, or its transpose, times each row of (n, D)."""
        return np.asarray(vectors @ (self.root if transposed else self.root.T))

    def accelerate(self, velocities: Tensor, gradients: Tensor, time: float) -> None:
        """Adds the covariance times gradients times a time to velocities; all (n, D)."""
        velocities.addmm_(gradients, self._covariance, alpha=time)


@dataclass(frozen=True)
class Metric:
    """The root of a covariance: scales · (1 + directions (lengths - 1) directions').

    Attributes:
        scales: (D,).
        directions: Orthonormal, in units of the scales, (D, R).
        lengths: Standard deviations along these, (R,).
    """

    scales: np.ndarray
    directions: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of_scales(cls, scales: np.ndarray) -> "Metric":
        """Of independent coordinates."""
        return cls(scales, np.zeros((len(scales), 0)), np.zeros(0))

    @cached_property
    def _dense(self) -> DenseMetric | None:
        """The same as a matrix, where the directions are no fewer numbers."""
        size, count = self.directions.shape
        if 2 * count < size:
            return None
        directed = np.eye(size) + (self.directions * (self.lengths - 1)) @ self.directions.T
        return DenseMetric(self.scales[:, None] * directed)

    @cached_property
    def _variances(self) -> Tensor:
        return torch.from_numpy(np.square(self.scales))

    @cached_property
    def _stretches(self) -> tuple[Tensor, Tensor]:
        """The directions, (D, R), and what is added to the variances along them, times these."""
        directions = self.scales[:, None] * self.directions
        added = directions * (np.square(self.lengths) - 1)
        return torch.from_numpy(directions), torch.from_numpy(added.T)

    def times(self, vectors: np.ndarray, transposed: bool = False) -> np.ndarray:
        """The root, or its transpose, times each row of (n, D)."""
        if self._dense is not None:
            return self._dense.times(vectors, transposed)
        if transposed:
            return self._stretched(vectors * self.scales, self.lengths)
        return self._stretched(vectors, self.lengths) * self.scales

    def accelerate(self, velocities: Tensor, gradients: Tensor, time: float) -> None:
        """Adds the covariance times gradients times a time to velocities; all (n, D)."""
        if self._dense is not None:
            return self._dense.accelerate(velocities, gradients, time)
        velocities.addcmul_(gradients, self._variances, value=time)
        if len(self.lengths):
            directions, added = self._stretches
            velocities.addmm_(gradients @ directions, added, alpha=time)

    def _stretched(self, vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Rows of (n, D), so many times as long along the directions."""
        if not len(lengths):
            return vectors
        along = (vectors @ self.directions) * (lengths - 1)
        return np.asarray(vectors + along @ self.directions.T)


def metric_of(points: np.ndarray, gradients: np.ndarray, correlated: bool = True) -> Metric:
    """The metric that draws and the gradients there tell of.

    Of a Normal, the gradients' covariance is the inverse of the draws': the geometric mean of the
    one and the inverse of the other is then exact, however few they are.

    Args:
        points: (n, D).
        gradients: Of the log density there, (n, D).
        correlated: Whether more than the scales are wanted.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(50, 2)) @ np.array([[2.0, 2.0], [0, 1]])
        >>> precision = np.linalg.inv([[4.0, 4.0], [4.0, 5.0]])
        >>> metric = metric_of(points, -(points @ precision))
        >>> root = metric.times(np.eye(2))
        >>> (root.T @ root).round()
        array([[4., 4.],
               [4., 5.]])
    """
    spread, slope = points.std(0), gradients.std(0)
    known = (spread > 0) & (slope > 0) & np.isfinite(slope)
    scales = np.ones(points.shape[1])
    scales[known] = np.sqrt(spread[known] / slope[known])
    if not correlated:
        return Metric.of_scales(scales)
    size = points.shape[1]
    wide = METRICS.draws * size > len(points)
    if wide and len(points) > METRICS.wide:
        picked = np.linspace(0, len(points) - 1, METRICS.wide).astype(int)
        points, gradients = points[picked], gradients[picked]
    draws = (points - points.mean(0)) / scales
    slopes = (gradients - gradients.mean(0)) * scales
    if wide:
        count = max(1, len(points) // (2 * METRICS.draws))
        farthest = [_farthest(each, count) for each in (draws, slopes)]
        basis = np.linalg.qr(np.concatenate(farthest, axis=1))[0]
        draws, slopes = draws @ basis, slopes @ basis
    else:
        basis = np.eye(size)
    covariance, precision = (_covariance(each) for each in (draws, slopes))
    values, vectors = np.linalg.eigh(_geometric_mean(covariance, precision))
    apart = np.abs(np.log(values)) > np.log(METRICS.alike)
    if wide:  # the others are those of chance
        apart &= np.abs(np.log(values)) >= np.sort(np.abs(np.log(values)))[-METRICS.directions :][0]
    return Metric(scales, basis @ vectors[:, apart], np.sqrt(values[apart]))


def _farthest(vectors: np.ndarray, count: int) -> np.ndarray:
    """The directions, (D, count), in which vectors (n, D) spread most."""
    _, combinations = np.linalg.eigh(vectors @ vectors.T)
    return np.asarray(vectors.T @ combinations[:, -count:])


def _covariance(vectors: np.ndarray) -> np.ndarray:
    """Of vectors, (n, k), and some that have the identity."""
    added = METRICS.added * np.eye(vectors.shape[1])
    return np.asarray(vectors.T @ vectors + added) / (len(vectors) + METRICS.added)


def _geometric_mean(covariance: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Of a matrix and the inverse of another: X with X precision X = covariance."""
    values, vectors = np.linalg.eigh(precision)
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    values, vectors = np.linalg.eigh(root @ covariance @ root)
    between = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    return np.asarray(inverse @ between @ inverse)
