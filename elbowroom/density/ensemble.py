"""Moments of a density that has no mode inside its support, by an ensemble of Markov chains.

The support of the data may end at a latent, as that of Uniform(0, theta) does: the density is then
highest at an edge, where no gradient vanishes. Chains that move along the lines between them need
no gradient (Goodman and Weare, 2010, "Ensemble samplers with affine invariance").
"""

from dataclasses import dataclass

import numpy as np

from elbowroom import budget
from elbowroom.density.density import Density


@dataclass(frozen=True)
class Ensemble:
    """How the chains are run."""

    dimensions: int = 20
    """The largest dimension: stretch moves are slow in more (Huijser et al., 2022)."""
    fewest: int = 64
    """Chains, at least; there are four for each dimension."""
    stretch: float = 2.0
    """The largest factor by which a move stretches a line, as Goodman and Weare propose."""
    moves: int = 400
    """Of each chain; the first half is left out."""
    nearby: float = 0.3
    """How far from the first start the chains begin, in each coordinate; halved while too few of
    the points tried have a density."""
    halvings: int = 12
    """How often."""


ENSEMBLE = Ensemble()


def moments(
    density: Density, first: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean and covariance of a density, (D,) and (D, D); None where they cannot be had.

    Args:
        density: Its log.
        first: Where it is finite, (D,).
        random: Of the chains.
    """
    size = len(first)
    walkers = max(ENSEMBLE.fewest, 4 * size)
    points = _about(density, first, walkers, random)
    if points is None or size > ENSEMBLE.dimensions:
        return None
    values, half, kept = density.value(points), walkers // 2, []
    for move in range(ENSEMBLE.moves):
        if budget.over():
            break
        front, back = slice(half), slice(half, None)
        for moved, others in ((front, back), (back, front)):
            now, beside = points[moved], points[others]
            # Density proportional to 1 / sqrt(factor) between 1 / stretch and stretch.
            root = ENSEMBLE.stretch**0.5
            factor = (random.uniform(1 / root, root, (len(now), 1))) ** 2
            partner = beside[random.integers(len(beside), size=len(now))]
            ahead = partner + factor * (now - partner)
            there = density.value(ahead)
            with np.errstate(invalid="ignore"):
                gain = (size - 1) * np.log(factor[:, 0]) + there - values[moved]
            taken = np.log(random.random(len(now))) < gain
            points[moved] = np.where(taken[:, None], ahead, now)
            values[moved] = np.where(taken, there, values[moved])
        if move >= ENSEMBLE.moves // 2:
            kept.append(points.copy())
    if not kept:
        return None
    drawn = np.concatenate(kept)
    covariance = np.atleast_2d(np.cov(drawn.T))
    usable = np.isfinite(covariance).all() and np.linalg.eigvalsh(covariance)[0] > 0
    return (drawn.mean(0), covariance) if usable else None


def _about(
    density: Density, first: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray | None:
    """Different points near one that have a density, (count, D)."""
    reach = ENSEMBLE.nearby
    for _ in range(ENSEMBLE.halvings):
        points = first + reach * random.standard_normal((4 * count, len(first)))
        usable = points[np.isfinite(density.value(points))]
        if len(usable) >= count:
            return usable[:count]
        reach /= 2
    return None
