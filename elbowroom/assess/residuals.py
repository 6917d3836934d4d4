"""Rows beside what a model predicts of them: their place in the distribution, and residuals.

A row's place is its probability integral transform, u = P(ỹ < y) + U P(ỹ = y) with U uniform,
given the other rows (LOO-PIT), and its residual Φ⁻¹(u): the randomised quantile residuals of Dunn
and Smyth (1996). Where the model is right, u is uniform for any kind of response. Of a censored
row, which is known to be in an interval, u is uniform between the places of the interval's ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from arviz_stats.ecdf_utils import (
    compute_ecdf,
    get_pointwise_confidence_band,
    simulate_confidence_bands,
)
from scipy.special import eval_sh_legendre, ndtr, ndtri
from scipy.stats import beta, rankdata
from scipy.stats import f as fisher

SHAPES = ("level", "spread", "skewness", "tails")
"""What the Legendre polynomials of the degrees 1 to 4 tell of the distribution of places."""
RIGHT, LEFT, BETWEEN = 1, -1, 2
"""What is known of a censored response; see `elbowroom.models._distributions.Censored`."""


@dataclass(frozen=True)
class Sizes:
    """How finely residuals are looked at."""

    degree: int = 3
    """Of the polynomials of a predictor's ranks."""
    simulations: int = 1000
    """Sets of uniform numbers behind a band."""
    points: int = 400
    """At which it is taken, at most."""
    per_column: int = 5
    """Rows for each column of a regression of residuals, at least."""


SIZES = Sizes()


@dataclass(frozen=True)
class Band:
    """The empirical distribution function of places, and where it is if they are uniform.

    Attributes:
        at: Where it is taken, (points,).
        share: The share of rows up to there, (points,).
        lower: The lower end of the band, (points,).
        upper: The upper one, (points,).
    """

    at: np.ndarray
    share: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def outside(self) -> bool:
        """Whether the function leaves the band."""
        return bool(((self.share < self.lower) | (self.share > self.upper)).any())

    @property
    def farthest(self) -> float:
        """The largest difference from uniform."""
        return float(np.abs(self.share - self.at).max())


@dataclass(frozen=True)
class Places:
    """Where rows are in what is predicted of them.

    Attributes:
        u: The places, (rows,).
        mean: What is predicted, given the other rows, (rows,).
        sd: Its standard deviation, (rows,).
        sizes: How far the rows are from the mean, in standard deviations of the draws with the row
            among them, (rows,).
    """

    u: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    sizes: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """Quantile residuals, standard Normal where the model is right, (rows,)."""
        return np.asarray(ndtri(self.u))


def places_of(
    observed: np.ndarray,
    drawn: np.ndarray,
    weights: np.ndarray,
    random: np.random.Generator,
    status: np.ndarray | None = None,
    upper: np.ndarray | None = None,
) -> Places:
    """The places of rows in draws of the posterior predictive.

    A row counts as one more draw, so that places are uniform for any number of draws.

    Args:
        observed: The rows, (rows,).
        drawn: Draws of them, (draws, rows).
        weights: Of each draw for each row, summing to one over draws, (draws, rows).
        random: Of the places of equal values.
        status: What is known of each row, if some are censored.
        upper: The upper ends of intervals, if some are.

    Example:
        >>> random = np.random.default_rng(1)
        >>> drawn = random.normal(size=(4000, 2))
        >>> even = np.full(drawn.shape, 1 / 4000)
        >>> places_of(np.array([0.0, 1.96]), drawn, even, random).u.round(2)
        array([0.5 , 0.98])
    """
    below = (weights * (drawn < observed)).sum(0)
    up_to = (weights * (drawn <= observed)).sum(0)
    if status is not None:
        within = up_to if upper is None else (weights * (drawn <= upper)).sum(0)
        below = np.where(status == LEFT, 0.0, np.where(status == 0, below, up_to))
        up_to = np.where(status == RIGHT, 1.0, np.where(status == BETWEEN, within, up_to))
    count = len(drawn)
    u = (count * below + random.random(len(observed)) * (1 + count * (up_to - below))) / (count + 1)
    mean = (weights * drawn).sum(0)
    variance = (weights * (drawn - mean) ** 2).sum(0)
    away = observed - mean
    spread = np.sqrt(variance + away**2 / (count + 1))
    sizes = away / np.where(spread > 0, spread, 1.0)
    return Places(np.clip(u, 1e-12, 1 - 1e-12), mean, np.sqrt(variance), sizes)


