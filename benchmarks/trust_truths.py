"""What a posterior of `trust.py` is, and how its truth is reached without Elbowroom.

The truth of a case is a cloud of points: exact draws (100,000), or the points of a quadrature with
their weights. Means, sds and quantiles are read off it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

DRAWS = 100_000
"""Exact draws: their means are known to 0.003 sd."""
KEPT = 4000
"""Draws that a fit hands out by default, whose own Monte Carlo error is allowed for."""
RESOLVED = 0.1
"""The noise of the log sd of `KEPT` exact draws from which on quantiles are compared instead."""
PROBABILITIES = np.array([0.05, 0.5, 0.95])
LOWEST = 30.0
"""Log density below its maximum under which a quadrature leaves points out."""

Sites = dict[str, np.ndarray]


def scalars(sites: Sites) -> Sites:
    """Each number of each site by its name."""
    found = {}
    for name, values in sites.items():
        columns = np.asarray(values, dtype=float).reshape(len(values), -1).T
        for j, column in enumerate(columns):
            found[f"{name}[{j}]" if len(columns) > 1 else name] = column
    return found


@dataclass(frozen=True)
class Case:
    """A posterior: its model, data and truth.

    Attributes:
        strength: What was drawn at random about it, for the table.
        model: The Pyro model.
        data: Its arguments.
        points: For each latent site, its values at the points of the truth, (points, ...).
        weights: Of the points, summing to one; None where they are exact draws.
        heavy: Sites without a finite fourth moment, whose quantiles are compared.
        named: What is compared, of the sites: all their numbers, or what labels leave alone.
    """

    strength: dict[str, float]
    model: Callable[..., Any]
    data: dict[str, Tensor]
    points: Sites
    weights: np.ndarray | None = None
    heavy: tuple[str, ...] = ()
    named: Callable[[Sites], Sites] = scalars

    def truths(self) -> "dict[str, Truth]":
        """The truth of every scalar."""
        return {
            name: Truth.of(values, self.weights, name.split("[")[0] in self.heavy)
            for name, values in self.named(self.points).items()
        }


@dataclass(frozen=True)
class Truth:
    """Of one scalar.

    Attributes:
        mean: Its mean.
        sd: Its standard deviation.
        sd_noise: The standard error of the log sd of `KEPT` exact draws; infinite where the fourth
            moment is.
        quantiles: At 5, 50 and 95%.
        quantile_noise: Their standard errors from `KEPT` exact draws.
    """

    mean: float
    sd: float
    sd_noise: float
    quantiles: np.ndarray
    quantile_noise: np.ndarray

    @property
    def resolved(self) -> bool:
        """Whether a mean and a sd can be asked of `KEPT` draws."""
        return self.sd_noise < RESOLVED

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray | None, heavy: bool) -> "Truth":
        if weights is None:
            ordered, each = np.sort(values), np.full(len(values), 1 / len(values))
        else:  # of a grid, which has many points of the same value
            ordered, places = np.unique(values, return_inverse=True)
            each = np.bincount(places, weights)
        mean = float(each @ ordered)
        square = (ordered - mean) ** 2
        variance = float(each @ square)
        kurtosis = float(each @ square**2) / variance**2
        noise = np.inf if heavy else float(np.sqrt((kurtosis - 1) / (4 * KEPT)))
        below = np.cumsum(each) - each / 2
        step = np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / KEPT)
        quantiles = np.interp(PROBABILITIES, below, ordered)
        upper = np.interp(PROBABILITIES + step, below, ordered)
        lower = np.interp(PROBABILITIES - step, below, ordered)
        return cls(mean, float(np.sqrt(variance)), noise, quantiles, (upper - lower) / 2)

    def error(self, values: np.ndarray) -> tuple[float, float]:
        """How far draws are off: the worse of two figures, and two standard errors of it.

        Returns:
            Of |mean - truth| / sd and |log(sd / truth)|, or of the quantiles' errors in units of
            the distance from 5 to 95%; and what exact draws are allowed of it.
        """
        if self.resolved:
            figures = [
                (abs(float(np.mean(values)) - self.mean) / self.sd, KEPT**-0.5),
                (abs(np.log(max(float(np.std(values)), 1e-300) / self.sd)), self.sd_noise),
            ]
        else:
            width = self.quantiles[-1] - self.quantiles[0]
            found = np.abs(np.quantile(values, PROBABILITIES) - self.quantiles) / width
            figures = list(zip(found, self.quantile_noise / width, strict=True))
        error, noise = max(figures, key=lambda pair: pair[0] - 2 * pair[1])
        return float(error), float(2 * noise)


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def rotation(random: np.random.Generator, dimension: int) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(random.normal(size=(dimension, dimension)))[0]


def normal(x: Any, mean: Any, variance: Any) -> Any:
    """The log density of a Normal."""
    return -0.5 * np.log(2 * np.pi * variance) - 0.5 * (x - mean) ** 2 / variance


def on_line(
    grid: np.ndarray, log_density: np.ndarray, random: np.random.Generator, count: int = DRAWS
) -> np.ndarray:
    """Exact draws of a density on a line, by the inverse of its integral over a fine grid."""
    return on_lines(grid, log_density[None], np.zeros(count, dtype=int), random)


def on_lines(
    grid: np.ndarray, log_densities: np.ndarray, rows: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """The same of several densities over one grid, (densities, grid), one draw for each row."""
    density = np.exp(log_densities - log_densities.max(axis=1, keepdims=True))
    areas = np.diff(grid) * (density[:, 1:] + density[:, :-1]) / 2
    integral = np.pad(np.cumsum(areas, axis=1), ((0, 0), (1, 0)))
    integral /= integral[:, -1:]
    places = np.arange(len(integral))[:, None] + integral  # one after the other
    drawn = rows + random.uniform(size=len(rows))
    return np.interp(drawn, places.ravel(), np.tile(grid, len(integral)))


def quadrature(
    log_density: Callable[[np.ndarray], np.ndarray],
    box: Sequence[tuple[float, float]],
    sizes: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a grid over the part of a box that holds the mass, and their weights.

    Args:
        log_density: Of points (n, D), up to a constant.
        box: The lower and upper end of each coordinate.
        sizes: The points along each coordinate in every pass; the last one is kept.

    Returns:
        Points, (n, D), and weights that sum to one, (n,).
    """
    low, high = np.array(box, dtype=float).T
    for size in sizes:
        step = (high - low) / size
        axes = [low[j] + (np.arange(size) + 0.5) * step[j] for j in range(len(low))]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
        values = np.concatenate(
            [log_density(part) for part in np.array_split(points, 1 + len(points) // 100_000)]
        )
        kept = values > values.max() - LOWEST
        points, values = points[kept], values[kept]
        low, high = points.min(axis=0) - 1.5 * step, points.max(axis=0) + 1.5 * step
        low, high = np.maximum(low, np.array(box)[:, 0]), np.minimum(high, np.array(box)[:, 1])
    weights = np.exp(values - values.max())
    return points, weights / weights.sum()
