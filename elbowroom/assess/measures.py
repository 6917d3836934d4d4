"""The numbers that tell how good a fit is, from its draws and its ArviZ tree."""

import warnings
from typing import Any

import arviz_stats
import numpy as np
import xarray

from elbowroom.density.importance import k_hat_threshold
from elbowroom.draws.weighted import WeightedDraws

NAN = float("nan")


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
        elpd_loo, elpd_loo_se, p_loo and high_k_rows, the share of rows whose Pareto k is too high.
    """
    group = tree.children.get("log_likelihood")
    if group is None or len(group.data_vars) != 1:
        return no_loo()
    (values,) = group.data_vars.values()
    if values.ndim < 3 or values.shape[1] < 100:
        return no_loo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of high Pareto k: reported below as a number
        # Draws of a guide are independent, so that none is lost to autocorrelation.
        try:
            loo = arviz_stats.loo(tree, pointwise=True, reff=1.0)
        except ValueError:  # a row whose likelihood is the same for every draw has no tail
            return no_loo()
    high = float(np.mean(np.asarray(loo.pareto_k) > loo.good_k))
    return {
        "elpd_loo": float(loo.elpd),
        "elpd_loo_se": float(loo.se),
        "p_loo": float(loo.p),
        "high_k_rows": high,
    }
