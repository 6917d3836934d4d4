"""The numbers that tell how good a fit is, from its draws and its ArviZ tree."""

import warnings
from typing import Any

import arviz_stats
import numpy as np
import xarray
from arviz_stats.utils import ELPDData

from elbowroom.density.importance import k_hat_threshold
from elbowroom.draws.weighted import WeightedDraws

NAN = float("nan")
FEWEST = 11
"""Effective draws from which on a Pareto k has a limit above zero."""


def bound(
    draws: WeightedDraws, point: bool, rows: WeightedDraws | None = None, loss: float = 0.0
) -> dict[str, Any]:
    """How close a guide is to the posterior.

    Args:
        draws: Of the guide.
        point: Whether the guide is one point, which has no density and so no bound.
        rows: The draws where each row has weights of its own; what all rows but a few have is told.
        loss: Nats that the guide is expected to be below the best one of its form.

    Returns:
        draws; elbo and elbo_se in nats, which holds the loss; k_hat, its threshold and the
        effective sample size of the importance weights. NaN where a number has no meaning.
    """
    count = len(draws.log_p)
    found: dict[str, Any] = {"draws": count, "elbo": NAN, "elbo_se": NAN}
    found.update(k_hat=NAN, k_hat_threshold=k_hat_threshold(count), effective_sample_size=NAN)
    if not point:
        found["elbo"], error = draws.elbo()
        found["elbo_se"] = float(np.hypot(error, loss))
        if rows is None:
            found["k_hat"] = float(draws.k_hat)
            found["effective_sample_size"] = float(draws.unsmoothed_effective_sample_size)
        else:
            found["k_hat"] = rows.worst_k_hat
            found["k_hat_threshold"] = k_hat_threshold(len(rows.log_p))
            found["effective_sample_size"] = rows.fewest_effective
    return found


def no_loo() -> dict[str, float]:
    """Where a model or guide has none: one point does not say how it would move without a row."""
    return {"elpd_loo": NAN, "elpd_loo_se": NAN, "p_loo": NAN, "high_k_rows": NAN}


def leave_one_out(tree: xarray.DataTree) -> dict[str, float]:
    """Leave-one-out expected log predictive density (Vehtari, Gelman and Gabry, 2017).

    Returns:
        elpd_loo, elpd_loo_se, p_loo and high_k_rows, the share of rows whose Pareto k is too high;
        see `rows_left_out`.
    """
    found = rows_left_out(tree)
    if found is None:
        return no_loo()
    return {
        "elpd_loo": float(found.elpd),
        "elpd_loo_se": float(found.se),
        "p_loo": float(found.p),
        "high_k_rows": float(np.mean(high_k(found))),
    }


def rows_left_out(tree: xarray.DataTree) -> ELPDData | None:
    """The log density of each row given the others, by Pareto-smoothed importance sampling.

    Draws of a guide that no weights have corrected count by log p - log q as well (Magnusson,
    Andersen, Jonasson and Vehtari, 2019, "Bayesian leave-one-out cross-validation for large data");
    for draws of equal weights these are the numbers of `arviz.loo`. `good_k`, the limit of a row's
    Pareto k, is that of the effective draws where resampling took some draws several times.

    Returns:
        ArviZ's result with `elpd_i` and `pareto_k` of each row, in nats; None where the posterior
        has no log likelihood by row, or fewer than 100 draws of it.
    """
    group = tree.children.get("log_likelihood")
    if group is None or len(group.data_vars) != 1:
        return None
    (values,) = group.data_vars.values()
    if values.ndim < 3 or values.shape[1] < 100:
        return None
    densities = _densities(tree, values) if tree.attrs.get("draws") == "raw" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of high Pareto k: reported as a number
        try:
            if densities is not None:
                return arviz_stats.loo_approximate_posterior(tree, *densities, pointwise=True)
            found = arviz_stats.loo(tree, pointwise=True)
        except ValueError:  # a row whose likelihood is the same for every draw has no tail
            return None
    effective = float(tree.attrs.get("effective_draws", np.inf))
    found.good_k = k_hat_threshold(max(FEWEST, min(effective, found.n_samples)))
    return found


def high_k(found: ELPDData) -> np.ndarray:
    """Whether each row's Pareto k is above the limit, so that its log density is unreliable."""
    return ~(np.ravel(found.pareto_k) <= found.good_k)


def _densities(
    tree: xarray.DataTree, values: xarray.DataArray
) -> tuple[xarray.DataArray, xarray.DataArray] | None:
    """The log p and log q of the draws that a log likelihood has; None where they are not known."""
    stats = tree["sample_stats"].to_dataset()
    if not {"log_p", "log_q"} <= set(stats):
        return None
    log_p, log_q = (stats[name].sel(draw=values.draw) for name in ("log_p", "log_q"))
    return (log_p, log_q) if np.isfinite(log_p - log_q).any() else None
