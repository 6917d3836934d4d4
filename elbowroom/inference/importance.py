"""Importance weights of a guide's draws, and what they tell of the guide."""

import numpy as np
from arviz_stats.base import array_stats


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
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        return float("inf")
    if np.isfinite(log_weights).sum() <= len(log_weights) / 2:
        return float("inf")  # most draws lie where the posterior has no density
    floor = log_weights[np.isfinite(log_weights)].min() - 1000.0
    log_weights = np.where(np.isfinite(log_weights), log_weights, floor)
    if np.ptp(log_weights) < 1e-9:
        return float("-inf")
    # arviz-stats takes minus the log weight, where arviz took the log weight itself.
    _, k_hat = array_stats.psislw(-log_weights)
    return float(k_hat)


def k_hat_threshold(draws: int) -> float:
    """The largest k̂ at which importance sampling from this many draws is reliable."""
    return float(min(1 - 1 / np.log10(draws), 0.7))


def effective_sample_size(log_weights: np.ndarray) -> float:
    """Kish's effective number of draws, (Σw)² / Σw².

    Example:
        >>> effective_sample_size(np.zeros(10))
        10.0
    """
    weights = np.exp(log_weights - np.max(log_weights))
    return float(weights.sum() ** 2 / np.square(weights).sum())
