"""Importance sampling: weights, and what they tell of the draws."""

import numpy as np
from arviz_stats.base import array_stats
from scipy.special import logsumexp

ERRORS = 3.0
"""Standard errors by which one sample's evidence lies below another's that is no chance."""
INTERVAL = 1.645
"""Standard errors either side of k-hat: a 90% interval."""


def pareto_k_hat(log_weights: np.ndarray) -> float:
    """The Pareto shape k̂ of the right tail of importance weights.

    Below min(1 - 1/log10 S, 0.7) for S draws, reweighting the draws works; it does not say that
    the raw draws are right, nor that every mode was found.

    Args:
        log_weights: log p - log q of each draw, up to a constant, (draws,).

    Returns:
        k̂, infinite if a weight is not a number and minus infinity if all are equal.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry, 2024, "Pareto smoothed importance sampling".

    Example:
        >>> draws = np.random.default_rng(0).pareto(2.0, size=4000) + 1  # a tail of shape 1/2
        >>> 0.35 < pareto_k_hat(np.log(draws)) < 0.65
        True
    """
    return smoothed(log_weights)[1]


def smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed log weights that sum to one, and k̂; see `pareto_k_hat`.

    Where k̂ has no meaning the weights are as they were.
    """
    finite = np.isfinite(log_weights)
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        return np.where(finite, log_weights, -np.inf), float("inf")
    if finite.sum() <= len(log_weights) / 2:
        return log_weights, float("inf")  # most draws lie where the posterior has no density
    floor = log_weights[finite].min() - 1000.0
    filled = np.where(finite, log_weights, floor)
    if np.ptp(filled) < 1e-9:
        return filled - logsumexp(filled), float("-inf")
    # arviz-stats takes minus the log weight, where arviz took the log weight itself.
    try:
        with np.errstate(all="ignore"):
            found, k_hat = array_stats.psislw(-filled)
    except ValueError:  # the largest weights are equal, so that their tail has no shape
        return filled - logsumexp(filled), float("inf")
    if not np.isfinite(k_hat) or np.isnan(found).any():
        return filled - logsumexp(filled), float("inf")
    return np.asarray(found), float(k_hat)


def k_hat_threshold(draws: int) -> float:
    """The largest k̂ at which importance sampling from this many draws is reliable."""
    return float(min(1 - 1 / np.log10(draws), 0.7))


def k_hat_interval(k_hat: float, draws: int) -> tuple[float, float]:
    """A 90% interval of the shape that k̂ estimates.

    The standard error of the shape of M exceedances is (1 + k) / √M (Smith, 1987, "Estimating tails
    of probability distributions"), M being the tail that Pareto smoothing takes.

    Example:
        >>> lower, upper = k_hat_interval(0.5, 4000)
        >>> round(lower, 2), round(upper, 2)
        (0.32, 0.68)
    """
    if not np.isfinite(k_hat):
        return k_hat, k_hat
    tail = min(0.2 * draws, 3 * draws**0.5)
    error = INTERVAL * max(1 + k_hat, 0.5) / tail**0.5
    return k_hat - error, k_hat + error


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights that sum to one, (draws,); NaN where no weight is finite and above zero.

    Example:
        >>> normalised(np.array([-1e9, -1e9, -np.inf]))
        array([0.5, 0.5, 0. ])
        >>> normalised(np.array([-np.inf, -np.inf]))
        array([nan, nan])
    """
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_weights - np.max(log_weights))
        return weights / weights.sum()


def effective_sample_size(log_weights: np.ndarray) -> float:
    """Kish's effective number of draws, (Σw)² / Σw².

    Example:
        >>> round(effective_sample_size(np.zeros(10)), 9)
        10.0
    """
    return float(1 / np.square(normalised(log_weights)).sum())


def log_mean_exp(log_weights: np.ndarray) -> tuple[float, float]:
    """The log of the mean weight, log p(data) where the weights are p/q, and its standard error.

    Example:
        >>> round(log_mean_exp(np.log(np.full(10, 2.0)))[0], 3)
        0.693
    """
    largest = np.max(log_weights)
    weights = np.exp(log_weights - largest)
    mean = weights.mean()
    error = weights.std() / mean / len(weights) ** 0.5
    return float(largest + np.log(mean)), float(error)


def standard_errors(weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Monte Carlo errors of the weighted mean and sd of each column.

    Args:
        weights: Summing to one, (draws,).
        values: (draws, columns).

    Returns:
        Of the mean, in sds, and of the sd, relative to it, each (columns,); 0 for a constant.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(10_000, 1))
        >>> mean, sd = standard_errors(np.full(10_000, 1e-4), values)
        >>> mean.round(3), sd.round(3)  # 1 / √n and 1 / √2n
        (array([0.01]), array([0.007]))
    """
    mean, squared = weights @ values, np.square(weights)
    powers = values - mean  # and their powers in place: they are many numbers
    variance = weights @ np.square(powers, out=powers)
    second = squared @ powers
    fourth = squared @ np.square(powers, out=powers)
    constant = variance <= np.square(1e-12 * np.maximum(1.0, np.abs(mean)))
    safe = np.where(constant, np.inf, variance)
    of_mean = np.sqrt(second / safe)
    spread = fourth - 2 * variance * second + np.square(variance) * squared.sum()
    of_sd = np.sqrt(np.maximum(spread, 0.0)) / (2 * safe)
    return of_mean, of_sd


def resampled(
    weights: np.ndarray,
    count: int,
    random: np.random.Generator,
    along: np.ndarray | None = None,
) -> np.ndarray:
    """Indices of draws of equal weight, by systematic resampling, in random order, (count,).

    Args:
        weights: Summing to one.
        count: How many.
        random: Of the resampling.
        along: A quantity of each draw that is to keep its distribution best, such as the one with
            the heaviest tail.
    """
    order = random.permutation(len(weights)) if along is None else np.argsort(along)
    cumulative = np.cumsum(weights[order])
    at = (np.arange(count) + random.random()) / count * cumulative[-1]
    picked = order[np.searchsorted(cumulative, at).clip(max=len(order) - 1)]
    return random.permutation(picked)


def side_by_side(picked: np.ndarray) -> np.ndarray:
    """The same indices with those that come several times one after the other.

    Read as a chain, the draws then have the autocorrelation that tells how many they are worth.

    Example:
        >>> side_by_side(np.array([3, 7, 3, 7, 3])).tolist()
        [3, 3, 3, 7, 7]
    """
    taken, times = np.unique(picked, return_counts=True)
    order = np.random.default_rng(len(taken)).permutation(len(taken))
    return np.repeat(taken[order], times[order])