def band_of(u: np.ndarray, probability: float, random: np.random.Generator) -> Band:
    """The distribution of places with a band that holds all of it with a probability.

    By simulation, through `arviz_stats` (Säilynoja, Bürkner and Vehtari, 2022, "Graphical test for
    discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample
    comparison").

    Example:
        >>> random = np.random.default_rng(1)
        >>> band_of(random.random(200), 0.99, random).outside
        False
        >>> band_of(random.random(200) ** 2, 0.99, random).outside
        True
    """
    points = min(len(u), SIZES.points)
    at = np.arange(1, points) / points
    # A band of one value at each of these; `ecdf_pit` has one for each row, in minutes for many.
    each = simulate_confidence_bands(len(u), 1, at, probability, SIZES.simulations, random)
    return Band(at, compute_ecdf(u, at), *get_pointwise_confidence_band(each, len(u), at))


def shapes_of(u: np.ndarray) -> dict[str, tuple[float, float]]:
    """How the distribution of places differs from uniform, by four components.

    They are the means of the Legendre polynomials of degree 1 to 4, of length one, which are zero,
    independent and of variance 1 / rows where u is uniform (Neyman, 1937, "Smooth test for goodness
    of fit"). Above zero, in this order: rows are higher than predicted; they spread more; they are
    skewed to the right; they are more often both near the middle and far out.

    Returns:
        For each of `SHAPES` its value, and its two-sided p-value.

    Example:
        >>> shapes = shapes_of((np.arange(1000) + 0.5) / 1000)
        >>> [round(p, 2) for _, p in shapes.values()]
        [1.0, 1.0, 1.0, 1.0]
    """
    found = {}
    for degree, name in enumerate(SHAPES, 1):
        value = float(np.sqrt(2 * degree + 1) * eval_sh_legendre(degree, u).mean())
        found[name] = (value, float(2 * ndtr(-abs(value) * np.sqrt(len(u)))))
    return found


def columns_of(values: Any, levels: Sequence[Any] | None) -> np.ndarray:
    """What residuals are regressed on: polynomials of ranks, or levels; (rows, columns).

    Ranks, since a few far values of a predictor would decide its polynomials.
    """
    if levels is None:
        ranks = rankdata(np.asarray(values, dtype=float), axis=0)
        different = len(np.unique(ranks))
        scaled = 2 * (ranks - 0.5) / len(ranks) - 1
        made = np.polynomial.legendre.legvander(scaled, min(SIZES.degree, different - 1))
    else:
        made = np.array([np.asarray(values) == level for level in levels]).T.astype(float)
    return made[:, made.any(0)]


def dependence(residuals: np.ndarray, columns: np.ndarray) -> tuple[float, float] | None:
    """The share of the variance of residuals that columns explain, and the p-value of its F test.

    Args:
        residuals: Independent, of one variance, where the model is right; (rows,).
        columns: Of which some combination is constant, (rows, columns).

    Returns:
        None where rows or columns are too few.
    """
    rows, rank = len(residuals), int(np.linalg.matrix_rank(columns))
    if rank < 2 or rows < SIZES.per_column * rank:
        return None
    away = residuals - residuals.mean()
    fitted = columns @ np.linalg.lstsq(columns, away, rcond=None)[0]
    share = float(np.clip((fitted @ away) / (away @ away), 0.0, 1.0))
    ratio = (share / (rank - 1)) / max(1e-12, (1 - share) / (rows - rank))
    return share, float(fisher.sf(ratio, rank - 1, rows - rank))


def expected_share(columns: np.ndarray, quantiles: tuple[float, float]) -> list[float]:
    """The mean and quantiles of that share where residuals depend on nothing."""
    rank = int(np.linalg.matrix_rank(columns))
    spread = beta((rank - 1) / 2, (len(columns) - rank) / 2)
    return [float(spread.mean()), *map(float, spread.ppf(quantiles))]
