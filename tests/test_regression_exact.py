"""Regression on the diabetes data against its exact posterior."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import elbowroom as er

MEAN_TOLERANCE = 0.1
"""In posterior standard deviations."""
SD_TOLERANCE = 0.1
"""Relative."""


def exact_posterior(table: pd.DataFrame, response: str) -> pd.DataFrame:
    """Mean and sd of each quantity in the user's units.

    Given the noise, the coefficients are conjugate; the noise is integrated over a fine grid.
    """
    y = table[response].to_numpy(dtype=float)
    x = table.drop(columns=response).to_numpy(dtype=float)
    centre, spread, m, s = x.mean(0), x.std(0, ddof=1), y.mean(), y.std(ddof=1)
    design = np.column_stack([np.ones(len(y)), (x - centre) / spread])
    target, gram = (y - m) / s, design.T @ design
    noises = np.exp(np.linspace(np.log(0.4), np.log(1.4), 400))
    log_weights, means, covariances = [], [], []
    for noise in noises:
        covariance = np.linalg.inv(gram / noise**2 + np.eye(len(gram)) / 2.5**2)
        mean = covariance @ design.T @ target / noise**2
        # log p(y | noise) = log p(y | b) + log p(b) - log p(b | y), at b = mean.
        residual = target - design @ mean
        log_evidence = (
            -0.5 * residual @ residual / noise**2
            - len(y) * np.log(noise)
            - 0.5 * mean @ mean / 2.5**2
            - multivariate_normal.logpdf(mean, mean, covariance)
        )
        # The grid is even in log noise: its prior density has the Jacobian.
        log_weights.append(log_evidence - noise + np.log(noise))
        means.append(mean)
        covariances.append(covariance)
    weights = np.exp(np.array(log_weights) - max(log_weights))
    weights /= weights.sum()
    mean = np.einsum("w,wi->i", weights, means)
    spread_of_means = np.array(means) - mean
    covariance = np.einsum("w,wij->ij", weights, covariances) + np.einsum(
        "w,wi,wj->ij", weights, spread_of_means, spread_of_means
    )
    units = np.diag(np.concatenate([[s], s / spread]))
    units[0, 1:] = -s * centre / spread
    mean_noise = weights @ noises
    rows = {"intercept": (m + (units @ mean)[0], np.sqrt((units @ covariance @ units.T)[0, 0]))}
    for j, column in enumerate(table.columns.drop(response), start=1):
        rows[f"coefficients[{column}]"] = (
            (units @ mean)[j],
            np.sqrt((units @ covariance @ units.T)[j, j]),
        )
    rows["sigma"] = (s * mean_noise, s * np.sqrt(weights @ (noises - mean_noise) ** 2))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "sd"])


@pytest.mark.parametrize("guide", ["structured", "full_rank"])
def test_moments_are_exact(guide: str) -> None:
    exact = exact_posterior(er.load_dataset("diabetes"), "progression")
    found = er.fit("bayesian_regression", guide=guide, seed=1, draws=4000).summary()
    shift = (found["mean"] - exact["mean"]) / exact["sd"]
    ratio = found["sd"] / exact["sd"]
    assert shift.abs().max() < MEAN_TOLERANCE, shift
    assert (ratio - 1).abs().max() < SD_TOLERANCE, ratio


def test_mean_field_is_seen_to_be_too_narrow() -> None:
    """The check above can fail: correlated coefficients defeat a mean-field guide."""
    exact = exact_posterior(er.load_dataset("diabetes"), "progression")
    fit = er.fit("bayesian_regression", guide="mean_field", seed=1, draws=20_000)
    own = fit.posterior["raw_posterior"]["coefficients"].std(("chain", "draw")).to_series()
    ratio = own / exact["sd"].filter(like="coefficients").to_numpy()
    assert ratio.min() < 0.5
    assert fit.diagnostics["k_hat"] > fit.diagnostics["k_hat_threshold"]
